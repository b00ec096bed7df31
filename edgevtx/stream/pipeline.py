"""Run a predictor over a source with reading, inference and writing overlapped, in the source's order.

    reader thread           caller's thread     writer thread
    read -> preprocess  ->  engine          ->  decode -> sinks

The engine uses all cores; the other steps fill the gaps that its parallel sections leave.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgevtx.stream.sources import Frame, Source

if TYPE_CHECKING:
    from edgevtx.results import Result
    from edgevtx.runtimes.base import Arrays
    from edgevtx.stream.sinks import Sink

STAGES = ("read", "preprocess", "engine", "decode", "write")
_GRACE_SECONDS = 2.0  # how long a stopped run waits for a camera that has fallen silent


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
    superseded by newer ones; `stopped` says that the run was ended from outside."""

    frames: int = 0
    seconds: float = 0.0
    dropped: int = 0
    stopped: bool = False
    stage_ms: dict[str, float] = field(default_factory=dict)
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

    Of a live source the newest frame is taken, and older ones are dropped. `on_record` is called on the writer
    thread, after the sinks. Setting `stop` ends the run after the frames that were already read; they are
    written. The sinks are closed in any case, KeyboardInterrupt included, so that their files are complete.
    The first error of any stage stops all stages and is raised once, after the sinks were closed.
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
        self.failure: BaseException | None = None
        self.finished = threading.Event()  # the run is over, for whatever reason: the reader must not go on
        self.prepared: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self.inferred: queue.Queue[_Item | None] = queue.Queue(maxsize=2)
        # A live frame is taken only when the engine starts on the one before: one waits, not two.
        self.slots = threading.Semaphore(1 if source.live else 2)
        self.totals = dict.fromkeys(STAGES, 0.0)
        self.summary = Summary()

    def go(self, prepare: dict[str, Any], decode: dict[str, Any], limit: int | None) -> Summary:
        begin = time.perf_counter()
        reader = threading.Thread(target=self._read, args=(prepare, limit), name="edgevtx-read", daemon=True)
        writer = threading.Thread(target=self._write, args=(decode,), name="edgevtx-write")
        reader.start()
        writer.start()
        try:
            self._infer()
        except BaseException as error:
            self._fail(error)
        finally:
            self.finished.set()
            self.slots.release()
            self.inferred.put(None)
            writer.join()
            reader.join(_GRACE_SECONDS if self.source.live else None)
            self._close_sinks()
        if self.failure is not None:
            raise self.failure
        return self._summarise(begin)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.finished.set()

    def _read(self, options: dict[str, Any], limit: int | None) -> None:
        frames = newest(self.source, self.finished) if self.source.live else iter(self.source)
        try:
            for _ in itertools.count() if limit is None else range(limit):
                self.slots.acquire()
                if self.stop.is_set() or self.finished.is_set():
                    break
                begin = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                read = time.perf_counter()
                prepared = self.predictor.prepare(frame.image, **options)
                stages = {"read": _ms(begin, read), "preprocess": _ms(read, time.perf_counter())}
                self.prepared.put(_Item(frame, prepared, stages))
        except BaseException as error:
            if not self.stop.is_set():  # a camera that fails while it is being stopped is no failure
                self._fail(error)
        finally:
            self.prepared.put(None)

    def _next(self) -> _Item | None:
        """The next prepared frame; None at the end, or when a stopped source keeps silent."""
        waited = 0.0
        while True:
            try:
                return self.prepared.get(timeout=0.1)
            except queue.Empty:
                waited = waited + 0.1 if self.stop.is_set() else 0.0
                if self.finished.is_set() or (self.source.live and waited > _GRACE_SECONDS):
                    return None

    def _infer(self) -> None:
        while (item := self._next()) is not None and not self.finished.is_set():
            self.slots.release()
            begin = time.perf_counter()
            item.outputs = self.predictor.infer(item.prepared)
            item.stages["engine"] = _ms(begin, time.perf_counter())
            self.inferred.put(item)

    def _write(self, options: dict[str, Any]) -> None:
        broken = False
        while (item := self.inferred.get()) is not None:
            if broken:
                continue  # keep emptying the queue: the engine's thread must not block on it
            try:
                self._write_one(item, options)
            except BaseException as error:
                broken = True
                self._fail(error)

    def _write_one(self, item: _Item, options: dict[str, Any]) -> None:
        begin = time.perf_counter()
        (result,) = self.predictor.decode(item.outputs, item.prepared, **options)
        decoded = time.perf_counter()
        item.stages["decode"] = _ms(begin, decoded)
        record = Record(item.frame, result, item.stages, max(0.0, time.time() - item.frame.captured))
        for sink in self.sinks:
            sink.write(record)
        item.stages["write"] = _ms(decoded, time.perf_counter())
        for stage in STAGES:
            self.totals[stage] += item.stages[stage]
        self.summary.frames += 1
        self.summary.dropped = item.frame.index + 1 - self.summary.frames if self.source.live else 0
        if self.on_record is not None:
            self.on_record(record)

    def _close_sinks(self) -> None:
        for sink in self.sinks:
            try:
                sink.close()
            except BaseException as error:
                self._fail(error)

    def _summarise(self, begin: float) -> Summary:
        found = self.summary
        found.seconds = time.perf_counter() - begin
        found.stopped = self.stop.is_set()
        found.stage_ms = {stage: self.totals[stage] / max(1, found.frames) for stage in STAGES}
        found.notes = [*self.source.notes]
        for sink in self.sinks:
            found.notes += sink.notes
        return found


def newest(source: Source, finished: threading.Event) -> Iterator[Frame]:
    """The frames of a live source, each the newest when it is asked for.

    A thread keeps reading, so that neither the driver's nor the network's buffer fills with old frames.
    """
    changed = threading.Condition()
    slot: list[Frame] = []
    ended: list[BaseException | None] = []

    def read() -> None:
        error: BaseException | None = None
        try:
            for frame in source:
                with changed:
                    slot[:] = [frame]
                    changed.notify()
                if finished.is_set():
                    break
        except BaseException as problem:
            error = problem
        with changed:
            ended.append(error)
            changed.notify()

    threading.Thread(target=read, name="edgevtx-capture", daemon=True).start()
    while True:
        with changed:
            changed.wait_for(lambda: slot or ended or finished.is_set(), timeout=0.5)
            frame = slot.pop() if slot else None
            if frame is None and (ended or finished.is_set()):
                if ended and ended[0] is not None:
                    raise ended[0]
                return
        if frame is not None:
            yield frame


def _ms(begin: float, end: float) -> float:
    return (end - begin) * 1000
