"""What an engine inspector tells, of texts in the form that NVIDIA documents, and as its users have shown it.

They are written by hand in that form; no GPU has given them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevtx.runtimes import host, trt_inspect
from edgevtx.runtimes.base import Engine
from edgevtx.runtimes.plan import PLAN, read_plan
from edgevtx.runtimes.trt import TENSORRT_RTX
from edgevtx.runtimes.trt_inspect import Executed, executed_path, parse, read_executed
from tests.runtimes.fake_gpu import Machine, crashes, make_record


def tensor(shape: Any, words: str) -> dict[str, Any]:
    return {"Name": "t", "Location": "Device", "Dimensions": shape, "Format/Datatype": words}


def row(kind: str, taken: Any, given: Any, tactic: str = "", words: str = "Half", **more: Any) -> dict[str, Any]:
    ends = {"Inputs": [tensor(taken, words)], "Outputs": [tensor(given, words)]}
    return {"Name": "n", "LayerType": kind, **ends, "TacticName": tactic, "StreamId": 0, **more}


def text(*rows: Any) -> str:
    return json.dumps({"Layers": list(rows), "Bindings": ["pixels", "scores"]})


GEMM = row("gemm", [197, 768], [197, 3072], "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x64x32")


@pytest.mark.parametrize(
    ("kernel", "type_", "work"),
    [
        (GEMM, "f16", 197 * 768 * 3072),
        (row("gemm", [8, 64], [8, 16], "sm80_xmma_gemm_bf16bf16_bf16f32_f32_nn_n", "BFloat16"), "bf16", 8 * 64 * 16),
        (row("gemm", [8, 64], [8, 16], "sm80_xmma_gemm_tf32f32_tf32f32_f32_nn_n", "Float"), "tf32", 8 * 64 * 16),
        (row("gemm", [8, 64], [8, 16], "ampere_sgemm_64x64_tn", "Float"), "f32", 8 * 64 * 16),
        (row("gemm", [8, 64], [8, 16], "ampere_h16816gemm_128x64_stages_64x3_tn_v1"), "f16", 8 * 64 * 16),
        (row("MatrixMultiply", [10, 2], [10, 3], words="Row major linear FP16 format"), "f16", 60),
        (row("fusion", [8, 64], [8, 16], "sm80_xmma_gemm_i8i8_i8i32_f32_tn", "Int8"), "i8", 8 * 64 * 16),
        (
            row(
                "CaskConvolution", [16, 512, 28, 28], [16, 256, 28, 28], "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32",
                "Thirty-two wide channel vectorized row major Int8 format.", Kernel=[1, 1], Groups=1,
            ),
            "i8",
            16 * 256 * 28 * 28 * 512,
        ),
        (row("Convolution", [1, 3, 8, 8], [1, 4, 8, 8], words="Float", Kernel=[3, 3], Groups=1), "f32", 256 * 27),
        (row("gemm", [-1, 64], [-1, 16]), "f16", 0),
    ],
)  # fmt: skip
def test_a_kernel_that_multiplies(kernel: dict[str, Any], type_: str, work: int) -> None:
    found = parse(text(kernel))
    (one,) = found.kernels
    assert (one.type, one.work, one.multiplies) == (type_, work, True)
    assert found.share == {type_: 1.0}


@pytest.mark.parametrize("words", ["Float", "Half", "BFloat16", "Int32", "UInt8"])
def test_a_kernel_that_moves_data_has_no_share(words: str) -> None:
    found = parse(text(GEMM, row("Reformat", [197, 768], [197, 768], words=words), row("kgen", [9], [9], words=words)))
    assert found.share == {"f16": 1.0}
    assert {kernel.type for kernel in found.kernels[1:]} == {
        {"Float": "f32", "Half": "f16", "BFloat16": "bf16", "Int32": "i32", "UInt8": "u8"}[words]
    }


def test_shares_are_of_work_and_of_kernels_where_a_size_is_open() -> None:
    small = row("gemm", [197, 768], [197, 1024], "sm80_xmma_gemm_f32f32_f32f32_f32_tn", "Float")
    assert parse(text(GEMM, small)).share == {"f16": 0.75, "f32": 0.25}
    open_ = row("gemm", [-1, 768], [-1, 1024], "sm80_xmma_gemm_f32f32_f32f32_f32_tn", "Float")
    assert parse(text(GEMM, open_)).share == {"f16": 0.5, "f32": 0.5}


@pytest.mark.parametrize(
    "strange",
    [
        text(),
        text("a name alone", "another"),
        text({}),
        text({"Name": None, "LayerType": 7, "Inputs": {}, "Outputs": "x", "TacticName": None}),
        text(row("gemm", "1x2", [None], words=3, Kernel="3x3")),  # type: ignore[arg-type]
        text({**GEMM, "Inputs": [], "Outputs": []}),
    ],
)
def test_what_is_of_another_form_is_left_out(strange: str) -> None:
    assert sum(parse(strange).share.values()) in (0, 1)


# -- of an engine that is opened -------------------------------------------------------------------------------


def test_it_is_read_once_and_kept_beside_the_plan(
    machine: Machine, open_plan: Callable[..., Engine], tmp_path: Path
) -> None:
    plan = tmp_path / "engine" / PLAN
    for _ in range(2):
        engine = open_plan(inspector=text(GEMM))
        assert engine.executed_share == {"f16": 1.0} and engine.on_gpu
        engine.close()
    assert machine.calls.count("get_engine_information JSON") == 1
    kept = read_executed(plan, read_plan(plan).sha256)
    assert kept is not None and kept.kernels[0].tactic == GEMM["TacticName"]
    assert machine.left() == {} and not crashes(machine)


@pytest.mark.parametrize(
    ("change", "share"), [({}, "f16"), ({"driver": "2"}, "f32"), ({"gpu": "Another"}, "f32"), ({"sha256": "b"}, "f32")]
)
def test_what_was_kept_is_of_this_plan_gpu_and_driver(
    machine: Machine, open_plan: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, change: Any, share: str
) -> None:
    facts = {"driver": "1", "gpu": machine.gpus[0], "sha256": "a"}
    other = row("gemm", [8, 64], [8, 16], "ampere_sgemm_64x64_tn", "Float")
    for here, kernel in ((facts, GEMM), ({**facts, **change}, other)):
        monkeypatch.setattr(host, "nvidia_driver", lambda here=here: here["driver"])
        machine.gpus = (here["gpu"],)
        engine = open_plan(record=make_record(sha256=here["sha256"]), inspector=text(kernel))
        engine.close()
    assert engine.executed_share == {share: 1.0}


def test_rtx_is_asked_once_its_kernels_are_chosen(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    open_plan(TENSORRT_RTX, inspector=text(GEMM)).close()
    names = machine.names()
    last = len(names) - 1 - names[::-1].index("execute_async_v3")
    assert names.count("get_engine_information") == 1 and names.index("get_engine_information") > last


@pytest.mark.parametrize("said", ["", "no JSON", "[]", '{"layers": []}', '{"Layers": 3}'])
def test_an_inspector_that_is_not_understood_is_passed_over(
    machine: Machine, open_plan: Callable[..., Engine], tmp_path: Path, said: str
) -> None:
    engine = open_plan(inspector=said)
    assert engine.executed_share == {}
    engine.close()
    assert not executed_path(tmp_path / "engine" / PLAN).exists()
    assert machine.left() == {}


def test_an_inspector_that_fails_is_passed_over(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    machine.failing.add("get_engine_information")
    engine = open_plan()
    assert engine.executed_share == {}
    engine.close()
    assert machine.left() == {}


def test_what_contradicts_the_precision_is_said(
    machine: Machine, open_plan: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    tf32 = row("gemm", [8, 64], [8, 16], "sm80_xmma_gemm_tf32f32_tf32f32_f32_nn_n", "Float")
    open_plan(record=make_record(precision="fp32"), inspector=text(tf32)).close()
    assert "fp32 was asked of tensorrt on Fake Orin (sm87)" in caplog.text and "100% tf32" in caplog.text
    caplog.clear()
    trt_inspect.warn(Executed({"f16": 0.7, "f32": 0.3}, ()), "fp16", target="tensorrt", device="a GPU")
    trt_inspect.warn(Executed({"i8": 0.3, "f16": 0.7}, ()), "int8", target="tensorrt", device="a GPU")  # was accepted
    trt_inspect.warn(Executed({}, ()), "fp16", target="tensorrt", device="a GPU")  # nothing was told
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
