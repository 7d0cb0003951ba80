"""Short English texts: definitions and quotations of the dictionaries that Debian packages."""

import gzip
import re
from collections.abc import Iterator, Mapping

import numpy as np

FILES = re.compile(r"wordnet/data\.(adj|adv|noun|verb)$|dictd/(gcide|foldoc)\.dict\.dz$")
WORDS = 5  # a text has at least so many
# The pronunciation between backslashes, and what is in brackets: etymology, source, obsoleteness.
ASIDES = re.compile(r"\\[^\\]*\\|\[[^\]]*\]")


def is_dictionary(path: str) -> bool:
    return FILES.search(path) is not None


def texts(files: Mapping[str, bytes]) -> "list[str]":
    """All texts without repeats (letter case aside), in a fixed shuffle."""
    first = {}
    for path, data in files.items():
        for text in _glosses(data) if "wordnet" in path else _paragraphs(data):
            if len(text.split()) >= WORDS:
                first.setdefault(text.casefold(), text)
    found = list(first.values())
    return [found[i] for i in np.random.RandomState(0).permutation(len(found))]


def _glosses(data: bytes) -> Iterator[str]:
    """WordNet's definitions with their examples; its licence at the top has no bar."""
    for line in data.decode().splitlines():
        _, bar, gloss = line.partition(" | ")
        if bar:
            yield gloss.strip()


def _paragraphs(data: bytes) -> Iterator[str]:
    """Paragraphs of a file of dictd, without markup and the number of the sense."""
    # A text of dictd is UTF-8; the few old bytes that are not are left out.
    whole = gzip.decompress(data).decode(errors="ignore")
    for paragraph in re.split(r"\n\s*\n", whole):
        plain = re.sub(r"[{}]", "", ASIDES.sub(" ", paragraph))
        yield re.sub(r"^\d+\. ?", "", " ".join(plain.split()))
