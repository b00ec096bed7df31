"""What is OpenVINO's own: precision proven from the opened blob, devices, damaged blobs, a missing package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.bundle import Bundle, write_bundle
from edgevtx.engines import open_prepared, prepare_engine
from edgevtx.errors import CompileError, RuntimeUnavailableError
from edgevtx.manifest import Manifest
from edgevtx.runtimes import ov
from edgevtx.runtimes.base import EngineOptions
from edgevtx.selftest import replay

openvino = pytest.importorskip("openvino")
BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this processor has no bf16")


@pytest.fixture
def graph(tiny_graph: Callable[..., Any]) -> Path:
    path: Path = tiny_graph().path
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "engine"
    made.mkdir()
    return made


def test_fp32_is_f32_where_the_default_is_bf16(graph: Path, folder: Path) -> None:
    report = ov.build(graph, folder, EngineOptions())
    assert report.precision_share == {"f32": 1.0}
    assert report.device == "CPU"


@needs_bf16
@pytest.mark.parametrize("dynamic", [False, True])
def test_bf16_is_bf16(tiny_graph: Callable[..., Any], folder: Path, dynamic: bool) -> None:
    report = ov.build(tiny_graph(dynamic=dynamic).path, folder, EngineOptions(precision="bf16"))
    assert report.precision_share == {"bf16": 1.0}


@needs_bf16
def test_a_lie_about_the_precision_is_found(graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # bf16 is asked, and OpenVINO is told f32
    monkeypatch.setitem(ov._TYPES, "bf16", ("f32", "BF16"))
    with pytest.raises(CompileError, match=r"bf16 was asked of openvino on CPU.*computes 100% f32"):
        ov.build(graph, folder, EngineOptions(precision="bf16"))


def test_a_precision_that_the_device_lacks_is_refused(
    graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ov._TYPES, "bf16", ("bf16", "BF99"))
    with pytest.raises(RuntimeUnavailableError, match=r"CPU.*cannot compute in bf16: it states .*FP32"):
        ov.build(graph, folder, EngineOptions(precision="bf16"))
    assert not any(folder.iterdir())


def test_an_absent_device_is_refused_with_those_present(graph: Path, folder: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no device GPU.7 here, only .*CPU"):
        ov.build(graph, folder, EngineOptions(device="GPU.7"))


def test_auto_is_a_device_that_is_there() -> None:
    assert ov.fingerprint(EngineOptions(device="AUTO"))["device"] in ("GPU", "CPU")


def test_a_second_open_compiles_nothing(graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ov.build(graph, folder, EngineOptions())
    graph.unlink()
    (graph.parent / "weights.bin").unlink()
    assert [spec.name for spec in ov.open(graph, folder, EngineOptions()).new_runtime().inputs] == ["pixels"]


@pytest.mark.parametrize("content", [b"", b"no blob at all" * 99], ids=["empty", "foreign"])
def test_a_damaged_blob_is_a_compile_error(graph: Path, folder: Path, content: bytes) -> None:
    ov.build(graph, folder, EngineOptions())
    (folder / ov.BLOB).write_bytes(content)
    with pytest.raises(CompileError, match=r"cannot open its engine .*compile the bundle again"):
        ov.open(graph, folder, EngineOptions())


def test_a_graph_that_is_none_is_a_compile_error(graph: Path, folder: Path) -> None:
    graph.write_bytes(b"no graph")
    with pytest.raises(CompileError, match=r"cannot compile graph.any.onnx for CPU in fp32"):
        ov.build(graph, folder, EngineOptions())


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = ov.probe()
    assert (found.available, found.install) == (False, 'pip install "edgevtx[openvino]"')
    assert "openvino is not installed" in found.reason
    with pytest.raises(RuntimeUnavailableError, match=r'openvino was asked for.*pip install "edgevtx\[openvino\]"'):
        ov.fingerprint(EngineOptions())


def test_threads_are_set(graph: Path, folder: Path) -> None:
    config = ov._config(openvino.Core(), EngineOptions(threads=1))
    model = openvino.Core().compile_model(str(graph), "CPU", config)
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    assert str(model.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"


# -- two forms of an engine whose batch is open ---------------------------------------------------------------------


@pytest.fixture
def made(tiny_graph: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """made(seed) -> the dynamic tiny graph with its golden sample, and the folder of its engine."""

    def make(seed: int = 0) -> tuple[Any, Path]:
        parts = tiny_graph(tmp_path / f"graph-{seed}", dynamic=True, seed=seed)
        folder = tmp_path / f"engine-{seed}"
        folder.mkdir()
        ov.build(parts.path, folder, EngineOptions())
        return parts, folder

    return make


def test_the_usual_shape_has_a_form_of_its_own_and_others_the_general_one(made: Callable[..., Any]) -> None:
    (parts, folder), (other, elsewhere) = made(0), made(1)
    # each form of another graph's weights: their answers tell which one was asked
    (elsewhere / ov.USUAL).replace(folder / ov.USUAL)
    engine = ov.open(parts.path, folder, EngineOptions())
    assert engine.two_forms
    runtime = engine.new_runtime()
    usual = parts.pixels
    for pixels, asked in [(usual, other), (np.repeat(usual, 2, 0), parts), (usual[:, :16], parts), (usual, other)]:
        found = runtime.run({"pixels": pixels})
        np.testing.assert_allclose(found["scores"], asked.reference(pixels)["scores"], rtol=1e-4, atol=1e-3)
    assert runtime.inputs[0].shape == (None, None, None, 3)


@pytest.mark.parametrize("wrong", [ov.USUAL, ov.BLOB])
def test_a_wrong_form_fails_the_golden_sample(
    tiny_parts: Callable[..., Any],
    made: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    monkeypatch.setattr(Manifest, "decode_of", lambda *_: None)  # values alone: the tiny graph has no task's form
    parts = tiny_parts(dynamic=True)
    bundle = Bundle.open(write_bundle(parts.folder, parts.manifest, tmp_path / "open.vtx"))
    prepared = prepare_engine(bundle, "openvino", EngineOptions())
    for foreign in (None, made(1)[1] / wrong):
        if foreign:
            foreign.replace(prepared.folder / wrong)
        engine = open_prepared(prepared)
        verdict = replay(bundle, engine, prepared)
        engine.close()
        failed = [check.name for check in verdict.checks if not check.passed]
        assert bool(failed) == (verdict.status == "failed") == (foreign is not None)
        assert all(name.endswith("two at once") == (wrong == ov.BLOB) for name in failed)


def test_an_engine_that_takes_one_row_alone_fails_the_golden_sample(
    tiny_parts: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ov._infer

    def one_row_alone(model: Any, keep: Any) -> Callable[[list[Any]], Any]:
        def call(values: list[Any]) -> Any:
            if len(values[0]) > 1:
                raise RuntimeError("one row alone")
            return real(model, keep)(values)

        return call

    monkeypatch.setattr(ov, "_infer", one_row_alone)
    monkeypatch.setattr(Manifest, "decode_of", lambda *_: None)
    parts = tiny_parts(dynamic=True)
    bundle = Bundle.open(write_bundle(parts.folder, parts.manifest, tmp_path / "open.vtx"))
    prepared = prepare_engine(bundle, "openvino", EngineOptions())
    verdict = replay(bundle, open_prepared(prepared), prepared)
    assert verdict.status == "failed" and "two at once" in verdict.reason


@pytest.mark.parametrize("why", ["fixed", "large", "no golden sample", "a batch of one"])
def test_other_engines_have_one_form(
    tiny_graph: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    parts = tiny_graph(dynamic=why != "fixed", golden=why != "no golden sample")
    if why == "large":
        monkeypatch.setattr(ov, "MOST_TWICE", 100)
    if why == "a batch of one":
        onnx = pytest.importorskip("onnx")
        graph = onnx.load(parts.path, load_external_data=False)
        graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(graph, parts.path)
    ov.build(parts.path, folder, EngineOptions())
    assert [path.name for path in folder.iterdir()] == [ov.BLOB]
    engine = ov.open(parts.path, folder, EngineOptions())
    assert not engine.two_forms
    found = engine.new_runtime().run({"pixels": parts.pixels})
    np.testing.assert_allclose(found["scores"], parts.reference(parts.pixels)["scores"], rtol=1e-4, atol=1e-3)
