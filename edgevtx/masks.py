"""Masks of one frame, each kept only where it is: a crop with its place, and COCO's run-length encoding.

A hundred dense masks of a 1080p frame are 207 MB; the same masks as crops are as large as what they show.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.results.base import Index, positions

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Size = tuple[int, int]

MOST_PIXELS = 178_956_970
"""Of the frame whose size run lengths may state: as many as `read_image` takes of a file, which is Pillow's limit."""


@dataclass(frozen=True, eq=False)
class MaskSet:
    """N masks of one frame: what lies outside a mask's crop does not belong to it.

    `size` (H,W) of the frame; `crops` N arrays (h,w) bool, of any size down to (0,0), inside the frame; `offsets`
    (N,2) int64 x, y of the crops' upper left corners. Crops need not be tight. Indexing gives a `MaskSet` again:
    `masks[0]`, `masks[:3]`, `masks[scores > 0.5]`. Raises `InputError` for crops that leave the frame.
    """

    size: Size
    crops: tuple[Mask, ...]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 0:
            raise InputError(f"size must be the frame's (height, width), but got {self.size}")
        if not isinstance(self.offsets, np.ndarray) or self.offsets.shape != (len(self.crops), 2):
            raise InputError(
                f"offsets must be ({len(self.crops)}, 2) int64, one x, y a crop, but got {np.shape(self.offsets)}"
            )
        if self.offsets.dtype != np.int64:
            raise InputError(f"offsets must be int64, but got {self.offsets.dtype}; convert with astype(np.int64)")
        height, width = self.size
        for crop, (x, y) in zip(self.crops, self.offsets.tolist(), strict=True):
            if not isinstance(crop, np.ndarray) or crop.ndim != 2 or crop.dtype != np.bool_:
                got = f"{crop.shape} {crop.dtype}" if isinstance(crop, np.ndarray) else type(crop).__name__
                raise InputError(f"a crop must be (h, w) bool, but got {got}; threshold the mask first")
            if x < 0 or y < 0 or y + crop.shape[0] > height or x + crop.shape[1] > width:
                raise InputError(
                    f"a crop of {crop.shape[1]}x{crop.shape[0]} px at x {x}, y {y} leaves the frame of "
                    f"{width}x{height} px; cut it to the frame"
                )

    # -- making ------------------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, size: Size) -> MaskSet:
        """No masks of a frame of `size` (H,W)."""
        return cls(size, (), np.zeros((0, 2), np.int64))

    @classmethod
    def from_dense(cls, masks: Array) -> MaskSet:
        """(N,H,W) bool -> the masks, cut to their tight crops (copies)."""
        if not isinstance(masks, np.ndarray) or masks.ndim != 3 or masks.dtype != np.bool_:
            raise InputError(f"masks must be (N, H, W) bool, but got {np.shape(masks)} {np.asarray(masks).dtype}")
        cuts = [tight(mask) for mask in masks]
        return cls(
            (masks.shape[1], masks.shape[2]),
            tuple(mask[y0:y1, x0:x1].copy() for mask, (x0, y0, x1, y1) in zip(masks, cuts, strict=True)),
            np.array([cut[:2] for cut in cuts], np.int64).reshape(-1, 2),
        )

    @classmethod
    def from_labels(cls, labels: Array, ids: Sequence[int]) -> MaskSet:
        """A map (H,W) of integers -> the pixels of each of `ids`, cut to their tight crops; empty where there are none.

        Where each id lies is found in one pass over the map, so that small regions cost what they are large.
        """
        if not isinstance(labels, np.ndarray) or labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"labels must be (H, W) integers, but got {np.shape(labels)} {np.asarray(labels).dtype}")
        cuts = _label_cuts(labels)
        boxes = [cuts.get(int(one), (0, 0, 0, 0)) for one in ids]
        return cls(
            (labels.shape[0], labels.shape[1]),
            tuple(labels[y0:y1, x0:x1] == one for one, (x0, y0, x1, y1) in zip(ids, boxes, strict=True)),
            np.array([box[:2] for box in boxes], np.int64).reshape(-1, 2),
        )

    @classmethod
    def from_rle(cls, runs: Sequence[dict[str, Any]], size: Size | None = None) -> MaskSet:
        """COCO's run lengths, `{"size": [H, W], "counts": str, bytes or list}` each, of one frame -> the masks.

        `size` (H,W) is needed where `runs` is empty alone. Raises `InputError` for what has another form, for counts
        that do not fill the size, for sizes that differ, and for frames of more than `MOST_PIXELS`: a few bytes state
        any size, and a mask takes as many bytes as its box has pixels.
        """
        read = [_read_runs(one) for one in runs]
        sizes = {found for found, _ in read} | ({_read_size(size)} if size is not None else set())
        if not sizes:
            raise InputError("no run lengths and no size were given; pass size=(height, width)")
        if len(sizes) > 1:
            raise InputError(f"run lengths must be of one frame, but the sizes are {sorted(sizes)}")
        frame = sizes.pop()
        return cls.concatenate([cls.empty(frame), *(_from_counts(counts, frame) for _, counts in read)])

    @classmethod
    def concatenate(cls, sets: Sequence[MaskSet]) -> MaskSet:
        """The masks of at least one set of the same frame, one after another."""
        if not sets or any(one.size != sets[0].size for one in sets):
            raise InputError(f"masks of one frame must have one size, but got {[one.size for one in sets]}")
        return cls(
            sets[0].size, tuple(crop for one in sets for crop in one.crops), np.concatenate([s.offsets for s in sets])
        )

    # -- as a sequence -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[MaskSet]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, index: Index) -> MaskSet:
        chosen = positions(index, len(self))
        return MaskSet(self.size, tuple(self.crops[i] for i in chosen), self.offsets[chosen])

    # -- what they are -----------------------------------------------------------------------------------------

    def dense(self) -> Mask:
        """(N,H,W) bool; mind that this is N x H x W bytes (2 MB a mask of a 1080p frame)."""
        masks = np.zeros((len(self), *self.size), np.bool_)
        for mask, crop, (x, y) in zip(masks, self.crops, self.offsets.tolist(), strict=True):
            mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return masks

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """(N,) int64 pixels of each mask."""
        return np.array([np.count_nonzero(crop) for crop in self.crops], np.int64)

    @cached_property
    def boxes(self) -> NDArray[np.float32]:
        """(N,4) float32 xyxy, the tight box of each mask; zeros where a mask is empty."""
        boxes = np.array([tight(crop) for crop in self.crops], np.float32).reshape(-1, 4)
        return boxes + np.tile(self.offsets, 2).astype(np.float32) * (self.areas > 0)[:, None]

    def intersections(self, other: MaskSet) -> NDArray[np.int64]:
        """(N,M) int64: how many pixels each mask shares with each of another set of the same frame."""
        if other.size != self.size:
            raise InputError(f"masks must be of one frame, but their sizes are {self.size} and {other.size}")
        shared = np.zeros((len(self), len(other)), np.int64)
        low = np.maximum(self.boxes[:, None, :2], other.boxes[None, :, :2]).astype(np.int64)
        high = np.minimum(self.boxes[:, None, 2:], other.boxes[None, :, 2:]).astype(np.int64)
        for i, j in np.argwhere((high > low).all(2)).tolist():
            first, second = (_cut(s, k, low[i, j], high[i, j]) for s, k in ((self, i), (other, j)))
            shared[i, j] = np.count_nonzero(first & second)
        return shared

    def iou(self, other: MaskSet) -> NDArray[np.float64]:
        """(N,M) float64 in 0..1: intersection over union with the masks of another set; 0 where both are empty."""
        shared = self.intersections(other)
        union = self.areas[:, None] + other.areas[None] - shared
        ious: NDArray[np.float64] = np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)
        return ious

    def rle(self) -> list[dict[str, Any]]:
        """COCO's compressed run-length encoding, `{"size": [H, W], "counts": str}` a mask, ready for JSON.

        The string is pycocotools' own, character by character.
        """
        return [
            {"size": [int(side) for side in self.size], "counts": _pack(_count_runs(crop, x, y, self.size))}
            for crop, (x, y) in zip(self.crops, self.offsets.tolist(), strict=True)
        ]

    def polygons(self) -> list[list[NDArray[np.int32]]]:
        """The outer contours of each mask, (P,2) int32 x, y pixels each; holes are not told. Needs OpenCV."""
        try:
            import cv2
        except ImportError:
            raise RuntimeUnavailableError(
                "polygons need OpenCV, which is not installed; pip install opencv-python-headless, or use rle()"
            ) from None
        found: list[list[NDArray[np.int32]]] = []
        for crop, offset in zip(self.crops, self.offsets, strict=True):
            image = np.ascontiguousarray(crop).view(np.uint8)
            lines = cv2.findContours(image, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0] if image.size else ()
            found.append([line.reshape(-1, 2) + offset.astype(np.int32) for line in lines])
        return found


