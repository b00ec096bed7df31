"""Objects found in a frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.results.base import LISTED, Array, Index, check, positions, rounded

if TYPE_CHECKING:
    from edgevtx.masks import MaskSet


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in a frame, best first.

    `boxes` (N,4) float32 xyxy in px of the frame; `scores` (N,) float32 in 0..1; `class_ids` (N,) int64;
    `labels` N names; `masks` the N objects' masks or None where the family gives none; `track_ids` (N,) int64 or None
    where nothing tracks. Indexing gives `Detections` again: `found[0]`, `found[:5]`, `found[found.scores > 0.5]`.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    labels: tuple[str, ...]
    masks: MaskSet | None = None
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        check("boxes", self.boxes, ("N", 4), np.float32)
        count = len(self.boxes)
        check("scores", self.scores, (count,), np.float32)
        check("class_ids", self.class_ids, (count,), np.int64)
        if len(self.labels) != count:
            raise InputError(f"labels must be {count} names, but got {len(self.labels)}")
        if self.masks is not None and len(self.masks) != count:
            raise InputError(f"masks must be {count}, one a detection, but got {len(self.masks)}")
        if self.track_ids is not None:
            check("track_ids", self.track_ids, (count,), np.int64)

    @classmethod
    def empty(cls) -> Detections:
        """Nothing found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detections]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, index: Index) -> Detections:
        chosen = positions(index, len(self))
        return Detections(
            self.boxes[chosen],
            self.scores[chosen],
            self.class_ids[chosen],
            tuple(self.labels[i] for i in chosen),
            None if self.masks is None else self.masks[chosen],
            None if self.track_ids is None else self.track_ids[chosen],
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"detections": [{"box": [x0, y0, x1, y1], "score", "class_id", "label"}, ...]}`, best first.

        Boxes are rounded to 0.01 px, scores to 1e-5; rows have a `mask`, COCO's run lengths, where the family gives
        masks, and a `track_id` where something tracks.
        """
        rows: list[dict[str, Any]] = [
            {
                "box": [rounded(value, 2) for value in box],
                "score": rounded(score, 5),
                "class_id": int(class_id),
                "label": label,
            }
            for box, score, class_id, label in zip(self.boxes, self.scores, self.class_ids, self.labels, strict=True)
        ]
        if self.masks is not None:
            for row, mask in zip(rows, self.masks.rle(), strict=True):
                row["mask"] = mask
        if self.track_ids is not None:
            for row, track_id in zip(rows, self.track_ids, strict=True):
                row["track_id"] = int(track_id)
        return {"detections": rows}

    def summary(self) -> str:
        """The best detections on one line, boxes in whole px."""
        rows = zip(self.labels[:LISTED], self.scores, self.boxes, strict=False)
        found = [f"{label} {score:.2f} [{' '.join(f'{v:.0f}' for v in box)}]" for label, score, box in rows]
        more = [f"and {len(self) - LISTED} more"] if len(self) > LISTED else []
        return "  ".join([*found, *more]) or "nothing found"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR with masks, boxes, labels and scores."""
        from edgevtx import draw

        return draw.draw_detections(frame, self)
