"""Counts, under callgrind, what searching over pages costs beside plain arrays, in instructions.

Each variant runs once with one pass over the queries and once with three; the difference is two
passes without the set-up. Valgrind knows no AVX-512, so both variants run the AVX2 kernels.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build() -> str:
    command = ["cargo", "bench", "-p", "ann-core", "--bench", "pages", "--no-run"]
    lines = subprocess.run(
        [*command, "--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    return next(m["executable"] for m in messages if m.get("target", {}).get("name") == "pages")


def instructions(executable: str, which: str, index: Path, passes: int) -> int:
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={index.parent / 'out'}"]
    done = subprocess.run(
        [*command, executable, which, str(index), str(passes)],
        check=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def main() -> None:
    if shutil.which("valgrind") is None:
        sys.exit("missing: valgrind; install it with: sudo apt-get install -y valgrind")
    executable = build()
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index.ann"
        subprocess.run([executable, "save", str(index)], check=True)
        for which in ("pages", "plain"):
            few, many = (instructions(executable, which, index, passes) for passes in (1, 3))
            counts[which] = many - few
            print(f"{which}: {counts[which] / 2:,.0f} instructions a pass", flush=True)
    print(f"pages / plain: {counts['pages'] / counts['plain']:.4f}")


if __name__ == "__main__":
    main()
