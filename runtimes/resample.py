"""Frames resized on the GPU as Pillow resizes them: in whole numbers, so that a pass gives Pillow's bytes.

Pillow (src/libImaging/Resample.c) resizes along x, then along y. Each sample of a pass is a sum of source samples with
weights that are multiples of 2^-22, rounded to 8 bits. From 13.0 on Pillow chooses the order by the sizes (its #9549);
the other order rounds some samples to the next level.

`KERNEL` is one pass over samples that lie in any strides, so that regions, grey, the order of the channels and the
place in a padded input cost nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import DeviceError
from edgevtx.geometry import Geometry, Size
from edgevtx.runtimes.base import Array, DeviceArray, Frames
from edgevtx.runtimes.cuda import ALIGNMENT, Buffer, Device, Kernel, Memory, Stream

Floats = NDArray[np.float64]
Held = TypeVar("Held", Buffer, Memory)

_BITS = 22  # of a weight's fraction
_HALF = 1 << (_BITS - 1)

KERNEL = f"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry resample(
    .param .u64 source, .param .u64 source_line, .param .u64 source_pixel, .param .u64 source_sample,
    .param .u64 target, .param .u64 target_line, .param .u64 target_pixel,
    .param .u64 first, .param .u64 weights,
    .param .u32 pixels, .param .u32 samples, .param .u32 taps, .param .u32 total)
{{
    .reg .pred %outside, %more;
    .reg .b32 %index, %block, %threads, %thread, %count, %pixel, %start, %left, %sum, %value, %weight;
    .reg .b64 %l, %p, %s, %from, %to, %stride, %step, %at, %table;
    // one thread a sample of the target, whose line is l, whose pixel of that p, whose sample of that s
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %index, %block, %threads, %thread;
    ld.param.u32 %count, [total];
    setp.ge.u32 %outside, %index, %count;
    @%outside bra DONE;
    ld.param.u32 %count, [samples];
    rem.u32 %value, %index, %count;
    cvt.u64.u32 %s, %value;
    div.u32 %index, %index, %count;
    ld.param.u32 %count, [pixels];
    rem.u32 %pixel, %index, %count;
    cvt.u64.u32 %p, %pixel;
    div.u32 %index, %index, %count;
    cvt.u64.u32 %l, %index;
    // from: its first source sample
    ld.param.u64 %table, [first];
    cvta.to.global.u64 %table, %table;
    shl.b64 %at, %p, 2;
    add.s64 %at, %table, %at;
    ld.global.s32 %start, [%at];
    cvt.s64.s32 %at, %start;
    ld.param.u64 %from, [source];
    cvta.to.global.u64 %from, %from;
    ld.param.u64 %stride, [source_line];
    mad.lo.s64 %from, %l, %stride, %from;
    ld.param.u64 %stride, [source_sample];
    mad.lo.s64 %from, %s, %stride, %from;
    ld.param.u64 %step, [source_pixel];
    mad.lo.s64 %from, %at, %step, %from;
    // at: its first weight
    ld.param.u32 %left, [taps];
    mul.wide.u32 %at, %pixel, %left;
    shl.b64 %at, %at, 2;
    ld.param.u64 %table, [weights];
    cvta.to.global.u64 %table, %table;
    add.s64 %at, %table, %at;
    mov.u32 %sum, {_HALF};
TAP:
    ld.global.u8 %value, [%from];
    ld.global.s32 %weight, [%at];
    mad.lo.s32 %sum, %value, %weight, %sum;
    add.s64 %from, %from, %step;
    add.s64 %at, %at, 4;
    sub.u32 %left, %left, 1;
    setp.ne.u32 %more, %left, 0;
    @%more bra TAP;
    shr.s32 %sum, %sum, {_BITS};
    max.s32 %sum, %sum, 0;
    min.s32 %sum, %sum, 255;
    ld.param.u64 %to, [target];
    cvta.to.global.u64 %to, %to;
    ld.param.u64 %stride, [target_line];
    mad.lo.s64 %to, %l, %stride, %to;
    ld.param.u64 %stride, [target_pixel];
    mad.lo.s64 %to, %p, %stride, %to;
    add.s64 %to, %to, %s;
    st.global.u8 [%to], %sum;
DONE:
    ret;
}}
"""


# -- weights ---------------------------------------------------------------------------------------------------


def _hamming(x: Floats) -> Floats:
    # the constants are single precision in Pillow
    window = np.float64(np.float32(0.54)) + np.float64(np.float32(0.46)) * np.cos(np.pi * x)
    return np.where(np.abs(x) < 1, np.sinc(x) * window, 0.0)


