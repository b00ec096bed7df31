"""What a predictor returns: dataclasses of numpy arrays, in pixels of the original frame.

Every result validates its arrays when it is made and is never changed afterwards (`dataclasses.replace` makes
another), has `empty()`, `to_dict()` (ready for JSON), `summary()` (one line) and `draw(frame)`, and can be indexed
where it holds N items.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.manifest import PromptDecode
    from edgevtx.masks import MaskSet

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
        _check("boxes", self.boxes, ("N", 4), np.float32)
        count = len(self.boxes)
        _check("scores", self.scores, (count,), np.float32)
        _check("class_ids", self.class_ids, (count,), np.int64)
        if len(self.labels) != count:
            raise InputError(f"labels must be {count} names, but got {len(self.labels)}")
        if self.masks is not None and len(self.masks) != count:
            raise InputError(f"masks must be {count}, one a detection, but got {len(self.masks)}")
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
                "box": [_round(value, 2) for value in box],
                "score": _round(score, 5),
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
        rows = zip(self.labels[:_LISTED], self.scores, self.boxes, strict=False)
        found = [f"{label} {score:.2f} [{' '.join(f'{v:.0f}' for v in box)}]" for label, score, box in rows]
        more = [f"and {len(self) - _LISTED} more"] if len(self) > _LISTED else []
        return "  ".join([*found, *more]) or "nothing found"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR with masks, boxes, labels and scores."""
        from edgevtx import draw

        return draw.draw_detections(frame, self)


