"""What is ONNX Runtime's own: precision proven from a profiled run, providers, the saved graph, a missing package."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import CompileError, OutputError, RuntimeUnavailableError
from edgevtx.runtimes import ort, precision, sample
from edgevtx.runtimes.base import EngineOptions

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def graph(tiny_graph: Callable[..., Any]) -> Path:
    path: Path = tiny_graph().path
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "engine"
    made.mkdir()
    return made


@pytest.mark.parametrize("options", [{}, {"dynamic": True}, {"dynamic": True, "golden": False}])
def test_fp32_is_f32(tiny_graph: Callable[..., Any], folder: Path, options: dict[str, bool]) -> None:
    report = ort.build(tiny_graph(**options).path, folder, EngineOptions())
    assert report.precision_share == {"f32": 1.0}
    assert (report.device, report.target_version) == ("CPU", onnxruntime.__version__)
    assert {path.name for path in folder.iterdir()} == {ort.MODEL, ort.WEIGHTS}  # and no profile


@pytest.mark.parametrize("size", [100, 1500])  # of the weights; of the graph, which is written after them
def test_an_engine_that_cannot_be_saved_is_an_output_error(graph: Path, folder: Path, size: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # as a full disk: writing beyond it fails
    with pytest.raises(OutputError, match=r"cannot save its engine in .*engine: free space"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            ort.build(graph, folder, EngineOptions())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    graph.write_bytes(b"no graph")
    with pytest.raises(CompileError, match=r"cannot open graph.any.onnx"):
        ort.build(graph, folder, EngineOptions())


def test_the_work_is_counted(graph: Path, folder: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.enable_profiling, settings.profile_file_prefix = True, str(folder / "run")
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
    convolution, mix, head = 96 * 8 * 3 * 4 * 4, 96 * 8 * 8, 96 * 8 * 5
    assert [amount for _, amount in ort._work(ort._profile(session, graph))] == [convolution, mix, head]


def test_fp16_that_the_processor_computes_in_fp32_is_found(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    value, half = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT16
    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float16), "weights")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "half",
        [value("x", half, [8, 64])],
        [value("y", half, [8, 64])],
        [weights],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "half.onnx")
    monkeypatch.setattr(ort, "PRECISIONS", ("fp32", "fp16"))
    with pytest.raises(CompileError, match=r"fp16 was asked of onnxruntime.*computes 100% f32"):
        ort.build(tmp_path / "half.onnx", folder, EngineOptions(precision="fp16"))


@pytest.mark.parametrize(
    ("asked", "found", "passes"),
    [
        ("fp32", {"f32": 1.0}, True),
        ("fp32", {"bf16": 0.95, "f32": 0.05}, False),
        ("bf16", {"bf16": 0.91, "f32": 0.09}, True),
        ("bf16", {"bf16": 0.89, "f32": 0.11}, False),
        ("bf16", {}, True),  # nothing to be seen
    ],
)
def test_the_share_that_is_required(asked: str, found: dict[str, float], passes: bool) -> None:
    if passes:
        precision.require(asked, found, target="t", device="d")
    else:
        with pytest.raises(CompileError, match=f"{asked} was asked of t on d"):
            precision.require(asked, found, target="t", device="d")


def test_shares_add_up() -> None:
    assert precision.shares([("f32", 3), ("bf16", 5), ("f32", 2)]) == {"bf16": 0.5, "f32": 0.5}
    assert precision.shares([]) == {}


def test_bf16_is_refused(graph: Path, folder: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"offered in fp32.*bf16 was asked for"):
        ort.build(graph, folder, EngineOptions(precision="bf16"))


def test_an_absent_provider_is_refused_with_those_present(graph: Path, folder: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no execution provider NoneExecution.*only .*CPUExecution"):
        ort.build(graph, folder, EngineOptions(providers=("NoneExecutionProvider",)))


def test_a_device_is_chosen_by_providers(graph: Path, folder: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"device GPU was asked for; pass providers="):
        ort.build(graph, folder, EngineOptions(device="GPU"))


def test_a_provider_that_does_not_start_is_refused(graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as a GPU build without the GPU's libraries does: it states CUDA, and falls back to the CPU with a log line
    real = onnxruntime.InferenceSession

    def session(model: str, settings: Any, providers: Any) -> Any:
        return real(model, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    with pytest.raises(RuntimeUnavailableError, match="CUDAExecutionProvider is built in but does not start here"):
        ort.build(graph, folder, EngineOptions(providers=("CUDAExecutionProvider",)))


def test_a_second_open_optimises_nothing(graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort.build(graph, folder, EngineOptions())
    graph.unlink()
    (graph.parent / "weights.bin").unlink()
    levels: list[Any] = []
    settings = ort._settings
    monkeypatch.setattr(ort, "_settings", lambda *args: levels.append(args[2]) or settings(*args))
    ort.open(graph, folder, EngineOptions())
    assert levels == [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL]


@pytest.mark.parametrize("name", [ort.MODEL, ort.WEIGHTS])
def test_a_damaged_engine_is_a_compile_error(graph: Path, folder: Path, name: str) -> None:
    ort.build(graph, folder, EngineOptions())
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(CompileError, match=r"cannot open engine.onnx"):
        ort.open(graph, folder, EngineOptions())


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = ort.probe()
    assert (found.available, found.install) == (False, 'pip install "edgevtx[onnxruntime]"')
    with pytest.raises(RuntimeUnavailableError, match=r'asked for.*pip install "edgevtx\[onnxruntime\]"'):
        ort.fingerprint(EngineOptions())


def test_a_hollow_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.30"))
    assert "hollow" in ort.probe().reason


def test_sample_inputs_are_the_golden_ones_where_they_fit(tiny_graph: Callable[..., Any]) -> None:
    made = tiny_graph(dynamic=True)
    specs = ort._specs(onnxruntime.InferenceSession(str(made.path)).get_inputs())
    np.testing.assert_array_equal(sample.inputs(made.path, specs)["pixels"], made.pixels)
    (made.path.parent / "golden.npz").unlink()
    assert sample.inputs(made.path, specs)["pixels"].shape == (1, 256, 256, 3)