def _bicubic(x: Floats) -> Floats:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# Pillow's filters: the radius in px of the larger scale, and the weight of what lies at a distance
_FILTERS: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
    "box": (0.5, lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)),
    "bilinear": (1.0, lambda x: np.maximum(1 - np.abs(x), 0.0)),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, lambda x: np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)),
}

INTERPOLATIONS = tuple(_FILTERS)


@dataclass(frozen=True)
class Taps:
    """Of each pixel of a resized line: its `first` (n,) source pixel, and the `weights` (n,taps) from there on.

    Both int32, the weights in units of 2^-22. All taps lie inside of the source.
    """

    first: Array
    weights: Array

    def part(self, start: int, stop: int) -> Taps:
        """Those of some pixels."""
        return Taps(self.first[start:stop], self.weights[start:stop])


@lru_cache(maxsize=64)
def make_taps(length: int, new_length: int, interpolation: str) -> Taps:
    """How a line of `length` px is resized to `new_length` px; `interpolation` is one of `INTERPOLATIONS`."""
    radius, weigh = _FILTERS[interpolation]
    scale = length / new_length
    wide = max(scale, 1.0)
    centre = (np.arange(new_length) + 0.5) * scale
    start = np.maximum((centre - radius * wide + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + radius * wide + 0.5).astype(np.int64), length)
    taps = int((stop - start).max())
    first = np.minimum(start, length - taps)
    at = first[:, None] + np.arange(taps)
    values = weigh((at - centre[:, None] + 0.5) * (1 / wide))
    values = np.where((at >= start[:, None]) & (at < stop[:, None]), values, 0.0)
    values /= np.add.accumulate(values, axis=1)[:, -1:]  # summed one by one, as Pillow does
    scaled = values * (1 << _BITS)
    return Taps(first.astype(np.int32), np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32))


def resample(lines: Array, taps: Taps) -> Array:
    """One pass over (lines, pixels, samples) uint8 on the host: what `KERNEL` must give."""
    total = np.full((len(lines), len(taps.first), lines.shape[2]), _HALF, np.int32)
    for tap in range(taps.weights.shape[1]):
        total += lines[:, taps.first + tap].astype(np.int32) * taps.weights[:, tap, None]
    samples: Array = np.clip(total >> _BITS, 0, 255).astype(np.uint8)
    return samples


def resize(image: Array, size: Size, interpolation: str) -> Array:
    """Both passes over (H,W,C) uint8 on the host -> (h,w,C)."""
    (height, width, samples), (new_height, new_width) = image.shape, size
    across = resample(image, make_taps(width, new_width, interpolation))
    down = resample(across.reshape(1, height, new_width * samples), make_taps(height, new_height, interpolation))
    return down.reshape(new_height, new_width, samples)


# -- on the GPU ------------------------------------------------------------------------------------------------


