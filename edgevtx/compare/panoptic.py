"""Panoptic segmentation: the detections as of detectors, and the masks of the rows that are the same query."""

from __future__ import annotations

import numpy as np

from edgevtx.compare.detect import compare_detections, match_rows
from edgevtx.compare.tolerance import Tolerance, round_error, values_check
from edgevtx.manifest import Check
from edgevtx.rules import PanopticDecode
from edgevtx.runtimes.base import Array, Arrays

_ROWS = ("boxes", "scores", "class_ids")


def compare_panoptic(reference: Arrays, outputs: Arrays, rule: PanopticDecode, tolerance: Tolerance) -> list[Check]:
    """Rows are matched as detections; then their masks are compared by value, and as the areas they cover.

    The merged map is a function of these outputs; where queries overlap it can turn over as a whole by a rounding,
    so it is not judged here.
    """
    sides = [{name: side[name] for name in _ROWS} for side in (reference, outputs)]
    checks = compare_detections(sides[0], sides[1], rule, tolerance)
    images = [{name: side[name][n] for name in _ROWS} for n in range(len(reference["scores"])) for side in sides]
    rows = [match_rows(want, got, tolerance) for want, got in zip(images[::2], images[1::2], strict=True)]
    for name in ("no_object", "masks"):
        want = np.concatenate([reference[name][n][one.matched] for n, one in enumerate(rows)])
        got = np.concatenate([outputs[name][n][one.partners] for n, one in enumerate(rows)])
        checks.append(values_check(name, want, got, tolerance))
    checks.append(_masks_check(want, got, rule, tolerance))
    return checks


def _masks_check(reference: Array, found: Array, rule: PanopticDecode, tolerance: Tolerance) -> Check:
    """What all masks (R,h,w) cover, logits above the threshold's, as one intersection over union.

    Masks that are all empty, or everything, have nothing to compare.
    """
    level = float(np.log(rule.mask_threshold / (1 - rule.mask_threshold)))
    first, second = reference > level, found > level
    inside, union = int(first.sum()), int((first | second).sum())
    error = 1 - int((first & second).sum()) / union if union else 0.0
    return Check(
        name="task: masks",
        level="task",
        passed=error <= 1 - tolerance.iou,
        compared=min(inside, first.size - inside),
        error=round_error(error),
        tolerance=round_error(1 - tolerance.iou),
    )
