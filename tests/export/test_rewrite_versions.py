"""Graphs ask for no newer ONNX than they need."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.grid_sample import drop_default_grid_mode
from edgevtx.export.rewrite.opset import LOWEST, declare_lowest_opset


@pytest.mark.parametrize(("mode", "dropped"), [("linear", 1), ("nearest", 0)])
def test_only_the_default_mode_of_grid_sample_is_dropped(mode, dropped, graph, rewritten):
    model = graph(
        f"""(float[n,3,h,11] x, float[n,5,9,2] grid) => (float[n,3,5,9] y)
        {{ [s] y = GridSample <mode = "{mode}", padding_mode = "zeros", align_corners = 0>(x, grid) }}"""
    )
    assert rewritten(model, drop_default_grid_mode, h=9, tolerance=1e-4) == dropped
    assert ("mode" in model.graph[0].attributes) is not bool(dropped)


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("Gelu(x)", LOWEST),
        ("Attention(x, x, x)", 23),  # not there before
        ("LayerNormalization <axis = -1>(x, w)", LOWEST),
    ],
)
def test_the_lowest_opset_is_declared(node, opset, graph, rewritten):
    model = graph(f"(float[1,3,5,8] x, float[8] w) => (float[1,3,5,8] y) {{ [n] z = {node} [a] y = Relu(z) }}")
    assert rewritten(model, declare_lowest_opset, runtimes=("onnxruntime",)) == (opset == LOWEST)
    assert model.opset_imports[""] == opset
