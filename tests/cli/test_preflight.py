"""`edgevtx compile --preflight`: a bundle against the tables of its target's versions, and its half precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from edgevtx.bundle import Bundle, write_bundle  # noqa: E402
from edgevtx.export.operators import versions  # noqa: E402
from tests.cli.conftest import SIZE  # noqa: E402

RTX = ("--target", "tensorrt-rtx", "--preflight")


@pytest.fixture
def faulty(rtx_bundle: Path, tmp_path: Path) -> Path:
    """The bundle with a graph that transposes its frames before it casts them."""
    opened = Bundle.open(rtx_bundle)
    folder = tmp_path / "files"
    folder.mkdir()
    for item in opened.manifest.files:
        (folder / item.path).write_bytes((opened.root / item.path).read_bytes())
    path = folder / opened.manifest.graphs[0].file
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].input[0] = "turned"
    model.graph.node.insert(
        0, onnx.helper.make_node("Transpose", ["pixels"], ["turned"], "stem/turn", perm=[0, 1, 2, 3])
    )
    onnx.save(model, path)
    return write_bundle(folder, msgspec.structs.replace(opened.manifest, files=()), tmp_path / "faulty.vtx")


def test_a_sound_bundle(edgevtx_cli: Any, rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevtx.runtimes.get_backend", lambda name: pytest.fail("no runtime is asked"))
    found = edgevtx_cli("compile", rtx_bundle, *RTX)
    assert found.exit_code == 0, found.stderr
    assert f"nothing found for tensorrt-rtx {', '.join(versions('tensorrt-rtx'))}" in found.stdout
    facts = json.loads(edgevtx_cli("compile", rtx_bundle, *RTX, "--json").stdout)
    graphs = ["graph.tensorrt-rtx.onnx"]
    assert facts == {"target": "tensorrt-rtx", "graphs": graphs, "findings": [], "rehearsals": []}


def test_a_fault_is_said_by_node_and_the_command_fails(edgevtx_cli: Any, faulty: Path) -> None:
    found = edgevtx_cli("compile", faulty, *RTX)
    assert found.exit_code == 1
    assert "stem/turn in stem: a uint8 tensor is read by something else than a Cast" in found.stdout
    assert "graph.tensorrt-rtx.onnx would fail in tensorrt-rtx 1.0, 1.3, 1.7" in " ".join(found.stderr.split())
    found = edgevtx_cli("compile", faulty, *RTX, "--json")
    assert found.exit_code == 1
    (row,) = json.loads(found.stdout)["findings"]
    assert (row["node"], row["module"], row["level"]) == ("stem/turn", "stem", "error")
    assert row["versions"] == list(versions("tensorrt-rtx"))


# -- the rehearsal of lower precision --------------------------------------------------------------------------


def write_head(path: Path, *, half: bool, scale: float = 1.0, offset: float = 0.0) -> None:
    """The colours' graph with its product in half precision, or not: `scale` times as large, and `offset` added to it,
    which is both taken back in float32."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

    def lowered(name: str) -> str:
        return f"{name}.low" if half else name

    read = ("mean", "weights", "offset")
    casts = [make("Cast", [name], [f"{name}.low"], f"head.0/{name}", to=float16) for name in read]
    nodes = [
        make("Cast", ["pixels"], ["floats"], "stem/Cast", to=float32),
        make("ReduceMean", ["floats"], ["mean"], "stem/ReduceMean", axes=[1, 2], keepdims=0),
        *(casts if half else []),
        make("MatMul", [lowered("mean"), lowered("weights")], ["product"], "head.0/MatMul"),
        make("Add", ["product", lowered("offset")], ["shifted"], "head.0/Add"),
        *([make("Cast", ["shifted"], ["shifted.back"], "head.0/back", to=float32)] if half else []),
        make("Sub", ["shifted.back" if half else "shifted", "offset"], ["taken"], "head.1/Sub"),
        make("Mul", ["taken", "factor"], ["logits"], "head.1/Mul"),
        make("Softmax", ["logits"], ["shares"], "head.1/Softmax", axis=1),
        make("TopK", ["shares", "k"], ["scores", "class_ids"], "head.1/TopK", axis=1),
    ]
    arrays = {
        "weights": (np.eye(3) * scale / 32).astype(np.float32),
        "offset": np.full(3, offset, np.float32),
        "factor": np.float32(1 / scale),
        "k": np.array([3]),
    }
    graph = onnx.helper.make_graph(
        nodes,
        "colours",
        [value("pixels", onnx.TensorProto.UINT8, [1, *SIZE, 3])],
        [value("scores", float32, [1, 3]), value("class_ids", onnx.TensorProto.INT64, [1, 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)


@pytest.fixture
def halved(rtx_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """halved(exact, **of write_head) -> the bundle with a graph in fp16, and one in fp32 if `exact`."""

    def make(exact: bool = True, **options: float) -> Path:
        opened = Bundle.open(rtx_bundle)
        folder = tmp_path / "files"
        folder.mkdir()
        (folder / "golden.npz").write_bytes((opened.root / "golden.npz").read_bytes())
        rows = []
        for precision in ("fp32", "fp16") if exact else ("fp16",):
            file = f"graph.tensorrt-rtx{'' if precision == 'fp32' else '.fp16'}.onnx"
            write_head(folder / file, half=precision == "fp16", **options)
            rows.append(msgspec.structs.replace(opened.manifest.graphs[0], file=file, precisions=(precision,)))
        manifest = msgspec.structs.replace(opened.manifest, graphs=tuple(rows), files=())
        return write_bundle(folder, manifest, tmp_path / "half.vtx")

    return make


def test_half_precision_is_rehearsed_beside_the_float32_graph(edgevtx_cli: Any, halved: Any) -> None:
    path = halved()
    found = edgevtx_cli("compile", path, *RTX)
    assert found.exit_code == 0, found.stderr
    said = "graph.tensorrt-rtx.fp16.onnx: rehearsed in fp16 beside graph.tensorrt-rtx.onnx: passes, furthest off is"
    assert said in found.stdout
    (row,) = json.loads(edgevtx_cli("compile", path, *RTX, "--json").stdout)["rehearsals"]
    assert (row["graph"], row["passed"], row["overflows"]) == ("graph.tensorrt-rtx.fp16.onnx", True, [])
    assert edgevtx_cli("compile", path, *RTX, "--precision", "fp32", "--json").stdout.count('"rehearsals": []') == 1


def test_without_a_float32_graph_the_typed_one_is_widened_and_it_is_said(edgevtx_cli: Any, halved: Any) -> None:
    found = edgevtx_cli("compile", halved(exact=False), *RTX)
    assert found.exit_code == 0, found.stderr
    assert "rehearsed in fp16 beside itself in fp32, since the bundle has no fp32 graph: passes" in found.stdout


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"scale": 32768.0}, "overflows in head.0"),  # 92160, where half precision ends at 65504
        ({"offset": 4096.0}, "; the first block that diverges is head.0"),  # where it has steps of 4
    ],
    ids=["overflow", "rounding"],
)
def test_a_block_that_does_not_bear_half_precision_is_named(
    planted: dict[str, float], words: str, exact: bool, edgevtx_cli: Any, halved: Any
) -> None:
    path = halved(exact, **planted)
    found = edgevtx_cli("compile", path, *RTX)
    assert found.exit_code == 1
    assert words in found.stdout and words in " ".join(found.stderr.split())
    found = edgevtx_cli("compile", path, *RTX, "--json")
    (row,) = json.loads(found.stdout)["rehearsals"]
    assert found.exit_code == 1 and not row["passed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "tensorrt"), "no graph for tensorrt; make one with: edgevtx export"),
        (("--target", "tensorrt-rtx", "--precision", "bf16"), "no graph for tensorrt-rtx in bf16"),
        (("--target", "openvino"), "--preflight is for tensorrt and tensorrt-rtx, and --target is openvino"),
    ],
)
def test_what_cannot_be_looked_at(options: tuple[str, ...], words: str, edgevtx_cli: Any, rtx_bundle: Path) -> None:
    found = edgevtx_cli("compile", rtx_bundle, *options, "--preflight")
    assert found.exit_code == 2 and words in " ".join(found.stderr.split())
