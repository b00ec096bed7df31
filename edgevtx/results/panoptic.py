"""Every pixel of a frame given to one segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgevtx.results.base import LISTED, Array, check
from edgevtx.results.detections import Detections

if TYPE_CHECKING:
    from edgevtx.masks import MaskSet


class Segment(NamedTuple):
    """A part of a frame that one query won, or several queries of a class that is fused.

    `area` in px; `score` in 0..1, the best of the queries'.
    """

    id: int
    class_id: int
    label: str
    score: float
    area: int


@dataclass(frozen=True, eq=False)
class PanopticSegmentation:
    """Every pixel of a frame given to one segment, and the objects behind them.

    `segment_map` (H,W) int32, the id of each pixel's segment, 0 where there is none; `segments` in the order of the
    queries, with ids from 1, one for all parts of a fused class. `detections`, made by `detect` when first asked for,
    are all objects above the threshold, best first, each with its whole mask, also where others hide it.
    """

    segment_map: NDArray[np.int32]
    segments: tuple[Segment, ...]
    detect: Callable[[], Detections] = field(repr=False)

    def __post_init__(self) -> None:
        check("segment_map", self.segment_map, ("H", "W"), np.int32)

    @cached_property
    def detections(self) -> Detections:
        """The objects with their masks; until it is asked for, the result holds them at the network's resolution."""
        return self.detect()

    @classmethod
    def empty(cls, size: tuple[int, int] = (0, 0)) -> PanopticSegmentation:
        """Nothing found in a frame of `size` (H,W)."""
        return cls(np.zeros(size, np.int32), (), Detections.empty)

    def masks(self) -> MaskSet:
        """The pixels of each id of `segments`, rising."""
        from edgevtx.masks import MaskSet

        return MaskSet.from_labels(self.segment_map, sorted({segment.id for segment in self.segments}))

    def to_dict(self) -> dict[str, Any]:
        """`{"segments": [{"id", "class_id", "label", "score", "area"}, ...], "masks": {id: RLE}, "detections"}`.

        The masks are COCO's run lengths; scores are rounded to 1e-5; detections as of `Detections.to_dict`.
        """
        ids = sorted({segment.id for segment in self.segments})
        return {
            "segments": [{**segment._asdict(), "score": round(segment.score, 5)} for segment in self.segments],
            "masks": {str(i): run for i, run in zip(ids, self.masks().rle(), strict=True)},
            **self.detections.to_dict(),
        }

    def summary(self) -> str:
        """The largest segments and their share of the frame on one line."""
        largest = sorted(self.segments, key=lambda segment: -segment.area)
        found = [
            f"{segment.label} {segment.score:.2f} ({segment.area / self.segment_map.size:.1%})"
            for segment in largest[:LISTED]
        ]
        more = [f"and {len(largest) - LISTED} more"] if len(largest) > LISTED else []
        return "  ".join([*found, *more]) or "nothing found"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the segments' colours, outlines and labels."""
        from edgevtx import draw

        return draw.draw_panoptic(frame, self)
