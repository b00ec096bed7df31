"""Comparing our answer for a frame with the reference's: its own processor, model and post-processing.

The limits are the project's promise for fp32 where the host resizes exactly: the same classes, scores within 1e-3,
boxes within 0.5 px, all but a thousandth of the pixels of masks. Where the user chose a faster resize, the answer is
held to the limits of a lower precision.

`edgevtx.compare` compares what a graph or an engine gives; here it is what the user gets, in pixels of the frame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgevtx.compare.boxes import assign, box_iou
from edgevtx.compare.detect import compare_boxes
from edgevtx.compare.embed import cosines, smallest_cosine
from edgevtx.compare.prompt import telling
from edgevtx.compare.segment import minority
from edgevtx.compare.tolerance import TOLERANCES
from edgevtx.errors import InputError
from edgevtx.manifest import Check
from edgevtx.masks import MaskSet
from edgevtx.results import (
    Classification,
    Detections,
    Features,
    Masks,
    PanopticSegmentation,
    Result,
    SemanticSegmentation,
)
from edgevtx.runtimes.base import Array, Arrays

SCORE = 1e-3
PIXELS = 0.5
SAME_PIXELS = 0.999
"""The share of pixels that must have the reference's class, or lie in its mask: what is left are ties."""
CONFIDENT = 0.3
FEWEST = 20
"""Where fewer detections than this are confident, the best ones are compared whatever their score: a model that finds
nothing in an image must not pass for that."""

LOOSE = TOLERANCES["bf16"]
LOOSE_SCORE = 0.05
ALIKE = 1e-3
"""Scores within this share of the best one are all alike: a thousand times what rounding moves them."""


def compare_results(reference: Result, found: Result, *, exact: bool = True) -> Check:
    """Compare two results for the same frame; `error` is in units of the limit.

    `compared` says over how many items that could have shown a fault: 0 where the reference finds nothing, such as
    empty masks, one class everywhere, equal scores or vectors that are all alike. What is not finite on either side
    fails, also where it is so on both.
    `exact` False is for approximate resizing: 99% of boxes matched at IoU 0.95, the top class, cosine 0.99.
    """
    if type(reference) is not type(found) or type(reference) not in _RESULTS:
        raise InputError(f"cannot compare a {type(reference).__name__} with a {type(found).__name__}")
    for side, result in (("the reference", reference), ("the answer", found)):
        if not all(np.isfinite(array).all() for array in _floats(result)):
            return _check(0, float("inf"), f"NaN or infinity in {side}")
    return _RESULTS[type(reference)](reference, found, exact)


def _floats(result: Result) -> Iterator[Array]:
    """The float arrays of a result."""
    if isinstance(result, PanopticSegmentation):
        yield np.array([segment.score for segment in result.segments])
        result = result.detections
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        for array in value if isinstance(value, tuple) else (value,):
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                yield array


def _check(compared: int, error: float, note: str) -> Check:
    return Check(
        name="reference: processor, model and post-processing",
        level="reference",
        passed=error <= 1.0,
        compared=compared,
        error=float(f"{error:.1e}") if np.isfinite(error) else None,
        tolerance=1.0,
        note=note,
    )


