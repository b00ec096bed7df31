"""Comparing a graph's or engine's outputs with the reference's: values first, then the task's answer.

One set of rules serves verification at export and the golden sample's replay on the device, so numpy is enough.
All functions take the decoded outputs of a graph by name, a batch of one or more, and return `Check`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevtx.manifest import Check, ClassifyDecode, Decode, DetectDecode
from edgevtx.runtimes.base import Array, Arrays

TIE = 10.0
"""A selection whose score lies within this many times the tensor error of the last one kept is a tie in fp32. Values
are judged as well, so that a large error cannot excuse itself as a tie."""

PEAK = 10.0
"""How much more than the mean one element may be off; see `error_of`."""

SENSITIVE = 100.0
"""Outputs that should differ must do so by this many times the tolerance, or they could not have shown a fault."""


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost.

    `values`: largest `error_of` a tensor, in standard deviations of the reference's. `rows`: whether every one of the
    K best must be there, and not only the task's answer; a lower precision selects other rows where little is found.
    `iou`, `agreement`: a share `agreement` of the boxes must be matched at `iou` with the same class, and the same
    share of images must keep its top class. `cosine`: smallest cosine of feature vectors. `tie`: see `TIE`; `ties`:
    largest share of ties.
    """

    values: float
    rows: bool
    iou: float
    agreement: float
    cosine: float
    tie: float
    ties: float = 0.05


TOLERANCES = {
    "fp32": Tolerance(values=1e-4, rows=True, iou=0.99, agreement=1.0, cosine=0.9999, tie=TIE),
    # two scores can change places only if both are off by half of what lies between them
    "bf16": Tolerance(values=0.1, rows=False, iou=0.95, agreement=0.99, cosine=0.99, tie=2.0),
}


def compare(reference: Arrays, outputs: Arrays, decode: Decode, precision: str) -> tuple[Check, ...]:
    """Compare names and shapes, then values, then the task's answer.

    Nothing is compared further where names or shapes differ or a value is not finite. A check with `compared` 0 found
    nothing to compare on this input: it has not failed, and proves nothing.
    """
    tolerance = TOLERANCES[precision]
    form = _compare_form(reference, outputs)
    if not form.passed:
        return (form,)
    finite = _compare_finite(reference, outputs)
    if not finite.passed:
        return (form, finite)
    if isinstance(decode, DetectDecode):
        return (form, *_compare_detections(reference, outputs, decode, tolerance))
    if isinstance(decode, ClassifyDecode):
        return (form, *_compare_classes(reference, outputs, tolerance))
    return (form, *_compare_features(reference, outputs, tolerance))


def find_empty(checks: Sequence[Check], precision: str) -> Check | None:
    """A check that compared nothing and is missed: all, but for boxes where every one of the K best was compared."""
    rows = TOLERANCES[precision].rows
    return next((check for check in checks if check.compared == 0 and not (rows and "task: " in check.name)), None)


def sensitivity(first: Arrays, second: Arrays) -> float:
    """How far apart the outputs of two inputs are: the smallest over the float tensors of `error_of`."""
    floats = [name for name, array in first.items() if array.dtype.kind == "f"]
    return min(
        error_of(first[name], second[name]) if first[name].shape == second[name].shape else np.inf for name in floats
    )


def error_of(reference: Array, found: Array) -> float:
    """Root mean square difference in standard deviations of the reference; infinite where `found` is not finite.

    One element alone may be off by `PEAK` times as much: the error is a tenth of the largest difference where that is
    more. The mean tells arithmetic's noise from a fault, the peak catches a fault in few elements.
    """
    if reference.size == 0:
        return 0.0
    difference = np.abs(found.astype(np.float64) - reference)
    if not np.isfinite(difference).all():
        return float("inf")
    error = max(float(np.sqrt(np.mean(difference**2))), float(difference.max()) / PEAK)
    return error / (float(reference.std()) or 1.0)


