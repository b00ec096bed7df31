from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import OutputError
from edgevtx.stream.pipeline import STAGES, Record, run
from edgevtx.stream.sinks import Sink
from edgevtx.stream.sources import Frame, Source


class Numbers(Source):
    """Frames whose first pixel is their index; `at` is called before each, `pause` seconds lie between."""

    def __init__(self, count: int, *, live: bool = False, pause: float = 0.0, at: Any = None) -> None:
        super().__init__("numbers")
        self.count, self.live, self.pause, self.at = count, live, pause, at
        self.given = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count or 0):
            if self.at is not None:
                self.at(index)
            time.sleep(self.pause)
            self.given = index + 1
            yield Frame(np.full((4, 4, 3), index, np.uint8), index, time.time(), "numbers", index / 25)


class Memory(Sink):
    def __init__(self, fail_at: int | None = None, fail_close: bool = False) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.closed = 0
        self.fail_at, self.fail_close = fail_at, fail_close

    @property
    def seen(self) -> list[int]:
        return [int(record.result.class_ids[0]) for record in self.records]  # type: ignore[union-attr]

    def write(self, record: Record) -> None:
        if len(self.records) == self.fail_at:
            raise OutputError("the sink failed")
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1
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


def test_limit_reads_no_more_than_asked(predictor: Any) -> None:
    source, sink = Numbers(100), Memory()
    assert run(source, predictor, [sink], limit=7).frames == 7
    assert sink.seen == list(range(7)) and source.given == 7


def test_reading_and_writing_overlap_the_engine(predictor: Any) -> None:
    predictor.seconds = 0.03
    slow = Memory()
    slow.write = lambda record: (time.sleep(0.02), Memory.write(slow, record))[1]  # type: ignore[method-assign]
    begin = time.perf_counter()
    run(Numbers(12, pause=0.02), predictor, [slow])
    assert time.perf_counter() - begin < 12 * 0.07 * 0.85  # one after the other it would take 12 * 0.07 s


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
    # the threads of the run; those that resize belong to the process
    assert not {"edgevtx-read", "edgevtx-write", "edgevtx-capture"} & {thread.name for thread in threading.enumerate()}


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

    def interrupted(prepared: Any) -> Any:
        if predictor.calls["infer"] == 5:
            raise KeyboardInterrupt
        return infer(prepared)

    predictor.infer = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(Numbers(1000), predictor, [sink])
    assert sink.seen == list(range(5)) and sink.closed == 1


def test_a_live_source_is_read_at_its_newest_frame(predictor: Any) -> None:
    predictor.seconds = 0.05
    sink = Memory()
    source = Numbers(60, live=True, pause=0.01)
    summary = run(source, predictor, [sink])
    assert sink.seen == sorted(set(sink.seen)) and summary.frames < 40
    assert summary.dropped == sink.seen[-1] + 1 - summary.frames > 0
    # waiting for the frame before it and its own inference, and the machine's own delays: never a growing queue
    assert max(record.age for record in sink.records) < 0.3


def test_stop_does_not_wait_for_a_camera_that_has_fallen_silent(predictor: Any) -> None:
    stop, silent = threading.Event(), threading.Event()

    def fall_silent(index: int) -> None:
        if index == 3:
            threading.Timer(0.1, stop.set).start()
            silent.wait(30)

    begin = time.perf_counter()
    sink = Memory()
    summary = run(Numbers(10, live=True, at=fall_silent, pause=0.02), predictor, [sink], stop=stop)
    silent.set()
    assert time.perf_counter() - begin < 8
    assert summary.stopped and sink.closed == 1