def _detections(reference: Detections, found: Detections, exact: bool) -> Check:
    """Every detection above `CONFIDENT`, and the `FEWEST` best, need a partner within the limits on the other side."""
    if not exact:
        return _detections_loosely(reference, found)
    total, lost, worst_score, worst_px = 0, 0, 0.0, 0.0
    for one, other in ((reference, found), (found, reference)):
        best = np.argsort(-one.scores, kind="stable")
        fewest = min(FEWEST, len(best) // 2)  # of few rows, the last ones kept may be ties
        keep = best[: max(fewest, int((one.scores > CONFIDENT).sum()))]
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
    return _check(total, error, f"boxes within {worst_px:.2g} px, scores within {worst_score:.2g}, {lost} unmatched")


def _detections_loosely(reference: Detections, found: Detections) -> Check:
    """The share of detections clearly above `CONFIDENT` without a partner of their class at the looser IoU."""
    sides: list[Arrays] = [
        {"boxes": side.boxes[None], "scores": side.scores[None], "class_ids": side.class_ids[None]}
        for side in (reference, found)
    ]
    check = compare_boxes(sides[0], sides[1], CONFIDENT + LOOSE_SCORE, LOOSE)
    lost, total = check.error or 0.0, check.compared
    error = lost / max(total, 1) / (1 - LOOSE.agreement)
    return _check(total, error, f"{lost:g} of {total} boxes unmatched at IoU {LOOSE.iou}")


def _panoptic(reference: PanopticSegmentation, found: PanopticSegmentation, exact: bool) -> Check:
    """The detections as detections; the pixels of their masks and of the merged map; the same segments.

    A mask counts where its detection does: the pixels that differ are a share of those that it covers in either.
    Nothing was compared where all masks are empty, and where the map has one value all over, be it nothing or a single
    segment: boxes prove neither masks nor their merge.
    """
    boxes = _detections(reference.detections, found.detections, exact)
    limit = 1 - (SAME_PIXELS if exact else LOOSE.agreement)
    covered, differing = _mask_pixels(reference.detections, found.detections)
    changed = float((reference.segment_map != found.segment_map).mean())
    share = differing / max(covered, 1)
    sides = [[(one.id, one.class_id) for one in side.segments] for side in (reference, found)]
    gaps = [abs(a.score - b.score) for a, b in zip(reference.segments, found.segments, strict=False)]
    error = max(changed, share) / limit
    if exact and (sides[0] != sides[1] or max(gaps, default=0.0) > SCORE):
        error = float("inf")
    note = (
        f"{boxes.note}; {len(sides[0])} segments, found {len(sides[1])}; {changed:.2%} of the map's pixels differ, "
        f"{share:.2%} of the masks'"
    )
    if boxes.error is None:
        return _check(boxes.compared, float("inf"), note)
    shown = covered > 0 and minority(reference.segment_map) > 0
    return _check(boxes.compared + len(sides[0]) if shown else 0, max(error, boxes.error), note)


def _mask_pixels(reference: Detections, found: Detections) -> tuple[int, int]:
    """How many pixels the masks of confident detections cover in either, and how many of those in one alone."""
    if reference.masks is None or found.masks is None:
        raise InputError("masks are missing in one of the results; a panoptic segmentation's detections have masks")
    keep = np.argsort(-reference.scores, kind="stable")
    keep = keep[: max(min(FEWEST, len(keep) // 2), int((reference.scores > CONFIDENT).sum()))]
    cost = np.abs(reference.boxes[keep][:, None] - found.boxes[None]).max(2)
    cost[reference.class_ids[keep][:, None] != found.class_ids[None]] = np.inf
    partners = assign(cost)
    return _pixels(reference.masks[keep[partners >= 0]], found.masks[partners[partners >= 0]])


def _pixels(first: MaskSet, second: MaskSet) -> tuple[int, int]:
    """How many pixels the masks of two equally long sets cover, in either, and how many of those in one alone."""
    shared = sum(int(one.intersections(other)[0, 0]) for one, other in zip(first, second, strict=True))
    either = int(first.areas.sum() + second.areas.sum()) - shared
    return either, either - shared


def _classes(reference: Classification, found: Classification, exact: bool) -> Check:
    """The same classes with scores within the limit; classes whose scores are that close may swap places.

    The limit is half of what lies between the best and the last score where that is less, as with thousands of classes
    of which none stands out: any order would pass otherwise. Where all scores are alike nothing was compared.
    """
    scores = dict(zip(reference.class_ids.tolist(), reference.scores.tolist(), strict=True))
    last, best = min(scores.values()), max(scores.values())
    shown = len(scores) == 1 or best - last > ALIKE * best
    limit = SCORE if exact else LOOSE_SCORE
    if shown and len(scores) > 1:
        limit = min(limit, (best - last) / 2)
    gaps = [
        abs(score - scores[class_id]) if class_id in scores else max(0.0, score - last)
        for class_id, score in zip(found.class_ids.tolist(), found.scores.tolist(), strict=True)
    ]
    swapped = scores[int(reference.class_ids[0])] - scores.get(int(found.class_ids[0]), -1.0)
    error = max(max(gaps), swapped) / limit
    shared = sum(class_id in scores for class_id in found.class_ids.tolist())
    return _check(shared if shown else 0, error, f"scores within {max(gaps):.2g}")


def _features(reference: Features, found: Features, exact: bool) -> Check:
    """One minus the cosine of every feature vector within the limit."""
    limit = 1e-4 if exact else 1 - LOOSE.cosine
    worst, counts = 1.0, []
    if len(reference.maps) != len(found.maps):
        return _check(0, float("inf"), f"{len(found.maps)} maps, reference {len(reference.maps)}")
    pairs = [(reference.cls, found.cls), (reference.patches, found.patches)]
    pairs += zip(reference.maps[:-1], found.maps[:-1], strict=True)  # the last one is `patches`
    looks = [
        None if one.attention is None else one.attention.reshape(len(one.attention), -1) for one in (reference, found)
    ]
    pairs.append((looks[0], looks[1]))  # a head's map as one vector
    for want, got in pairs:
        if want is None and got is None:
            continue
        if want is None or got is None:
            return _check(0, float("inf"), "a vector that one side lacks")
        want, got = want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1])
        if want.shape != got.shape:
            return _check(0, float("inf"), f"features {got.shape}, reference {want.shape}")
        worst = min(worst, smallest_cosine(want, got))
        counts.append(_count_apart(want, limit))
    # heads whose attention is alike are nothing unusual, vectors of places that are all alike say nothing of places
    kinds = counts if looks[0] is None else counts[:-1]
    return _check(sum(counts) if all(kinds) else 0, (1 - worst) / limit, f"smallest cosine {worst:.6f}")


def _count_apart(vectors: Array, limit: float) -> int:
    """How many of the rows (R,D) point elsewhere than the row before does: if none, those of other places would pass.

    A row alone counts; whether it depends on the frame is for `edgevtx.export.verify.measure_sensitivity` to say.
    """
    if len(vectors) < 2:
        return len(vectors)
    return int((1 - cosines(vectors, np.roll(vectors, 1, axis=0)) > limit).sum())


def _masks(reference: Masks, found: Masks, exact: bool) -> Check:
    """The pixels of all masks: 99.9% of what they cover in either; predicted IoU within the limit."""
    if reference.iou.shape != found.iou.shape or reference.masks.size != found.masks.size:
        return _check(0, float("inf"), f"masks {found.iou.shape}, reference {reference.iou.shape}")
    covered, differing = _pixels(reference.masks, found.masks)
    share = differing / max(covered, 1)
    gap = float(np.abs(reference.iou - found.iou).max(initial=0.0))
    error = max(share / (1 - (SAME_PIXELS if exact else LOOSE.iou)), gap / (SCORE if exact else LOOSE_SCORE))
    shown = telling(reference.masks.areas, math.prod(reference.masks.size))
    return _check(int(shown.sum()), error, f"{share:.2g} of the masks' pixels differ, predicted IoU within {gap:.2g}")


def _segmentation(reference: SemanticSegmentation, found: SemanticSegmentation, exact: bool) -> Check:
    """The same class in all but a small share of the pixels, and scores within the limit."""
    if reference.class_map.shape != found.class_map.shape:
        return _check(0, float("inf"), f"a map of {found.class_map.shape}, reference {reference.class_map.shape}")
    differ = float((reference.class_map != found.class_map).mean())
    error = differ / (1 - (SAME_PIXELS if exact else LOOSE.agreement))
    note = f"{differ:.2g} of the pixels differ"
    if reference.scores is not None and found.scores is not None:
        # the reference's own resize is another one where ours is approximate: single pixels say nothing then
        gaps = np.abs(reference.scores - found.scores)
        gap = float(gaps.max(initial=0.0) if exact else gaps.mean())
        error = max(error, gap / (SCORE if exact else LOOSE_SCORE))
        note += f", scores within {gap:.2g}"
    # pixels that no model looked at (-1) say nothing
    return _check(minority(reference.class_map[reference.class_map >= 0]), error, note)


# (reference, found, exact) -> check; both are of the one type
_RESULTS: dict[type[Result], Callable[[Any, Any, bool], Check]] = {
    Detections: _detections,
    Classification: _classes,
    Features: _features,
    PanopticSegmentation: _panoptic,
    SemanticSegmentation: _segmentation,
    Masks: _masks,
}
