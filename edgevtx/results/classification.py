"""The best classes of a frame or a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.results.base import LISTED, Array, Index, check, positions, rounded


@dataclass(frozen=True, eq=False)
class Classification:
    """The best classes of a frame, best first.

    `class_ids` (K,) int64; `scores` (K,) float32 in 0..1, descending; `labels` K names. Indexing gives a
    `Classification` again: `found[0]` the best class, `found[:3]`, `found[found.scores > 0.5]`.
    """

    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        check("class_ids", self.class_ids, ("K",), np.int64)
        check("scores", self.scores, (len(self.class_ids),), np.float32)
        if len(self.labels) != len(self.class_ids):
            raise InputError(f"labels must be {len(self.class_ids)} names, but got {len(self.labels)}")

    @classmethod
    def empty(cls) -> Classification:
        """A classification without any class."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.float32), ())

    def __len__(self) -> int:
        return len(self.class_ids)

    def __iter__(self) -> Iterator[Classification]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, index: Index) -> Classification:
        chosen = positions(index, len(self))
        return Classification(self.class_ids[chosen], self.scores[chosen], tuple(self.labels[i] for i in chosen))

    def to_dict(self) -> dict[str, Any]:
        """`{"classes": [{"class_id", "label", "score"}, ...]}`, best first; scores rounded to 1e-5."""
        rows = zip(self.class_ids, self.labels, self.scores, strict=True)
        return {"classes": [{"class_id": int(i), "label": label, "score": rounded(s, 5)} for i, label, s in rows]}

    def summary(self) -> str:
        """The best classes on one line."""
        pairs = zip(self.labels[:LISTED], self.scores, strict=False)
        return "  ".join(f"{label} {score:.3f}" for label, score in pairs) or "no class"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR with the five best classes listed in its corner."""
        from edgevtx import draw

        return draw.draw_classification(frame, self)
