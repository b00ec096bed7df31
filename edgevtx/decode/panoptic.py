"""Panoptic segmentation as DETR's: every pixel goes to the query whose mask, weighed by its score, is the largest.

Carion et al., "End-to-End Object Detection with Transformers", 2020, section 4.4; equal to transformers'
`post_process_panoptic_segmentation`, whose areas and ids it takes over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgevtx.decode.detect import decode_detections
from edgevtx.decode.upsample import Floats, Leaders, Reach, Resampling, threshold_maps
from edgevtx.results import Detections, PanopticSegmentation, Segment, names_of

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.manifest import PanopticDecode
    from edgevtx.runtimes.base import Array, Arrays


def decode_panoptic(
    outputs: Arrays,
    geometry: Geometry,
    rule: PanopticDecode,
    labels: tuple[str, ...],
    *,
    threshold: float | None = None,
) -> PanopticSegmentation:
    """One frame's outputs (see `PanopticDecode`) -> the segments of the frame, and the detections with their masks.

    Queries that score strictly above `threshold` (None: the rule's) are detections; those of them for which "no
    object" is not the likeliest class take part in the map.
    """
    found = decode_detections(outputs, geometry, rule, labels, threshold=threshold)
    chosen = np.flatnonzero(outputs["scores"] > (rule.threshold if threshold is None else threshold))
    # of a padded batch only what shows the frame
    size = [-(-side // rule.stride) for side in geometry.input_size]
    maps = probabilities(outputs["masks"][chosen, : size[0], : size[1]])
    resampling = Resampling.of(geometry, (maps.shape[1], maps.shape[2]))

    scores = outputs["scores"][chosen]
    order = np.argsort(-scores, kind="stable")  # as decode_detections sorts
    masks = threshold_maps(maps[order], resampling, rule.mask_threshold)
    detections = Detections(found.boxes, found.scores, found.class_ids, found.labels, masks)

    taking_part = scores >= outputs["no_object"][chosen]
    maps, scores, class_ids = maps[taking_part], scores[taking_part], outputs["class_ids"][chosen][taking_part]
    if not len(maps):
        return PanopticSegmentation(np.zeros(geometry.frame_size, np.int32), (), detections)
    maps *= scores[:, None, None]
    leaders = Leaders.of(maps, resampling)
    areas = leaders.areas()
    standing = [area > 0 and _stands(int(area), one, resampling, rule) for area, one in zip(areas, maps, strict=True)]
    ids = number_segments(class_ids, np.array(standing, np.bool_), rule.label_ids_to_fuse)
    names = names_of(class_ids, labels)
    return PanopticSegmentation(
        leaders.paint(ids, fill=0),
        tuple(
            Segment(int(ids[k]), int(class_ids[k]), names[k], float(scores[k]), int(areas[k]))
            for k in np.flatnonzero(ids)
        ),
        detections,
    )


def probabilities(logits: Array) -> Floats:
    """The sigmoid of float logits, float32, as a new array."""
    values = np.negative(logits, dtype=np.float32)
    with np.errstate(over="ignore"):  # exp(100) is infinite, and its sigmoid 0
        np.exp(values, out=values)
    values += 1
    return np.reciprocal(values, out=values)


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

    Ids count up in the order of the queries; a fused class takes the id that it had first. As in the reference, the
    count goes on from the id given last: after a fused class an id can come twice.
    """
    ids, last, first = np.zeros(len(class_ids), np.int32), 0, dict[int, int]()
    for k in np.flatnonzero(standing):
        kind = int(class_ids[k])
        last = first.get(kind, last + 1)
        if kind in fused:
            first[kind] = last
        ids[k] = last
    return ids
