"""Frames -> the graph's uint8 input: cut out, rotate, resize as the checkpoint's own processor does, crop or pad.

"Exact" means equal to Pillow's bytes, since Pillow does the resizing of the reference processors. Colour order,
scaling and normalisation are the graph's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.geometry import Geometry, Size, plan
from edgevtx.manifest import Interpolation, Letterbox, Preprocess

Array = NDArray[Any]
Frame = NDArray[np.uint8]


def prepare(
    frame: Array,
    preprocess: Preprocess,
    *,
    color: Literal["bgr", "rgb"] = "bgr",
    roi: Sequence[int] | None = None,
    rotation: int = 0,
    out: Frame | None = None,
) -> tuple[Frame, Geometry]:
    """A frame -> the graph's image input (h,w,3) uint8 BGR, and the geometry that maps results back.

    `frame` (H,W,3) uint8 in the order of `color`; grey (H,W) or (H,W,1) uint8 is repeated over the channels. `roi`
    x0, y0, x1, y1 in whole px of the frame, `rotation` degrees clockwise that make it upright; both are applied
    before resizing. `out` takes the result where it has the right shape and is C-contiguous, and is returned.
    Raises `InputError` for a frame, roi, rotation or `out` that cannot be used, and `RuntimeUnavailableError`
    where the bundle resizes with OpenCV and OpenCV is missing.
    """
    frame = check_frame(frame)
    if color not in ("bgr", "rgb"):
        raise InputError(f'color must be "bgr" or "rgb", but got {color!r}')
    geometry = plan((frame.shape[0], frame.shape[1]), preprocess, roi=roi, rotation=rotation)
    raise NotImplementedError


def check_frame(frame: object) -> Frame:
    """The frame itself, or `InputError` saying what it must be: (H,W,3), (H,W,1) or (H,W) uint8, not empty."""
    raise NotImplementedError


def pad_batch(arrays: Sequence[Frame]) -> tuple[Frame, NDArray[np.int32]]:
    """Inputs of unequal size -> one array (N,H,W,3) uint8, zero at the bottom and right, and their sizes.

    The sizes are `valid_size` (N,2) int32 (height, width); the graph zeroes what lies outside after normalising,
    as the reference processors pad.
    """
    raise NotImplementedError
