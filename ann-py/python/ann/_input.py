"""What users give, as the native half takes it: contiguous arrays of exact types."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Callable, NoReturn, Optional, Union

import numpy as np
import numpy.typing as npt

from ann.errors import DimensionError, InputError

Filter = Union[npt.ArrayLike, AbstractSet[int], Callable[[int], bool]]
Exact = Callable[[npt.NDArray[Any], int], Optional[float]]

MAX_ID = 2**63 - 1

_TYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
}


def vectors(x: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    """A matrix, or one vector, of the element type `dtype`."""
    array = np.asarray(x)
    want = _TYPES[dtype]
    if array.dtype != want:
        array = _converted(array, want, dtype)
    if array.ndim not in (1, 2):
        got = f"{array.ndim} of shape {array.shape}"
        raise DimensionError(f"1 axis (a vector) or 2 (a matrix of rows) are expected, not {got}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.array(array, order="C")
    return array


def ids(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """A list of ids; one id is a list of one."""
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1:
        raise InputError(f"ids are a list, not an array of shape {array.shape}")
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > MAX_ID:
        _refuse_ids(values)
    return np.ascontiguousarray(array, np.int64)


def chosen(filter: Filter | None) -> Any:
    """A filter: a mask as bytes, a list of ids, or a function."""
    if filter is None or callable(filter):
        return filter
    array = np.asarray(list(filter) if isinstance(filter, AbstractSet) else filter)
    if array.dtype != np.bool_:
        return ids(array)
    if array.ndim != 1:
        raise InputError(f"a filter is a mask with an element an id, not of shape {array.shape}")
    return np.ascontiguousarray(array).view(np.uint8)


def _refuse_ids(values: npt.ArrayLike) -> NoReturn:
    """Names the first of the values that is no id."""
    # As objects: numpy makes floats of integers that have no type in common.
    for row, id in enumerate(np.atleast_1d(np.asarray(values, object)).tolist()):
        if not isinstance(id, (int, np.integer)) or isinstance(id, bool):
            raise InputError(f"id {id!r} (row {row}) is not an integer from 0 to {MAX_ID}")
        if not 0 <= id <= MAX_ID:
            raise InputError(f"id {id} (row {row}) is not allowed: ids are from 0 to {MAX_ID}")
    raise InputError(f"ids are integers from 0 to {MAX_ID}, not {np.asarray(values).dtype}")


def _converted(array: npt.NDArray[Any], want: np.dtype[Any], dtype: str) -> npt.NDArray[Any]:
    # "V" is what the extension types are, such as bfloat16.
    if array.dtype.kind not in "biufV":
        raise InputError(f"vectors of type {array.dtype} cannot be converted to {dtype}")
    if want.kind in "iu" and array.dtype.kind != "b":
        _check_whole(array, want, dtype)
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused by name later
            return array.astype(want)
    except (TypeError, ValueError) as error:
        message = f"vectors of type {array.dtype} cannot be converted to {dtype}"
        raise InputError(message) from error


def _check_whole(array: npt.NDArray[Any], want: np.dtype[Any], dtype: str) -> None:
    """Refuses values that an integer type does not have."""
    info = np.iinfo(want)
    bad = ~((array >= info.min) & (array <= info.max))
    if array.dtype.kind not in "iu":
        bad |= array != np.rint(array)
    if bad.any():
        place = np.unravel_index(bad.argmax(), bad.shape)
        row, column = (int(place[0]), int(place[-1])) if bad.ndim > 1 else (0, int(place[0]))
        allowed = f"{dtype} takes whole numbers from {info.min} to {info.max}"
        raise InputError(f"row {row}, column {column} is {array[place]}: {allowed}")
