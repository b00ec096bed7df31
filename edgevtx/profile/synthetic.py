"""Frames for profiling where no camera or file is at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError


def synthetic_frames(size: tuple[int, int], count: int) -> list[NDArray[np.uint8]]:
    """`count` frames (H,W,3) uint8 BGR of `size` (height, width): a moving gradient with moving shapes.

    Not noise: a detector answers noise with nothing, and its decoding would look cheaper than it is.
    """
    height, width = size
    if height < 1 or width < 1 or count < 1:
        raise InputError(f"synthetic frames need a positive size and count, but got {width}x{height} and {count}")
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return [_frame(y / height, x / width, index / count) for index in range(count)]


def _frame(y: NDArray[np.float32], x: NDArray[np.float32], phase: float) -> NDArray[np.uint8]:
    """One frame at `phase` 0..1 of a cycle; `y` and `x` are 0..1 over the frame."""
    turn = 2 * np.pi * phase
    image = np.stack([200 - 80 * y, 120 + 60 * np.sin(6 * x + turn), 90 + 100 * y * x], axis=-1)
    for shape, colour in enumerate([(40, 60, 220), (60, 200, 80), (230, 220, 210)]):
        cx = 0.5 + 0.35 * np.cos(turn + 2.1 * shape)
        cy = 0.5 + 0.30 * np.sin(turn + 2.1 * shape)
        radius = 0.06 + 0.03 * shape
        disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        image[disc] = colour
    column = np.abs(x - 0.2 - 0.6 * phase) < 0.03
    image[column & (y > 0.3)] *= 0.5
    pixels: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return pixels
