"""Downloads: a file over HTTP with resume, and packages of the npm registry and of PyPI."""

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from datasets import FetchError

ATTEMPTS = 3  # failures in a row without a new byte
PAUSE = 1.0  # seconds before the first retry, doubled for each further one
TIMEOUT = 30  # seconds without a byte


def download(url: str, target: Path, part: Path) -> None:
    """Downloads to `target` by way of `part`, resuming what an earlier run left there."""
    note = part.with_name(part.name + ".json")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, furthest = 0, _size(part)
    while True:
        try:
            _transfer(url, part, note)
            break
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the file is now shorter than what is here
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise FetchError(f"cannot download {url}: {reason}") from error
        except ValueError as error:
            raise FetchError(f"cannot download {url}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
        failures = failures + 1 if _size(part) <= furthest else 1
        furthest = max(furthest, _size(part))
        if failures >= ATTEMPTS:
            kept = f"; {furthest:,} bytes are kept, the same command resumes" if furthest else ""
            raise FetchError(f"cannot download {url}: {reason}{kept}")
        time.sleep(PAUSE * 2 ** (failures - 1))
    os.replace(part, target)
    note.unlink(missing_ok=True)


def _transfer(url, part, note):
    """One request: continues the part if the server still has the same file, else starts over."""
    start, known = _size(part), _read_note(note)
    if start and start == known.get("length") and url == known.get("url"):
        return
    request = urllib.request.Request(url)
    if start and url == known.get("url"):
        request.add_header("Range", f"bytes={start}-")
        if known["validator"]:
            request.add_header("If-Range", known["validator"])
    with urllib.request.urlopen(request, timeout=TIMEOUT) as got:
        validator = _validator(got.headers)
        if got.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", got.headers.get("Content-Range", ""))
            length = int(span[2]) if span else None
            same = (length, validator) == (known["length"], known["validator"])
            if not span or int(span[1]) != start or not same:
                part.unlink()
                raise ConnectionError("the file on the server changed")
        else:
            start, length = 0, got.headers.get("Content-Length")
            length = None if length is None else int(length)
            note.write_text(json.dumps({"url": url, "validator": validator, "length": length}))
        bar = tqdm(total=length, initial=start, unit="B", unit_scale=True, disable=None)
        with bar, open(part, "ab" if start else "wb") as file:
            bar.set_description(url.rsplit("/", 1)[-1])
            while chunk := got.read(1 << 18):
                file.write(chunk)
                bar.update(len(chunk))
    size = _size(part)
    if length is not None and size != length:
        if size > length:  # kept, it would grow with every retry
            part.unlink()
        raise ConnectionError(f"the connection closed at {size:,} of {length:,} bytes")


def _validator(headers):
    """What tells one version of the file from the next; If-Range does not take weak tags."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _read_note(note):
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError):
        return {}


def _size(path):
    return path.stat().st_size if path.exists() else 0


def npm_tarball(package: str, version: str, sha512: str, folder: Path) -> Path:
    """The tarball of an npm package in `folder`, by `npm pack` or else by a plain download.

    `sha512` (base64) is the registry's `dist.integrity` of this version, checked either way.
    """
    npm = shutil.which("npm")
    tarball = (npm and _npm_pack(npm, f"{package}@{version}", folder)) or None
    if tarball is None:
        registry = _registry(npm)
        tarball = folder / f"{package}-{version}.tgz"
        try:
            url = f"{registry}/{package}/{version}"
            with urllib.request.urlopen(url, timeout=TIMEOUT) as got:
                download(json.load(got)["dist"]["tarball"], tarball, folder / "part")
        except (OSError, http.client.HTTPException, ValueError, KeyError, FetchError) as error:
            reason = getattr(error, "reason", error)
            hint = "" if npm else "; or install npm, if it knows a way: apt-get install npm"
            raise FetchError(
                f"cannot get {package}@{version} from the npm registry {registry} ({reason}): "
                f"check the network, or set NPM_CONFIG_REGISTRY to a registry within reach{hint}"
            ) from error
    digest = hashlib.sha512(tarball.read_bytes()).digest()
    if (found := base64.b64encode(digest).decode()) != sha512:
        raise FetchError(f"{tarball.name} has the SHA-512 {found}, expected {sha512}")
    return tarball


def _npm_pack(npm, spec, folder):
    """The packed tarball, or None where npm fails."""
    print(f"npm pack {spec} ...", file=sys.stderr, flush=True)
    try:
        # npm waits minutes for a silent registry: a look at the version tells soon if it answers.
        for seconds, words in ((TIMEOUT, ["view", spec, "version"]), (None, ["pack", spec])):
            command = [npm, *words, "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
            subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=seconds)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(folder.glob("*.tgz"), None)


def _registry(npm):
    name = os.environ.get("NPM_CONFIG_REGISTRY") or os.environ.get("npm_config_registry")
    if not name and npm:
        command = [npm, "config", "get", "registry"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        name = asked.stdout.strip() if asked.returncode == 0 else None
    return (name or "https://registry.npmjs.org").rstrip("/")


def pypi_wheel(package: str, version: str, sha256: str, folder: Path, *options: str) -> Path:
    """The wheel of a PyPI package in `folder`, by `pip download`, without what it depends on."""
    print(f"pip download {package}=={version} ...", file=sys.stderr, flush=True)
    flags = ["--no-deps", "--only-binary=:all:", "--quiet", *options, f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *flags, f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise FetchError(
            f"pip cannot download {package}=={version} ({''.join(said)}): "
            f"check the network, or set PIP_INDEX_URL to an index within reach"
        )
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != sha256:
        raise FetchError(f"{wheel.name} has the SHA-256 {found}, expected {sha256}")
    return wheel
