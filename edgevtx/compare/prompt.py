"""Prompted masks: the decoder's values, and the masks that they make at the decoder's own resolution."""

from __future__ import annotations

from edgevtx.compare.tolerance import Tolerance, compare_values, round_error
from edgevtx.manifest import Check, PromptMasksDecode
from edgevtx.runtimes.base import Array, Arrays

FEWEST = 16
"""A mask of fewer px, in or out, says nothing of an intersection over union: one px decides it."""


def compare_masks(reference: Arrays, outputs: Arrays, rule: PromptMasksDecode, tolerance: Tolerance) -> list[Check]:
    """`low_res_logits` (P,M,h,w) and `iou` (P,M): values, and the share of masks that overlap as they must."""
    checks = compare_values(reference, outputs, rule, tolerance)
    want, got = (_masks(arrays, rule) for arrays in (reference, outputs))
    kept = _telling(want)
    both, either = (want & got)[kept].sum(1), (want | got)[kept].sum(1)
    iou = both / either
    lost = int((iou < tolerance.iou).sum())
    share = lost / max(len(iou), 1)
    checks.append(
        Check(
            name="task: masks that overlap",
            passed=share <= 1 - tolerance.agreement,
            compared=len(iou),
            error=round_error(share),
            tolerance=round_error(1 - tolerance.agreement),
            note=f"smallest IoU {iou.min():.4f}, at least {tolerance.iou}" if len(iou) else "",
        )
    )
    return checks


def count_masks(outputs: Arrays, rule: PromptMasksDecode) -> int:
    """Masks that are neither empty nor everything."""
    return int(_telling(_masks(outputs, rule)).sum())


def _masks(arrays: Arrays, rule: PromptMasksDecode) -> Array:
    logits = arrays["low_res_logits"]
    masks: Array = logits.reshape(-1, logits.shape[2] * logits.shape[3]) > rule.mask_threshold
    return masks


def _telling(masks: Array) -> Array:
    areas = masks.sum(1)
    kept: Array = (areas >= FEWEST) & (areas <= masks.shape[1] - FEWEST)
    return kept
