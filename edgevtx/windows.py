"""Sliding windows: a large image is answered in overlapping windows of one size, and their maps are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.manifest import Windows

Array = NDArray[Any]
Size = tuple[int, int]


def window_corners(size: Size, windows: Windows) -> list[tuple[int, int]]:
    """(top, left) of every window over an image of `size` (h,w), row by row.

    Windows lie `stride` apart; the last ones of a row and of a column are moved back into the image, as
    MMSegmentation's slide inference does. Raises `InputError` where the image is smaller than a window.
    """
    if any(side < window for side, window in zip(size, windows.size, strict=True)):
        raise InputError(
            f"this frame scales to {size[1]}x{size[0]} px, which holds no window of {windows.size[1]}x"
            f"{windows.size[0]} px; use frames or a roi that are less narrow, or export with smaller windows"
        )
    tops, lefts = (
        [min(i * stride, side - window) for i in range(1 + -(-(side - window) // stride))]
        for side, window, stride in zip(size, windows.size, windows.stride, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def cut_windows(image: Array, windows: Windows) -> Iterator[Array]:
    """(H,W,C) -> views (h,w,C), in the order of `window_corners`."""
    height, width = windows.size
    for top, left in window_corners((image.shape[0], image.shape[1]), windows):
        yield image[top : top + height, left : left + width]


def average_windows(maps: Iterator[Array], size: Size, windows: Windows) -> NDArray[np.float32]:
    """Each window's maps (C,h,w) float32, of the window's size -> (C,H,W): their mean where windows overlap."""
    height, width = windows.size
    total: NDArray[np.float32] | None = None
    count = np.zeros(size, np.float32)
    for (top, left), one in zip(window_corners(size, windows), maps, strict=True):
        if total is None:
            total = np.zeros((len(one), *size), np.float32)
        total[:, top : top + height, left : left + width] += one
        count[top : top + height, left : left + width] += 1
    assert total is not None  # window_corners gives at least one
    total /= count
    return total
