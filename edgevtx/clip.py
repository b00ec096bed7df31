"""Models that look at clips: whole ones, or a stream that is pushed frame by frame and comes at a rate of its own.

model = edgevtx.load("vivit.vtx")
found = model(clip)                              # (T, H, W, 3) or a list of frames, sampled uniformly
for frame in camera:
    found = model.push(frame)                    # None until a clip is full, then every `stride` model frames
"""

from __future__ import annotations

import contextlib
import logging
import math
import time as clock
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevtx.decode import check_options
from edgevtx.errors import InputError
from edgevtx.predictor import Predictor
from edgevtx.prepared import Prepared, collate
from edgevtx.preprocess import prepare
from edgevtx.results import Classification, Result
from edgevtx.rules import Clip
from edgevtx.runtimes.base import Array, Arrays, OnGpu

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from edgevtx.prepared import FrameOptions

log = logging.getLogger(__name__)

GAP = 0.25
"""A stream that is silent for longer than this share of a clip starts a new clip: what was missed is not made up."""

PATIENCE = 3
"""A stream that is always slower than that is silent only once it has missed so many of its own usual intervals."""

_REMEMBERED = 5  # intervals whose median is the usual one: two drop-outs among them do not change it
_SAME = 1e-6  # seconds: times that differ by less do so by rounding, as unix times in seconds do


