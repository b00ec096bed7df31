"""Pairing boxes: intersection over union, and a one-to-one assignment."""

from __future__ import annotations

import numpy as np

from edgevtx.runtimes.base import Array


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
