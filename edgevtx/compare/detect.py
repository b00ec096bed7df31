"""Detections: queries are a set, so rows are matched one to one before their values are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevtx.compare.boxes import assign, box_iou
from edgevtx.compare.tolerance import Tolerance, round_error, values_check
from edgevtx.manifest import Check
from edgevtx.rules import DetectDecode, PanopticDecode
from edgevtx.runtimes.base import Array, Arrays


def compare_detections(
    reference: Arrays, outputs: Arrays, rule: DetectDecode | PanopticDecode, tolerance: Tolerance
) -> list[Check]:
    """Queries are a set: rows are matched one to one before their values are compared."""
    rows = [
        match_rows(
            {name: reference[name][n] for name in reference}, {name: outputs[name][n] for name in reference}, tolerance
        )
        for n in range(len(reference["scores"]))
    ]
    compared = sum(len(row.matched) for row in rows)
    ties, lost = sum(row.ties for row in rows), sum(row.lost for row in rows)
    checks = []
    if tolerance.rows:
        for name in ("boxes", "scores"):
            want = np.concatenate([reference[name][n][row.matched] for n, row in enumerate(rows)])
            got = np.concatenate([outputs[name][n][row.partners] for n, row in enumerate(rows)])
            checks.append(values_check(name, want, got, tolerance))
        total = compared + ties + lost
        checks.append(
            Check(
                name="values: rows without a partner",
                level="values",
                passed=lost == 0 and ties <= tolerance.ties * total,
                compared=total,
                error=float(lost),
                tolerance=0.0,
                ties=ties,
            )
        )
    checks.append(compare_boxes(reference, outputs, rule.threshold, tolerance))
    return checks


def count_detections(outputs: Arrays, rule: DetectDecode | PanopticDecode) -> int:
    """Rows above the threshold."""
    return int((outputs["scores"] > rule.threshold).sum())


@dataclass(frozen=True)
class Rows:
    """Which rows have a partner, its row on the other side, and how many of the others are ties or lost."""

    matched: Array
    partners: Array
    ties: int
    lost: int


def match_rows(reference: Arrays, outputs: Arrays, tolerance: Tolerance) -> Rows:
    """Match the K rows of one image by class, box and score; count the rest as ties or as lost."""
    gap = np.abs(reference["boxes"][:, None].astype(np.float64) - outputs["boxes"][None]).max(axis=2)
    gap = gap + np.abs(reference["scores"][:, None].astype(np.float64) - outputs["scores"][None])
    same = reference["class_ids"][:, None] == outputs["class_ids"][None]
    # 0.05: of the image's side and of the score; farther is not the same query at any precision
    partners = assign(np.where(same & (gap < 0.05), gap, np.inf))
    matched = np.flatnonzero(partners >= 0)
    errors = np.abs(reference["scores"][matched] - outputs["scores"][partners[matched]])
    margin = tolerance.tie * float(errors.max(initial=0.0))
    left = reference["scores"][partners < 0]
    ties = int((left - reference["scores"].min(initial=np.inf) <= margin).sum())
    return Rows(matched, partners[matched], ties, len(left) - ties)


def compare_boxes(reference: Arrays, outputs: Arrays, threshold: float, tolerance: Tolerance) -> Check:
    """The task's answer: every box above the threshold has a partner of its class on the other side.

    Boxes (N,K,4), scores (N,K) and class_ids (N,K) by name; `error` counts boxes without a partner, of both sides.
    """
    total = found = 0
    worst = 1.0
    for n in range(len(reference["scores"])):
        for one, other in ((reference, outputs), (outputs, reference)):
            keep = one["scores"][n] > threshold
            iou = box_iou(one["boxes"][n][keep], other["boxes"][n])
            iou[one["class_ids"][n][keep][:, None] != other["class_ids"][n][None]] = 0.0
            # a partner just below the threshold is still the same answer; how far its score is off is judged in fp32
            # alone, where values are
            iou[:, other["scores"][n] < threshold - 0.05] = 0.0
            partners = assign(np.where(iou >= tolerance.iou, 1.0 - iou, np.inf))
            hit = partners >= 0
            total, found = total + len(hit), found + int(hit.sum())
            if hit.any():
                worst = min(worst, float(iou[hit, partners[hit]].min()))
    missed = total - found
    allowed = (1 - tolerance.agreement) * total
    return Check(
        name=f"task: boxes above {threshold:g}",
        level="task",
        passed=missed <= allowed,
        compared=total,
        error=float(missed),
        tolerance=round_error(allowed),
        note=f"smallest matched IoU {worst:.4f}" if total else "no box above the threshold",
    )
