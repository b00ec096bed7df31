"""Plans, compiled for real by TensorRT-RTX, which needs no GPU for that: what comes out, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevtx import cache
from edgevtx.bundle import Bundle, write_bundle
from edgevtx.engines import prepare_engine
from edgevtx.errors import CompileError, OutputError, RuntimeUnavailableError
from edgevtx.rules import ShortestEdge
from edgevtx.runtimes import get_backend, trt_build, trt_layers, trt_worker
from edgevtx.runtimes.base import BuildReport, EngineOptions, PlanOptions, TensorSpec
from edgevtx.runtimes.plan import PLAN, PlanRecord, check_file, read_plan
from edgevtx.runtimes.trt import TensorRt
from edgevtx.runtimes.trt_build import build_plan
from edgevtx.runtimes.trt_log import Messages, make_logger

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
onnx = pytest.importorskip("onnx")
make = onnx.helper.make_node
FLOAT, HALF, BFLOAT, INT64 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "INT64"))

AMPERE, BLACKWELL = EngineOptions(gpu="sm86"), EngineOptions(gpu="sm120")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "engine"
    made.mkdir()
    return made


def write_graph(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    *,
    opset: int = 20,
    **weights: Any,
) -> Path:
    """A graph of these nodes; inputs and outputs are name -> (type, shape)."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value(name, *item) for name, item in inputs.items()],
        [value(name, *item) for name, item in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)
    return path


def typed_graph(path: Path, kind: int) -> Path:
    """A block whose products are of a type, and whose normalisation is fp32."""
    random = np.random.default_rng(0)
    name = "model.encoder.layer.0"
    nodes = [
        make("LayerNormalization", ["x", "scale"], ["normed"], name=f"{name}.norm/LayerNormalization"),
        make("Cast", ["normed"], ["low"], to=kind, name=f"{name}.mlp/Cast"),
        make("Cast", ["weights"], ["low_weights"], to=kind, name=f"{name}.mlp/Cast_1"),
        make("MatMul", ["low", "low_weights"], ["product"], name=f"{name}.mlp/MatMul"),
        make("Cast", ["product"], ["back"], to=FLOAT, name=f"{name}.mlp/Cast_2"),
        make("Softmax", ["back"], ["y"], name=f"{name}.mlp/Softmax"),
    ]
    weights = {"scale": np.ones(32, np.float32), "weights": random.standard_normal((32, 16)).astype(np.float32)}
    return write_graph(path, nodes, {"x": (FLOAT, [1, 8, 32])}, {"y": (FLOAT, [1, 8, 16])}, **weights)


# -- what comes out --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, BuildReport, PlanRecord]]:
    """built("sm86") -> folder, report and record of the tiny graph's plan, compiled once."""
    from tests.conftest import make_graph

    graph = make_graph(tmp_path_factory.mktemp("graph")).path
    made: dict[str, tuple[Path, BuildReport, PlanRecord]] = {}

    def build(gpu: str) -> tuple[Path, BuildReport, PlanRecord]:
        if gpu not in made:
            folder = tmp_path_factory.mktemp(gpu)
            report = build_plan("tensorrt_rtx", graph, folder, EngineOptions(gpu=gpu), f"a GPU of {gpu}")
            made[gpu] = folder, report, read_plan(folder / PLAN)
        return made[gpu]

    return build


@pytest.mark.parametrize("gpu", ["sm86", "sm120"])
def test_a_plan_is_compiled_without_a_gpu_and_says_what_it_is(gpu: str, built: Any) -> None:
    folder, report, record = built(gpu)
    assert {path.name for path in folder.iterdir()} == {PLAN, "engine.json"}
    check_file(folder / PLAN, record)
    assert record.inputs == (TensorSpec("pixels", (1, 32, 48, 3), "uint8"),)
    assert record.outputs == (TensorSpec("scores", (1, 96, 5), "float32"), TensorSpec("class_ids", (1, 96), "int64"))
    assert (record.target, record.gpu, record.precision) == ("tensorrt-rtx", gpu, "fp32")
    assert record.target_version == report.target_version == trt.__version__
    assert (report.device, record.device) == (gpu, f"a GPU of {gpu}")
    assert record.precision_share == report.precision_share == {"f32": 1.0}
    assert record.profiles == ()
    assert record.compile_seconds > 0


