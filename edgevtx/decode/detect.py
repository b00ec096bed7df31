"""Detection: the graph has already made probabilities and xyxy boxes, and kept the best K."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevtx.results import Detections, names_of

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.manifest import DetectDecode, PanopticDecode
    from edgevtx.runtimes.base import Arrays


def decode_detections(
    outputs: Arrays,
    geometry: Geometry,
    rule: DetectDecode | PanopticDecode,
    labels: tuple[str, ...],
    *,
    threshold: float | None = None,
    top_k: int | None = None,
) -> Detections:
    """`boxes` (K,4) xyxy in 0..1 of the valid input, `scores` (K,), `class_ids` (K,) -> detections in frame px.

    Keeps scores strictly above `threshold` (None: the rule's) and of those the `top_k` best, best first; equal
    scores stay in the graph's order. Boxes are not clipped to the frame, like those of transformers'
    `post_process_object_detection`: an object that is cut off by the frame's edge keeps its estimated extent.
    """
    scores = outputs["scores"]
    kept = np.flatnonzero(scores > (rule.threshold if threshold is None else threshold))
    kept = kept[np.argsort(-scores[kept], kind="stable")][:top_k]
    x0, y0, x1, y1 = geometry.valid_box
    span = np.array([x1 - x0, y1 - y0] * 2, np.float64)
    boxes = geometry.boxes_to_frame(outputs["boxes"][kept] * span + (x0, y0, x0, y0))
    class_ids = outputs["class_ids"][kept].astype(np.int64, copy=False)
    return Detections(
        boxes.astype(np.float32), scores[kept].astype(np.float32, copy=False), class_ids, names_of(class_ids, labels)
    )
