"""Low-resolution maps -> masks and label maps of the frame, exact, with work only along boundaries.

The reference post-processings enlarge every map to the frame, often over several resizes, and threshold it or take
the argmax there. All of these resizes are linear along rows and along columns, so they compose to one operator per
axis whose weights are not negative and sum to one. Then a frame pixel is a convex combination of the map pixels of
its support, and

- where the whole support lies above (or not above) the threshold, so does the pixel;
- where one map leads over the whole support, it leads at the pixel.

Frame pixels of the same support form a cell. Most cells are decided by their support; the others are computed pixel
by pixel, with the reference's own weights. The result differs from the reference by float32 rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry
from edgevtx.masks import MaskSet

Array = NDArray[Any]
Floats = NDArray[np.float32]
Size = tuple[int, int]
_BATCH = 32768  # pixels computed at once: a few arrays of so many floats stay in the second-level cache


@dataclass(frozen=True, eq=False)
class Axis:
    """How the lines of one axis are made of the lines of a map: line first + i is a mean of lines starts[i]...

    `length` lines in all, of which `first` to first + n are shown by the map; `source` lines has the map. `starts`
    (n,) intp rising; `weights` (n,K) float32, not negative, each row summing to one: those of map lines starts[i] to
    starts[i] + K - 1.
    """

    length: int
    source: int
    first: int
    starts: NDArray[np.intp]
    weights: Floats

    @classmethod
    def resize(cls, source: int, length: int) -> Axis:
        """Bilinear from `source` lines to `length`, pixel centres at half pixels (`align_corners=False`)."""
        return cls.linear(source, length, source / length, 0.0)

    @classmethod
    def linear(cls, source: int, length: int, scale: float, shift: float) -> Axis:
        """Line i lies at (i + 0.5) * scale + shift in the source, whose edge values are held.

        In float32, as torch has it: where a line meets a source line exactly, the weight of the next one must be zero
        here too, since a large value there would show even with a weight of 1e-6.
        """
        at = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(scale) + np.float32(shift)
        inside = np.flatnonzero((at >= 0) & (at <= source))
        at = np.clip(at[inside] - np.float32(0.5), 0, source - 1)
        low = np.minimum(at.astype(np.intp), max(source - 2, 0))
        fraction = at - low.astype(np.float32)
        weights = np.stack([1 - fraction, fraction], 1)[:, :source]
        return cls(length, source, int(inside[0]) if len(inside) else 0, low, weights)

    def after(self, inner: Axis) -> Axis:
        """This axis where its source lines are made of another map by `inner`, all of whose lines are shown."""
        if inner.length != self.source or len(inner.starts) != inner.length:
            raise InputError(f"an axis of {self.source} source lines cannot follow one of {len(inner.starts)} lines")
        lines = self.starts[:, None] + np.arange(self.weights.shape[1])
        starts = inner.starts[lines]  # (n,K)
        taps = int((starts[:, -1] - starts[:, 0]).max(initial=0)) + inner.weights.shape[1]
        low = np.minimum(starts[:, 0], inner.source - taps)
        weights = np.zeros((len(lines), taps), np.float32)
        at = np.arange(len(lines))
        for k in range(lines.shape[1]):
            for j in range(inner.weights.shape[1]):
                np.add.at(weights, (at, starts[:, k] - low + j), self.weights[:, k] * inner.weights[lines[:, k], j])
        return Axis(self.length, inner.source, self.first, low, weights)

    def cut(self, start: int, stop: int) -> Axis:
        """Only lines `start` to `stop` of an axis all of whose lines are shown."""
        return Axis(stop - start, self.source, 0, self.starts[start:stop], self.weights[start:stop])

    @property
    def taps(self) -> int:
        """How many map lines a line is made of."""
        return int(self.weights.shape[1])

    @cached_property
    def matrix(self) -> Floats:
        """(n, source) float32: the weights of all map lines in each line."""
        matrix = np.zeros((len(self.starts), self.source), np.float32)
        np.put_along_axis(matrix, self.starts[:, None] + np.arange(self.taps), self.weights, 1)
        return matrix

    @cached_property
    def cells(self) -> _Cells:
        """The groups of lines with the same support."""
        first = np.flatnonzero(np.diff(self.starts, prepend=-1))
        counts = np.diff(first, append=len(self.starts))
        # a short group repeats its last line: to compute it twice costs less than to ask
        lines = first[:, None] + np.minimum(np.arange(counts.max(initial=0)), counts[:, None] - 1)
        weights = np.ascontiguousarray(self.weights[lines].transpose(1, 2, 0))
        of = np.repeat(np.arange(len(first)), counts)
        return _Cells(self.starts[first], counts, of, np.ascontiguousarray(lines.T), weights)


class _Cells(NamedTuple):
    """Lines of one axis in groups of equal support.

    `starts` (G,) first map line of each group's support; `counts` (G,) its lines; `of` (n,) each line's group;
    `lines` (D,G) the groups' lines, the last one repeated in groups of less than D; `weights` (D,K,G) theirs.
    """

    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    of: NDArray[np.intp]
    lines: NDArray[np.intp]
    weights: Floats


@dataclass(frozen=True, eq=False)
class Resampling:
    """From maps (h,w) to a frame: one operator an axis to the upright roi, then its rotation and place."""

    rows: Axis
    cols: Axis
    frame_size: Size
    origin: tuple[int, int] = (0, 0)
    rotation: int = 0

    @classmethod
    def resize(cls, source: Size, size: Size) -> Resampling:
        """Plain bilinear resizing of (h,w) maps to a frame of (H,W), `align_corners=False`."""
        return cls(Axis.resize(source[0], size[0]), Axis.resize(source[1], size[1]), size)

    @classmethod
    def of(cls, geometry: Geometry, map_size: Size, *, via_input: bool = False) -> Resampling:
        """For maps (h,w) of the whole input.

        At once, as `Geometry.masks_to_frame` resamples (DETR's reference); or, with `via_input`, first to the
        input's pixels, of which the padding is cut off, and from there to the frame (SAM's and SETR's reference).
        """
        axes = []
        for i in (0, 1):
            length, resized, offset = geometry.upright_size[i], geometry.resized[i], geometry.offset[i]
            size = geometry.input_size[i]
            if via_input:
                start, stop = geometry.valid_box[1 - i], geometry.valid_box[3 - i]
                outer = Axis.linear(stop - start, length, resized / length, offset - start)
                axes.append(outer.after(Axis.resize(map_size[i], size).cut(start, stop)))
            else:
                step = map_size[i] / size
                axes.append(Axis.linear(map_size[i], length, resized / length * step, offset * step))
        return cls(axes[0], axes[1], geometry.frame_size, geometry.roi[:2], geometry.rotation)

    def check(self, maps: Array) -> Floats:
        """The maps, contiguous; raises `InputError` unless they are (N,h,w) float32 of this map size."""
        wanted = (self.rows.source, self.cols.source)
        if not isinstance(maps, np.ndarray) or maps.ndim != 3 or maps.shape[1:] != wanted or maps.dtype != np.float32:
            raise InputError(
                f"maps must be (N, {wanted[0]}, {wanted[1]}) float32, but got {np.shape(maps)} {np.asarray(maps).dtype}"
            )
        return np.ascontiguousarray(maps)

    def place(self, upright: Array, top: int, left: int) -> tuple[Array, tuple[int, int]]:
        """(h,w) pixels at (top, left) of the shown upright roi -> as they lie in the frame, and their x, y there."""
        y, x = top + self.rows.first, left + self.cols.first
        (height, width), (rows, cols) = (self.rows.length, self.cols.length), upright.shape
        x, y = {
            0: (x, y),
            90: (y, width - x - cols),
            180: (width - x - cols, height - y - rows),
            270: (height - y - rows, x),
        }[self.rotation]
        return np.rot90(upright, self.rotation // 90), (x + self.origin[0], y + self.origin[1])


def enlarge(maps: Floats, resampling: Resampling, fill: float = 0.0) -> Floats:
    """(N,h,w) float32 maps -> (N,H,W) float32, their values at each frame pixel; `fill` where the maps show nothing.

    Everything is computed: for few maps, whose values themselves are wanted.
    """
    maps = resampling.check(maps)
    upright = resampling.rows.matrix @ maps @ resampling.cols.matrix.T
    frame = np.full((len(maps), *resampling.frame_size), fill, np.float32)
    for one, values in zip(frame, upright, strict=True):
        placed, (x, y) = resampling.place(values, 0, 0)
        one[y : y + placed.shape[0], x : x + placed.shape[1]] = placed
    return frame


# -- masks -----------------------------------------------------------------------------------------------------


def threshold_maps(maps: Floats, resampling: Resampling, threshold: float | Floats) -> MaskSet:
    """(N,h,w) float32 maps -> the masks {map resampled to the frame > threshold} of the frame, not cut tight.

    `threshold` is one for all or (N,), one a map. Pixels that the maps do not show belong to no mask.
    """
    maps = resampling.check(maps)
    thresholds = np.broadcast_to(np.asarray(threshold, np.float32), len(maps))
    rows, cols = resampling.rows.cells, resampling.cols.cells
    above = maps > thresholds[:, None, None]
    some, every = (_pool(above, resampling, reduce) for reduce in (np.logical_or, np.logical_and))
    boxes = _boxes(some)  # of cells
    top, left = rows.lines[0][boxes[:, 1]], cols.lines[0][boxes[:, 0]]
    height = np.where(boxes[:, 3] > boxes[:, 1], rows.lines[-1][boxes[:, 3] - 1] + 1 - top, 0)
    width = np.where(boxes[:, 2] > boxes[:, 0], cols.lines[-1][boxes[:, 2] - 1] + 1 - left, 0)
    ends = np.cumsum(height * width)
    begins = ends - height * width
    pixels = np.empty(int(ends[-1]) if len(ends) else 0, np.bool_)  # all crops, one after another
    crops = [pixels[a:b].reshape(h, w) for a, b, h, w in zip(begins, ends, height, width, strict=True)]
    for crop, cells, (c0, r0, c1, r1), y, x in zip(crops, every, boxes, top, left, strict=True):
        lines = cells[r0:r1, c0:c1].take(cols.of[x : x + crop.shape[1]] - c0, axis=1)
        lines.take(rows.of[y : y + crop.shape[0]] - r0, axis=0, out=crop, mode="clip")
    origin = begins - top * width - left
    for item, row, col in _batches(np.nonzero(some != every), resampling):
        corner, limit = origin[item] + cols.lines[0][col], thresholds[item]
        for y, values in _pixels(_support(maps, item, row, col, resampling), row, col, resampling):
            at = corner + y * width[item]
            for x, value in enumerate(values > limit):
                pixels[at + x] = value
    placed = [resampling.place(*args) for args in zip(crops, top.tolist(), left.tolist(), strict=True)]
    offsets = [offset if crop.size else (0, 0) for crop, offset in placed]
    return MaskSet(resampling.frame_size, tuple(crop for crop, _ in placed), np.array(offsets, np.int64).reshape(-1, 2))


def _boxes(some: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(N,R,C) bool -> (N,4) first and last + 1 of the columns and rows that are not empty: x0, y0, x1, y1."""
    sides = []
    for axis in (1, 2):
        lines = np.any(some, axis=axis)
        count = lines.shape[1]
        sides.append((lines.argmax(1), np.where(np.any(lines, axis=1), count - lines[:, ::-1].argmax(1), 0)))
    (x0, x1), (y0, y1) = sides
    return np.stack([x0, y0, x1, y1], 1)


class Reach:
    """How many frame pixels of one map (h,w) float32, resampled, are at least `threshold`.

    `low` and `high` bound it by the cells that lie wholly above, or not wholly below; `count` computes the rest.
    """

    def __init__(self, one: Floats, resampling: Resampling, threshold: float) -> None:
        self._one, self._resampling, self._threshold = one, resampling, threshold
        some, every = (_pool(one >= threshold, resampling, reduce) for reduce in (np.logical_or, np.logical_and))
        rows, cols = (axis.cells.counts.astype(np.float64) for axis in (resampling.rows, resampling.cols))
        self.low, self.high = int(rows @ (every @ cols)), int(rows @ (some @ cols))
        self._undecided = some & ~every

    def count(self) -> int:
        """The exact number."""
        total, rows = self.low, self._resampling.rows.cells
        for row, col in _batches(self._undecided.nonzero(), self._resampling):
            support = _support(self._one, 0, row, col, self._resampling)
            for line, (_, values) in enumerate(_pixels(support, row, col, self._resampling)):
                total += int(np.count_nonzero((values >= self._threshold) & (line < rows.counts[row])))
        return total


# -- label maps ------------------------------------------------------------------------------------------------


def argmax_maps(maps: Floats, resampling: Resampling) -> NDArray[np.int32]:
    """(C,h,w) float32 maps, at least one -> (H,W) int32: which map is largest at each frame pixel, -1 where none shows.

    Where several are equal the first of them, as numpy's and torch's argmax.
    """
    return Leaders.of(maps, resampling).paint(np.arange(len(maps), dtype=np.int32), fill=-1)


@dataclass(frozen=True, eq=False)
class Leaders:
    """Which map is largest in each frame pixel, known by cells: `paint` makes the picture of it.

    `cells` (R,C) int16, the leader of each cell whose pixels all have the same one. `disputed`: of the other cells
    the row (M,), the column (M,) and the leader of each pixel (D,W,M), in batches of cells of the same width.
    """

    resampling: Resampling
    count: int
    cells: NDArray[np.int16]
    disputed: tuple[tuple[Array, Array, NDArray[np.int16]], ...]

    @classmethod
    def of(cls, maps: Floats, resampling: Resampling) -> Leaders:
        """Of (C,h,w) float32 maps, at least one."""
        maps = resampling.check(maps)
        if not 0 < len(maps) < 2**15:
            raise InputError(f"an argmax needs at least one map and at most {2**15 - 1}, but got {len(maps)}")
        leader = _argmax(maps)
        cells, highest = (_pool(leader, resampling, reduce) for reduce in (np.minimum, np.maximum))
        batches = _batches((cells != highest).nonzero(), resampling)
        return cls(
            resampling, len(maps), cells, tuple(_settle(maps, leader, row, col, resampling) for row, col in batches)
        )

    def areas(self) -> NDArray[np.int64]:
        """(C,) int64: how many frame pixels each map leads."""
        rows, cols = self.resampling.rows.cells, self.resampling.cols.cells
        size = np.multiply.outer(rows.counts, cols.counts).astype(np.float64)  # exact up to 2^53
        total = np.zeros(self.count)
        for row, col, pixels in self.disputed:
            size[row, col] = 0
            real = np.arange(len(pixels))[:, None] < rows.counts[row]
            total += np.bincount(pixels.swapaxes(0, 1)[:, real].ravel(), minlength=self.count)
        total += np.bincount(self.cells.ravel(), size.ravel(), self.count)
        return total.astype(np.int64)

    def paint(self, values: NDArray[np.int32], *, fill: int) -> NDArray[np.int32]:
        """(H,W) int32 of the frame: the value (C,) of the map that leads there, `fill` where no map shows."""
        rows, cols = self.resampling.rows.cells, self.resampling.cols.cells
        picture = values[self.cells].take(cols.of, axis=1).take(rows.of, axis=0)
        flat = picture.reshape(-1)
        for row, col, pixels in self.disputed:
            corner = cols.lines[0][col]
            for lines, leaders in zip(rows.lines, values[pixels], strict=True):
                at = lines[row] * picture.shape[1] + corner
                for x, value in enumerate(leaders):
                    flat[at + x] = value
        placed, (x, y) = self.resampling.place(picture, 0, 0)
        if placed.shape == self.resampling.frame_size:
            return np.ascontiguousarray(placed)
        frame = np.full(self.resampling.frame_size, fill, np.int32)
        frame[y : y + placed.shape[0], x : x + placed.shape[1]] = placed
        return frame


def _argmax(maps: Floats) -> NDArray[np.int16]:
    """(C,h,w) -> (h,w), as `maps.argmax(0)`, which walks through memory by steps of a whole map."""
    best, leader = maps[0].copy(), np.zeros(maps.shape[1:], np.int16)
    better = np.empty(maps.shape[1:], np.bool_)
    for i in range(1, len(maps)):
        np.greater(maps[i], best, out=better)
        np.copyto(leader, i, where=better)
        np.maximum(best, maps[i], out=best)
    return leader


def _settle(
    maps: Floats, leader: NDArray[np.int16], row: Array, col: Array, resampling: Resampling
) -> tuple[Array, Array, NDArray[np.int16]]:
    """The leader of each pixel of cells (row, col) (M,) in which several maps lead.

    A map can lead inside a cell only if its largest value there exceeds the smallest one of another map. Maps that
    lead at a corner always stay in, so equal values need no care: the first map of the corner was taken.
    """
    corners = _at(leader, 0, row, col, resampling)  # (K*K,M) maps that lead at a corner
    floor = np.max([_at(maps, one, row, col, resampling).min(0) for one in corners], 0)
    able = _highest(maps, row, col, resampling) > floor  # (C,M)
    able[corners, np.arange(len(row))] = True
    # the cells with the most candidates first: then those that have an r-th one are the first so many of them
    counts = np.count_nonzero(able, 0)
    order = np.argsort(-counts, kind="stable")
    row, col, counts = row[order], col[order], counts[order]
    ranked = able.T[order].nonzero()[1].astype(np.int16)  # of the first cell, of the second, ...; rising in each
    begins = np.cumsum(counts) - counts
    rounds = []
    for r in range(counts[0]):
        some = int(np.count_nonzero(counts > r))
        support = _support(maps, ranked[begins[:some] + r], row[:some], col[:some], resampling)
        rounds.append(_pixels(support, row[:some], col[:some], resampling))
    width = int(resampling.cols.cells.counts[col[0]])
    leaders = np.empty((len(resampling.rows.cells.lines), width, len(row)), np.int16)
    for line in leaders:
        _, best = next(rounds[0])
        winner = np.zeros(best.shape, np.min_scalar_type(len(rounds)))
        for r, pixels in enumerate(rounds[1:], 1):
            _, values = next(pixels)
            some = values.shape[1]
            # where it is better r is written, since r rises: several times as fast as an assignment with a mask
            rank = np.multiply(values > best[:, :some], r, dtype=winner.dtype)
            np.maximum(winner[:, :some], rank, out=winner[:, :some])
            np.maximum(best[:, :some], values, out=best[:, :some])
        line[:] = ranked.take(winner + begins)
    return row, col, leaders


# -- cells -----------------------------------------------------------------------------------------------------


def _pool(maps: Array, resampling: Resampling, reduce: Any) -> Array:
    """(...,h,w) -> (...,R,C): an associative ufunc over each cell's support."""
    rows, cols = resampling.rows, resampling.cols
    out = _lines(maps, rows.cells.starts, -2)
    for k in range(1, rows.taps):
        out = reduce(out, _lines(maps, rows.cells.starts + k, -2))
    pooled = _lines(out, cols.cells.starts, -1)
    for k in range(1, cols.taps):
        pooled = reduce(pooled, _lines(out, cols.cells.starts + k, -1))
    return pooled


def _lines(maps: Array, at: NDArray[np.intp], axis: int) -> Array:
    """maps.take(at, axis), without a copy where the lines follow one another."""
    if len(at) and at[-1] - at[0] == len(at) - 1:
        part = slice(at[0], at[-1] + 1)
        return maps[..., part, :] if axis == -2 else maps[..., part]
    return maps.take(at, axis)


def _batches(cells: tuple[Array, ...], resampling: Resampling) -> Iterator[tuple[Array, ...]]:
    """Cells, the last index their column, in batches of the same width whose pixels' lines fit into the cache."""
    width = resampling.cols.cells.counts[cells[-1]]
    for size in np.unique(width):
        chosen = np.flatnonzero(width == size)
        step = max(1, _BATCH // int(size))
        for i in range(0, len(chosen), step):
            yield tuple(index[chosen[i : i + step]] for index in cells)


def _at(maps: Array, item: Any, row: Array, col: Array, resampling: Resampling) -> Array:
    """(K*K,M): the map pixels of cells (row, col) (M,), of the map `item`, one or (M,)."""
    height, width = maps.shape[-2:]
    corner = resampling.rows.cells.starts[row] * width + resampling.cols.cells.starts[col]
    corner += np.multiply(item, height * width, dtype=np.intp)
    taps = [j * width + k for j in range(resampling.rows.taps) for k in range(resampling.cols.taps)]
    flat = maps.reshape(-1)
    return np.stack([flat.take(corner + tap) for tap in taps])


def _highest(maps: Floats, row: Array, col: Array, resampling: Resampling) -> Floats:
    """(C,M): the largest of the pixels of cells (row, col) (M,), of each map."""
    rows, cols, width = resampling.rows, resampling.cols, maps.shape[-1]
    corner = rows.cells.starts[row] * width + cols.cells.starts[col]
    flat = maps.reshape(len(maps), -1)
    highest: Floats = flat.take(corner, axis=1)
    for tap in [j * width + k for j in range(rows.taps) for k in range(cols.taps)][1:]:
        np.maximum(highest, flat.take(corner + tap, axis=1), out=highest)
    return highest


def _support(maps: Floats, item: Any, row: Array, col: Array, resampling: Resampling) -> Floats:
    """The map pixels of cells (item, row, col) (M,): (K,K,M)."""
    values = _at(maps, item, row, col, resampling)
    return values.reshape(resampling.rows.taps, resampling.cols.taps, len(row))


def _pixels(support: Floats, row: Array, col: Array, resampling: Resampling) -> Iterator[tuple[Array, Floats]]:
    """For each line of cells (row, col) of the same width: its y (M,), and the values of its pixels (W,M)."""
    rows, cols = resampling.rows.cells, resampling.cols.cells
    width = int(cols.counts[col[0]])
    across = cols.weights[:width].take(col, axis=2)
    for y, weights in zip(rows.lines, rows.weights, strict=True):
        down = weights.take(row, axis=1)
        line = down[0] * support[0]
        for j in range(1, len(down)):
            line += down[j] * support[j]
        values = across[:, 0] * line[0]
        for k in range(1, len(line)):
            values += across[:, k] * line[k]
        yield y[row], values
