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

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.decode.resample import Array, Axis, Cells, Floats, Resampling
from edgevtx.errors import InputError
from edgevtx.masks import MaskSet
from edgevtx.threads import MOST_THREADS, each, run_all

_BATCH = 32768  # pixels computed at once: a few arrays of so many floats stay in the second-level cache
_ALL = slice(None)


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
    if not some.size:  # no maps, or they show nothing of the frame
        return MaskSet(resampling.frame_size, (np.empty((0, 0), np.bool_),) * len(maps), np.zeros((len(maps), 2), int))
    boxes = _boxes(some)  # of cells
    top, left = rows.lines[0][boxes[:, 1]], cols.lines[0][boxes[:, 0]]
    height = np.where(boxes[:, 3] > boxes[:, 1], rows.lines[-1][boxes[:, 3] - 1] + 1 - top, 0)
    width = np.where(boxes[:, 2] > boxes[:, 0], cols.lines[-1][boxes[:, 2] - 1] + 1 - left, 0)
    ends = np.cumsum(height * width)
    begins = ends - height * width
    pixels = np.empty(int(ends[-1]), np.bool_)  # all crops, one after another
    crops = [pixels[a:b].reshape(h, w) for a, b, h, w in zip(begins, ends, height, width, strict=True)]
    origin = begins - top * width - left

    def fill(i: int) -> None:
        """A crop as its cells have it."""
        (c0, r0, c1, r1), (h, w), y, x = boxes[i], crops[i].shape, top[i], left[i]
        lines = every[i, r0:r1, c0:c1].take(cols.of[x : x + w] - c0, axis=1)
        lines.take(rows.of[y : y + h] - r0, axis=0, out=crops[i], mode="clip")

    def settle(batch: tuple[Array, ...]) -> None:
        """The pixels of undecided cells."""
        item, row, col = batch
        limit, columns = thresholds[item], origin[item] + cols.lines.take(col, axis=1)
        for y, values in _pixels(_support(maps, item, row, col, resampling), row, col, resampling):
            pixels[columns + y * width[item]] = values > limit

    each(fill, range(len(crops)))
    each(settle, _batches(np.nonzero(some != every), resampling))
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
        above = one >= threshold
        # the cells that reach into a line of the map that has anything; most masks are small
        near = [
            np.flatnonzero(_pool_axis(np.any(above, axis=1 - i), axis, np.logical_or, -1))
            for i, axis in enumerate((resampling.rows, resampling.cols))
        ]
        self._corner = [int(cells[0]) if len(cells) else 0 for cells in near]
        window = [slice(cells[0], cells[-1] + 1) if len(cells) else slice(0) for cells in near]
        some, every = (_pool(above, resampling, reduce, *window) for reduce in (np.logical_or, np.logical_and))
        rows, cols = (
            axis.cells.counts[part].astype(np.float32)
            for axis, part in zip((resampling.rows, resampling.cols), window, strict=True)
        )
        self.low, self.high = (int(rows.astype(np.float64) @ (cells @ cols)) for cells in (every, some))
        self._undecided = some & ~every

    def count(self) -> int:
        """The exact number."""
        total, (rows, cols) = self.low, (self._resampling.rows.cells, self._resampling.cols.cells)
        open_cells = tuple(at + first for at, first in zip(self._undecided.nonzero(), self._corner, strict=True))
        for row, col in _batches(open_cells, self._resampling):
            support, wide = _support(self._one, 0, row, col, self._resampling), _real(cols, col)
            for (_, values), real in zip(_pixels(support, row, col, self._resampling), _real(rows, row), strict=True):
                total += int(np.count_nonzero((values >= self._threshold) & wide & real))
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
    the row (M,), the column (M,) and the leader of each pixel (D,W,M), in batches.
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
        settled = each(lambda batch: _settle(maps, leader, batch[0], batch[1], resampling), batches)
        return cls(resampling, len(maps), cells, tuple(settled))

    def areas(self) -> NDArray[np.int64]:
        """(C,) int64: how many frame pixels each map leads."""
        rows, cols = self.resampling.rows.cells, self.resampling.cols.cells
        size = np.multiply.outer(rows.counts, cols.counts).astype(np.float64)  # exact up to 2^53

        def tally(batch: tuple[Array, Array, NDArray[np.int16]]) -> NDArray[Any]:
            row, col, pixels = batch
            size[row, col] = 0
            real = _real(rows, row)[:, None] & _real(cols, col)
            return np.bincount(pixels[real], minlength=self.count)

        disputed = each(tally, self.disputed)
        whole = np.bincount(self.cells.ravel(), size.ravel(), self.count)
        total: NDArray[np.int64] = np.sum([whole, *disputed], axis=0).astype(np.int64)
        return total

    def paint(self, values: NDArray[np.int32], *, fill: int) -> NDArray[np.int32]:
        """(H,W) int32 of the frame: the value (C,) of the map that leads there, `fill` where no map shows."""
        rows, cols = self.resampling.rows.cells, self.resampling.cols.cells
        lines = values[self.cells].take(cols.of, axis=1)
        picture = np.empty((len(rows.of), len(cols.of)), np.int32)
        flat = picture.reshape(-1)

        def spread(a: int, b: int) -> None:
            """Lines a to b as their cells have it."""
            lines.take(rows.of[a:b], axis=0, out=picture[a:b], mode="clip")

        def settle(batch: tuple[Array, Array, NDArray[np.int16]]) -> None:
            """The pixels of disputed cells."""
            row, col, pixels = batch
            columns = cols.lines.take(col, axis=1)
            for lines, leaders in zip(rows.lines, pixels, strict=True):
                flat[columns + lines[row] * picture.shape[1]] = values[leaders]

        run_all([functools.partial(spread, a, b) for a, b in _strips(len(picture))])
        each(settle, self.disputed)
        placed, (x, y) = self.resampling.place(picture, 0, 0)
        if placed.shape == self.resampling.frame_size:
            return np.ascontiguousarray(placed)
        frame = np.full(self.resampling.frame_size, fill, np.int32)
        frame[y : y + placed.shape[0], x : x + placed.shape[1]] = placed
        return frame


