"""What is beside a plan, read without TensorRT and without a GPU; which plans are refused, and with what advice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevtx.bundle import Bundle
from edgevtx.errors import CompileError, InputError
from edgevtx.runtimes.base import TensorSpec
from edgevtx.runtimes.plan import (
    PlanLayer,
    PlanRecord,
    ShapeRange,
    check_file,
    check_plan,
    encode_record,
    origin,
    read_plan,
    record_path,
)

DATA = b"a plan" * 50


@pytest.fixture
def record() -> PlanRecord:
    return PlanRecord(
        name="fire",
        bundle="ab" * 32,
        graph="graph.tensorrt-rtx.onnx",
        graph_sha256="cd" * 32,
        target="tensorrt-rtx",
        target_version="1.7.1.116",
        gpu="sm89",
        precision="fp16",
        precision_share={"f16": 0.98, "f32": 0.02},
        inputs=(TensorSpec("pixels", (None, 480, None, 3), "uint8"),),
        outputs=(TensorSpec("scores", (None, 5), "float32"),),
        profiles=({"pixels": ShapeRange((1, 480, 200, 3), (1, 480, 640, 3), (8, 480, 900, 3))},),
        layers=(PlanLayer("encoder.0/MatMul", "matrix_multiply", "f16", 12),),
        size=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        compile_seconds=1.5,
        warnings=("a warning",),
    )


@pytest.fixture
def plan(record: PlanRecord, tmp_path: Path) -> Path:
    path = tmp_path / "fire.tensorrt-rtx.sm89.fp16.plan"
    path.write_bytes(DATA)
    record_path(path).write_bytes(encode_record(record))
    return path


def test_a_record_is_read_by_the_path_of_either(plan: Path, record: PlanRecord) -> None:
    assert read_plan(plan) == read_plan(plan.with_suffix(".json")) == record
    check_file(plan, record)


def test_a_plan_without_its_record_says_so(plan: Path) -> None:
    record_path(plan).unlink()
    with pytest.raises(InputError, match=r"there is no .*fp16.json: a plan of edgevtx has a record beside it"):
        read_plan(plan)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"schema": "1.0"}', b'{"schema": "2.0"}'],
    ids=["empty", "half", "binary", "fields", "newer"],
)
def test_a_record_that_is_none_is_refused(plan: Path, content: bytes) -> None:
    record_path(plan).write_bytes(content)
    with pytest.raises(CompileError, match="is no record of a plan that this edgevtx reads"):
        read_plan(plan)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(DATA[:-1], "has 299 bytes, and its record says 300"), (DATA[:-1] + b"x", "is not the file of its record")],
    ids=["cut", "changed"],
)
def test_a_damaged_plan_is_refused(plan: Path, record: PlanRecord, content: bytes, wrong: str) -> None:
    plan.write_bytes(content)
    with pytest.raises(CompileError, match=f"{wrong}: it was damaged or replaced; compile the bundle again"):
        check_file(plan, record)
    plan.unlink()
    with pytest.raises(CompileError, match="cannot be read"):
        check_file(plan, record)


def test_a_plan_of_this_place_is_taken(record: PlanRecord) -> None:
    check_plan(record, "tensorrt-rtx", "1.7.1.116", "sm89", "ab" * 32)
    check_plan(record, "tensorrt-rtx", "1.7.1.116", "sm89")


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (("tensorrt", "1.7.1.116", "sm89", "ab" * 32), "is for tensorrt-rtx, but tensorrt was to open it"),
        (
            ("tensorrt-rtx", "1.8.0.1", "sm89", "ab" * 32),
            "compiled by tensorrt-rtx 1.7.1.116, and 1.8.0.1 is installed",
        ),
        (("tensorrt-rtx", "1.7.1.116", "sm120", "ab" * 32), "compiled for sm89, and the GPU here is sm120"),
        (
            ("tensorrt-rtx", "1.7.1.116", "sm89", "ef" * 32),
            "from the bundle abababababab, and this one is efefefefefef",
        ),
    ],
    ids=["target", "version", "gpu", "bundle"],
)
def test_a_foreign_or_stale_plan_is_refused_with_what_to_do(
    record: PlanRecord, place: tuple[str, str, str, str], sentence: str
) -> None:
    command = f"edgevtx compile BUNDLE --target {place[0]} --gpu {place[2]} --precision fp16"
    with pytest.raises(CompileError, match=f"the plan of fire .*{re.escape(sentence)}.*{command}"):
        check_plan(record, *place)


def test_the_origin_of_a_graph_is_the_bundle_s(tiny_bundle: Path, empty_cache: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    found = origin(bundle.root / "graph.openvino.onnx")
    assert (found.name, found.digest, found.part) == ("tiny", bundle.digest, "")
    assert found.size == bundle.manifest.preprocess.size


def test_the_part_of_a_graph_is_found(tiny_parts: Callable[..., Any], tmp_path: Path) -> None:
    from edgevtx.manifest import encode

    parts = tiny_parts()
    first, second = parts.manifest.graphs
    graphs = (first, msgspec.structs.replace(second, part="decoder"))
    (tmp_path / "manifest.json").write_bytes(encode(msgspec.structs.replace(parts.manifest, graphs=graphs)))
    assert origin(tmp_path / second.file).part == "decoder"


def test_a_graph_of_no_bundle_has_its_own_name(tiny_graph: Callable[..., Any]) -> None:
    found = origin(tiny_graph().path)
    assert (found.name, found.digest, found.size) == ("graph.any", "", None)
