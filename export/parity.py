"""Comparing our answer for a frame with the reference's: its own processor, model and post-processing.

The limits are the project's promise for fp32: the same classes, scores within 1e-3, boxes within 0.5 px.
"""

from __future__ import annotations

import numpy as np

from edgevtx.compare import assign, box_iou
from edgevtx.errors import InputError
from edgevtx.manifest import Check
from edgevtx.results import Classification, Detections, Features, Result

SCORE = 1e-3
PIXELS = 0.5
CONFIDENT = 0.3


def compare_results(reference: Result, found: Result) -> Check:
    """Compare two results for the same frame; `compared` says over how many items, `error` in units of the limit."""
    if isinstance(reference, Detections) and isinstance(found, Detections):
        return _detections(reference, found)
    if isinstance(reference, Classification) and isinstance(found, Classification):
        return _classes(reference, found)
    if isinstance(reference, Features) and isinstance(found, Features):
        return _features(reference, found)
    raise InputError(f"cannot compare a {type(reference).__name__} with a {type(found).__name__}")


def _check(compared: int, error: float, note: str) -> Check:
    return Check(
        name="reference: processor, model and post-processing",
        passed=error <= 1.0,
        compared=compared,
        error=float(f"{error:.1e}"),
        tolerance=1.0,
        note=note,
    )


def _detections(reference: Detections, found: Detections) -> Check:
    """Every detection above `CONFIDENT` on either side needs a partner within the limits on the other."""
    total, lost, worst_score, worst_px = 0, 0, 0.0, 0.0
    for one, other in ((reference, found), (found, reference)):
        keep = np.flatnonzero(one.scores > CONFIDENT)
        iou = box_iou(one.boxes[keep], other.boxes)
        score_gap = np.abs(one.scores[keep][:, None] - other.scores[None])
        cost = (1.0 - iou) + score_gap
        cost[(one.class_ids[keep][:, None] != other.class_ids[None]) | (iou < 0.5) | (score_gap > 0.1)] = np.inf
        partners = assign(cost)
        hit = partners >= 0
        total, lost = total + len(keep), lost + int((~hit).sum())
        gaps = np.abs(one.boxes[keep][hit] - other.boxes[partners[hit]])
        worst_px = max(worst_px, float(gaps.max(initial=0.0)))
        worst_score = max(worst_score, float(score_gap[np.flatnonzero(hit), partners[hit]].max(initial=0.0)))
    error = float("inf") if lost else max(worst_px / PIXELS, worst_score / SCORE)
    return _check(
        total, error, f"boxes within {worst_px:.2g} px, scores within {worst_score:.2g}, {lost} unmatched"
    )


def _classes(reference: Classification, found: Classification) -> Check:
    """The same classes with scores within the limit; classes whose scores are that close may swap places."""
    scores = dict(zip(reference.class_ids.tolist(), reference.scores.tolist(), strict=True))
    last = min(scores.values())
    gaps = [
        abs(score - scores[class_id]) if class_id in scores else max(0.0, score - last)
        for class_id, score in zip(found.class_ids.tolist(), found.scores.tolist(), strict=True)
    ]
    swapped = scores[int(reference.class_ids[0])] - scores.get(int(found.class_ids[0]), -1.0)
    error = max(max(gaps), swapped) / SCORE
    return _check(len(gaps), error, f"scores within {max(gaps):.2g}")


def _features(reference: Features, found: Features) -> Check:
    """Cosine of every feature vector at least 0.9999."""
    worst, total = 1.0, 0
    for want, got in ((reference.cls, found.cls), (reference.patches, found.patches)):
        if want is None or got is None:
            continue
        want, got = want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1])
        if want.shape != got.shape:
            return _check(0, float("inf"), f"features {got.shape}, reference {want.shape}")
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
        worst = min(worst, float(((want * got).sum(axis=1) / np.maximum(norms, 1e-12)).min()))
        total += len(want)
    return _check(total, (1 - worst) / 1e-4, f"smallest cosine {worst:.6f}")
