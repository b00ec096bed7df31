"""Prompted masks: the decoder's values, and the masks that they make at the decoder's own resolution."""

from __future__ import annotations

import numpy as np

from edgevtx.compare.tolerance import Tolerance, compare_values, round_error
from edgevtx.manifest import Check
from edgevtx.rules import PromptMasksDecode
from edgevtx.runtimes.base import Array, Arrays

FEWEST = 16
"""A mask of fewer px, in or out, says nothing of an intersection over union: one px decides it."""


def compare_masks(reference: Arrays, outputs: Arrays, rule: PromptMasksDecode, tolerance: Tolerance) -> list[Check]:
    """`low_res_logits` (P,M,h,w) and `iou` (P,M): values, and the share of masks that overlap as they must.

    Pixels whose logit lies as near to the threshold as the tolerance's `tie` times the error are ties: they belong to
    neither side, and there may be but few of them.
    """
    checks = compare_values(reference, outputs, rule, tolerance)
    want, got = (_masks(arrays, rule) for arrays in (reference, outputs))
    kept = telling(want.sum(1), want.shape[1])
    logits = reference["low_res_logits"].astype(np.float64)
    near = tolerance.tie * float(np.sqrt(np.mean((outputs["low_res_logits"] - logits) ** 2)))
    clear = (np.abs(logits - rule.mask_threshold) > near).reshape(want.shape)[kept]
    both, either = (want & got)[kept] & clear, (want | got)[kept] & clear
    iou = both.sum(1) / np.maximum(either.sum(1), 1)
    lost = int((iou < tolerance.iou).sum())
    ties = int((~clear).sum())
    share = lost / max(len(iou), 1)
    checks.append(
        Check(
            name="task: masks that overlap",
            level="task",
            passed=share <= 1 - tolerance.agreement and ties <= tolerance.ties * clear.size,
            compared=len(iou),
            error=round_error(share),
            tolerance=round_error(1 - tolerance.agreement),
            ties=ties,
            note=f"smallest IoU {iou.min():.4f}, at least {tolerance.iou}; {ties} of {clear.size} px are ties"
            if len(iou)
            else "",
        )
    )
    return checks


def count_masks(outputs: Arrays, rule: PromptMasksDecode) -> int:
    """Masks that are neither empty nor everything."""
    masks = _masks(outputs, rule)
    return int(telling(masks.sum(1), masks.shape[1]).sum())


def _masks(arrays: Arrays, rule: PromptMasksDecode) -> Array:
    logits = arrays["low_res_logits"]
    masks: Array = logits.reshape(-1, logits.shape[2] * logits.shape[3]) > rule.mask_threshold
    return masks


def telling(areas: Array, pixels: int) -> Array:
    """Which masks, by their areas in px of a map of `pixels`, are neither (nearly) empty nor everything: (R,) bool."""
    kept: Array = (areas >= FEWEST) & (areas <= pixels - FEWEST)
    return kept
