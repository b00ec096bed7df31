"""Segmentation: logits, and the class of every pixel at the decoder's resolution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.compare.tolerance import Tolerance, round_error, values_check
from edgevtx.manifest import Check
from edgevtx.rules import SegmentDecode
from edgevtx.runtimes.base import Array, Arrays


def compare_segmentation(reference: Arrays, outputs: Arrays, rule: SegmentDecode, tolerance: Tolerance) -> list[Check]:
    """A pixel whose two best classes lie within the tie's margin may change between them; few pixels may do so."""
    want, got = reference["logits"], outputs["logits"]
    classes, others = _classes(want, rule), _classes(got, rule)
    changed = classes != others
    margin = tolerance.tie * float(np.abs(want.astype(np.float64) - got).max(initial=0.0))
    ties = changed & (_lead(want, rule) <= margin)
    wrong, tied = int((changed & ~ties).sum()), int(ties.sum())
    allowed = (1 - tolerance.agreement) * classes.size
    return [
        values_check("logits", want, got, tolerance),
        Check(
            name="task: class of each pixel",
            level="task",
            passed=wrong <= allowed and tied <= tolerance.ties * classes.size,
            compared=minority(classes),
            error=float(wrong),
            tolerance=round_error(allowed),
            ties=tied,
            note=f"{len(np.unique(classes))} classes seen",
        ),
    ]


def count_minority(outputs: Arrays, rule: SegmentDecode) -> int:
    """See `minority`, of the classes that the outputs give."""
    return minority(_classes(outputs["logits"], rule))


def minority(classes: NDArray[np.integer[Any]]) -> int:
    """How many pixels are not of the most common class: where there are none, a wrong map is easily overlooked."""
    return int(classes.size - np.unique(classes, return_counts=True)[1].max(initial=0))


def _classes(logits: Array, rule: SegmentDecode) -> NDArray[np.int64]:
    """(N,C,h,w) -> (N,h,w)."""
    classes: NDArray[np.int64] = (
        logits.argmax(1) if rule.activation == "softmax" else (logits[:, 0] > _logit(rule)).astype(np.int64)
    )
    return classes


def _lead(logits: Array, rule: SegmentDecode) -> Array:
    """(N,C,h,w) -> (N,h,w): how far the best class is ahead of the next, or the logit is from the threshold."""
    if rule.activation == "sigmoid":
        return np.abs(logits[:, 0] - _logit(rule))
    if logits.shape[1] == 1:
        return np.full((len(logits), *logits.shape[2:]), np.inf)
    best = np.partition(logits, -2, axis=1)[:, -2:]
    lead: Array = best[:, 1] - best[:, 0]
    return lead


def _logit(rule: SegmentDecode) -> float:
    """The logit whose sigmoid is the threshold."""
    if not 0 < rule.threshold < 1:
        return math.inf if rule.threshold >= 1 else -math.inf
    return math.log(rule.threshold / (1 - rule.threshold))