@dataclass(frozen=True, eq=False)
class Features:
    """What a backbone sees in a frame.

    `cls` (D,) float32, the whole image, or None; `patches` (h,w,D) float32, one vector per patch, row by row;
    `attention` (heads,h,w) float32, the last layer's attention of the CLS token to each patch, or None.
    `geometry` says which part of the frame the patch grid covers (None: all of it), so that
    `geometry.masks_to_frame(attention)` lays a map over the frame.

    A pyramid has more than one scale: `maps` (h_i,w_i,D_i) float32, finest first, of which `patches` is the last;
    `strides` px of the input for a vector of each. `scale(i)` gives one of them as `Features` with its own geometry.
    """

    cls: NDArray[np.float32] | None
    patches: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None
    geometry: Geometry | None = None
    maps: tuple[NDArray[np.float32], ...] = ()
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check("patches", self.patches, ("h", "w", "D"), np.float32)
        height, width, channels = self.patches.shape
        if self.cls is not None:
            _check("cls", self.cls, (channels,), np.float32)
        if self.attention is not None:
            _check("attention", self.attention, ("heads", height, width), np.float32)
        for i, one in enumerate(self.maps):
            _check(f"maps[{i}]", one, ("h", "w", "D"), np.float32)
        if len(self.strides) != len(self.maps):
            raise InputError(f"strides must be {len(self.maps)} numbers, one a map, but got {len(self.strides)}")
        if self.maps and self.maps[-1] is not self.patches:
            raise InputError("patches must be the last of the maps; make a pyramid with Features.pyramid(maps, ...)")

    @classmethod
    def empty(cls) -> Features:
        """Features of nothing: no CLS vector and a grid without patches."""
        return cls(None, np.zeros((0, 0, 0), np.float32))

    @classmethod
    def pyramid(
        cls_,  # noqa: N804 (a parameter is called cls)
        maps: Sequence[NDArray[np.float32]],
        strides: Sequence[int],
        geometry: Geometry,
        cls: NDArray[np.float32] | None = None,
    ) -> Features:
        """Features at several scales, finest first; `geometry` is the one of the network's input."""
        if not maps:
            raise InputError("a pyramid needs at least one map, but got none")
        return cls_(cls, maps[-1], None, _grid_geometry(geometry, maps[-1], strides[-1]), tuple(maps), tuple(strides))

    def scale(self, index: int) -> Features:
        """One scale of a pyramid, 0 the finest, -1 the last."""
        if not -len(self.maps) <= index < len(self.maps):
            raise InputError(f"these features have {len(self.maps)} scales, but scale {index} was asked for")
        geometry = self.geometry and _grid_geometry(self.geometry, self.maps[index], self.strides[index])
        return Features(None, self.maps[index], geometry=geometry)

    @property
    def _all(self) -> tuple[NDArray[np.float32], ...]:
        return self.maps or (self.patches,)

    def to_dict(self) -> dict[str, Any]:
        """`{"features": {"cls": [D floats], "patches_shape": [h, w, D], "attention_shape": [heads, h, w]}}`.

        A pyramid adds `"maps": [{"shape": [h, w, D], "stride"}, ...]`. What there is none of is None. The maps are left
        out (hundreds of thousands of floats a frame): keep them with `numpy.save`.
        """
        found: dict[str, Any] = {
            "cls": None if self.cls is None else [_round(value, 6) for value in self.cls],
            "patches_shape": list(self.patches.shape),
            "attention_shape": None if self.attention is None else list(self.attention.shape),
        }
        if self.maps:
            pairs = zip(self.maps, self.strides, strict=True)
            found["maps"] = [{"shape": list(one.shape), "stride": stride} for one, stride in pairs]
        return {"features": found}

    def summary(self) -> str:
        """The sizes on one line."""
        sizes = [f"{height}x{width} patches of {depth}" for height, width, depth in (one.shape for one in self._all)]
        return f"features: {', '.join(sizes)}"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the first three principal components of the patches as colour.

        A pyramid gives a picture of the same size with one tile a scale. Attention lies in a row along the lower edge,
        one heat map a head; `edgevtx.draw.attention_picture` gives that row alone.
        """
        from edgevtx import draw

        return draw.draw_pyramid(frame, self) if self.maps else draw.draw_features(frame, self)


def _grid_geometry(geometry: Geometry, vectors: NDArray[np.float32], stride: int) -> Geometry:
    """The geometry of a grid whose cells cover `stride` px: padded beyond the input, or cut, to whole cells."""
    return replace(geometry, input_size=(vectors.shape[0] * stride, vectors.shape[1] * stride))


class Segment(NamedTuple):
    """A part of a frame that one query won. `area` in px; `score` in 0..1."""

    id: int
    class_id: int
    label: str
    score: float
    area: int


@dataclass(frozen=True, eq=False)
class PanopticSegmentation:
    """Every pixel of a frame given to one segment, and the objects behind them.

    `segment_map` (H,W) int32, the id of each pixel's segment, 0 where there is none; `segments` in the order of the
    queries, whose ids are transformers': parts of a fused class share one. `detections`, made by `detect` when first
    asked for, are all objects above the threshold, best first, each with its whole mask, also where others hide it.
    """

    segment_map: NDArray[np.int32]
    segments: tuple[Segment, ...]
    detect: Callable[[], Detections] = field(repr=False)

    def __post_init__(self) -> None:
        _check("segment_map", self.segment_map, ("H", "W"), np.int32)

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

        ids = sorted({segment.id for segment in self.segments})
        return MaskSet.concatenate(
            [MaskSet.empty(self.segment_map.shape), *(MaskSet.from_dense((self.segment_map == i)[None]) for i in ids)]
        )

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
            for segment in largest[:_LISTED]
        ]
        more = [f"and {len(largest) - _LISTED} more"] if len(largest) > _LISTED else []
        return "  ".join([*found, *more]) or "nothing found"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the segments' colours, outlines and labels."""
        from edgevtx import draw

        return draw.draw_panoptic(frame, self)


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
        _check("class_map", self.class_map, ("H", "W"), np.int32)
        if self.scores is not None:
            _check("scores", self.scores, self.class_map.shape, np.float32)
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
        more = [f"and {len(present) - _LISTED} more"] if len(present) > _LISTED else []
        words = [f"{self.labels[class_id]} {share:.1%}" for class_id, share in present[:_LISTED]]
        return "  ".join([*words, *more]) or "nothing was looked at"

    def to_dict(self) -> dict[str, Any]:
        """`{"segmentation": {"size": [H, W], "classes": [{"class_id", "label", "area", "share", "rle"}, ...]}}`.

        The classes that occur, largest first: `area` in px, `share` of what was looked at, `rle` COCO's compressed
        run lengths of the class's mask. Where there are scores, their largest and mean are added.
        """
        from edgevtx.masks import MaskSet

        areas = self.areas
        rows = [
            {
                "class_id": class_id,
                "label": self.labels[class_id],
                "area": int(areas[class_id]),
                "share": round(share, 5),
                "rle": MaskSet.from_dense((self.class_map == class_id)[None]).rle()[0],
            }
            for class_id, share in self.present()
        ]
        facts: dict[str, Any] = {"size": list(self.class_map.shape), "classes": rows}
        if self.scores is not None and self.scores.size:
            facts |= {"max_score": _round(self.scores.max(), 5), "mean_score": _round(self.scores.mean(), 5)}
        return {"segmentation": facts}

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the classes as colours, with a legend."""
        from edgevtx import draw

        return draw.draw_segmentation(frame, self)


@dataclass(frozen=True, eq=False)
class Masks:
    """What N prompts are taken for: M masks each, in the prompts' order and the model's.

    `masks` a `MaskSet` of N * M masks, prompt by prompt (`dense()` gives (N,M,H,W) bool); `iou` (N,M) float32, the
    predicted intersection over union with the object; `low_res_logits` (N,M,h,w) float32 of the whole input, which can
    be given back as `mask=`. `geometry` and `rule` say how those lie over the frame; without them there is no
    stability. Indexing by prompt gives `Masks` again: `found[0]`, `found[found.iou[:, 0] > 0.9]`; `best()` keeps the
    best mask of each prompt.
    """

    masks: MaskSet
    iou: NDArray[np.float32]
    low_res_logits: NDArray[np.float32]
    geometry: Geometry | None = None
    rule: PromptDecode | None = None
    known_stability: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _check("iou", self.iou, ("N", "M"), np.float32)
        _check("low_res_logits", self.low_res_logits, (*self.iou.shape, "h", "w"), np.float32)
        if len(self.masks) != self.iou.size:
            raise InputError(f"masks must be {self.iou.size}, {self.iou.shape[1]} a prompt, but got {len(self.masks)}")
        if self.known_stability is not None:
            _check("known_stability", self.known_stability, self.iou.shape, np.float32)

    @classmethod
    def empty(cls, size: tuple[int, int] = (0, 0)) -> Masks:
        """No masks of a frame of `size` (H,W)."""
        from edgevtx.masks import MaskSet

        return cls(MaskSet.empty(size), np.zeros((0, 1), np.float32), np.zeros((0, 1, 0, 0), np.float32))

    @cached_property
    def stability(self) -> NDArray[np.float32]:
        """(N,M) float32 in 0..1: how little each mask changes with the threshold, as SAM's reference scores it.

        Computed when it is asked for: it takes twice as long as the masks. Raises `InputError` where the result was
        made without the geometry.
        """
        if self.known_stability is not None or not self.iou.size:
            return self.iou if self.known_stability is None else self.known_stability
        if self.geometry is None or self.rule is None:
            raise InputError("these masks came without their geometry, so they have no stability; use a predictor's")
        from edgevtx.decode.prompt import stability_scores

        logits = self.low_res_logits.reshape(-1, *self.low_res_logits.shape[2:])
        return stability_scores(logits, self.geometry, self.rule).reshape(self.iou.shape)

    def __len__(self) -> int:
        return len(self.iou)

    def __iter__(self) -> Iterator[Masks]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, index: Index) -> Masks:
        chosen = _positions(index, len(self))
        return self._take(chosen[:, None], np.arange(self.iou.shape[1])[None])

    def best(self) -> Masks:
        """Of each prompt the mask with the highest predicted IoU: M is 1."""
        rows = np.arange(len(self))[:, None]
        return self._take(rows, self.iou.argmax(1)[:, None] if self.iou.size else np.zeros((len(self), 1), np.intp))

    def _take(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Masks:
        count = self.iou.shape[1]
        stability = self.known_stability if self.known_stability is not None else self.__dict__.get("stability")
        return dataclasses.replace(
            self,
            masks=self.masks[(rows * count + columns).reshape(-1)],
            iou=self.iou[rows, columns],
            low_res_logits=self.low_res_logits[rows, columns],
            known_stability=None if stability is None else stability[rows, columns],
        )

    def dense(self) -> NDArray[np.bool_]:
        """(N,M,H,W) bool; mind that this is H x W bytes a mask."""
        return self.masks.dense().reshape(*self.iou.shape, *self.masks.size)

    def to_dict(self) -> dict[str, Any]:
        """`{"masks": [{"prompt", "mask", "iou", "stability", "area", "box", "rle"}, ...]}`, N * M rows.

        `box` x0, y0, x1, y1 in px; `rle` COCO's run lengths; scores rounded to 1e-5.
        """
        count = self.iou.shape[1]
        rows = zip(
            self.iou.ravel(), self.stability.ravel(), self.masks.areas, self.masks.boxes, self.masks.rle(), strict=True
        )
        return {
            "masks": [
                {
                    "prompt": number // count,
                    "mask": number % count,
                    "iou": _round(iou, 5),
                    "stability": _round(stability, 5),
                    "area": int(area),
                    "box": [int(value) for value in box],
                    "rle": rle,
                }
                for number, (iou, stability, area, box, rle) in enumerate(rows)
            ]
        }

    def summary(self) -> str:
        """The prompts and their best masks on one line."""
        if not len(self):
            return "no masks"
        best = self.best()
        rows = zip(best.iou[:, 0], best.masks.areas, best.masks.boxes, strict=True)
        found = [f"IoU {iou:.2f} {area} px [{' '.join(f'{v:.0f}' for v in box)}]" for iou, area, box in rows]
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        return "  ".join([*found[:_LISTED], *more])

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the best mask of each prompt, each in a colour with its outline."""
        from edgevtx.draw_masks import draw_masks

        return draw_masks(frame, self.best().masks)


Result = Classification | Detections | Features | Masks | PanopticSegmentation | SemanticSegmentation


def names_of(class_ids: NDArray[np.int64], labels: Sequence[str]) -> tuple[str, ...]:
    """The name of each class id; its number where the bundle names no such class."""
    return tuple(labels[i] if 0 <= i < len(labels) else str(i) for i in class_ids.tolist())


def _round(value: np.floating[Any], digits: int) -> float:
    return round(float(value), digits)
