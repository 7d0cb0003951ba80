"""Data sets with exact ground truth, in the layout of ann-benchmarks."""


class DatasetError(Exception):
    """A data set cannot be made, read or named; the message is one line for the user."""


class FetchError(DatasetError):
    """A server cannot be reached or did not deliver what was asked for."""
