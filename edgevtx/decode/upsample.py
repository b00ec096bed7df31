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

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry, linear_taps
from edgevtx.masks import MaskSet

Array = NDArray[Any]
Floats = NDArray[np.float32]
Size = tuple[int, int]
_CHUNK = 16384  # cells computed at once: a few dozen arrays of so many floats stay in the second-level cache


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
        """Line i lies at (i + 0.5) * scale + shift in the source, whose edge values are held."""
        inside, low, fraction = linear_taps(length, source, scale, shift)
        weights = np.stack([1 - fraction, fraction], 1)[:, :source].astype(np.float32)
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
        deepest = int(counts.max(initial=0))
        # short groups repeat their last line, which computes the same pixel twice instead of asking
        lines = first[:, None] + np.minimum(np.arange(deepest), counts[:, None] - 1)
        table = np.ascontiguousarray(self.weights[lines].transpose(1, 2, 0))
        return _Cells(self.starts[first], counts, np.repeat(np.arange(len(first)), counts), lines.T.copy(), table)


class _Cells(NamedTuple):
    """Lines of one axis in groups of equal support.

    `starts` (G,) first map line of each group's support; `counts` (G,) its lines; `of` (n,) each line's group;
    `lines` (D,G) the groups' lines; `weights` (D,K,G) theirs.
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
        """(h,w) pixels at (top, left) of the shown part of the upright roi -> the same as they lie in the frame, x, y."""
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


def threshold_maps(maps: Floats, resampling: Resampling, threshold: float) -> MaskSet:
    """(N,h,w) float32 maps -> the masks {map resampled to the frame > threshold} of the frame, not cut tight.

    Pixels that the maps do not show belong to no mask.
    """
    maps = resampling.check(maps)
    rows, cols = resampling.rows.cells, resampling.cols.cells
    crops, offsets = [], []
    for one in maps:
        upright, top, left = _threshold(one, rows, cols, resampling, threshold)
        crop, offset = resampling.place(upright, top, left)
        crops.append(crop)
        offsets.append(offset if crop.size else (0, 0))
    return MaskSet(resampling.frame_size, tuple(crops), np.array(offsets, np.int64).reshape(-1, 2))


def _threshold(
    one: Floats, rows: _Cells, cols: _Cells, resampling: Resampling, threshold: float
) -> tuple[NDArray[np.bool_], int, int]:
    """(h,w) map -> its mask's crop in the upright roi, top, left."""
    above = one > threshold
    some = _pool(above, resampling, np.logical_or)
    # the cells that are not empty, as a box
    shown = np.flatnonzero(some.any(1)), np.flatnonzero(some.any(0))
    if not len(shown[0]):
        return np.zeros((0, 0), np.bool_), 0, 0
    r0, r1, c0, c1 = shown[0][0], shown[0][-1] + 1, shown[1][0], shown[1][-1] + 1
    every = _pool(above, resampling, np.logical_and)[r0:r1, c0:c1]
    top, left = int(rows.lines[0, r0]), int(cols.lines[0, c0])
    bottom, right = int(rows.lines[-1, r1 - 1]) + 1, int(cols.lines[-1, c1 - 1]) + 1
    mask = every[:, cols.of[left:right] - c0][rows.of[top:bottom] - r0]
    row, col = np.nonzero(some[r0:r1, c0:c1] ^ every)
    flat, width = mask.reshape(-1), right - left
    for i in range(0, len(row), _CHUNK):
        r, c = row[i : i + _CHUNK] + r0, col[i : i + _CHUNK] + c0
        for y, x, values in _pixels(_support(one, r, c, resampling), r, c, resampling):
            flat[(y - top) * width + (x - left)] = values > threshold
    return mask, top, left


def _pool(maps: Array, resampling: Resampling, reduce: Any) -> Array:
    """(...,h,w) -> (...,R,C): an associative ufunc over each cell's support."""
    rows, cols = resampling.rows, resampling.cols
    out = maps[..., rows.cells.starts, :]
    for k in range(1, rows.taps):
        out = reduce(out, maps[..., rows.cells.starts + k, :])
    pooled = out[..., cols.cells.starts]
    for k in range(1, cols.taps):
        pooled = reduce(pooled, out[..., cols.cells.starts + k])
    return pooled


def _support(one: Floats, row: Array, col: Array, resampling: Resampling) -> list[list[Floats]]:
    """The map pixels of cells (row, col) (M,): [row tap][column tap] (M,)."""
    flat, width = one.reshape(-1), one.shape[-1]
    at = resampling.rows.cells.starts[row] * width + resampling.cols.cells.starts[col]
    return [[flat[at + (j * width + k)] for k in range(resampling.cols.taps)] for j in range(resampling.rows.taps)]


def _pixels(support: list[list[Floats]], row: Array, col: Array, resampling: Resampling) -> Any:
    """For each pixel of the cells: y (M,), x (M,) in the shown part of the upright roi, and the value (M,) float32."""
    rows, cols = resampling.rows.cells, resampling.cols.cells
    across = [
        (cols.lines[b][col], [cols.weights[b, k][col] for k in range(resampling.cols.taps)])
        for b in range(len(cols.lines))
    ]
    for a in range(len(rows.lines)):
        weights = [rows.weights[a, j][row] for j in range(resampling.rows.taps)]
        line = [_mean(weights, [taps[k] for taps in support]) for k in range(resampling.cols.taps)]
        y = rows.lines[a][row]
        for x, columns in across:
            yield y, x, _mean(columns, line)


def _mean(weights: list[Floats], values: list[Floats]) -> Floats:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total += weight * value
    return total


def argmax_maps(maps: Floats, resampling: Resampling) -> NDArray[np.int32]:
    """(C,h,w) float32 maps, at least one -> (H,W) int32: which map is largest at each frame pixel, -1 where none shows.

    Where several are equal the first of them, as numpy's and torch's argmax.
    """
    maps = resampling.check(maps)
    if not len(maps):
        raise InputError("an argmax needs at least one map, but got none")
    upright = np.zeros((len(resampling.rows.starts), len(resampling.cols.starts)), np.int32)
    rows, cols = resampling.rows.cells, resampling.cols.cells
    # which map leads at each map pixel, and whether it does so over the whole support of a cell
    leader = maps.argmax(0).astype(np.int32)
    low, high = _pool(leader, resampling, np.minimum), _pool(leader, resampling, np.maximum)
    upright = low[:, cols.of][rows.of]
    row, col = np.nonzero(low != high)
    flat, width = upright.reshape(-1), upright.shape[1]
    for i in range(0, len(row), _CHUNK):
        r, c = row[i : i + _CHUNK], col[i : i + _CHUNK]
        found = [_pixels(_support(one, r, c, resampling), r, c, resampling) for one in maps]
        for pixels in zip(*found, strict=True):
            y, x, _ = pixels[0]
            flat[y * width + x] = np.stack([values for _, _, values in pixels]).argmax(0)
    label_map = np.full(resampling.frame_size, -1, np.int32)
    placed, (x, y) = resampling.place(upright, 0, 0)
    label_map[y : y + placed.shape[0], x : x + placed.shape[1]] = placed
    return label_map
