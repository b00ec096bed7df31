from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import InputError, OutputError
from edgevtx.stream.pipeline import STAGES, Record, run
from edgevtx.stream.sinks import Sink
from edgevtx.stream.sources import Frame, Skipped, Source

THREADS = ("edgevtx-read", "edgevtx-write", "edgevtx-capture")
HANG = 60  # seconds after which something that never comes is given up


class Numbers(Source):
    """Frames whose first pixel is their index; `at` is called before each, `pause` seconds lie between.

    As a capture of OpenCV, it must not be closed while a thread is in it.
    """

    def __init__(self, count: int, *, live: bool = False, pause: float = 0.0, at: Any = None) -> None:
        super().__init__("numbers")
        self.count, self.live, self.pause, self.at = count, live, pause, at
        self.given = 0
        self.reading = self.closed_while_reading = False

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count or 0):
            self.reading = True
            if self.at is not None:
                self.at(index)
            time.sleep(self.pause)
            self.given = index + 1
            self.reading = False
            yield Frame(np.full((4, 4, 3), index % 256, np.uint8), index, time.time(), "numbers", index / 25)

    def close(self) -> None:
        self.closed_while_reading |= self.reading


class Folder(Numbers):
    """As a folder: the frames of `unreadable` do not come, but are told."""

    skips = True

    def __init__(self, count: int, unreadable: tuple[int, ...]) -> None:
        super().__init__(count)
        self.unreadable = unreadable

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            if frame.index in self.unreadable:
                self.skipped.append(Skipped(frame.index, "numbers", "unreadable"))
            else:
                yield frame


def names_of_threads() -> set[str]:
    """Those of the run's threads that are alive; those that resize belong to the process."""
    return {thread.name for thread in threading.enumerate() if thread.name in THREADS}


class Memory(Sink):
    def __init__(self, fail_at: int | None = None, fail_close: bool = False) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.closed = 0
        self.fail_at, self.fail_close = fail_at, fail_close
        self.skipped: list[tuple[int, int]] = []  # how many records came before, and its index
        self.writing = self.closed_while_writing = False

    @property
    def seen(self) -> list[int]:
        return [int(record.result.class_ids[0]) for record in self.records]  # type: ignore[union-attr]

    def write(self, record: Record) -> None:
        if len(self.records) == self.fail_at:
            raise OutputError("the sink failed")
        self.records.append(record)

    def skip(self, skipped: Skipped) -> None:
        self.skipped.append((len(self.records), skipped.index))

    def close(self) -> None:
        self.closed += 1
        self.closed_while_writing |= self.writing
        if self.fail_close:
            raise OutputError("closing failed")


def test_every_frame_arrives_once_in_order_with_its_own_result(predictor: Any) -> None:
    sinks = [Memory(), Memory()]
    summary = run(Numbers(40), predictor, sinks)
    for sink in sinks:
        assert sink.seen == list(range(40)) == [record.frame.index for record in sink.records]
        assert sink.closed == 1
    assert (summary.frames, summary.dropped, summary.stopped) == (40, 0, False)
    assert summary.fps > 0


def test_every_record_has_its_age_and_stage_times(predictor: Any) -> None:
    sink = Memory()
    predictor.seconds = 0.01
    summary = run(Numbers(5), predictor, [sink])
    for record in sink.records:
        assert tuple(record.stages) == STAGES
        assert record.stages["engine"] >= 10
        assert record.age >= 0.01
    assert summary.stage_ms["engine"] == pytest.approx(np.mean([r.stages["engine"] for r in sink.records]))