def test_plans_of_two_gpus_differ(built: Any) -> None:
    assert built("sm86")[2].sha256 != built("sm120")[2].sha256


def test_the_work_of_the_layers_is_counted(built: Any) -> None:
    work = {layer.kind: 0 for layer in built("sm86")[2].layers}
    for layer in built("sm86")[2].layers:
        work[layer.kind] += layer.work
    assert work["convolution"] == 96 * 8 * 3 * 4 * 4  # 8 channels over 96 patches of 4x4x3
    assert work["matrix_multiply"] == 96 * 8 * 8 + 96 * 8 * 5


@pytest.mark.parametrize(("precision", "kind", "name"), [("fp16", HALF, "f16"), ("bf16", BFLOAT, "bf16")])
def test_types_are_the_graph_s(precision: str, kind: int, name: str, tmp_path: Path, folder: Path) -> None:
    graph = typed_graph(tmp_path / "x.onnx", kind)
    report = build_plan("tensorrt_rtx", graph, folder, EngineOptions(precision, gpu="sm89"))
    assert report.precision_share == {name: 1.0}
    layers = {layer.name: layer.type for layer in read_plan(folder / PLAN).layers}
    assert layers["model.encoder.layer.0.mlp/MatMul"] == name
    assert layers["model.encoder.layer.0.mlp/Softmax"] == "f32"
    assert layers["model.encoder.layer.0.norm/LayerNormalization"] == "f32"


def test_another_precision_than_the_graph_s_is_refused(tmp_path: Path, folder: Path) -> None:
    graph = typed_graph(tmp_path / "x.onnx", FLOAT)
    with pytest.raises(CompileError, match=r"fp16 was asked of tensorrt-rtx on sm86, but .* computes 100% f32"):
        build_plan("tensorrt_rtx", graph, folder, EngineOptions("fp16", gpu="sm86"))
    assert not any(folder.iterdir())


def quantised_graph(path: Path, *, weight: str = "wd", zero: int = 0) -> Path:
    """A product of dequantised tensors, or with `weight` "w" of one and a plain one."""
    nodes = [
        make("QuantizeLinear", ["x", "s", "zero"], ["xq"], name="head/QuantizeLinear"),
        make("DequantizeLinear", ["xq", "s", "zero"], ["xd"]),
        make("QuantizeLinear", ["w", "s", "zero"], ["wq"]),
        make("DequantizeLinear", ["wq", "s", "zero"], ["wd"]),
        make("MatMul", ["xd", weight], ["y"], name="head/MatMul"),
    ]
    # opset 10 and later quantise to uint8 unless there is a zero point
    constants = {"s": np.float32(0.1), "w": np.eye(32, dtype=np.float32), "zero": np.int8(zero)}
    return write_graph(path, nodes, {"x": (FLOAT, [1, 32])}, {"y": (FLOAT, [1, 32])}, **constants)


@pytest.mark.parametrize(("weight", "kind"), [("wd", "i8"), ("w", "f32")])
def test_a_product_of_dequantised_tensors_is_int8(weight: str, kind: str, tmp_path: Path) -> None:
    path = quantised_graph(tmp_path / "q.onnx", weight=weight)
    logger = make_logger(trt, Messages(), lambda text: None)
    network = trt.Builder(logger).create_network(trt_worker._flags(trt))
    assert trt.OnnxParser(network, logger).parse_from_file(str(path))
    assert trt_layers.shares(trt_layers.layers(trt, network)) == {kind: 1.0}