class Resizer:
    """`KERNEL` on a device, and the memory that it works in, which is as large as the largest frames so far need.

    It is made, used and closed while its device is current, by one thread at a time.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        """Resizes a small frame to see that it is right; raises `DeviceError` where it is not, or is not compiled."""
        self._device = device
        self._staging: Buffer | None = None
        self._middle: Memory | None = None
        self._kernel = Kernel(device, KERNEL, "resample")
        try:
            self._prove(stream)
        except BaseException:
            self.close()
            raise

    def put(self, feed: Frames, target: Buffer, stream: Stream) -> None:
        """Put on the stream what fills `target` with the resized frames; it must be waited for before the next call."""
        height, width = feed.input_size
        for frame in feed.frames:
            if isinstance(frame, DeviceArray):
                self._device.check(frame)
        if any(geometry.valid_size != feed.input_size for geometry in feed.geometries):
            target.fill(feed.fill, feed.size, stream)
        views = [_view(*pair, feed) for pair in zip(feed.frames, feed.geometries, strict=True)]
        staged = iter(self._stage([array for view in views for array in view.arrays], stream))
        self._middle = self._grow(Memory, self._middle, max(view.middle for view in views))
        for number, view in enumerate(views):
            self._device.wait_for(view.stream)
            columns, rows = ((next(staged), next(staged)) for _ in range(2))
            source = view.pointer if view.pointer is not None else next(staged)
            count = len(view.columns.first)
            across = (source + view.offset, *view.strides, self._middle.pointer, 3 * count, 3, *columns)
            self._launch(across, view.columns, view.lines, 3, stream)
            left, top = view.place
            place = target.pointer + 3 * ((number * height + top) * width + left)
            down = (self._middle.pointer, 0, 3 * count, 1, place, 0, 3 * width, *rows)
            self._launch(down, view.rows, 1, 3 * count, stream)

    def close(self) -> None:
        """Free all of it; twice is allowed."""
        self._kernel.close()
        for name in ("_staging", "_middle"):
            held: Buffer | Memory | None = getattr(self, name)
            setattr(self, name, None)
            if held is not None:
                held.free()

    def _launch(self, places: Sequence[int], taps: Taps, lines: int, samples: int, stream: Stream) -> None:
        """`places` are the kernel's addresses and strides, in its order."""
        pixels, width = taps.weights.shape
        total = lines * pixels * samples
        words = (pixels, samples, width, total)
        self._kernel.launch(total, (*map(np.int64, places), *map(np.uint32, words)), stream)

    def _stage(self, arrays: Sequence[Array], stream: Stream) -> list[int]:
        """Copy arrays to the GPU, in one piece; where each of them lies there."""
        ends = np.cumsum([-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays])
        size = int(ends[-1])
        self._staging = self._grow(Buffer, self._staging, size)
        starts = [0, *map(int, ends[:-1])]
        for start, array in zip(starts, arrays, strict=True):
            bytes_ = self._staging.host[start : start + array.nbytes]
            np.copyto(bytes_.view(array.dtype).reshape(array.shape), array)
        self._staging.upload(size, stream)
        return [self._staging.pointer + start for start in starts]

    def _grow(self, kind: type[Held], held: Held | None, size: int) -> Held:
        if held is not None and held.size >= size:
            return held
        made = kind(self._device, size)
        if held is not None:
            held.free()
        return made

    def _prove(self, stream: Stream) -> None:
        frame = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
        geometry = Geometry(
            frame_size=(9, 14), roi=(2, 1, 14, 9), rotation=0, resized=(5, 7), offset=(1, 0), input_size=(6, 7)
        )
        wanted = np.full((6, 7, 3), 114, np.uint8)
        wanted[1:] = resize(frame[1:, 2:, ::-1], (5, 7), "bicubic")
        target = Buffer(self._device, wanted.size)
        try:
            self.put(Frames((frame,), (geometry,), (6, 7), "bicubic", fill=114, rgb=True), target, stream)
            target.download(wanted.size, stream)
            stream.synchronize()
            right = np.array_equal(target.host, wanted.reshape(-1))
        finally:
            target.free()
        if not right:
            raise DeviceError(
                f"{self._device.gpu} does not resize frames as the host does; let the host resize them, without "
                "resize='gpu'"
            )


@dataclass(frozen=True)
class _View:
    """A frame's part that is looked at, and how it is resized.

    `pointer` is of the frame on the GPU, None of one that is among `arrays`, which are to be copied there; `offset`
    (bytes) and `strides` (of a line, pixel and sample) say where its samples lie from there on. `lines` are its own,
    `columns` and `rows` those of the result, `place` its left and top in the input, `middle` bytes are between passes.
    """

    arrays: tuple[Array, ...]
    pointer: int | None
    stream: int | None
    offset: int
    strides: tuple[int, int, int]
    lines: int
    columns: Taps
    rows: Taps
    place: tuple[int, int]

    @property
    def middle(self) -> int:
        return 3 * self.lines * len(self.columns.first)


def _view(frame: Array | DeviceArray, geometry: Geometry, feed: Frames) -> _View:
    (x0, y0, x1, y1), (left, top, right, bottom) = geometry.roi, geometry.valid_box
    (y, x), (height, width) = geometry.offset, geometry.resized
    columns = make_taps(x1 - x0, width, feed.interpolation).part(left - x, right - x)
    rows = make_taps(y1 - y0, height, feed.interpolation).part(top - y, bottom - y)
    samples = 3 if frame.ndim == 3 and frame.shape[2] == 3 else 1
    arrays: tuple[Array, ...] = (columns.first, columns.weights, rows.first, rows.weights)
    if isinstance(frame, DeviceArray):
        pointer, stream, row = frame.pointer, frame.stream, frame.shape[1]
        offset = (y0 * row + x0) * samples
    else:
        pointer, stream, row, offset = None, None, x1 - x0, 0
        arrays = (*arrays, frame[y0:y1, x0:x1])
    # grey is one sample three times, and of RGB the last comes first
    sample = 0 if samples == 1 else -1 if feed.rgb else 1
    return _View(
        arrays=arrays,
        pointer=pointer,
        stream=stream,
        offset=offset + (2 if sample < 0 else 0),
        strides=(row * samples, samples, sample),
        lines=y1 - y0,
        columns=columns,
        rows=rows,
        place=(left, top),
    )
