"""Comparing a graph's or engine's outputs with the reference's: values first, then the task's answer.

One set of rules serves verification at export and the golden sample's replay on the device, so numpy is enough.
All functions take the decoded outputs of a graph by name, a batch of one or more, and return `Check`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgevtx.compare.classify import compare_classes
from edgevtx.compare.detect import compare_detections, count_detections
from edgevtx.compare.embed import compare_features
from edgevtx.compare.panoptic import compare_panoptic
from edgevtx.compare.prompt import compare_masks, count_masks
from edgevtx.compare.segment import compare_segmentation, count_minority
from edgevtx.compare.tolerance import TOLERANCES, Tolerance, compare_values
from edgevtx.manifest import Check
from edgevtx.rules import (
    ClassifyDecode,
    Decode,
    DetectDecode,
    EmbedDecode,
    KnnDecode,
    PanopticDecode,
    PromptDecode,
    PromptMasksDecode,
    PyramidDecode,
    SegmentDecode,
)
from edgevtx.runtimes.base import Arrays

# the rule of a graph's decoding -> how its outputs are compared: (reference, outputs, rule, tolerance) -> checks
_TASKS: dict[type[Decode], Callable[[Arrays, Arrays, Any, Tolerance], list[Check]]] = {
    ClassifyDecode: compare_classes,
    DetectDecode: compare_detections,
    EmbedDecode: compare_features,
    KnnDecode: compare_features,
    PanopticDecode: compare_panoptic,
    PyramidDecode: compare_features,
    SegmentDecode: compare_segmentation,
    PromptDecode: compare_values,
    PromptMasksDecode: compare_masks,
}
# ... -> how much there is in outputs that a comparison could find wrong; 0 where all outputs are alike in that
_CONTENT: dict[type[Decode], Callable[[Arrays, Any], int]] = {
    DetectDecode: count_detections,
    PanopticDecode: count_detections,
    SegmentDecode: count_minority,
    PromptMasksDecode: count_masks,
}


def compare(
    reference: Arrays, outputs: Arrays, decode: Decode | None, precision: str, noise: Mapping[str, float] | None = None
) -> tuple[Check, ...]:
    """Compare names and shapes, then values, then the task's answer; `decode` None is a graph without a task.

    `noise` is the reference's own, by output, where it was measured; see `Tolerance`.

    Nothing is compared further where names or shapes differ or a value is not finite. A check with `compared` 0 found
    nothing to compare on this input: it has not failed, and proves nothing.
    """
    tolerance = replace(TOLERANCES[precision], noise=noise or {})
    form = _compare_form(reference, outputs)
    if not form.passed:
        return (form,)
    finite = _compare_finite(reference, outputs)
    if not finite.passed:
        return (form, finite)
    task = compare_values if decode is None else _TASKS[type(decode)]
    return (form, finite, *task(reference, outputs, decode, tolerance))


def content(outputs: Arrays, decode: Decode | None) -> int:
    """How much there is in a graph's outputs to compare, such as detections above the threshold."""
    count = None if decode is None else _CONTENT.get(type(decode))
    return count(outputs, decode) if count else 0


def find_empty(checks: Sequence[Check], precision: str) -> Check | None:
    """A check that compared nothing and is missed: all but the task's answer where every value is judged (fp32)."""
    spared = "task" if TOLERANCES[precision].rows else None
    return next((check for check in checks if check.compared == 0 and check.level != spared), None)


def _compare_form(reference: Arrays, outputs: Arrays) -> Check:
    wanted = {name: array.shape for name, array in reference.items()}
    found = {name: array.shape for name, array in outputs.items()}
    wrong = sorted(name for name in wanted if found.get(name) != wanted[name])
    note = f"{wrong[0]}: expected {wanted[wrong[0]]}, got {found.get(wrong[0], 'nothing')}" if wrong else ""
    return Check(
        name="names and shapes",
        passed=not wrong,
        compared=len(wanted),
        error=float(len(wrong)),
        tolerance=0.0,
        note=note,
    )


def _compare_finite(reference: Arrays, outputs: Arrays) -> Check:
    """NaN or infinity on either side is a fault: of two engines that both overflow neither proves the other."""
    wrong = {
        f"{name}{side}": int((~np.isfinite(arrays[name])).sum())
        for side, arrays in (("", outputs), (" of the reference", reference))
        for name in reference
    }
    return Check(
        name="finite values",
        passed=not any(wrong.values()),
        compared=sum(array.size for array in reference.values()),
        error=float(sum(wrong.values())),
        tolerance=0.0,
        note=", ".join(f"{count} in {name} are not" for name, count in wrong.items() if count),
    )
