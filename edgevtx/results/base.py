"""What all results share: validated arrays, indexing, names, and rounding for JSON."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError

Array = NDArray[Any]
Index = SupportsIndex | slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.integer[Any]]
LISTED = 5
"""How many items a summary names."""


def check(name: str, array: object, shape: tuple[int | str, ...], dtype: type[np.generic]) -> None:
    """Raise `InputError` unless `array` has this dtype and shape; names in `shape` stand for any size."""
    wanted = f"{name} must be ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''}) {np.dtype(dtype)}"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{wanted}, but got {type(array).__name__}; pass a numpy array")
    sizes_fit = all(isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=False))
    if array.ndim != len(shape) or not sizes_fit or array.dtype != dtype:
        raise InputError(f"{wanted}, but got {array.shape} {array.dtype}")


def positions(index: Index, length: int) -> NDArray[np.intp]:
    """The item numbers that an int, slice, bool mask or index array selects from `length` items."""
    if isinstance(index, slice):
        return np.arange(length)[index]
    if not isinstance(index, np.ndarray | Sequence):
        return np.arange(length)[[operator.index(index)]]
    chosen = np.asarray(index)
    return np.arange(length)[chosen if chosen.size else chosen.astype(np.intp).reshape(-1)]


def names_of(class_ids: NDArray[np.int64], labels: Sequence[str]) -> tuple[str, ...]:
    """The name of each class id; its number where the bundle names no such class."""
    return tuple(labels[i] if 0 <= i < len(labels) else str(i) for i in class_ids.tolist())


def rounded(value: np.floating[Any], digits: int) -> float:
    return round(float(value), digits)
