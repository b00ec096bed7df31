"""Panoptic segmentation as DETR's: every pixel goes to the query whose mask, weighed by its score, is the largest.

Carion et al., "End-to-End Object Detection with Transformers", 2020, section 4.4; equal to transformers'
`post_process_panoptic_segmentation`, whose areas and ids it takes over.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgevtx.decode.detect import decode_detections
from edgevtx.decode.resample import Floats, Resampling
from edgevtx.decode.upsample import Leaders, Reach, threshold_maps
from edgevtx.results import Detections, PanopticSegmentation, Segment, names_of
from edgevtx.rules import DetectDecode
from edgevtx.threads import each

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import PanopticDecode
    from edgevtx.runtimes.base import Array, Arrays


def decode_panoptic(
    outputs: Arrays,
    geometry: Geometry,
    rule: PanopticDecode,
    labels: tuple[str, ...],
    *,
    threshold: float | None = None,
    top_k: int | None = None,
) -> PanopticSegmentation:
    """One frame's outputs (see `PanopticDecode`) -> the segments of the frame, and the detections with their masks.

    Queries that score strictly above `threshold` (None: the rule's), and of those the `top_k` best, are detections;
    those of them for which "no object" is not the likeliest class take part in the map.
    """
    limit = rule.threshold if threshold is None else threshold
    chosen = np.flatnonzero(outputs["scores"] > limit)
    chosen = np.sort(chosen[np.argsort(-outputs["scores"][chosen], kind="stable")][:top_k])  # in the queries' order
    scores, class_ids = outputs["scores"][chosen], outputs["class_ids"][chosen].astype(np.int64)
    # of a padded batch only what shows the frame
    height, width = (-(-side // rule.stride) for side in geometry.input_size)
    maps = weighed_probabilities(outputs["masks"][:, :height, :width], chosen, scores)
    resampling = Resampling.of(geometry, (maps.shape[1], maps.shape[2]))
    boxes = {name: np.array(outputs[name]) for name in ("boxes", "scores", "class_ids")}  # a runtime reuses its own

    def detect() -> Detections:
        order = np.argsort(-scores, kind="stable")  # as decode_detections sorts
        masks = threshold_maps(maps[order], resampling, np.float32(rule.mask_threshold) * scores[order])
        rule_of_boxes = DetectDecode(top_k=rule.top_k, threshold=limit)
        found = decode_detections(boxes, geometry, rule_of_boxes, labels, top_k=top_k)
        return dataclasses.replace(found, masks=masks)

    taking_part = np.flatnonzero(scores >= outputs["no_object"][chosen])
    if not len(taking_part):
        return PanopticSegmentation(np.zeros(geometry.frame_size, np.int32), (), detect)
    candidates = maps if len(taking_part) == len(maps) else maps[taking_part]
    scores_of, kinds = scores[taking_part], class_ids[taking_part]
    leaders = Leaders.of(candidates, resampling)
    areas = leaders.areas()
    standing = np.zeros(len(candidates), np.bool_)
    for k in np.flatnonzero(areas):
        standing[k] = _stands(int(areas[k]), candidates[k], resampling, rule)
    ids = number_segments(kinds, standing, rule.label_ids_to_fuse)
    names = names_of(kinds, labels)
    segments = []
    for number in range(1, int(ids.max()) + 1):
        rows = np.flatnonzero(ids == number)  # several of a fused class
        first, score, area = rows[0], float(scores_of[rows].max()), int(areas[rows].sum())
        segments.append(Segment(number, int(kinds[first]), names[first], score, area))
    return PanopticSegmentation(leaders.paint(ids, fill=0), tuple(segments), detect)


def weighed_probabilities(logits: Array, rows: NDArray[np.intp], scores: NDArray[np.float32]) -> Floats:
    """Rows (R,) of logits (K,h,w) -> their sigmoid times the rows' scores, (R,h,w) float32.

    One map after the other, which stays in the cache over all steps.
    """
    maps = np.empty((len(rows), *logits.shape[1:]), np.float32)

    def weigh(i: int) -> None:
        one = maps[i]
        with np.errstate(over="ignore"):  # exp(100) is infinite, and its sigmoid 0
            np.negative(logits[rows[i]], out=one)
            np.exp(one, out=one)
            one += 1
            np.divide(scores[i], one, out=one)

    each(weigh, range(len(maps)))
    return maps


def _stands(area: int, one: Floats, resampling: Resampling, rule: PanopticDecode) -> bool:
    """Whether a query keeps enough of its own mask: what it won, by what its weighed mask (h,w) covers.

    The quotient is the reference's, in float32. What a mask covers is counted only where its bounds do not settle it.
    """

    def enough(covered: int) -> bool:
        return covered > 0 and float(np.float32(area) / np.float32(covered)) > rule.overlap_mask_area_threshold

    reach = Reach(one, resampling, rule.mask_threshold)
    if enough(reach.low) == enough(reach.high) and reach.low > 0:
        return enough(reach.low)
    return enough(reach.count())


def number_segments(
    class_ids: NDArray[np.int64], standing: NDArray[np.bool_], fused: tuple[int, ...]
) -> NDArray[np.int32]:
    """The id of each query's segment (K,) int32, 0 where it does not stand.

    Ids count up in the order of the queries; a fused class keeps the id that it had first. transformers counts on from
    the id given last, and so gives one id to several things after a fused class (huggingface/transformers#23461);
    DETR's authors do not, and neither is it done here.
    """
    ids, count, first = np.zeros(len(class_ids), np.int32), 0, dict[int, int]()
    for k in np.flatnonzero(standing):
        kind = int(class_ids[k])
        if kind not in first:
            count += 1
        ids[k] = first.get(kind, count)
        if kind in fused:
            first[kind] = int(ids[k])
    return ids