class ClipBuffer:
    """The last frames of a stream, resampled to a model's rate.

    The model's frames lie 1 / `clip.fps` s apart, the first one at the first frame of the stream. Each is the pushed
    frame whose time is nearest (of two equally near ones the earlier), so it is known once a frame at or after it has
    come; a slow or jittering stream repeats frames, a fast one leaves some out. A frame that comes too long after the
    one before, or too long before it, begins a new stream. Too long is more than `gap` seconds, `GAP` of the clip and
    at least two model frames, and for a stream whose frames always lie far apart more than `PATIENCE` of its usual
    intervals, the median of the latest. It is always too long if it exceeds `span`, the seconds from a clip's first
    frame to its last: so every clip of three frames or more shows at least two of the stream's. The first interval is
    not known to be usual: a slow stream begins anew with its second frame, and one that slows down up to three times.

    A frame that is late by less, or has the time of the one before, is left out. So a clock that is set, by however
    much, costs one clip; and of times too large to tell frames apart (1e15 s, say) no clip is made.

    `stream` counts the streams that have begun.
    """

    def __init__(self, clip: Clip) -> None:
        self.frames, self.period, self.stride = clip.frames, 1 / clip.fps, clip.stride
        self.gap = max(GAP * clip.frames, 2) * self.period
        self.span = clip.span
        self._rows: deque[Array] = deque(maxlen=clip.frames)
        self._intervals: deque[float] = deque(maxlen=_REMEMBERED)
        self.stream = 0
        self.clear()

    def clear(self) -> None:
        """Forget every frame, and how fast they came; the next one is the first of a stream."""
        self._intervals.clear()
        self._told = False
        self._begin()

    def _begin(self) -> None:
        self._rows.clear()
        self._origin = 0.0  # the time of the stream's first frame, from which the others count: so they stay exact
        self._last: tuple[float, Array] | None = None
        self._count = 0  # model frames since the stream's first

    def push(self, row: Array, time: float) -> list[Array] | None:
        """Add a frame's `row` (any array, kept and not copied) at `time` (s).

        Returns the `frames` rows of a clip, oldest first, where one became full that an answer is due for: the first
        one, and then one every `stride` model frames. Raises `InputError` for a time that is no finite number.
        """
        time = _seconds(time)
        now = time - self._origin
        if self._last is not None and self._breaks(now - self._last[0]):
            self._begin()
        if self._last is None:
            self.stream += 1
            self._origin, now = time, 0.0
            before, row_before = now, row
        else:
            before, row_before = self._last
            if now <= before:
                return None
        self._last = now, row
        due = None
        while (moment := self._count * self.period) <= now + _SAME:
            self._rows.append(row_before if moment - before <= now - moment + _SAME else row)
            self._count += 1
            if self._count >= self.frames and (self._count - self.frames) % self.stride == 0:
                due = list(self._rows)
        return due

    def _breaks(self, apart: float) -> bool:
        """Whether a frame `apart` seconds after the one before begins a new stream; the interval is remembered."""
        patience = PATIENCE * self._usual
        allowed = max(self.gap, min(patience, self.span))
        broken = abs(apart) > allowed + _SAME
        slow = 0 < apart <= patience and self._usual > allowed  # then `_tell` says that no clip is made, and once
        if broken and not slow:
            log.warning("frames lie %.2f s apart, allowed %.2f: a new clip begins", apart, allowed)
        if apart > 0:
            self._intervals.append(apart)
            self._tell()
        return broken

    @property
    def _usual(self) -> float:
        """The median (s) of the latest intervals between frames, the lower one of an even number; 0 where none is."""
        return sorted(self._intervals)[(len(self._intervals) - 1) // 2] if self._intervals else 0.0

    def _tell(self) -> None:
        """Say once that a stream is slow: its frames come at less than half the model's rate."""
        usual = self._usual
        if self._told or len(self._intervals) < _REMEMBERED or usual <= 2 * self.period:
            return
        self._told = True
        if usual > max(self.gap, self.span):
            log.warning(
                "a frame comes every %.2f s, and a clip spans %.2f: give a faster stream, or no clip is made",
                usual,
                self.span,
            )
        else:
            log.warning(
                "a frame comes every %.2f s, and the model was trained at one every %.2f: each is taken several times",
                usual,
                self.period,
            )


def _seconds(time: object) -> float:
    """A frame's time as a float; `InputError` where it is none."""
    if isinstance(time, int | float | np.integer | np.floating):
        with contextlib.suppress(OverflowError):  # a whole number beyond every float
            if math.isfinite(seconds := float(time)):
                return seconds
    raise InputError(f"a frame's time must be a finite number of seconds, but got {time!r}")


@dataclass(frozen=True)
class Moment(Prepared):
    """A pushed frame: its clip where one is due, no inputs where not; and which `stream` it is of, by number."""

    stream: int = 0


class ClipPredictor(Predictor):
    """A loaded model of clips: `model(clip)` answers a whole clip, `model.push(frame)` a stream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._buffer = ClipBuffer(self.clip)
        self._timed: bool | None = None  # whether the stream's frames come with their times
        self._answered = 0  # the stream, by number, that the latest answer is about
        self._latest: list[Result] = [Classification.empty()]

    @property
    def clip(self) -> Clip:
        """How many frames the model takes, at which rate, and the bundle's stride."""
        assert self.manifest.preprocess.clip is not None
        return self.manifest.preprocess.clip

    @property
    def stride(self) -> int:
        """Model frames between two answers about a stream; the bundle's unless it is set."""
        return self._buffer.stride

    @stride.setter
    def stride(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"stride must be a whole number of at least 1, but got {value!r}")
        self._buffer.stride = int(value)

    def __call__(
        self,
        frame: Array | OnGpu | Sequence[Array],
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        **options: Unpack[FrameOptions],
    ) -> Result:
        """Answer one clip (T,H,W,3) uint8 or a list of T frames, T no less than the model's, sampled uniformly.

        The other arguments are as those of `Predictor`. Raises `InputError` for a single frame or a shorter clip.
        """
        prepared = self._prepare_many([frame], **options)
        return self.decode(self.infer(prepared), prepared, threshold=threshold, top_k=top_k)[0]

    def push(self, frame: Array, time: float | None = None, **options: Any) -> Result | None:
        """Add the next frame (H,W,3) uint8 of a stream; the answer where one is due, else None.

        `time` is when the frame was taken, in seconds from any start; None takes the clock, which is right for a live
        camera and wrong for a file: give a video's frames their positions. Frames are resampled to the model's rate
        (see `ClipBuffer`) and resized once. The first answer comes when a clip is full, the next ones every `stride`
        model frames; a gap in the stream starts a new clip. `options`: threshold, top_k, color, roi, rotation, as
        those of `Predictor`. Raises `InputError`, also where some frames have times and others none.
        """
        limits = {key: options.pop(key) for key in ("threshold", "top_k") if key in options}
        prepared = self.prepare(frame, time=time, **options)
        if prepared.pending:
            return None
        return self.decode(self.infer(prepared), prepared, **limits)[0]

    def clear(self) -> None:
        """Forget the stream's frames; the next frame pushed is the first of another stream."""
        self._buffer.clear()
        self._timed = None

    def clone(self) -> Self:
        """As the parent's, with the `stride` that was set; it has a stream of its own, of which there is no frame."""
        other = super().clone()
        other.stride = self.stride
        return other

    def prepare(
        self,
        frame: Array | OnGpu,
        *,
        time: float | None = None,
        **options: Unpack[FrameOptions],
    ) -> Prepared:
        """Push one frame: what is due for the engine, or a pending `Prepared`. Touches no engine."""
        start = perf_counter()
        if self._timed not in (None, time is not None):
            raise InputError(
                "some frames of this stream have a time and others none; give all of them one, or call clear() between "
                "two streams"
            )
        times: dict[str, float] = {}
        rule = self.manifest.preprocess
        row, geometry = prepare(frame, rule, times=times, **options)
        rows = self._buffer.push(row, clock.monotonic() if time is None else time)
        self._timed = time is not None
        inputs = {} if rows is None else collate([np.stack(rows)], self.manifest.inputs)
        spent, denoised = 1e3 * (perf_counter() - start), times.get("denoise")
        return Moment(inputs, (geometry,), spent - (denoised or 0.0), denoised, stream=self._buffer.stream)

    def infer(self, prepared: Prepared, *, threshold: float | None = None) -> Arrays:
        """Run the engine on a full clip; nothing is run, and no output given, where none is due."""
        if prepared.pending:
            self.stages = {**prepared.stages, "engine": 0.0, "decode": 0.0}
            return {}
        return super().infer(prepared, threshold=threshold)

    def decode(
        self, outputs: Arrays, prepared: Prepared, *, threshold: float | None = None, top_k: int | None = None
    ) -> list[Result]:
        """The answers; for a pushed frame that no answer was due for the stream's last one, at first an empty one."""
        if not isinstance(prepared, Moment):
            return super().decode(outputs, prepared, threshold=threshold, top_k=top_k)
        check_options(self.manifest.decode, threshold, top_k)
        if prepared.stream != self._answered:  # not: the stream's first frame, for that may have been dropped
            self._answered, self._latest = prepared.stream, [Classification.empty()]
        if not prepared.pending:
            self._latest = super().decode(outputs, prepared, threshold=threshold, top_k=top_k)
        return self._latest