def _argmax(maps: Floats) -> NDArray[np.int16]:
    """(C,h,w) -> (h,w), as `maps.argmax(0)`, which walks through memory by steps of a whole map."""
    best, leader = maps[0].copy(), np.zeros(maps.shape[1:], np.uint8 if len(maps) <= 256 else np.int16)
    for i in range(1, len(maps)):
        # where it is better i is written, since i rises: several times as fast as an assignment with a mask
        better = (maps[i] > best).view(np.uint8)
        np.maximum(leader, np.multiply(better, i, dtype=leader.dtype), out=leader)
        np.maximum(best, maps[i], out=best)
    return leader.astype(np.int16)


def _strips(length: int) -> list[tuple[int, int]]:
    """From 0 to `length` in a few pieces, start and end, for as many threads and some to spare."""
    cuts = np.linspace(0, length, min(length, 2 * MOST_THREADS) + 1, dtype=int).tolist()
    return list(pairwise(cuts))


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
    rows, cols = resampling.rows.cells, resampling.cols.cells
    leaders = np.empty((len(rows.lines), len(cols.lines), len(row)), np.int16)
    for line in leaders:
        _, best = next(rounds[0])
        winner = np.zeros(best.shape, np.min_scalar_type(len(rounds)))
        for r, pixels in enumerate(rounds[1:], 1):
            _, values = next(pixels)
            some = values.shape[1]
            # by rank, as in _argmax
            rank = np.multiply(values > best[:, :some], r, dtype=winner.dtype)
            np.maximum(winner[:, :some], rank, out=winner[:, :some])
            np.maximum(best[:, :some], values, out=best[:, :some])
        line[:] = ranked.take(winner + begins)
    return row, col, leaders


# -- cells -----------------------------------------------------------------------------------------------------


def _pool(maps: Array, resampling: Resampling, reduce: Any, rows: slice = _ALL, cols: slice = _ALL) -> Array:
    """(...,h,w) -> (...,R,C): an associative ufunc over the support of each cell, or of those in `rows` and `cols`."""
    lines = _pool_axis(maps, resampling.rows, reduce, -2, rows)
    return _pool_axis(lines, resampling.cols, reduce, -1, cols)


def _pool_axis(maps: Array, axis: Axis, reduce: Any, along: int, cells: slice = _ALL) -> Array:
    starts, bends = axis.cells.starts[cells], axis.cells.bends[cells]
    if len(starts) and bends[0] == bends[-1]:  # they follow one another, so that no copy is needed
        taps = [slice(starts[0] + k, starts[-1] + k + 1) for k in range(axis.taps)]
        lines = [maps[..., tap] if along == -1 else maps[..., tap, :] for tap in taps]
    else:
        lines = [maps.take(starts + k, along) for k in range(axis.taps)]
    return functools.reduce(reduce, lines)


def _batches(cells: tuple[Array, ...], resampling: Resampling) -> list[tuple[Array, ...]]:
    """Cells, index by index (M,), in batches whose pixels' lines fit into the cache."""
    step = max(1, _BATCH // max(1, len(resampling.cols.cells.lines)))
    return [tuple(index[i : i + step] for index in cells) for i in range(0, len(cells[-1]), step)]


def _real(cells: Cells, chosen: Array) -> NDArray[np.bool_]:
    """(D,M): which lines of the chosen groups (M,) are their own, and not their last one repeated."""
    real: NDArray[np.bool_] = np.arange(len(cells.lines))[:, None] < cells.counts[chosen]
    return real


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
    """For each line of cells (row, col): its y (M,), and the values of its pixels (W,M)."""
    rows, cols = resampling.rows.cells, resampling.cols.cells
    across = cols.weights.take(col, axis=2)
    for y, weights in zip(rows.lines, rows.weights, strict=True):
        down = weights.take(row, axis=1)
        line = down[0] * support[0]
        for j in range(1, len(down)):
            line += down[j] * support[j]
        values = across[:, 0] * line[0]
        for k in range(1, len(line)):
            values += across[:, k] * line[k]
        yield y[row], values
