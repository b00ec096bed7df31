"""What the tests of TensorRT's runtime share: the fakes of `fake_gpu` in place, and plans for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevtx.bundle import write_bundle
from edgevtx.manifest import Graph
from edgevtx.rules import PyramidDecode
from edgevtx.runtimes import trt
from edgevtx.runtimes.base import BuildReport, Engine, EngineOptions, TensorSpec
from edgevtx.runtimes.trt import TENSORRT, TensorRt
from tests.runtimes import fake_gpu
from tests.runtimes.fake_gpu import Machine, crashes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A GPU with memory of its own. A call that would crash on a real one fails the test."""
    made = fake_gpu.install(monkeypatch)
    yield made
    assert not crashes(made)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A Jetson: host and GPU share their memory."""
    made = fake_gpu.install(monkeypatch, integrated=True)
    yield made
    assert not crashes(made)


@pytest.fixture
def open_plan(tmp_path: Path) -> Callable[..., Engine]:
    """open_plan(backend, **of write_plan) -> the engine of a plan in `tmp_path`/engine."""

    def make(backend: TensorRt = TENSORRT, *, record: Any = None, **facts: Any) -> Engine:
        record = record or fake_gpu.make_record(target=backend.target)
        graph = fake_gpu.write_plan(tmp_path / "engine", record, **facts)
        return backend.open(graph, tmp_path / "engine", EngineOptions(precision="fp16", device="GPU"))

    return make


@dataclass
class Whole:
    """A bundle for a target whose plans answer as its golden sample does, and the options of those compiled so far."""

    path: Path
    parts: Any
    asked: list[EngineOptions]
    load: dict[str, Any]


@pytest.fixture
def whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tiny_parts: Callable[..., Any], empty_cache: Path, tmp_path: Path
) -> Callable[..., Whole]:
    """whole(target, **of the manifest) -> the bundle, and how it is loaded."""
    parts = tiny_parts()
    wanted = parts.graph.reference(parts.graph.pixels)
    asked: list[EngineOptions] = []

    def build(package: str, graph: Path, folder: Path, options: EngineOptions, device: str) -> BuildReport:
        asked.append(options)
        ends = {
            end: tuple(TensorSpec(item.name, item.shape, item.dtype) for item in getattr(parts.manifest, end))
            for end in ("inputs", "outputs")
        }
        answers = {name: (array.dtype.name, array.tolist()) for name, array in wanted.items()}
        record = fake_gpu.make_record(target=package.replace("_", "-"), profiles=(), device=device, **ends)
        fake_gpu.write_plan(folder, record, answers=answers)
        return BuildReport(record.target, record.target_version, options.gpu, {"bf16": 1.0}, 1.0)

    monkeypatch.setattr(trt, "build_plan", build)

    def make(target: str, **changes: Any) -> Whole:
        row = Graph(
            file=f"graph.{target}.onnx", target=target, variant="", versions=">=1", precisions=("bf16",), opset=17
        )
        (parts.folder / row.file).write_bytes((parts.folder / "graph.openvino.onnx").read_bytes())
        rule = PyramidDecode(maps=("scores",), strides=(4,))
        facts = {"task": "embed", "decode": rule, "graphs": (*parts.manifest.graphs, row), **changes}
        manifest = msgspec.structs.replace(parts.manifest, **facts)
        path = write_bundle(parts.folder, manifest, tmp_path / "tiny.vtx")
        options = {"runtime": target, "device": "GPU", "precision": "bf16", "allow_unverified": True}
        return Whole(path, parts, asked, options)

    return make
