"""What this package raises. Each class is also the built-in one that fits.

Besides these there are `OSError` and its subclasses from the system (`FileNotFoundError` and the
like), `MemoryError`, and `TypeError` for arguments of another kind than stated.
"""

from __future__ import annotations


class Error(Exception):
    """The base of all errors of this package."""

    def __str__(self) -> str:
        # Not as KeyError has it, in quotes.
        return Exception.__str__(self)


class InputError(Error, ValueError):
    """A parameter, a vector or an id that is not allowed; the message names it and what is."""


class DimensionError(InputError):
    """Vectors of another dimension than the index has, or arrays of too many axes."""


class UnknownIdError(Error, KeyError):
    """An id that is not in the index, where one is needed."""


class FormatError(Error, ValueError):
    """A file that is not an index, or truncated, or damaged, or of a newer version."""


class LockedError(Error, OSError):
    """A file that is open elsewhere: one writer or many readers may have it."""


class ReadOnlyError(Error, PermissionError):
    """A change of an index that was opened for reading."""


class ChangedError(Error, RuntimeError):
    """An iterator that was used after its index had changed."""
