"""Masks over a frame: a veil of colour and an outline each, the smallest on top."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.draw import PALETTE, canvas_of, check_size
from edgevtx.masks import MaskSet

VEIL = 0.5  # weight of a mask's colour over the frame


def draw_masks(frame: NDArray[Any], masks: MaskSet) -> NDArray[np.uint8]:
    """A copy of `frame` (H,W,3) uint8 BGR under the masks, each in a colour of the palette, with outlines.

    Raises `InputError` for masks of another frame's size.
    """
    canvas = canvas_of(frame)
    check_size(masks.size, canvas)
    for item in np.argsort(-masks.areas, kind="stable"):
        crop, (x, y) = masks.crops[item], masks.offsets[item]
        if not crop.size:
            continue
        view = canvas[y : y + crop.shape[0], x : x + crop.shape[1]]
        colour = np.array(PALETTE[int(item) % len(PALETTE)], np.float32)
        view[crop] = np.rint((1 - VEIL) * view[crop] + VEIL * colour)
        view[crop & ~_inside(crop)] = colour
    return canvas


def _inside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(h,w) -> where the neighbours above, below, left and right belong to the mask too; beyond the crop none does."""
    inside = np.zeros_like(mask)
    inside[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inside
