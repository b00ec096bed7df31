"""What tests share: a cache of their own, a tiny graph with a numpy reference, and a bundle of it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgevtx.bundle import write_bundle
from edgevtx.golden import Golden, write_golden
from edgevtx.manifest import Graph, Manifest, Provenance, TensorInfo
from edgevtx.rules import ClassifyDecode, Exact, Preprocess
from edgevtx.runtimes.base import Array, Arrays

PATCH, WIDTH, CLASSES = 4, 8, 5


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVTX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("EDGEVTX_CACHE_MAX", raising=False)
        yield


@pytest.fixture(autouse=True)
def _own_log_level() -> None:
    """The command line, called by a test or by a fixture, sets the package's log level as a program does: for good."""
    logging.getLogger("edgevtx").setLevel(logging.NOTSET)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test; its folder does not exist yet."""
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """data_file(name) -> a real file that is no part of the repository; skips the test where it is absent.

    Looked for in `EDGEVTX_TEST_DATA`, or in `shared/data` beside the checkout, and then among the pictures of the
    package ultralytics, where that is installed; it is not imported.
    """
    named = os.environ.get("EDGEVTX_TEST_DATA")
    folders = [Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"]
    package = importlib.util.find_spec("ultralytics")
    folders += [Path(place) / "assets" for place in (package and package.submodule_search_locations) or ()]

    def find(name: str) -> Path:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{name} is not in {folders[0]}; set EDGEVTX_TEST_DATA to a folder that has it")

    return find


@dataclass(frozen=True)
class TinyGraph:
    """A graph file with its weights beside it, and the same computation in numpy."""

    path: Path
    pixels: Array
    reference: Callable[[Array], Arrays]


@pytest.fixture
def tiny_graph(tmp_path: Path) -> Callable[..., TinyGraph]:
    """Makes a `TinyGraph` in a folder: patches, two matrix products, `scores` (N,T,5) and `class_ids` (N,T)."""
    return lambda folder=tmp_path / "graph", **options: make_graph(folder, **options)


def make_graph(
    folder: Path, *, dynamic: bool = False, name: str = "graph.any.onnx", seed: int = 0, golden: bool = True
) -> TinyGraph:
    """Write the graph, its weights.bin, its golden.npz and a manifest.json of its interface."""
    onnx = pytest.importorskip("onnx")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = {
        "kernel": rng.normal(0, 0.02, (WIDTH, 3, PATCH, PATCH)).astype(np.float32),
        "mix": rng.normal(0, 0.5, (WIDTH, WIDTH)).astype(np.float32),
        "head": rng.normal(0, 0.5, (WIDTH, CLASSES)).astype(np.float32),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["pixels"], ["cast"], to=onnx.TensorProto.FLOAT),
        make("Transpose", ["cast"], ["nchw"], perm=[0, 3, 1, 2]),
        make("Conv", ["nchw", "kernel"], ["map"], strides=[PATCH, PATCH]),
        make("Shape", ["map"], ["shape"], end=2),
        make("Concat", ["shape", "rest"], ["flat_shape"], axis=0),
        make("Reshape", ["map", "flat_shape"], ["flat"]),
        make("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        make("MatMul", ["tokens", "mix"], ["mixed"]),
        make("Relu", ["mixed"], ["active"]),
        make("MatMul", ["active", "head"], ["scores"]),
        make("ArgMax", ["scores"], ["class_ids"], axis=-1, keepdims=0),
    ]
    batch, height, width = ("n", "h", "w") if dynamic else (1, 32, 48)
    tokens = None if dynamic else 96
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [value("pixels", onnx.TensorProto.UINT8, [batch, height, width, 3])],
        [
            value("scores", onnx.TensorProto.FLOAT, [batch, tokens, CLASSES]),
            value("class_ids", onnx.TensorProto.INT64, [batch, tokens]),
        ],
        [onnx.numpy_helper.from_array(array, key) for key, array in weights.items()]
        + [onnx.numpy_helper.from_array(np.array([-1]), "rest")],
    )
    # the oldest that serves every floor; external data from the first byte, as bundles have it
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "weights.bin").unlink(missing_ok=True)
    onnx.save(model, folder / name, save_as_external_data=True, location="weights.bin", size_threshold=64)
    pixels = rng.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)

    def reference(pixels: Array) -> Arrays:
        count, high, wide, _ = pixels.shape
        patches = pixels.astype(np.float32).reshape(count, high // PATCH, PATCH, wide // PATCH, PATCH, 3)
        patches = patches.transpose(0, 1, 3, 5, 2, 4).reshape(count, -1, 3 * PATCH * PATCH)
        hidden = np.maximum(patches @ weights["kernel"].reshape(WIDTH, -1).T @ weights["mix"], 0)
        scores = hidden @ weights["head"]
        return {"scores": scores, "class_ids": scores.argmax(-1)}

    if golden:
        write_golden(folder / "golden.npz", Golden(pixels[0], {"pixels": pixels}, reference(pixels)))
        inputs, outputs = interface(dynamic)
        described = {
            "inputs": [{"name": item.name, "shape": item.shape, "dtype": item.dtype} for item in inputs],
            "outputs": [{"name": item.name, "shape": item.shape, "dtype": item.dtype} for item in outputs],
        }
        (folder / "manifest.json").write_text(json.dumps(described))
    return TinyGraph(folder / name, pixels, reference)


def interface(dynamic: bool) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """The tiny graph's inputs and outputs, as a manifest states them."""
    batch, height, width, tokens = (None, None, None, None) if dynamic else (1, 32, 48, 96)
    return (
        (TensorInfo(name="pixels", shape=(batch, height, width, 3), dtype="uint8"),),
        (
            TensorInfo(name="scores", shape=(batch, tokens, CLASSES), dtype="float32"),
            TensorInfo(name="class_ids", shape=(batch, tokens), dtype="int64"),
        ),
    )


