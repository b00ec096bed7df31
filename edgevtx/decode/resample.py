"""Bilinear resizes, one after another, as one operator an axis from a network's maps to the pixels of the frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry, Size

Array = NDArray[Any]
Floats = NDArray[np.float32]


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
    def cells(self) -> Cells:
        """Groups of lines with the same support."""
        first = np.flatnonzero(np.diff(self.starts, prepend=-1))
        counts = np.diff(first, append=len(self.starts))
        # all groups are computed as long as the longest: the few long ones, at the edges, are cut
        most = int(np.quantile(counts, 0.9, method="higher")) if len(counts) else 1
        pieces = -(-counts // most)
        first = np.repeat(first - most * (np.cumsum(pieces) - pieces), pieces) + most * np.arange(pieces.sum())
        counts = np.diff(first, append=len(self.starts))
        # a short group repeats its last line: to compute it twice costs less than to ask
        lines = first[:, None] + np.minimum(np.arange(counts.max(initial=0)), counts[:, None] - 1)
        weights = np.ascontiguousarray(self.weights[lines].transpose(1, 2, 0))
        of = np.repeat(np.arange(len(first)), counts)
        starts = self.starts[first]
        bends = np.cumsum(np.diff(starts, prepend=starts[:1]) != 1)
        return Cells(starts, bends, counts, of, np.ascontiguousarray(lines.T), weights)


class Cells(NamedTuple):
    """Lines of one axis in groups of equal support.

    `starts` (G,) first map line of each group's support; `bends` (G,) how many groups up to this one do not start one
    line after the group before; `counts` (G,) its lines; `of` (n,) each line's group;
    `lines` (D,G) the groups' lines, the last one repeated in groups of less than D; `weights` (D,K,G) theirs.
    """

    starts: NDArray[np.intp]
    bends: NDArray[np.intp]
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
    @lru_cache(maxsize=16)  # a camera's frames all have the same
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