def tight(mask: Array) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the smallest box around what is set in (h,w) bool; zeros where nothing is."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0, 0, 0, 0
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(0))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def _label_cuts(labels: Array) -> dict[int, tuple[int, int, int, int]]:
    """A map (H,W) of integers -> the tight x0, y0, x1, y1 of each, from where the rows change their value."""
    width = labels.shape[1]
    begins = np.ones(labels.shape, np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    if not len(starts):
        return {}
    values, rows, lefts = labels.reshape(-1)[starts], starts // width, starts % width
    rights = np.append(starts[1:], labels.size) - rows * width  # a row's first pixel begins, so its last one ends
    order = np.argsort(values, kind="stable")
    found, first = np.unique(values[order], return_index=True)
    sides = (
        np.minimum.reduceat(lefts[order], first),
        np.minimum.reduceat(rows[order], first),
        np.maximum.reduceat(rights[order], first),
        np.maximum.reduceat(rows[order], first) + 1,
    )
    return {
        int(value): (x0, y0, x1, y1)
        for value, x0, y0, x1, y1 in zip(found, *map(np.ndarray.tolist, sides), strict=True)
    }


def _cut(masks: MaskSet, item: int, low: Array, high: Array) -> Mask:
    """The part of a mask between two corners of the frame, which lies inside its crop."""
    (x0, y0), (x1, y1) = low - masks.offsets[item], high - masks.offsets[item]
    return masks.crops[item][y0:y1, x0:x1]


# -- run lengths: columns one after another, first how many pixels are not set, then how many are, and so on -----


def _count_runs(crop: Mask, x: int, y: int, size: Size) -> NDArray[np.int64]:
    height, width = size
    rows, columns = crop.shape
    # a column's pixels between two that are not set; where the value changes, a run starts or ends
    framed = np.zeros((columns, rows + 2), np.int8)
    framed[:, 1:-1] = crop.T
    column, row = np.nonzero(framed[:, 1:] != framed[:, :-1])
    edges = (column + x) * height + row + y
    if rows == height and len(edges):  # a run goes on from the foot of a column to the head of the next
        goes_on = edges[1:-1:2] == edges[2::2]
        kept = np.ones(len(edges), np.bool_)
        kept[1:-1:2] = kept[2::2] = ~goes_on
        edges = edges[kept]
    counts = np.diff(edges, prepend=0, append=height * width)
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def _pack(counts: NDArray[np.int64]) -> str:
    """COCO's string: from the fourth count on the difference to the last but one, five bits a character."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    # a character's sixth bit says that more follow; the last one's fifth bit is the sign
    more = np.ones(len(values), np.bool_)
    digits, shown = [], []
    for _ in range(13):  # 65 bits
        digit = values & 31
        values >>= 5
        shown.append(more)
        more = more & np.where(digit & 16, values != -1, values != 0)
        digits.append(digit | (more.astype(np.int64) << 5))
        if not more.any():
            break
    table = np.stack(digits, 1).astype(np.uint8) + np.uint8(48)
    return str(table[np.stack(shown, 1)].tobytes(), "ascii")


def _unpack(text: bytes) -> NDArray[np.int64]:
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise InputError("counts is no compressed COCO run-length string; it was damaged or cut off")
    group = np.concatenate([[0], np.cumsum(last)[:-1]])
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    shift = 5 * (np.arange(len(codes)) - starts[group])
    if shift.max() > 55:
        raise InputError("counts is no compressed COCO run-length string: a count of it is too large")
    values = np.add.reduceat((codes & 31) << shift, starts)
    values -= np.where(codes[last] & 16, 1 << (shift[last] + 5), 0)
    # counts of one colour are running sums of their own, from the second and the third count on
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _read_runs(one: Any) -> tuple[Size, NDArray[np.int64]]:
    """The size and the counts of a mask's run lengths; `InputError` says what else they are."""
    if not isinstance(one, Mapping) or not {"size", "counts"} <= one.keys():
        got = f"the keys {sorted(map(str, one))}" if isinstance(one, Mapping) else type(one).__name__
        raise InputError(
            f'a mask\'s run lengths must be {{"size": [H, W], "counts": ...}}, but got {got}; pass a list of them'
        )
    return _read_size(one["size"]), _read_counts(one["counts"])


def _read_size(size: Any) -> Size:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise InputError(f"a size of run lengths must be two whole numbers [H, W], but got {size!r}") from None
    if min(height, width) < 0:
        raise InputError(f"a size of run lengths must be [H, W] of 0 px or more, but got {size!r}")
    if max(height, 1) * max(width, 1) > MOST_PIXELS:  # an edge alone is long, too
        raise InputError(
            f"a frame of run lengths must have at most {MOST_PIXELS} px, but its size is {size!r}; scale the masks down"
        )
    return height, width


def _read_counts(counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, str | bytes):
        return _unpack(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    try:
        array = np.asarray(counts)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.ndim != 1 or array.dtype.kind not in ("iu" if array.size else "iuf"):
        raise InputError(
            f"counts of run lengths must be COCO's string or a list of whole numbers, but got {type(counts).__name__}"
        )
    return array.astype(np.int64)


def _from_counts(counts: NDArray[np.int64], size: Size) -> MaskSet:
    if (counts < 0).any():
        raise InputError(f"run lengths must be 0 px or more, but one is {counts.min()}")
    pixels = size[0] * size[1]
    if (counts > pixels).any() or counts.sum() != pixels:  # those that are larger could overflow the sum
        raise InputError(f"run lengths must add up to {size[0]} x {size[1]} px, but add up to {sum(counts.tolist())}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return MaskSet.from_dense(np.ascontiguousarray(flat.reshape(size[1], size[0]).T)[None])
