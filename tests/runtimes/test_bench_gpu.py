"""`bench/gpu.py` against the fakes of `fake_gpu`: its parts, and a whole run on bundles without torch.

What the figures are on a GPU is not shown here.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgevtx.runtimes.base import Engine
from edgevtx.runtimes.cuda import Device
from edgevtx.runtimes.plan import PLAN, read_plan
from edgevtx.runtimes.trt_loaded import Loaded
from tests.runtimes import fake_gpu
from tests.runtimes.fake_gpu import Machine, crashes, feeds

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The benchmark's modules by name; afterwards they are forgotten."""
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))  # or they would set one
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    names = ("common", "models", "device", "gpu")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def test_what_is_allowed_is_the_longer_of_bytes_and_products(bench: Any) -> None:
    rates = bench.device.Rates(bytes=100e9, products=1e12)
    assert rates.allow(10**9, 10**9) == pytest.approx(10)
    assert rates.allow(10**6, 10**11) == pytest.approx(100)
    assert str(rates) == "100 GB/s, 1 T multiply-adds/s fp16"
    without = bench.device.Rates(bytes=100e9)
    assert without.allow(10**9, 10**15) == pytest.approx(10) and str(without) == "100 GB/s"


def test_the_memory_s_rate_counts_what_is_read_and_written(
    bench: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.device, "COPIED", 1 << 20)
    rates = bench.device.measure_rates(None)
    assert rates.bytes == 2 * (1 << 20) * 1000  # a copy of the fake GPU takes 1 ms
    assert machine.count("cuMemcpyDtoDAsync") == 10
    assert not machine.left() and not crashes(machine) and machine.retained == 0


def test_events_tell_the_engine_s_time_from_that_of_the_copies(
    bench: Any, machine: Machine, open_plan: Callable[..., Engine], tmp_path: Path
) -> None:
    open_plan().close()
    plan = tmp_path / "engine" / PLAN
    device = Device(0, "tensorrt")
    loaded = Loaded(sys.modules["tensorrt"], "tensorrt", device, plan, read_plan(plan), False)
    timed = bench.device.Timed(loaded)
    loaded.leave(loaded.owner)
    for seed in range(5):
        inputs = feeds(seed=seed)
        assert (timed.run(inputs)["scores"] == fake_gpu.answer(inputs)).all()
    rows = timed.rows(3)
    # two copies there, the engine, and one back, each of which takes 1 ms on the fake GPU
    assert rows["engine alone"].tolist() == [1.0] * 3 and rows["copies alone"].tolist() == [3.0] * 3
    assert machine.count("cuGraphLaunch") == 0
    timed.close()
    assert not machine.left() and not crashes(machine)


def test_bundles_are_measured_without_torch_and_scikit_image(
    bench: Any, whole: Callable[..., Any], machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench.device, "COPIED", 1 << 20)
    monkeypatch.setattr(bench.gpu, "usable_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    small = [np.full((8, 12, 3), value, np.uint8) for value in (1, 2)]
    monkeypatch.setattr("edgevtx.profile.synthetic_frames", lambda size, count: small)
    monkeypatch.setattr(bench.gpu, "open_checkpoint", lambda model: pytest.fail("a model was exported"))
    folder = whole("tensorrt").path.parent
    arguments = ["--bundles", folder, "--precision", "bf16", "--rounds", 5, "--warmup", 1, "--out", tmp_path / "out"]
    done = CliRunner().invoke(bench.gpu.main, [str(word) for word in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    rows = {who: cells for _, who, *cells in found["tables"][0]["rows"]}
    assert rows.keys() >= {
        f"tensorrt {what}" for what in ("engine", "engine, CUDA graph", "engine alone", "copies alone")
    }
    assert not any("by events" in who or "torch" in who for who in rows)
    assert rows["tensorrt engine alone"][0] == 1.0 and rows["tensorrt engine alone"][2] is not None
    assert rows["tensorrt copies alone"][2] is None
    notes = " ".join(found["notes"])
    # the fake engine's answer is none that this bundle's rule decodes: what fails is left out, and the rest is measured
    for words in (
        "torch with CUDA is not installed",
        "scikit-image is not installed",
        "tensorrt-rtx was not run",
        "tiny tensorrt whole call was not run: patches must be",
    ):
        assert words in notes
    assert found["settings"]["measured"] == "2 GB/s"
    assert not machine.left() and not crashes(machine)


def test_a_folder_without_bundles_says_so(bench: Any, machine: Machine, tmp_path: Path) -> None:
    done = CliRunner().invoke(bench.gpu.main, ["--bundles", str(tmp_path)])
    assert done.exit_code == 1 and f"{tmp_path} holds no bundles" in done.output


def test_what_refuses_a_frame_is_left_out_with_the_reason(bench: Any) -> None:
    from edgevtx.errors import InputError

    def refuse() -> None:
        raise InputError("a clip is wanted")

    notes: list[str] = []
    kept = bench.gpu.those_that_run({"engine": lambda: None, "whole call": refuse}, "vivit", notes)
    assert list(kept) == ["engine"] and notes == ["vivit whole call was not run: a clip is wanted"]


def test_bundles_are_written_for_another_machine(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "manifest.json").write_text("{}")
    asked: list[Any] = []
    monkeypatch.setattr(bench.gpu, "bundle_for", lambda *arguments: asked.append(arguments) or made)
    arguments = ["--export", str(tmp_path / "out"), "--model", "vit_b16_224", "--target", "tensorrt"]
    assert CliRunner().invoke(bench.gpu.main, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "out" / "vit_b16_224.vtx" / "manifest.json").is_file()
    assert asked == [(bench.models.MODELS["vit_b16_224"], ("tensorrt",), "fp16", False)]


def test_the_switch_has_softmax_run_low(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    ir = pytest.importorskip("onnx_ir")
    from edgevtx.export.rewrite import low_precision

    monkeypatch.setattr(low_precision, "FOLLOWERS", low_precision.FOLLOWERS)
    monkeypatch.setattr(low_precision, "_EXACT_USES", dict(low_precision._EXACT_USES))
    graph = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> attend (float[4,4] q, float[4,4] v)
        => (float[4,4] y) { scores = MatMul(q, q) shares = Softmax(scores) y = MatMul(shares, v) }""")

    infer = onnx.shape_inference.infer_shapes

    def softmax_reads() -> str:
        typed = low_precision.by_operators(ir.from_proto(infer(graph)), ["fp16"])["fp16"].model
        named = infer(ir.to_proto(typed)).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*named.input, *named.value_info)}
        (read,) = [node.input[0] for node in named.node if node.op_type == "Softmax"]
        return onnx.TensorProto.DataType.Name(types[read])

    assert softmax_reads() == "FLOAT"
    bench.gpu.let_softmax_run_low()
    assert softmax_reads() == "FLOAT16"
