"""The class of every pixel of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.results.base import LISTED, Array, check, rounded


@dataclass(frozen=True, eq=False)
class SemanticSegmentation:
    """The class of every pixel of a frame.

    `class_map` (H,W) int32, -1 where the model did not look (outside the roi, cut off by a centred crop); `labels`
    the names of all classes, by class id; `scores` (H,W) float32 in 0..1, the probability of class 1, for models
    that have that one class beside the background, or None.
    """

    class_map: NDArray[np.int32]
    labels: tuple[str, ...]
    scores: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check("class_map", self.class_map, ("H", "W"), np.int32)
        if self.scores is not None:
            check("scores", self.scores, self.class_map.shape, np.float32)
        low, high = (self.class_map.min(), self.class_map.max()) if self.class_map.size else (0, -1)
        if low < -1 or high >= len(self.labels):
            raise InputError(f"class_map must hold -1 to {len(self.labels) - 1}, but holds {low} to {high}")

    @classmethod
    def empty(cls, size: tuple[int, int] = (0, 0)) -> SemanticSegmentation:
        """A frame of `size` (H,W) at which no model has looked."""
        return cls(np.full(size, -1, np.int32), ())

    @property
    def areas(self) -> NDArray[np.int64]:
        """(C,) int64: the number of pixels of each class."""
        return np.bincount(self.class_map.reshape(-1) + 1, minlength=1 + len(self.labels))[1:]

    def present(self) -> list[tuple[int, float]]:
        """The ids of the classes that occur, and their shares of what was looked at, largest first."""
        areas = self.areas
        order = np.argsort(-areas, kind="stable")
        return [(int(i), float(areas[i] / areas.sum())) for i in order if areas[i]]

    def summary(self) -> str:
        """One line: the classes with the largest shares of the frame."""
        present = self.present()
        more = [f"and {len(present) - LISTED} more"] if len(present) > LISTED else []
        words = [f"{self.labels[class_id]} {share:.1%}" for class_id, share in present[:LISTED]]
        return "  ".join([*words, *more]) or "nothing was looked at"

    def to_dict(self) -> dict[str, Any]:
        """`{"segmentation": {"size": [H, W], "classes": [{"class_id", "label", "area", "share", "rle"}, ...]}}`.

        The classes that occur, largest first: `area` in px, `share` of what was looked at, `rle` COCO's compressed
        run lengths of the class's mask. Where there are scores, their largest and mean are added.
        """
        from edgevtx.masks import MaskSet

        areas, present = self.areas, self.present()
        runs = MaskSet.from_labels(self.class_map, [class_id for class_id, _ in present]).rle()
        rows = [
            {
                "class_id": class_id,
                "label": self.labels[class_id],
                "area": int(areas[class_id]),
                "share": round(share, 5),
                "rle": run,
            }
            for (class_id, share), run in zip(present, runs, strict=True)
        ]
        facts: dict[str, Any] = {"size": list(self.class_map.shape), "classes": rows}
        if self.scores is not None and self.scores.size:
            facts |= {"max_score": rounded(self.scores.max(), 5), "mean_score": rounded(self.scores.mean(), 5)}
        return {"segmentation": facts}

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the classes as colours, with a legend."""
        from edgevtx import draw

        return draw.draw_segmentation(frame, self)
