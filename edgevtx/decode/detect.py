"""Detection: the graph has already made probabilities and xyxy boxes, and kept the best K."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevtx.compare.boxes import box_iou
from edgevtx.results import Detections, names_of

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import DetectDecode
    from edgevtx.runtimes.base import Array, Arrays


def decode_detections(
    outputs: Arrays,
    geometry: Geometry,
    rule: DetectDecode,
    labels: tuple[str, ...],
    *,
    threshold: float | None = None,
    top_k: int | None = None,
) -> Detections:
    """`boxes` (K,4) xyxy in 0..1, `scores` (K,), `class_ids` (K,) -> detections in frame px.

    Keeps scores strictly above `threshold` (None: the rule's), of those what the rule's suppression leaves, and of
    those the `top_k` best, best first; equal scores stay in the graph's order. Boxes are not clipped to the frame, like
    those of transformers' `post_process_object_detection`: an object that is cut off by the frame's edge keeps its
    estimated extent.
    """
    scores = outputs["scores"]
    kept = np.flatnonzero(scores > (rule.threshold if threshold is None else threshold))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    if rule.suppress is not None:
        rows = suppress(outputs["boxes"][kept], outputs["class_ids"][kept], rule.suppress.iou)
        kept = kept[rows[: rule.suppress.keep]]
    kept = kept[:top_k]
    height, width = geometry.input_size
    x0, y0, x1, y1 = geometry.valid_box if rule.units == "frame" else (0, 0, width, height)
    span = np.array([x1 - x0, y1 - y0] * 2, np.float64)
    boxes = geometry.boxes_to_frame(outputs["boxes"][kept] * span + (x0, y0, x0, y0))
    class_ids = outputs["class_ids"][kept].astype(np.int64, copy=False)
    return Detections(
        boxes.astype(np.float32), scores[kept].astype(np.float32, copy=False), class_ids, names_of(class_ids, labels)
    )


def suppress(boxes: Array, class_ids: Array, iou: float) -> Array:
    """Greedy non-maximum suppression in each class: the rows (M,) of boxes (N,4) xyxy, best first, that stay.

    A row is dropped where a better one of its class that stays overlaps it by more than `iou`. This is the rule of
    torchvision's `batched_nms`, which YOLOX's, YOLOv5's and YOLOv8's own post-processing come down to.
    """
    left, kept = np.arange(len(boxes)), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        overlap = box_iou(boxes[best : best + 1], boxes[left])[0]
        left = left[(overlap <= iou) | (class_ids[left] != class_ids[best])]
    return np.array(kept, np.intp)