def test_an_int8_plan_is_compiled_and_one_of_float_products_is_none(tmp_path: Path, folder: Path) -> None:
    report = build_plan("tensorrt_rtx", quantised_graph(tmp_path / "q.onnx"), folder, EngineOptions("int8", gpu="sm89"))
    assert report.precision_share == {"i8": 1.0}
    half = quantised_graph(tmp_path / "half.onnx", weight="w")
    with pytest.raises(CompileError, match=r"int8 was asked of tensorrt-rtx on sm89, but .* computes 100% f32"):
        build_plan("tensorrt_rtx", half, folder, EngineOptions("int8", gpu="sm89"))


def test_the_compiler_refuses_another_zero_point_as_the_preflight_says(tmp_path: Path, folder: Path) -> None:
    path = quantised_graph(tmp_path / "q.onnx", zero=3)
    with pytest.raises(CompileError, match=r"zero"):
        build_plan("tensorrt_rtx", path, folder, EngineOptions("int8", gpu="sm89"))


def test_dynamic_shapes_get_a_profile_around_the_golden_sample(tiny_graph: Callable[..., Any], folder: Path) -> None:
    build_plan("tensorrt_rtx", tiny_graph(dynamic=True).path, folder, AMPERE)
    record = read_plan(folder / PLAN)
    assert record.inputs == (TensorSpec("pixels", (None, None, None, 3), "uint8"),)
    assert record.outputs[0].shape == (None, None, 5)
    (profile,) = record.profiles
    shapes = profile["pixels"]
    assert (shapes.min, shapes.opt, shapes.max) == ((1, 8, 12, 3), (1, 32, 48, 3), (8, 128, 192, 3))


