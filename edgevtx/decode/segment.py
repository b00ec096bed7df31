"""Semantic segmentation: logits at the decoder's resolution -> the class of every pixel of the frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgevtx.decode.resample import Axis, Resampling, enlarge
from edgevtx.decode.upsample import argmax_maps
from edgevtx.errors import InputError
from edgevtx.results import SemanticSegmentation
from edgevtx.windows import average_windows, window_corners

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgevtx.geometry import Geometry, Size
    from edgevtx.rules import SegmentDecode, Windows
    from edgevtx.runtimes.base import Arrays


def decode_segmentation(
    outputs: Arrays,
    geometry: Geometry,
    rule: SegmentDecode,
    labels: tuple[str, ...],
    *,
    threshold: float | None = None,
) -> SemanticSegmentation:
    """`logits` (C,h,w) -> the class of each frame pixel, as the reference has it: resized logits, then the best.

    With the rule's "sigmoid" there is one map: class 1 is where the probability exceeds `threshold` (None: the
    rule's), and the probabilities are the scores. Raises `InputError` for a threshold where there is none.
    """
    if threshold is not None and rule.activation == "softmax":
        raise InputError("this model gives each pixel its best class, whatever its score; leave threshold out")
    logits = outputs["logits"].astype(np.float32, copy=False)
    resampling = frame_resampling(geometry, logits.shape[1:], rule.upsample)
    if rule.activation == "softmax":
        return SemanticSegmentation(argmax_maps(logits, resampling), labels)
    values = enlarge(logits, resampling, fill=np.nan)[0]
    scores = sigmoid(values)
    class_map = (scores > (rule.threshold if threshold is None else threshold)).astype(np.int32)
    unseen = np.isnan(values)
    class_map[unseen], scores[unseen] = -1, 0
    return SemanticSegmentation(class_map, labels, scores)


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)), which overflows to the right limit."""
    with np.errstate(over="ignore"):
        result: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-values))
    return result


def merge_windows(
    outputs: Arrays, geometries: Sequence[Geometry], rule: SegmentDecode, windows: Windows
) -> tuple[Iterator[Arrays], SegmentDecode]:
    """The rows of all windows of all frames -> one row of whole maps for each frame, and the rule for these.

    Each window's logits are enlarged to the window's size and averaged where windows overlap, before anything else,
    as MMSegmentation's slide inference does.
    """
    logits = outputs["logits"].astype(np.float32, copy=False)
    place = window_resampling(logits.shape[2:], windows.size, rule.upsample)

    def rows() -> Iterator[Arrays]:  # one at a time: whole maps are large
        first = 0
        for geometry in geometries:
            last = first + len(window_corners(geometry.input_size, windows))
            maps = (enlarge(one, place) for one in logits[first:last])
            yield {"logits": average_windows(maps, geometry.input_size, windows)}
            first = last

    return rows(), msgspec.structs.replace(rule, upsample=1)


@lru_cache(maxsize=8)  # a camera's frames are all alike
def frame_resampling(geometry: Geometry, size: Size, upsample: int) -> Resampling:
    """From maps (h,w) of the whole input to the frame, over `upsample` times their size and the input's."""
    whole = Resampling.of(geometry, (size[0] * upsample, size[1] * upsample), via_input=True)
    return _after_upsampling(whole, size, upsample)


@lru_cache(maxsize=8)
def window_resampling(size: Size, window: Size, upsample: int) -> Resampling:
    """From a window's maps (h,w) to its pixels, over `upsample` times their size."""
    whole = Resampling.resize((size[0] * upsample, size[1] * upsample), window)
    return _after_upsampling(whole, size, upsample)


def _after_upsampling(whole: Resampling, size: Size, upsample: int) -> Resampling:
    if upsample == 1:
        return whole
    rows, cols = (
        axis.after(Axis.resize(side, side * upsample))
        for axis, side in zip((whole.rows, whole.cols), size, strict=True)
    )
    return dataclasses.replace(whole, rows=rows, cols=cols)
