"""Graphs on disk: one weights file, each content once, the same bytes again, nothing that a runtime refuses."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from edgevtx.errors import ExportError, OutputError  # noqa: E402
from edgevtx.export import pack  # noqa: E402
from edgevtx.export.pack import INLINE_BELOW, PAGE, WEIGHTS, write_graphs  # noqa: E402
from edgevtx.export.rewrite import LoweredGraph  # noqa: E402

TEXT = """(float[n,64] x, float[64,64] w, float[64,300] u, float[64,300] v, float[300] b) => (float[n,300] y)
    { [one] p = MatMul(x, w) [two] q = MatMul(p, u) [three] r = MatMul(p, v)
      [four] s = Add(q, r) [five] y = Add(s, b) }"""


@pytest.fixture
def lowered(graph):
    """Two targets and two variants over weights of which `u` and `v` are equal."""
    random = np.random.default_rng(0)
    w, u = (random.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (64, 300)))
    b = np.arange(200, dtype=np.float32).repeat(2)[:300]

    def make(target, variant=""):
        model = graph(TEXT, opset=20, w=w, u=u, v=u.copy(), b=b)
        return LoweredGraph(target, variant, ">=1", ("fp32",), model, ("a",), ("b",))

    return lambda: {"": [make("onnxruntime"), make("openvino"), make("openvino", "old")]}


def tensors(path: Path):
    return {value.name: value.const_value for value in ir.load(path).graph.initializers.values()}


def test_every_graph_is_described(lowered, tmp_path):
    graphs = write_graphs(lowered(), tmp_path)
    assert [(item.file, item.target, item.variant) for item in graphs] == [
        ("graph.onnxruntime.onnx", "onnxruntime", ""),
        ("graph.openvino.onnx", "openvino", ""),
        ("graph.openvino.old.onnx", "openvino", "old"),
    ]
    assert {(item.versions, item.precisions, item.opset, item.rewrites, item.avoids) for item in graphs} == {
        (">=1", ("fp32",), 20, ("a",), ("b",))
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([WEIGHTS, *(item.file for item in graphs)])


def test_equal_contents_are_stored_once(lowered, tmp_path):
    graphs = write_graphs(lowered(), tmp_path)
    places = {
        (tensor.offset, tensor.length)
        for item in graphs
        for tensor in tensors(tmp_path / item.file).values()
        if isinstance(tensor, ir.ExternalTensor)
    }
    assert sorted(length for _, length in places) == [300 * 4, 64 * 64 * 4, 64 * 300 * 4]
    end = max(offset + length for offset, length in places)
    assert (tmp_path / WEIGHTS).stat().st_size == end < 300 * 4 + 64 * 64 * 4 + 64 * 300 * 4 + 2 * PAGE


def test_large_tensors_lie_on_pages_and_small_ones_in_the_graph(lowered, tmp_path):
    write_graphs(lowered(), tmp_path)
    for tensor in tensors(tmp_path / "graph.onnxruntime.onnx").values():
        external = isinstance(tensor, ir.ExternalTensor)
        assert external == (tensor.nbytes >= INLINE_BELOW)
        assert not external or tensor.offset % (PAGE if tensor.nbytes >= pack.LARGE else pack.CACHE_LINE) == 0


def test_equal_models_give_equal_bytes(lowered, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
        write_graphs(lowered(), folder)
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


def test_the_models_are_left_as_they_were(lowered, tmp_path):
    items = lowered()
    write_graphs(items, tmp_path)
    for value in items[""][0].model.graph.initializers.values():
        assert not isinstance(value.const_value, ir.ExternalTensor)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_files_run(runtime, lowered, tmp_path):
    package = pytest.importorskip(runtime)
    items = lowered()
    write_graphs(items, tmp_path)
    weights = {name: value.const_value.numpy() for name, value in items[""][0].model.graph.initializers.items()}
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    hidden = x @ weights["w"]
    expected = hidden @ weights["u"] + hidden @ weights["v"] + weights["b"]
    path = str(tmp_path / f"graph.{runtime}.onnx")
    if runtime == "onnxruntime":
        found = package.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    else:
        found = package.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_full_disk_is_an_output_error(lowered, tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = pack._Weights.__init__
    monkeypatch.setattr(pack._Weights, "__init__", lambda self, file: real(self, FullDisk(file)))
    with pytest.raises(OutputError, match="No space left on device"):
        write_graphs(lowered(), tmp_path)


def test_a_folder_that_is_not_there_is_an_output_error(lowered, tmp_path):
    with pytest.raises(OutputError, match="cannot write the graphs to"):
        write_graphs(lowered(), tmp_path / "missing")


def test_a_graph_that_onnx_refuses_is_an_export_error(graph, tmp_path):
    model = graph("(float[n] x) => (float[n] y) { [n] y = Relu(x) }")
    model.graph[0].op_type = "Rellu"
    with pytest.raises(ExportError, match=r"graph\.any\.onnx is no valid ONNX graph"):
        write_graphs({"": [LoweredGraph("any", "", ">=1", ("fp32",), model)]}, tmp_path)