def test_progress_is_told_and_warnings_are_kept(
    tiny_graph: Callable[..., Any], folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with caplog.at_level(logging.DEBUG, logger="edgevtx"):
        report = build_plan("tensorrt_rtx", tiny_graph().path, folder, EngineOptions(gpu="sm86", progress=told.append))
    assert told and all(text.startswith("compile: ") for text in told)
    assert any("Building engine 1/" in text for text in told)
    assert report.warnings == read_plan(folder / PLAN).warnings
    assert "1 warnings; compiling took " in caplog.text
    record = read_plan(folder / PLAN)
    assert 20 < record.builder_host_mb < 4000
    assert record.memory_mb is not None and record.memory_mb > 100  # what was free, but a reserve
    printed = capfd.readouterr()
    assert "[TRT]" not in printed.out + printed.err and "TensorRT" not in printed.out + printed.err


def test_what_is_told_leaves_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's threads tell at once: a line and its end apart would be two halves of other lines."""
    pieces: list[str] = []
    monkeypatch.setattr(trt_worker.sys, "stdout", SimpleNamespace(write=pieces.append, flush=lambda: None))
    trt_worker._tell("log", "a line\nor two")
    assert pieces == ['{"log": "a line\\nor two"}\n']


def test_ctrl_c_while_compiling_stops_it_at_once(
    tiny_graph: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    options = EngineOptions(gpu="sm86", progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_plan("tensorrt_rtx", tiny_graph().path, folder, options)
    assert not any(folder.iterdir())

    hanging = 'import time; print(\'{"progress": "Building engine"}\', flush=True); time.sleep(60)'
    monkeypatch.setattr(trt_build, "_WORKER", hanging.replace("{", "{{").replace("}", "}}"))
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        build_plan("tensorrt_rtx", tiny_graph().path, folder, options)
    assert time.perf_counter() - started < 30


def test_the_workspace_is_limited_as_asked(tiny_graph: Callable[..., Any], folder: Path) -> None:
    asked = PlanOptions(workspace_mb=64)
    build_plan("tensorrt_rtx", tiny_graph().path, folder, EngineOptions(gpu="sm86", plan=asked, memory_mb=3000))
    record = read_plan(folder / PLAN)
    assert (record.workspace_mb, record.memory_mb, record.asked) == (64, 3000, asked)


def test_a_plan_serves_the_frames_and_the_batch_that_are_asked_for(
    tiny_parts: Callable[..., Any], tmp_path: Path, folder: Path
) -> None:
    parts = tiny_parts(dynamic=True)
    graph = parts.graph.path
    proto = onnx.load(graph, load_external_data=False)
    for axis, name in enumerate(("batch", "height", "width")):  # as exported graphs name them
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(proto, graph)
    rule = msgspec.structs.replace(parts.manifest.preprocess, size=ShortestEdge(shortest=64))
    bundle = write_bundle(parts.folder, msgspec.structs.replace(parts.manifest, preprocess=rule), tmp_path / "b")
    asked = PlanOptions(batch=4, frames=((48, 64), (64, 48)))
    build_plan("tensorrt_rtx", bundle / graph.name, folder, EngineOptions(gpu="sm86", plan=asked))
    record = read_plan(folder / PLAN)
    shapes = [profile["pixels"] for profile in record.profiles]
    assert [(item.min, item.opt, item.max) for item in shapes] == [
        ((1, 64, 64, 3), (4, 64, 85, 3), (4, 85, 85, 3)),
        ((1, 32, 48, 3), (4, 32, 48, 3), (4, 32, 48, 3)),  # the golden sample's
    ]
    assert record.asked == asked


# -- what is refused -------------------------------------------------------------------------------------------


def faulty(path: Path, fault: str) -> Path:
    """A graph with one deliberate fault in a module that it names."""
    module = "model.decoder.layer.2.attention"
    shape = {"x": (FLOAT, [1, 8, 32])}
    if fault == "operator":
        return write_graph(
            path, [make("Det", ["x"], ["y"], name=f"{module}/Det")], {"x": (FLOAT, [2, 8, 8])}, {"y": (FLOAT, [2])}
        )
    if fault == "types":
        nodes = [
            make("Cast", ["x"], ["low"], to=HALF, name=f"{module}/Cast"),
            make("MatMul", ["low", "w"], ["y"], name=f"{module}/MatMul"),
        ]
        return write_graph(path, nodes, shape, {"y": (FLOAT, [1, 8, 16])}, w=np.zeros((32, 16), np.float32))
    nodes = [make("MatMul", ["x", "w"], ["y"], name=f"{module}/MatMul")]
    return write_graph(path, nodes, shape, {"y": (FLOAT, [1, 8, 16])}, w=np.zeros((31, 16), np.float32))


@pytest.mark.parametrize(
    ("fault", "operator", "words"),
    [
        ("operator", "Det", ": unsupported node"),
        ("types", "MatMul", "must have same input types. `A` is of type Half and `B` is of type Float.)"),
        (
            "shape",
            "MatMul",
            "input0 = 32 and second to last dimension of input1 = 31 but must match.)",
        ),
    ],
)
def test_a_fault_is_told_by_node_and_module(
    fault: str, operator: str, words: str, tmp_path: Path, folder: Path
) -> None:
    graph = faulty(tmp_path / "graph.faulty.onnx", fault)
    module = "model.decoder.layer.2.attention"
    with pytest.raises(CompileError) as raised:
        build_plan("tensorrt_rtx", graph, folder, AMPERE)
    text = str(raised.value)
    assert f"cannot compile graph.faulty.onnx for sm86 in fp32: node {module}/{operator} ({operator})" in text
    assert f"in module {module}: " in text
    assert text.endswith(
        f"{words}. Export the bundle again for this version, or choose another version, precision or runtime"
    )
    assert "cudaError" not in text and "/_src" not in text  # the vendor's own affairs
    assert not any(folder.iterdir())


def test_a_graph_that_is_none_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(CompileError, match=r"cannot compile x\.onnx for sm86 in fp32: "):
        build_plan("tensorrt_rtx", tmp_path / "x.onnx", folder, AMPERE)


def test_weights_that_are_missing_are_refused(tiny_graph: Callable[..., Any], folder: Path) -> None:
    graph = tiny_graph().path
    (graph.parent / "weights.bin").unlink()
    with pytest.raises(CompileError, match="Failed to import initializer: kernel"):
        build_plan("tensorrt_rtx", graph, folder, AMPERE)


@pytest.mark.parametrize("gpu", ["", "sm87", "rtx4090"])
def test_an_architecture_that_is_not_known_is_refused_with_those_that_are(gpu: str) -> None:
    sentence = f"compiles for sm75, sm80, .*, but {gpu or 'no GPU'} was asked for"
    with pytest.raises(RuntimeUnavailableError, match=sentence):
        get_backend("tensorrt-rtx").fingerprint(EngineOptions(gpu=gpu))


def test_bf16_needs_ampere() -> None:
    with pytest.raises(RuntimeUnavailableError, match="sm75 cannot multiply in bf16, sm80 and newer can"):
        get_backend("tensorrt-rtx").fingerprint(EngineOptions("bf16", gpu="sm75"))


def test_a_compiler_that_crashes_takes_nothing_with_it(tmp_path: Path, folder: Path) -> None:
    # TensorRT-RTX 1.7 ends with SIGSEGV on this operator where no GPU is; others say that they cannot compile it
    nodes = [make("Attention", ["x", "x", "x"], ["y"], name="model.layer.0/Attention")]
    shape = [1, 4, 64, 64]
    graph = write_graph(tmp_path / "x.onnx", nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, opset=23)
    with pytest.raises(CompileError, match=r"x\.onnx for sm86 in fp32.*(crashed \(SIGSEGV\) at: .+|Attention)"):
        build_plan("tensorrt_rtx", graph, folder, AMPERE)
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (
            "os.kill(os.getpid(), 9)",
            r"was killed at: reading the graph. That happens where memory runs out: .*--work",
        ),
        ("os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\) at: reading the graph"),
        ("print('last words'); os._exit(3)", r"crashed \(exit code 3\) at: reading the graph \(last words\)"),
        ("raise ValueError('of ours')", r"crashed \(exit code 1\) .*ValueError: of ours"),
    ],
    ids=["killed", "segfault", "exit", "exception"],
)
def test_an_end_of_the_worker_is_told(
    end: str, sentence: str, tiny_graph: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_build, "_WORKER", f"import os; {end}")
    with pytest.raises(CompileError, match=sentence):
        build_plan("tensorrt_rtx", tiny_graph().path, folder, AMPERE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_output_error(tiny_graph: Callable[..., Any], folder: Path) -> None:
    folder.chmod(0o500)
    with pytest.raises(OutputError, match=r"cannot write the plan .*: permission is denied"):
        build_plan("tensorrt_rtx", tiny_graph().path, folder, AMPERE)


def test_a_folder_that_is_gone_is_an_output_error(tiny_graph: Callable[..., Any], folder: Path) -> None:
    folder.rmdir()
    with pytest.raises(OutputError, match=r"cannot write the plan .*: the folder does not exist"):
        build_plan("tensorrt_rtx", tiny_graph().path, folder, AMPERE)


# -- TensorRT's own: measured kernels are kept -----------------------------------------------------------------


class _Config:
    """What `_TimingCache` asks of an `IBuilderConfig`."""

    given: bytes | None = None
    refuses: bytes | None = None  # as another device's, or as damaged
    damaged: bytes | None = None

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return None if data == self.damaged else data

    def set_timing_cache(self, data: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch  # another device's measurements are worth nothing
        if data == self.refuses:
            return False
        self.given = data
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"measured")


def test_a_timing_cache_is_kept_by_version_and_gpu(empty_cache: Path) -> None:
    package = SimpleNamespace(__version__="10.3.0")
    first, second, other = _Config(), _Config(), _Config()
    trt_worker._TimingCache(package, "tensorrt", first, "sm87").keep()
    trt_worker._TimingCache(package, "tensorrt", second, "sm87")
    trt_worker._TimingCache(package, "tensorrt", other, "sm86")
    assert (first.given, second.given, other.given) == (b"", b"measured", b"")
    rtx = _Config()
    trt_worker._TimingCache(package, "tensorrt-rtx", rtx, "sm87").keep()
    assert rtx.given is None


@pytest.mark.parametrize("fault", ["refuses", "damaged"])
def test_measurements_that_do_not_serve_are_made_anew(fault: str, empty_cache: Path) -> None:
    package = SimpleNamespace(__version__="10.3.0")
    trt_worker._TimingCache(package, "tensorrt", _Config(), "sm87").keep()
    config = _Config()
    setattr(config, fault, b"measured")
    trt_worker._TimingCache(package, "tensorrt", config, "sm87")
    assert config.given == b""


# -- in the cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def rtx_bundle(tiny_parts: Callable[..., Any], tmp_path: Path) -> Bundle:
    """The tiny bundle with a graph for TensorRT-RTX."""
    parts = tiny_parts()
    row = msgspec.structs.replace(parts.manifest.graphs[0], target="tensorrt-rtx", versions=">=1.0")
    manifest = msgspec.structs.replace(parts.manifest, graphs=(row,))
    return Bundle.open(write_bundle(parts.folder, manifest, tmp_path / "b"))


def test_plans_of_several_gpus_are_cached_side_by_side(rtx_bundle: Bundle, empty_cache: Path) -> None:
    ampere, blackwell = (prepare_engine(rtx_bundle, "tensorrt-rtx", options) for options in (AMPERE, BLACKWELL))
    assert ampere.folder != blackwell.folder
    record = read_plan(ampere.folder / PLAN)
    assert (record.name, record.bundle, record.graph) == ("tiny", rtx_bundle.digest, "graph.openvino.onnx")
    graph = (rtx_bundle.root / record.graph).read_bytes()
    assert record.graph_sha256 == hashlib.sha256(graph).hexdigest()
    again = prepare_engine(rtx_bundle, "tensorrt-rtx", EngineOptions(gpu="sm86", memory_mb=4000))
    assert again.cache_hit and again.folder == ampere.folder


def test_what_is_asked_of_a_plan_replaces_it_and_then_stays(
    rtx_bundle: Bundle, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(package: str, graph: Path, folder: Path, options: EngineOptions, device: str) -> BuildReport:
        (folder / PLAN).write_text(str(options.plan))
        return BuildReport("tensorrt-rtx", trt.__version__, options.gpu, {}, 1.0)

    monkeypatch.setattr("edgevtx.runtimes.trt.build_plan", build)
    first = prepare_engine(rtx_bundle, "tensorrt-rtx", AMPERE)
    small = replace(AMPERE, plan=PlanOptions(workspace_mb=100))
    other = prepare_engine(rtx_bundle, "tensorrt-rtx", small)
    assert not other.cache_hit and other.folder == first.folder
    assert (other.folder / PLAN).read_text() == "--workspace-mb 100"
    for options in (small, AMPERE):  # asked again, and not asked at all: it is what `load` opens
        assert prepare_engine(rtx_bundle, "tensorrt-rtx", options).cache_hit
    assert other.again is not None and other.again().record.asked == small.plan
    with pytest.raises(CompileError, match="compile='never' was asked"):
        prepare_engine(rtx_bundle, "tensorrt-rtx", replace(AMPERE, plan=PlanOptions(batch=2)), compile="never")

    real = get_backend("tensorrt-rtx").fingerprint
    monkeypatch.setattr(TensorRt, "fingerprint", lambda self, options: {**real(options), "driver": "a newer one"})
    updated = prepare_engine(rtx_bundle, "tensorrt-rtx", AMPERE)
    assert not updated.cache_hit and updated.folder != other.folder
    assert updated.record.asked == small.plan  # as it was before the update
    blackwell = prepare_engine(rtx_bundle, "tensorrt-rtx", BLACKWELL)
    assert not blackwell.record.asked  # for another GPU nothing was asked yet
    forced = prepare_engine(rtx_bundle, "tensorrt-rtx", AMPERE, compile="force")
    assert not forced.record.asked


def test_a_damaged_plan_in_the_cache_is_compiled_again(rtx_bundle: Bundle, empty_cache: Path) -> None:
    plan = prepare_engine(rtx_bundle, "tensorrt-rtx", AMPERE).folder / PLAN
    plan.write_bytes(plan.read_bytes()[:-10])
    again = prepare_engine(rtx_bundle, "tensorrt-rtx", AMPERE)
    assert not again.cache_hit
    check_file(plan, read_plan(plan))
    assert len(cache.entries()) == 1
