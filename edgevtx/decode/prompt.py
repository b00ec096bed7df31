"""Prompted masks: a decoder's low-resolution logits -> masks of the frame, as SAM's reference enlarges them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgevtx.decode.resample import Resampling
from edgevtx.decode.upsample import threshold_maps
from edgevtx.errors import InputError
from edgevtx.results import Masks

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import PromptDecode
    from edgevtx.runtimes.base import Array, Arrays


def decode_prompts(outputs: Arrays, geometry: Geometry, rule: PromptDecode, *, multimask: bool) -> Masks:
    """`low_res_logits` (P,M,h,w) and `iou` (P,M) of P prompts -> masks of the frame.

    With `multimask` the masks after the first, which are the ways to read a prompt; without, the first alone, which is
    for prompts that leave no doubt. As transformers' `post_process_masks`: bilinear to the input's size, cut to what
    shows the frame, bilinear to the frame's, thresholded.
    """
    chosen = slice(1, None) if multimask else slice(0, 1)
    logits = np.ascontiguousarray(outputs["low_res_logits"][:, chosen], np.float32)
    masks = threshold_maps(logits.reshape(-1, *logits.shape[2:]), resampling(geometry, rule), rule.mask_threshold)
    iou = np.array(outputs["iou"][:, chosen], np.float32)
    return Masks(masks, iou, logits, geometry=geometry, rule=rule)


def resampling(geometry: Geometry, rule: PromptDecode) -> Resampling:
    """How a decoder's maps lie over the frame."""
    return Resampling.of(geometry, rule.mask_size, via_input=True)


def stability_scores(logits: Array, geometry: Geometry, rule: PromptDecode) -> NDArray[np.float32]:
    """(N,h,w) logits -> (N,) float32 in 0..1: how little each mask changes with the threshold, in the frame's pixels.

    The intersection over union of what lies above the threshold plus and minus the rule's offset, which is the ratio
    of the two areas; 0 where nothing lies above the lower one. As transformers' and SAM's own mask generators.
    """
    maps = np.ascontiguousarray(logits, np.float32)
    inner, outer = (
        threshold_maps(maps, resampling(geometry, rule), rule.mask_threshold + sign * rule.stability_offset).areas
        for sign in (1, -1)
    )
    return np.divide(inner, outer, out=np.zeros(len(maps)), where=outer > 0).astype(np.float32)


def no_prompt(*_: object, **__: object) -> NoReturn:
    """An embedding alone is no answer."""
    raise InputError("an embedding has no answer of its own; open the bundle with edgevtx.load and prompt it")
