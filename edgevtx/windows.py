"""Sliding windows: a large image is answered in overlapping windows of one size, and their maps are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.rules import Windows
from edgevtx.runtimes.base import Arrays

Array = NDArray[Any]
Size = tuple[int, int]


def window_corners(size: Size, windows: Windows) -> list[tuple[int, int]]:
    """(top, left) of every window over an image of `size` (h,w), row by row.

    Windows lie `stride` apart; the last ones of a row and of a column are moved back into the image, as
    MMSegmentation's slide inference does. Over a side that is shorter than a window lies one, which sticks out.
    """
    tops, lefts = (
        [min(i * stride, room) for i in range(1 + -(-room // stride))]
        for room, stride in zip(
            (max(side - window, 0) for side, window in zip(size, windows.size, strict=True)),
            windows.stride,
            strict=True,
        )
    )
    return [(top, left) for top in tops for left in lefts]


def cut_windows(image: Array, windows: Windows | None) -> list[Array]:
    """(H,W,3) BGR -> views (h,w,3), in the order of `window_corners`; the whole image where there are no windows.

    An image smaller than a window is padded to it with the windows' `fill`. MMSegmentation gives its network a smaller
    window instead, which a graph of one size cannot take; in training it pads such images, as is done here.
    """
    if windows is None:
        return [image]
    corners = window_corners((image.shape[0], image.shape[1]), windows)
    height, width = windows.size
    if image.shape[0] < height or image.shape[1] < width:
        padded = np.empty((max(image.shape[0], height), max(image.shape[1], width), 3), image.dtype)
        padded[...] = windows.fill
        padded[: image.shape[0], : image.shape[1]] = image
        image = padded
    return [image[top : top + height, left : left + width] for top, left in corners]


def middle_window(image: Array, windows: Windows | None) -> Array:
    """What a graph is given of an image, as a sample of it: its middle window, or the whole image."""
    views = cut_windows(image, windows)
    return views[len(views) // 2]


def run_in_turns(run: Callable[[Arrays], Arrays], inputs: Arrays, batch: int | None, most: int | None = None) -> Arrays:
    """Run the rows of `inputs`, `batch` at a time, and put the outputs together; None: all at once, or `most` of them.

    A last turn that is shorter than `batch` repeats its last row, whose further answers are dropped.
    """
    count = len(inputs["pixels"])
    size = batch or min(count, most or count)
    if size == count:
        return run(inputs)
    turns = []
    for start in range(0, count, size):
        stop = start + size if batch else min(start + size, count)
        rows = np.minimum(np.arange(start, stop), count - 1)
        outputs = run({name: np.ascontiguousarray(array[rows]) for name, array in inputs.items()})
        # copies, since a runtime may reuse its output buffers
        turns.append({name: array[: count - start].copy() for name, array in outputs.items()})
    return {name: np.concatenate([turn[name] for turn in turns]) for name in turns[0]}


def average_windows(maps: Iterator[Array], size: Size, windows: Windows) -> NDArray[np.float32]:
    """Each window's maps (C,h,w) float32, of the window's size -> (C,H,W): their mean where windows overlap.

    What of a window sticks out of the image is dropped.
    """
    height, width = windows.size
    total: NDArray[np.float32] | None = None
    count = np.zeros(size, np.float32)
    for (top, left), one in zip(window_corners(size, windows), maps, strict=True):
        if total is None:
            total = np.zeros((len(one), *size), np.float32)
        total[:, top : top + height, left : left + width] += one[:, : size[0] - top, : size[1] - left]
        count[top : top + height, left : left + width] += 1
    assert total is not None  # window_corners gives at least one
    total /= count
    return total
