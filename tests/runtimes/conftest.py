"""What the tests of TensorRT's runtime share: the fakes of `fake_gpu` in place, and plans for them."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True)
class Made:
    """A bundle for the fake GPU: its `path`, its golden `pixels` and answers, and what was `asked` of the compiler."""

    path: Path
    pixels: Any
    wanted: dict[str, Any]
    asked: list[EngineOptions]


@pytest.fixture
def tensorrt_bundle(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tiny_parts: Callable[..., Any], empty_cache: Path, tmp_path: Path
) -> Callable[..., Made]:
    """tensorrt_bundle(**of the manifest) -> a bundle whose compiled engine answers all with its golden outputs."""
    parts = tiny_parts()
    wanted, asked = parts.graph.reference(parts.graph.pixels), []

    def build(package: str, graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
        asked.append(options)
        ends = (parts.manifest.inputs, parts.manifest.outputs)
        inputs, outputs = (tuple(TensorSpec(item.name, item.shape, item.dtype) for item in end) for end in ends)
        answers = {name: (array.dtype.name, array.tolist()) for name, array in wanted.items()}
        record = fake_gpu.make_record(profiles=(), inputs=inputs, outputs=outputs)
        fake_gpu.write_plan(folder, record, answers=answers)
        return BuildReport("tensorrt", "10.3.0", options.gpu, {"bf16": 1.0}, 1.0)

    def make(**changes: Any) -> Made:
        row = Graph(
            file="graph.tensorrt.onnx", target="tensorrt", variant="", versions=">=10.3", precisions=("bf16",), opset=17
        )
        (parts.folder / row.file).write_bytes((parts.folder / "graph.openvino.onnx").read_bytes())
        rule = PyramidDecode(maps=("scores",), strides=(4,))
        facts = {"task": "embed", "decode": rule, "graphs": (*parts.manifest.graphs, row), **changes}
        path = write_bundle(parts.folder, msgspec.structs.replace(parts.manifest, **facts), tmp_path / "tiny.vtx")
        return Made(path, parts.graph.pixels, wanted, asked)

    monkeypatch.setattr(trt, "build_plan", build)
    return make
