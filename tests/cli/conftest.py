"""A bundle that answers with a frame's colours, made without torch; and the command line, called as a user calls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgevtx.cli import cli

ROOT = Path(__file__).resolve().parents[2]
SIZE = (32, 48)
LABELS = ("blue", "green", "red")
TARGETS = ("openvino", "onnxruntime")


def colour_graph(path: Path) -> None:
    """pixels (1,H,W,3) uint8 -> softmax of a product with the mean colour, all classes, best first."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    height, width = SIZE
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
        helper.make_node("TopK", ["shares", "k"], ["scores", "class_ids"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, height, width, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("class_ids", TensorProto.INT64, [1, 3]),
        ],
        [
            numpy_helper.from_array((np.eye(3) / 32).astype(np.float32), "weights"),
            numpy_helper.from_array(np.array([3], np.int64), "k"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def colour_frame(blue: int, green: int, red: int, size: tuple[int, int] = (72, 108)) -> Any:
    frame = np.empty((*size, 3), np.uint8)
    frame[:] = (blue, green, red)
    return frame


def make_bundle(
    out: Path,
    folder: Path,
    *,
    spoil: float = 0.0,
    status: str = "passed-here",
    targets: tuple[str, ...] = TARGETS,
    avoids: tuple[str, ...] = (),
) -> Path:
    """Write the bundle; `spoil` is added to the golden sample's scores, `status` and `avoids` is what the manifest
    claims."""
    import onnxruntime

    from edgevtx import manifest as m
    from edgevtx import rules as r
    from edgevtx.bundle import write_bundle
    from edgevtx.golden import Golden, write_golden

    folder.mkdir()
    graphs, verdicts = [], []
    for target in targets:
        file = f"graph.{target}.onnx"
        colour_graph(folder / file)
        facts = {"file": file, "target": target, "variant": "", "versions": ">=1", "precisions": ("fp32",), "opset": 17}
        graphs.append(m.Graph(**facts, avoids=avoids))
        verdicts.append(m.Verdict(target=target, precision="fp32", status=status, graph=file, sensitivity=1e4))
    preprocess = r.Preprocess(
        size=r.Exact(height=SIZE[0], width=SIZE[1]), interpolation="bilinear", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    pixels = colour_frame(40, 90, 60, SIZE)[None]
    session = onnxruntime.InferenceSession(folder / graphs[0].file, providers=["CPUExecutionProvider"])
    scores, class_ids = session.run(["scores", "class_ids"], {"pixels": pixels})
    outputs = {"scores": scores + np.float32(spoil), "class_ids": class_ids}
    write_golden(folder / "golden.npz", Golden(colour_frame(40, 90, 60), {"pixels": pixels}, outputs))
    manifest = m.Manifest(
        name="colours",
        family="toy",
        task="classify",
        inputs=(m.TensorInfo(name="pixels", shape=(1, *SIZE, 3), dtype="uint8"),),
        outputs=(
            m.TensorInfo(name="scores", shape=(1, 3), dtype="float32"),
            m.TensorInfo(name="class_ids", shape=(1, 3), dtype="int64"),
        ),
        preprocess=preprocess,
        decode=r.ClassifyDecode(top_k=3),
        labels=LABELS,
        graphs=tuple(graphs),
        verdicts=tuple(verdicts),
        recommended=dict.fromkeys(targets, "fp32"),
        provenance=m.Provenance(licence="Apache-2.0", intended_use="tests"),
        tools={"edgevtx": "0"},
    )
    return write_bundle(folder, manifest, out)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the tests' own, and a wide terminal that wraps no message."""
    monkeypatch.setenv("EDGEVTX_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("EDGEVTX_DEBUG", raising=False)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return make_bundle(folder / "colours.vtx", folder / "files")


@pytest.fixture(scope="session")
def wrong_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose engines do not give the golden sample's answer."""
    folder = tmp_path_factory.mktemp("wrong")
    return make_bundle(folder / "wrong.vtx", folder / "files", spoil=0.01)


@pytest.fixture(scope="session")
def rtx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, with a graph for TensorRT-RTX alone, which claims to avoid something."""
    folder = tmp_path_factory.mktemp("rtx")
    made = {"targets": ("tensorrt-rtx",), "avoids": ("attention-fp32-rtx",)}
    return make_bundle(folder / "colours.vtx", folder / "files", status="graph-only", **made)


@pytest.fixture(scope="session")
def failed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was marked as failed when it was exported."""
    folder = tmp_path_factory.mktemp("failed")
    return make_bundle(folder / "failed.vtx", folder / "files", status="failed")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgevtx.images import write_image

    path = tmp_path_factory.mktemp("photo") / "green.png"
    write_image(path, colour_frame(20, 200, 30))
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 10 a second: green, then red."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (108, 72))
    for index in range(30):
        writer.write(colour_frame(20, 200, 30) if index < 15 else colour_frame(20, 30, 200))
    writer.release()
    return path


@pytest.fixture(scope="session")
def edgevtx_cli() -> Callable[..., Result]:
    """edgevtx_cli("info", path, ...) -> click's result: exit_code, stdout, stderr"""

    def call(*arguments: object) -> Result:
        found = CliRunner().invoke(cli, [str(item) for item in arguments], prog_name="edgevtx")
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return found

    return call


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def edgevtx_process() -> Callable[..., subprocess.Popen[bytes]]:
    """edgevtx_process("run", ...) -> a started process of the real command"""

    def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "edgevtx", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        # the tests themselves may have been started in the background, where Ctrl-C is ignored
        return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), preexec_fn=_heed_ctrl_c, **pipes)

    return start
