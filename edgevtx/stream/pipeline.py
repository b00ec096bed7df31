"""Run a predictor over a source with reading, inference and writing overlapped, in the source's order.

    reader thread           caller's thread     writer thread
    read -> preprocess  ->  engine          ->  decode -> sinks

Reading, decoding and the sinks fill the gaps that the engine's parallel sections leave. Preprocessing overlaps with an
engine on another device, and takes turns with one on the CPU.

A model of clips keeps each frame when it is preprocessed, and has its engine run where a clip is due. Every frame still
has its record, with the last clip's answer. Frames of a live source are taken while the engine runs, for a clip with
a gap would be none: of the clips that become due meanwhile the newest is answered, and of the frames that wait for a
record only the newest few keep it (see `edgevtx.stream.live`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgevtx.clip import ClipPredictor
from edgevtx.errors import InputError
from edgevtx.stream.live import Waiting, newest
from edgevtx.stream.sources import Frame, Skipped, Source

if TYPE_CHECKING:
    from edgevtx.results import Result
    from edgevtx.runtimes.base import Arrays
    from edgevtx.stream.sinks import Sink

STAGES = ("read", "preprocess", "engine", "decode", "write")  # and "denoise" after "preprocess", where a bundle does
_GRACE_SECONDS = 2.0  # how long a stopped run waits for a camera that has fallen silent
_WAITING = 4  # frames of a live clip that may wait for the engine and their record, each with its image
_VIDEO_FPS = 25.0  # of a video file that states neither positions nor a rate


@dataclass
class Record:
    """A frame and what became of it.

    `stages` is milliseconds by stage name; "write" is added once all sinks have the record. `age` is the time in
    seconds from the frame's capture (for a file: its reading) to its result.
    """

    frame: Frame
    result: Result
    stages: dict[str, float]
    age: float


@dataclass
class Summary:
    """A finished run. `stage_ms` is the mean of each stage; `dropped` counts frames of a live source that were
    superseded by newer ones; `skipped` are the files of a folder that could not be used; `stopped` says that the
    run was ended from outside."""

    frames: int = 0
    seconds: float = 0.0
    dropped: int = 0
    stopped: bool = False
    stage_ms: dict[str, float] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames per second over the whole run, filling and draining included."""
        return self.frames / self.seconds if self.seconds else 0.0


@dataclass
class _Item:
    """A frame on its way: `prepared` after the reader thread, `outputs` after the engine."""

    frame: Frame
    prepared: Any
    stages: dict[str, float]
    outputs: Arrays = field(default_factory=dict)