@dataclass(frozen=True)
class TinyParts:
    """The files of a bundle before it is written, and its manifest."""

    folder: Path
    manifest: Manifest
    graph: TinyGraph


@pytest.fixture
def tiny_parts(tmp_path: Path) -> Callable[..., TinyParts]:
    """Makes the parts of a bundle with a graph for openvino and one for onnxruntime."""

    def make(folder: Path = tmp_path / "parts", **options: object) -> TinyParts:
        graph = make_graph(folder, **options)  # type: ignore[arg-type]
        (folder / "manifest.json").unlink()
        data = graph.path.read_bytes()
        graph.path.unlink()
        targets = (("openvino", ">=2025.0", ("fp32", "bf16")), ("onnxruntime", ">=1.23,<2", ("fp32",)))
        graphs = []
        for target, versions, precisions in targets:
            file = f"graph.{target}.onnx"
            (folder / file).write_bytes(data)
            row = Graph(file=file, target=target, variant="", versions=versions, precisions=precisions, opset=17)
            graphs.append(row)
        inputs, outputs = interface(bool(options.get("dynamic")))
        manifest = Manifest(
            name="tiny",
            family="vit",
            task="classify",
            inputs=inputs,
            outputs=outputs,
            preprocess=Preprocess(
                size=Exact(height=32, width=48), interpolation="bilinear", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1)
            ),
            decode=ClassifyDecode(top_k=CLASSES),
            labels=tuple("abcde"),
            graphs=tuple(graphs),
            verdicts=(),
            recommended={"openvino": "fp32", "onnxruntime": "fp32"},
            provenance=Provenance(),
            tools={},
        )
        return TinyParts(folder, manifest, TinyGraph(folder / "graph.openvino.onnx", graph.pixels, graph.reference))

    return make


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_parts: Callable[..., TinyParts]) -> Path:
    """A bundle as one file, tiny.vtx."""
    parts = tiny_parts()
    return write_bundle(parts.folder, parts.manifest, tmp_path / "tiny.vtx")


@pytest.fixture(scope="session")
def fire_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed fire detector as fire.vtx, exported and verified for both runtimes."""
    pytest.importorskip("torch")
    from edgevtx.export.checkpoint import Checkpoint
    from edgevtx.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("fire") / "fire.vtx"
    checkpoint = Path(__file__).parents[1] / "samples" / "forest_fire" / "checkpoint"
    report = export("rtdetr", Checkpoint.open(checkpoint), out, ExportOptions())
    assert report.bundle == out and not report.refused
    return out