def test_denoising_is_a_stage_of_its_own_where_a_bundle_does_it(predictor: Any, monkeypatch: Any) -> None:
    prepare = predictor.prepare

    class Denoised(int):
        denoise_ms = 7.5

    def denoised(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return Denoised(prepare(*arguments, **options))

    monkeypatch.setattr(predictor, "prepare", denoised)
    sink = Memory()
    summary = run(Numbers(5), predictor, [sink])
    for record in sink.records:
        assert tuple(record.stages) == ("read", "preprocess", "denoise", "engine", "decode", "write")
        assert record.stages["denoise"] == 7.5 and record.stages["preprocess"] >= 2.4
    assert list(summary.stage_ms) == ["read", "preprocess", "denoise", "engine", "decode", "write"]
    assert summary.stage_ms["denoise"] == pytest.approx(7.5)


def test_limit_reads_no_more_than_asked(predictor: Any) -> None:
    source, sink = Numbers(100), Memory()
    assert run(source, predictor, [sink], limit=7).frames == 7
    assert sink.seen == list(range(7)) and source.given == 7


def test_reading_and_writing_overlap_the_engine(predictor: Any) -> None:
    reads, infers = threading.Event(), threading.Event()
    met: list[bool] = []
    infer = predictor.infer

    def infer_while_reading(prepared: Any, **options: Any) -> Any:
        if prepared == 5:
            infers.set()
            met.append(reads.wait(HANG))
        return infer(prepared)

    def write_while_inferring(record: Record) -> None:
        if record.frame.index == 4:
            met.append(infers.wait(HANG))
        Memory.write(sink, record)

    predictor.infer = infer_while_reading
    sink = Memory()
    sink.write = write_while_inferring  # type: ignore[method-assign]
    run(Numbers(12, at=lambda index: reads.set() if index == 6 else None), predictor, [sink])
    assert met == [True, True] and sink.seen == list(range(12))


@pytest.mark.parametrize(("device", "together"), [("CPU", False), ("GPU.0", True)])
def test_frames_are_prepared_beside_an_engine_only_where_it_has_a_device_of_its_own(
    predictor: Any, device: str, together: bool
) -> None:
    predictor.device, predictor.seconds = device, 0.02
    run(Numbers(12), predictor, [])
    assert predictor.calls["infer"] == 12
    assert predictor.together == together


def test_the_queues_are_bounded(predictor: Any) -> None:
    source = Numbers(50)
    ahead: list[int] = []
    sink = Memory()
    sink.write = lambda record: (time.sleep(0.002), ahead.append(source.given - record.frame.index))[1]  # type: ignore
    run(source, predictor, [sink])
    assert len(ahead) == 50 and max(ahead) <= 8


@pytest.mark.parametrize("step", ["prepare", "infer", "decode"])
def test_an_error_of_any_step_stops_all_and_is_raised_once(predictor: Any, step: str) -> None:
    predictor.fail_at = (step, 5)
    sink = Memory()
    with pytest.raises(ValueError, match=f"{step} failed"):
        run(Numbers(1000), predictor, [sink])
    assert sink.closed == 1
    assert sink.seen == list(range(len(sink.seen))) and len(sink.seen) <= 5
    assert not names_of_threads()


@pytest.mark.parametrize("fail", [{"fail_at": 3}, {"fail_close": True}])
def test_an_error_of_a_sink_closes_the_others_and_is_raised(predictor: Any, fail: dict[str, Any]) -> None:
    sinks = [Memory(), Memory(**fail), Memory()]
    with pytest.raises(OutputError):
        run(Numbers(10), predictor, sinks)
    assert [sink.closed for sink in sinks] == [1, 1, 1]


def test_a_slow_sink_that_fails_with_full_queues_blocks_nobody(predictor: Any) -> None:
    sink = Memory()

    def fail_late(record: Record) -> None:
        time.sleep(0.3)  # all queues before this sink are full by now
        raise OutputError("the disk is full")

    sink.write = fail_late  # type: ignore[method-assign]
    caught: list[BaseException] = []

    def work() -> None:
        try:
            run(Numbers(1000), predictor, [sink])
        except OutputError as error:
            caught.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and len(caught) == 1 and sink.closed == 1


def test_an_error_of_the_source_comes_after_the_frames_before_it(predictor: Any) -> None:
    def fail(index: int) -> None:
        if index == 6:
            raise RuntimeError("the camera is gone")

    sink = Memory()
    with pytest.raises(RuntimeError, match="the camera is gone"):
        run(Numbers(10, at=fail), predictor, [sink])
    assert sink.closed == 1


def test_stop_writes_what_was_read_and_closes(predictor: Any) -> None:
    stop, sink = threading.Event(), Memory()
    source = Numbers(10_000, at=lambda index: stop.set() if index == 20 else None)
    summary = run(source, predictor, [sink], stop=stop)
    assert summary.stopped
    assert sink.seen == list(range(source.given)) and source.given <= 22
    assert sink.closed == 1


def test_ctrl_c_writes_what_was_inferred_closes_and_is_raised(predictor: Any) -> None:
    sink = Memory()
    infer = predictor.infer

    def interrupted(prepared: Any, **options: Any) -> Any:
        if predictor.calls["infer"] == 5:
            raise KeyboardInterrupt
        return infer(prepared)

    predictor.infer = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(Numbers(1000), predictor, [sink])
    assert sink.seen == list(range(5)) and sink.closed == 1


@pytest.mark.parametrize("clock", [-3600, 3600])
def test_the_age_does_not_follow_the_clock(predictor: Any, clock: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    sink = Memory()
    monkeypatch.setattr(time, "time", lambda: now() + clock * predictor.calls["infer"])
    run(Numbers(3), predictor, [sink])
    assert all(0 < record.age < 1800 for record in sink.records)


# -- Ctrl-C while the last frames are written ---------------------------------------------------------------------


class SlowMemory(Memory):
    """Takes a while to write a frame, and says when it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def write(self, record: Record) -> None:
        self.writing = True
        self.begun.set()
        time.sleep(0.3)
        super().write(record)
        self.writing = False


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_the_writer_is_joined_still_closes_the_sinks(
    predictor: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = SlowMemory()
    join, interrupts = threading.Thread.join, [KeyboardInterrupt] * times

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "edgevtx-write" and interrupts and sink.begun.wait(HANG):
            raise interrupts.pop()
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Numbers(4), predictor, [sink])
    assert sink.closed == 1 and not sink.closed_while_writing
    assert sink.seen == list(range(len(sink.seen))) and 1 <= len(sink.seen) <= 2  # what waited is given up
    for thread in threading.enumerate():
        if thread.name in THREADS:
            join(thread, HANG)
    assert not names_of_threads()


@pytest.mark.parametrize("name", ["edgevtx-write", "edgevtx-read"])
def test_ctrl_c_while_the_threads_start_leaves_none_behind(
    predictor: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == name:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    sink = Memory()
    with pytest.raises(KeyboardInterrupt):
        run(Numbers(10_000), predictor, [sink])
    assert sink.closed == 1 and not names_of_threads()


# -- files that cannot be used ------------------------------------------------------------------------------------


def refuse(predictor: Any, *indices: int) -> None:
    """Have `predictor.prepare` refuse these frames."""
    prepare = predictor.prepare

    def picky(frame: Any, **options: Any) -> Any:
        if int(frame[0, 0, 0]) in indices:
            raise InputError("the frame is too tall")
        return prepare(frame, **options)

    predictor.prepare = picky


def test_what_is_refused_is_skipped_as_what_is_unreadable(predictor: Any) -> None:
    refuse(predictor, 2, 6, 7, 8, 9)
    sink = Memory()
    summary = run(Folder(12, unreadable=(0, 3, 11)), predictor, [sink])
    assert sink.seen == [1, 4, 5, 10] and summary.frames == 4
    assert sink.skipped == [(0, 0), (1, 2), (1, 3), (3, 6), (3, 7), (3, 8), (3, 9), (4, 11)]  # in the folder's order
    assert [item.index for item in summary.skipped] == [0, 2, 3, 6, 7, 8, 9, 11]
    assert str(summary.skipped[1]) == "numbers: the frame is too tall"


def test_the_limit_counts_what_was_answered(predictor: Any) -> None:
    refuse(predictor, 1)
    assert run(Folder(12, unreadable=(0,)), predictor, limit=2).frames == 2


def test_a_folder_of_which_nothing_can_be_used_is_an_error(predictor: Any) -> None:
    refuse(predictor, 1, 2)
    sink = Memory()
    with pytest.raises(InputError, match="none of the 3 files in numbers could be used; numbers: unreadable"):
        run(Folder(3, unreadable=(0,)), predictor, [sink])
    assert len(sink.skipped) == 3 and sink.closed == 1


def test_a_refused_frame_of_another_source_is_an_error(predictor: Any) -> None:
    refuse(predictor, 3)
    with pytest.raises(InputError, match="too tall"):
        run(Numbers(10), predictor)


# -- live sources -------------------------------------------------------------------------------------------------


def test_a_live_source_is_read_at_its_newest_frame(predictor: Any) -> None:
    taken, passed, answered = (threading.Event() for _ in range(3))

    def at(index: int) -> None:
        if index == 1:
            assert taken.wait(HANG)  # frame 0 by the reader
        if index == 31:
            passed.set()
            assert answered.wait(HANG)

    def on_record(record: Record) -> None:
        if record.frame.index == 30:
            answered.set()

    prepare, infer = predictor.prepare, predictor.infer
    predictor.prepare = lambda frame, **options: (taken.set(), prepare(frame, **options))[1]
    # 30 frames come during the first
    predictor.infer = lambda prepared, **options: (passed.wait(HANG), infer(prepared))[1]
    sink = Memory()
    summary = run(Numbers(32, live=True, at=at), predictor, [sink], on_record=on_record)
    first, *waited = sink.seen[:-2]
    assert (first, sink.seen[-2:]) == (0, [30, 31])
    assert len(waited) <= 1  # one frame waits while the engine works, never a growing queue
    assert summary.dropped == 32 - len(sink.seen)


def test_a_live_source_is_closed_when_nobody_reads_it(predictor: Any) -> None:
    sink = Memory()
    with Numbers(10_000, live=True, pause=0.1) as source:
        assert run(source, predictor, [sink], limit=2).frames == 2
        assert not names_of_threads()
    assert not source.closed_while_reading


def test_stop_does_not_wait_for_a_camera_that_has_fallen_silent(predictor: Any) -> None:
    stop, silent = threading.Event(), threading.Event()
    spoke: list[bool] = []

    def fall_silent(index: int) -> None:
        if index == 3:
            threading.Timer(0.1, stop.set).start()
            spoke.append(silent.wait(HANG))

    sink = Memory()
    summary = run(Numbers(10, live=True, at=fall_silent, pause=0.02), predictor, [sink], stop=stop)
    assert spoke == []
    silent.set()
    assert summary.stopped and sink.closed == 1
