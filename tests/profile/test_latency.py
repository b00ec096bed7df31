from __future__ import annotations

import io
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.profile import StageTimes, profile, synthetic_frames


class FakeModel:
    """Takes the listed milliseconds, one a call."""

    def __init__(self, times: list[float]) -> None:
        self.times = times
        self.calls = 0
        self.stages: dict[str, float] = {}
        facts = {"name": "toy", "load_seconds": 0.5, "compile_seconds": 0.25, "cache_hit": False}
        self.info = SimpleNamespace(**facts, to_dict=lambda: facts)

    def __call__(self, frame: Any) -> None:
        spent = self.times[self.calls]
        self.calls += 1
        time.sleep(spent / 1000)
        self.stages = {"preprocess": spent / 4, "engine": spent / 2, "decode": spent / 4}


FRAME = np.zeros((48, 64, 3), np.uint8)


def test_no_measurement_is_left_out_and_warmup_is_apart() -> None:
    model = FakeModel([60.0, 2.0, *[1.0] * 9, 40.0])
    found = profile(model, [FRAME] * 12, count=10, warmup=2)
    assert list(found.stages) == ["preprocess", "engine", "decode", "total"]
    assert found.stages["engine"] == StageTimes(n=10, mean=2.45, p50=0.5, p95=20.0, p99=20.0, max=20.0)
    assert found.stages["total"].max >= 40
    assert found.stages["total"].n == 10
    assert found.cold_start["first_inference_seconds"] >= 0.06
    assert (found.cold_start["load_seconds"], found.cold_start["compile_seconds"]) == (0.5, 0.25)
    assert found.frame_size == (48, 64)
    assert 1 / (found.stages["total"].mean / 1000) == pytest.approx(found.fps, rel=0.2)


@pytest.mark.parametrize("count", [1, 2, 19, 100, 101])
def test_percentiles_are_measured_values_by_their_definition(count: int) -> None:
    times = list(np.random.default_rng(count).gamma(2.0, 5.0, count))
    found = StageTimes.of(times)
    for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert value in times
        assert sum(time <= value for time in times) >= percent / 100 * count
        assert sum(time < value for time in times) < percent / 100 * count
    assert found.max == max(times) and found.n == count


def test_reading_is_a_stage_where_frames_are_read() -> None:
    def slow() -> Any:
        for _ in range(5):
            time.sleep(0.005)
            yield FRAME

    found = profile(FakeModel([1.0] * 5), slow(), count=4, warmup=1, read=True)
    assert found.stages["read"].p50 >= 5
    assert found.stages["total"].p50 >= found.stages["read"].p50 + 1


def test_a_source_that_ends_early_is_measured_over_what_it_gave() -> None:
    found = profile(FakeModel([1.0] * 5), [FRAME] * 5, count=100, warmup=2)
    assert found.stages["total"].n == 3


def test_too_few_frames_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="gave 2 frames"):
        profile(FakeModel([1.0] * 5), [FRAME] * 2, count=10, warmup=2)


def test_the_profile_is_json_and_a_table() -> None:
    found = profile(FakeModel([1.0] * 5), [FRAME] * 5, count=4, warmup=1)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["stages"]["engine"]["n"] == 4 and data["warmup"] == 1
    assert {"machine", "versions", "model", "percentiles"} <= set(data)
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80).print(found.table())
    assert "p99" in out.getvalue()
    assert found.footnote().startswith("4 frames after 1 to warm up, none left out")


def test_synthetic_frames_move_and_are_no_noise() -> None:
    frames = synthetic_frames((90, 160), 4)
    assert all(frame.shape == (90, 160, 3) and frame.dtype == np.uint8 for frame in frames)
    for frame, following in itertools.pairwise(frames):
        assert (frame != following).mean() > 0.05
    # neighbouring pixels of a picture are alike, those of noise are not
    assert np.abs(np.diff(frames[0].astype(int), axis=1)).mean() < 8
    np.testing.assert_array_equal(frames[1], synthetic_frames((90, 160), 4)[1])
    with pytest.raises(InputError):
        synthetic_frames((0, 10), 1)
