"""What the detectors share: box arithmetic in the graph, the number of rows kept, the reference's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgevtx.errors import InputError
from edgevtx.results import Detections


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) centre x, centre y, width, height -> x0, y0, x1, y1."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def keep_best(
    boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `top_k` rows with the highest scores of boxes (N,Q,4), scores (N,Q), class_ids (N,Q); all where K is Q."""
    if top_k == scores.shape[1]:
        return boxes, scores, class_ids
    best, rows = scores.topk(top_k, dim=1)
    return boxes.gather(1, rows[..., None].expand(-1, -1, 4)), best, class_ids.gather(1, rows)


def check_top_k(top_k: int | None, queries: int) -> int:
    """The rows that the graph keeps: `top_k`, or every query; raises `InputError` outside 1..queries."""
    if top_k is None:
        return queries
    if not 1 <= top_k <= queries:
        raise InputError(f"top_k is {top_k}, this checkpoint has {queries} object queries; choose 1 to {queries}")
    return top_k


def reference_detections(found: dict[str, Any], labels: tuple[str, ...], top_k: int) -> Detections:
    """A dict of transformers' post-processing as `Detections`: best first, `top_k` rows, boxes as they are."""
    scores, rows = found["scores"].sort(descending=True, stable=True)
    rows = rows[:top_k]
    ids = found["labels"][rows].numpy().astype(np.int64)
    return Detections(
        boxes=found["boxes"][rows].numpy().astype(np.float32),
        scores=scores[:top_k].numpy(),
        class_ids=ids,
        labels=tuple(labels[index] for index in ids),
    )
