"""Files out of Debian packages that apt-get downloads; nothing is installed, no root needed."""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from datasets import DatasetError, FetchError

MISSING = {
    "apt-get": "make this set on Debian or in a container of it: docker run -it debian:12",
    "dpkg-deb": "install it with: sudo apt-get install dpkg",
}


def files(
    packages: Sequence[str], wanted: Callable[[str], bool], folder: Path
) -> "tuple[dict[str, bytes], str]":
    """The files of these packages whose path is `wanted`, and the packages with their versions.

    Files are keyed by "package/path" in sorted order. Downloads are kept in `folder` meanwhile.
    """
    for tool, advice in MISSING.items():
        if not shutil.which(tool):
            raise DatasetError(f"{tool} is missing: {advice}")
    with TemporaryDirectory(prefix=".deb-", dir=folder) as part:
        _download(packages, part)
        # NAME_VERSION_ARCHITECTURE.deb, the colon of a version written as %3a
        debs = {deb.name.split("_")[0]: deb for deb in Path(part).glob("*.deb")}
        versions = [f"{name} {unquote(debs[name].name.split('_')[1])}" for name in sorted(debs)]
        found = {
            f"{name}/{path}": data for name in debs for path, data in _read(debs[name], wanted)
        }
    return dict(sorted(found.items())), ", ".join(versions)


def _download(packages, folder):
    print(f"apt-get download {' '.join(packages)} ...", file=sys.stderr, flush=True)
    command = ["apt-get", "download", "-qq", *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
        raise FetchError(
            f"apt-get cannot download ({'; '.join(said) or f'code {done.returncode}'}): "
            f"check the network, or renew the list of packages with: sudo apt-get update"
        )


def _read(deb, wanted):
    """(path, contents) of the wanted files; the package is read as a stream, never unpacked."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for entry in archive:
                    if entry.isfile() and wanted(entry.name):
                        yield entry.name.removeprefix("./"), archive.extractfile(entry).read()
        except tarfile.TarError as error:
            raise DatasetError(f"{deb.name} cannot be read: {error}") from error
