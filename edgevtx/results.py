"""What a predictor returns: dataclasses of numpy arrays, in pixels of the original frame.

Every result validates its arrays when it is made and is never changed afterwards (`dataclasses.replace` makes
another), has `empty()`, `to_dict()` (ready for JSON), `summary()` (one line) and `draw(frame)`, and can be indexed
where it holds N items.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry

Array = NDArray[Any]
_LISTED = 5  # items that a summary names
Index = SupportsIndex | slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.integer[Any]]


def _check(name: str, array: object, shape: tuple[int | str, ...], dtype: type[np.generic]) -> None:
    """Raise `InputError` unless `array` has this dtype and shape; names in `shape` stand for any size."""
    wanted = f"{name} must be ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''}) {np.dtype(dtype)}"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{wanted}, but got {type(array).__name__}; pass a numpy array")
    sizes_fit = all(isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=False))
    if array.ndim != len(shape) or not sizes_fit or array.dtype != dtype:
        raise InputError(f"{wanted}, but got {array.shape} {array.dtype}")


def _positions(index: Index, length: int) -> NDArray[np.intp]:
    """The item numbers that an int, slice, bool mask or index array selects from `length` items."""
    if isinstance(index, slice):
        return np.arange(length)[index]
    if not isinstance(index, np.ndarray | Sequence):
        return np.arange(length)[[operator.index(index)]]
    chosen = np.asarray(index)
    return np.arange(length)[chosen if chosen.size else chosen.astype(np.intp).reshape(-1)]


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
        _check("class_ids", self.class_ids, ("K",), np.int64)
        _check("scores", self.scores, (len(self.class_ids),), np.float32)
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
        chosen = _positions(index, len(self))
        return Classification(self.class_ids[chosen], self.scores[chosen], tuple(self.labels[i] for i in chosen))

    def to_dict(self) -> dict[str, Any]:
        """`{"classes": [{"class_id", "label", "score"}, ...]}`, best first; scores rounded to 1e-5."""
        rows = zip(self.class_ids, self.labels, self.scores, strict=True)
        return {"classes": [{"class_id": int(i), "label": label, "score": _round(s, 5)} for i, label, s in rows]}

    def summary(self) -> str:
        """The best classes on one line."""
        pairs = zip(self.labels[:_LISTED], self.scores, strict=False)
        return "  ".join(f"{label} {score:.3f}" for label, score in pairs) or "no class"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR with the five best classes listed in its corner."""
        from edgevtx import draw

        return draw.draw_classification(frame, self)


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in a frame, best first.

    `boxes` (N,4) float32 xyxy in px of the frame; `scores` (N,) float32 in 0..1; `class_ids` (N,) int64;
    `labels` N names; `masks` is None until a family gives masks; `track_ids` (N,) int64 or None where nothing
    tracks. Indexing gives `Detections` again: `found[0]`, `found[:5]`, `found[found.scores > 0.5]`.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    labels: tuple[str, ...]
    masks: None = None
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _check("boxes", self.boxes, ("N", 4), np.float32)
        count = len(self.boxes)
        _check("scores", self.scores, (count,), np.float32)
        _check("class_ids", self.class_ids, (count,), np.int64)
        if len(self.labels) != count:
            raise InputError(f"labels must be {count} names, but got {len(self.labels)}")
        if self.track_ids is not None:
            _check("track_ids", self.track_ids, (count,), np.int64)

    @classmethod
    def empty(cls) -> Detections:
        """Nothing found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detections]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, index: Index) -> Detections:
        chosen = _positions(index, len(self))
        return Detections(
            self.boxes[chosen],
            self.scores[chosen],
            self.class_ids[chosen],
            tuple(self.labels[i] for i in chosen),
            track_ids=None if self.track_ids is None else self.track_ids[chosen],
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"detections": [{"box": [x0, y0, x1, y1], "score", "class_id", "label"}, ...]}`, best first.

        Boxes are rounded to 0.01 px, scores to 1e-5; rows have a `track_id` where something tracks.
        """
        rows = [
            {
                "box": [_round(value, 2) for value in box],
                "score": _round(score, 5),
                "class_id": int(class_id),
                "label": label,
            }
            for box, score, class_id, label in zip(self.boxes, self.scores, self.class_ids, self.labels, strict=True)
        ]
        if self.track_ids is not None:
            for row, track_id in zip(rows, self.track_ids, strict=True):
                row["track_id"] = int(track_id)
        return {"detections": rows}

    def summary(self) -> str:
        """The best detections on one line, boxes in whole px."""
        rows = zip(self.labels[:_LISTED], self.scores, self.boxes, strict=False)
        found = [f"{label} {score:.2f} [{' '.join(f'{v:.0f}' for v in box)}]" for label, score, box in rows]
        more = [f"and {len(self) - _LISTED} more"] if len(self) > _LISTED else []
        return "  ".join([*found, *more]) or "nothing found"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR with boxes, labels and scores."""
        from edgevtx import draw

        return draw.draw_detections(frame, self)


@dataclass(frozen=True, eq=False)
class Features:
    """What a backbone sees in a frame.

    `cls` (D,) float32, the whole image, or None; `patches` (h,w,D) float32, one vector per patch, row by row;
    `attention` (heads,h,w) float32, the last layer's attention of the CLS token to each patch, or None.
    `geometry` says which part of the frame the patch grid covers (None: all of it), so that
    `geometry.masks_to_frame(attention)` lays a map over the frame.
    """

    cls: NDArray[np.float32] | None
    patches: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        _check("patches", self.patches, ("h", "w", "D"), np.float32)
        height, width, channels = self.patches.shape
        if self.cls is not None:
            _check("cls", self.cls, (channels,), np.float32)
        if self.attention is not None:
            _check("attention", self.attention, ("heads", height, width), np.float32)

    @classmethod
    def empty(cls) -> Features:
        """Features of nothing: no CLS vector and a grid without patches."""
        return cls(None, np.zeros((0, 0, 0), np.float32))

    def to_dict(self) -> dict[str, Any]:
        """`{"features": {"cls": [D floats], "patches_shape": [h, w, D], "attention_shape": [heads, h, w]}}`.

        What there is none of is None. The maps are left out (hundreds of thousands of floats a frame): keep them
        with `numpy.save`.
        """
        return {
            "features": {
                "cls": None if self.cls is None else [_round(value, 6) for value in self.cls],
                "patches_shape": list(self.patches.shape),
                "attention_shape": None if self.attention is None else list(self.attention.shape),
            }
        }

    def summary(self) -> str:
        """The sizes on one line."""
        height, width, channels = self.patches.shape
        return f"features: {height}x{width} patches of {channels}"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the first three principal components of the patches as colour.

        `edgevtx.draw.attention_picture` gives the attention heads as a row of heat maps.
        """
        from edgevtx import draw

        return draw.draw_features(frame, self)


Result = Classification | Detections | Features


def names_of(class_ids: NDArray[np.int64], labels: Sequence[str]) -> tuple[str, ...]:
    """The name of each class id; its number where the bundle names no such class."""
    return tuple(labels[i] if 0 <= i < len(labels) else str(i) for i in class_ids.tolist())


def _round(value: np.floating[Any], digits: int) -> float:
    return round(float(value), digits)
