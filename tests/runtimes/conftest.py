"""What the tests of TensorRT's runtime share: the fakes of `fake_gpu` in place, and plans for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevtx.runtimes.base import Engine, EngineOptions
from edgevtx.runtimes.trt import TENSORRT, TensorRt
from tests.runtimes import fake_gpu
from tests.runtimes.fake_gpu import Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A GPU with memory of its own."""
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Jetson: host and GPU share their memory."""
    return fake_gpu.install(monkeypatch, integrated=True)


@pytest.fixture
def open_plan(tmp_path: Path) -> Callable[..., Engine]:
    """open_plan(backend, **of write_plan) -> the engine of a plan in `tmp_path`/engine."""

    def make(backend: TensorRt = TENSORRT, *, record: Any = None, **facts: Any) -> Engine:
        record = record or fake_gpu.make_record(target=backend.target)
        graph = fake_gpu.write_plan(tmp_path / "engine", record, **facts)
        return backend.open(graph, tmp_path / "engine", EngineOptions(precision="fp16", device="GPU"))

    return make
