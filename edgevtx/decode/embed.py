"""Features: the backbone's vectors as they are, with the geometry of their patch grid."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from edgevtx.results import Features

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import EmbedDecode, PyramidDecode
    from edgevtx.runtimes.base import Array, Arrays


def decode_features(outputs: Arrays, geometry: Geometry, rule: EmbedDecode, labels: tuple[str, ...]) -> Features:
    """`cls` (D,), `patches` (h,w,D) and, where exported, `attention` (heads,h,w) -> features.

    The geometry's input is cut to the h x w patches of `patch_size` px: the patch embedding leaves out what is
    over at the right and bottom.
    """
    patches = _float32(outputs["patches"])
    height, width = patches.shape[:2]
    grid = dataclasses.replace(geometry, input_size=(height * rule.patch_size, width * rule.patch_size))
    return Features(
        cls=_float32(outputs["cls"]) if "cls" in outputs else None,
        patches=patches,
        attention=_float32(outputs["attention"]) if "attention" in outputs else None,
        geometry=grid,
    )


def decode_pyramid(outputs: Arrays, geometry: Geometry, rule: PyramidDecode, labels: tuple[str, ...]) -> Features:
    """The maps that the rule names, (h,w,D) each, and `cls` (D,) where exported -> features at several scales."""
    maps = [_float32(outputs[name]) for name in rule.maps]
    return Features.pyramid(maps, rule.strides, geometry, cls=_float32(outputs["cls"]) if "cls" in outputs else None)


def _float32(array: Array) -> Array:
    """A copy in float32, since a runtime may reuse its output buffers."""
    return np.array(array, np.float32)