def box_iou(first: Array, second: Array) -> Array:
    """Intersection over union of every box (N,4) xyxy with every box (M,4): (N,M) float64."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    iou: Array = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def assign(cost: Array) -> Array:
    """One-to-one assignment: for each row the column it is given, or -1. `cost` (N,M); infinite forbids a pair.

    Greedy by rising cost. An optimal assignment could only differ where two candidates are near enough to both
    be accepted, which does not change how many rows find a partner at the tolerances used here.
    """
    columns = np.full(cost.shape[0], -1, np.int64)
    taken = np.zeros(cost.shape[1], bool)
    for flat in np.argsort(cost, axis=None, kind="stable"):
        row, column = divmod(int(flat), cost.shape[1])
        if not np.isfinite(cost[row, column]):
            break
        if columns[row] < 0 and not taken[column]:
            columns[row], taken[column] = column, True
    return columns


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
    wrong = {name: int((~np.isfinite(outputs[name])).sum()) for name in reference}
    return Check(
        name="finite values",
        passed=not any(wrong.values()),
        compared=sum(array.size for array in reference.values()),
        error=float(sum(wrong.values())),
        tolerance=0.0,
        note=", ".join(f"{count} in {name} are not" for name, count in wrong.items() if count),
    )


def _values_check(name: str, reference: Array, found: Array, tolerance: Tolerance, ties: int = 0) -> Check:
    error = error_of(reference, found)
    return Check(
        name=f"values: {name}",
        passed=error <= tolerance.values,
        compared=int(reference.size),
        error=_round(error) if np.isfinite(error) else None,
        tolerance=tolerance.values,
        ties=ties,
    )


def _compare_features(reference: Arrays, outputs: Arrays, tolerance: Tolerance) -> list[Check]:
    checks = [_values_check(name, reference[name], outputs[name], tolerance) for name in reference]
    for name in ("cls", "patches"):
        want = reference[name].astype(np.float64).reshape(-1, reference[name].shape[-1])
        got = outputs[name].astype(np.float64).reshape(want.shape)
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
        cosine = float(((want * got).sum(axis=1) / np.maximum(norms, 1e-12)).min())
        checks.append(
            Check(
                name=f"task: cosine of {name}",
                passed=cosine >= tolerance.cosine,
                compared=len(want),
                error=_round(1 - cosine),
                tolerance=_round(1 - tolerance.cosine),
            )
        )
    return checks


def _compare_classes(reference: Arrays, outputs: Arrays, tolerance: Tolerance) -> list[Check]:
    """Scores are compared class by class, since two equal scores may swap their places."""
    wanted, got, missing, ties, wrong, unsorted = [], [], 0, 0, 0, 0
    for want_ids, want, ids, scores in zip(
        reference["class_ids"], reference["scores"], outputs["class_ids"], outputs["scores"], strict=True
    ):
        place = {int(class_id): at for at, class_id in enumerate(ids)}
        common = [at for at, class_id in enumerate(want_ids) if int(class_id) in place]
        found = np.array([scores[place[int(want_ids[at])]] for at in common])
        wanted.append(want[common])
        got.append(found)
        margin = tolerance.tie * (float(np.abs(found - want[common]).max()) if common else 0.0)
        lost = [at for at in range(len(want)) if at not in common]
        tied = sum(bool(want[at] - want[-1] <= margin) for at in lost)
        ties, missing = ties + tied, missing + len(lost) - tied
        unsorted += int((np.diff(scores) > margin).sum())
        if want_ids[0] != ids[0]:
            at = place.get(int(want_ids[0]))
            close = at is not None and bool(scores[0] - scores[at] <= margin)
            ties, wrong = ties + close, wrong + (not close)
    values = _values_check("scores", np.concatenate(wanted), np.concatenate(got), tolerance, ties)
    images, rows = reference["scores"].shape
    failed_rows = missing if tolerance.rows else 0
    allowed = (1 - tolerance.agreement) * images
    return [
        values,
        Check(
            name="task: classes",
            passed=failed_rows == 0
            and unsorted == 0
            and wrong <= allowed
            # one tie is luck, however few rows there are
            and (not tolerance.rows or ties <= max(1.0, tolerance.ties * images * rows)),
            compared=images,
            error=float(wrong + failed_rows + unsorted),
            tolerance=_round(allowed),
            ties=ties,
            note=f"{unsorted} scores out of order" if unsorted else "",
        ),
    ]


def _compare_detections(reference: Arrays, outputs: Arrays, decode: DetectDecode, tolerance: Tolerance) -> list[Check]:
    """Queries are a set: rows are matched one to one before their values are compared."""
    rows = [
        _match_rows(
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
            checks.append(_values_check(name, want, got, tolerance))
        total = compared + ties + lost
        checks.append(
            Check(
                name="values: rows without a partner",
                passed=lost == 0 and ties <= tolerance.ties * total,
                compared=total,
                error=float(lost),
                tolerance=0.0,
                ties=ties,
            )
        )
    checks.append(_boxes_check(reference, outputs, decode.threshold, tolerance))
    return checks


@dataclass(frozen=True)
class _Rows:
    matched: Array
    partners: Array
    ties: int
    lost: int


def _match_rows(reference: Arrays, outputs: Arrays, tolerance: Tolerance) -> _Rows:
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
    return _Rows(matched, partners[matched], ties, len(left) - ties)


def _boxes_check(reference: Arrays, outputs: Arrays, threshold: float, tolerance: Tolerance) -> Check:
    """The task's answer: every box above the threshold has a partner of its class on the other side."""
    total = found = 0
    worst = 1.0
    for n in range(len(reference["scores"])):
        for one, other in ((reference, outputs), (outputs, reference)):
            keep = one["scores"][n] > threshold
            iou = box_iou(one["boxes"][n][keep], other["boxes"][n])
            iou[one["class_ids"][n][keep][:, None] != other["class_ids"][n][None]] = 0.0
            # a partner just below the threshold is still the same answer: the score's error is judged as a value
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
        passed=missed <= allowed,
        compared=total,
        error=float(missed),
        tolerance=_round(allowed),
        note=f"smallest matched IoU {worst:.4f}" if total else "no box above the threshold",
    )


def _round(value: float) -> float:
    """Two significant digits: what a report can use, and what repeats from run to run."""
    return float(f"{value:.1e}")