def run(
    source: Source,
    predictor: Any,
    sinks: Sequence[Sink] = (),
    *,
    threshold: float | None = None,
    top_k: int | None = None,
    roi: tuple[int, int, int, int] | None = None,
    rotation: int = 0,
    limit: int | None = None,
    stop: threading.Event | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Summary:
    """Run `predictor` over every frame of `source` (at most `limit`) and give each result to every sink.

    Of a live source the newest frame is taken, and older ones are dropped. Of a folder, what cannot be read and
    what `predictor.prepare` refuses is skipped, told to the sinks and listed in the summary; `limit` does not count
    it, and `InputError` is raised where nothing else was there. A model of clips reads the frames' own times, and
    `InputError` is raised for a source of single images, which have none, and for a video that ends before its first
    clip is full. `on_record` is called on the writer thread, after the sinks.

    Setting `stop` ends the run after the frames that were already read; they are written. The sinks are closed in
    any case, KeyboardInterrupt included, so that their files are complete; a second KeyboardInterrupt meanwhile
    gives up the frames that wait to be written. The first error of any stage stops all stages and is raised once,
    after the sinks were closed.
    """
    return _Run(source, predictor, sinks, stop or threading.Event(), on_record).go(
        {"roi": roi, "rotation": rotation}, {"threshold": threshold, "top_k": top_k}, limit
    )


class _Run:
    """The state that the three threads of one run share."""

    def __init__(
        self,
        source: Source,
        predictor: Any,
        sinks: Sequence[Sink],
        stop: threading.Event,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        self.source, self.predictor, self.sinks = source, predictor, sinks
        self.stop, self.on_record = stop, on_record
        self.threshold: float | None = None
        self.failure: BaseException | None = None
        self.finished = threading.Event()  # the run is over, for whatever reason: the reader must not go on
        self.hurried = threading.Event()  # what waits to be written is given up
        self.writing = threading.Lock()  # no sink is closed while it writes
        # An engine on the CPU uses every core, and each of its parallel sections waits for its slowest thread, so that
        # resizing beside it costs more than its own time: they take turns there. bench/throughput.py, on 2 cores,
        # gave 0.88 of the bare engine's rate before, and 1.05 (0.91 to 1.18) since.
        # Only a live clip waits for nothing: its frames are not to be missed.
        self.clips = isinstance(predictor, ClipPredictor)
        self.live_clips = self.clips and source.live
        self.ended = self.clip_answered = False
        self.cores: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if predictor.info.device == "CPU" and not self.live_clips else contextlib.nullcontext()
        )
        self.prepared = Waiting(_WAITING if self.live_clips else None)  # of _Item, Skipped, and None at the end
        self.inferred: queue.Queue[_Item | Skipped | None] = queue.Queue(maxsize=2)
        # A live frame is taken only when the engine starts on the one before: one waits, not two.
        self.slots = threading.Semaphore(1 if source.live else 2)
        self.totals: dict[str, float] = {}
        self.summary = Summary()

    def go(self, prepare: dict[str, Any], decode: dict[str, Any], limit: int | None) -> Summary:
        begin = time.perf_counter()
        self.threshold = decode["threshold"]
        reader = threading.Thread(target=self._read, args=(prepare, limit), name="edgevtx-read", daemon=True)
        writer = threading.Thread(target=self._write, args=(decode,), name="edgevtx-write", daemon=True)
        try:
            try:
                self._check_source()
                if self.clips:
                    self.predictor.clear()  # what another source left in the buffer is no part of this one
                writer.start()
                reader.start()
                self._infer()
            except BaseException as error:
                self._fail(error)
            self._join(reader, writer)
        except BaseException as error:  # Ctrl-C while the last frames are written
            self._fail(error)
            self.hurried.set()
            self._join(reader, writer)
        finally:
            self._close_sinks()
        if self.failure is not None:
            raise self.failure
        if not self.stop.is_set():
            self._check_answers()
        return self._summarise(begin)

    def _check_answers(self) -> None:
        """Raise `InputError` where nothing of a whole source could be answered."""
        if self.summary.skipped and not self.summary.frames:
            count, first = len(self.summary.skipped), self.summary.skipped[0]
            raise InputError(f"none of the {count} files in {self.source.name} could be used; {first}")
        if self.clips and self.ended and not self.clip_answered:
            clip, name = self.predictor.clip, self.predictor.info.name
            raise InputError(
                f"{self.source.name} gave {self.summary.frames} frames, too few for a clip or too far apart: "
                f"{name} takes {clip.frames} frames at {clip.fps:g} a second, and two of the video must lie within "
                f"these {clip.span:.3g} s; give a longer video, or one with more frames a second"
            )

    def _check_source(self) -> None:
        if self.clips and self.source.stills:
            raise InputError(
                f"{self.source.name} holds single images, and {self.predictor.info.name} takes clips of "
                f"{self.predictor.clip.frames} frames; give it a video, a camera or a stream"
            )

    def _join(self, reader: threading.Thread, writer: threading.Thread) -> None:
        """Have both threads come to their end; where it was interrupted it may be called again."""
        self.finished.set()
        self.slots.release()
        while True:
            with contextlib.suppress(queue.Full):
                self.inferred.put(None, timeout=0.1)
            if not writer.is_alive():
                break
            writer.join(0.1)
        if reader.is_alive():
            reader.join(_GRACE_SECONDS if self.source.live or self.hurried.is_set() else None)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.finished.set()

    def _read(self, options: dict[str, Any], limit: int | None) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.prepared.put, None)
            try:
                frames = iter(self.source)
                if self.source.live:
                    frames = stack.enter_context(contextlib.closing(newest(frames, self.finished)))
                given = told = 0
                while limit is None or given - self.prepared.dropped < limit:
                    if not self.live_clips:
                        self.slots.acquire()
                    if self.stop.is_set() or self.finished.is_set():
                        break
                    begin = time.perf_counter()
                    frame = next(frames, None)
                    for skipped in self.source.skipped[told:]:
                        self.prepared.put(skipped)
                    told = len(self.source.skipped)
                    if frame is None:
                        self.ended = True
                        break
                    given += self._prepare(frame, options, begin)
            except BaseException as error:
                if not self.stop.is_set():  # a camera that fails while it is being stopped is no failure
                    self._fail(error)

    def _prepare(self, frame: Frame, options: dict[str, Any], begin: float) -> bool:
        """Hand a frame on to the engine; False where it was refused, and skipped."""
        read = time.perf_counter()
        if self.clips:
            options = {**options, "time": self._time(frame)}
        try:
            with self.cores:
                start = time.perf_counter()
                prepared = self.predictor.prepare(frame.image, **options)
                stop = time.perf_counter()
        except InputError as error:
            if not self.source.skips:
                raise
            self.prepared.put(Skipped(frame.index, frame.source, str(error)))
            self.slots.release()
            return False
        stages = {"read": _ms(begin, read), "preprocess": _ms(start, stop)}
        if (denoised := getattr(prepared, "denoise_ms", None)) is not None:
            stages["preprocess"] -= denoised
            stages["denoise"] = denoised
        self.prepared.put(_Item(frame, prepared, stages))
        return True

    def _time(self, frame: Frame) -> float:
        """When a frame was taken, in seconds: by the clock, or its place in the video (without one, by its rate)."""
        if self.source.live:
            return frame.monotonic
        return frame.position or frame.index / (self.source.fps or _VIDEO_FPS)

    def _next(self) -> _Item | Skipped | None:
        """The next prepared frame, or file that was skipped; None at the end, or when a stopped source keeps silent."""
        waited = 0.0
        while True:
            try:
                item: _Item | Skipped | None = self.prepared.get(timeout=0.1)
                return item
            except queue.Empty:
                waited = waited + 0.1 if self.stop.is_set() else 0.0
                if self.finished.is_set() or (self.source.live and waited > _GRACE_SECONDS):
                    return None

    def _infer(self) -> None:
        while (item := self._next()) is not None and not self.finished.is_set():
            if isinstance(item, _Item):
                self.slots.release()
                with self.cores:
                    begin = time.perf_counter()
                    item.outputs = self.predictor.infer(item.prepared, threshold=self.threshold)
                item.stages["engine"] = _ms(begin, time.perf_counter())
                self.clip_answered |= self.clips and not item.prepared.pending
            self.inferred.put(item)

    def _write(self, options: dict[str, Any]) -> None:
        broken = False
        while (item := self.inferred.get()) is not None:
            with self.writing:
                if self.hurried.is_set():
                    return
                if broken:
                    continue  # keep emptying the queue: the engine's thread must not block on it
                try:
                    if isinstance(item, _Item):
                        self._write_one(item, options)
                    else:
                        self._skip(item)
                except BaseException as error:
                    broken = True
                    self._fail(error)

    def _skip(self, item: Skipped) -> None:
        for sink in self.sinks:
            sink.skip(item)
        self.summary.skipped.append(item)

    def _write_one(self, item: _Item, options: dict[str, Any]) -> None:
        begin = time.perf_counter()
        (result,) = self.predictor.decode(item.outputs, item.prepared, **options)
        decoded = time.perf_counter()
        item.stages["decode"] = _ms(begin, decoded)
        record = Record(item.frame, result, item.stages, time.monotonic() - item.frame.monotonic)
        for sink in self.sinks:
            sink.write(record)
        item.stages["write"] = _ms(decoded, time.perf_counter())
        for stage, spent in item.stages.items():
            self.totals[stage] = self.totals.get(stage, 0.0) + spent
        self.summary.frames += 1
        self.summary.dropped = item.frame.index + 1 - self.summary.frames if self.source.live else 0
        if self.on_record is not None:
            self.on_record(record)

    def _close_sinks(self) -> None:
        with self.writing:
            for sink in self.sinks:
                try:
                    sink.close()
                except BaseException as error:
                    self._fail(error)

    def _summarise(self, begin: float) -> Summary:
        found = self.summary
        found.seconds = time.perf_counter() - begin
        found.stopped = self.stop.is_set()
        totals = self.totals or dict.fromkeys(STAGES, 0.0)
        found.stage_ms = {stage: total / max(1, found.frames) for stage, total in totals.items()}
        found.notes = [*self.source.notes]
        for sink in self.sinks:
            found.notes += sink.notes
        return found


def _ms(begin: float, end: float) -> float:
    return (end - begin) * 1000
