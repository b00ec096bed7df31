"""The scale of attention moves into the query's projection without changing the result."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.attention_scale import fold_attention_scale

HEADS = "[shape_{0}] {0}4 = Reshape({0}p, shape) [turn_{0}] {0}h = Transpose <perm = [0, 2, 1, 3]>({0}4)"
BODY = f"""
    [query] qm = MatMul(x, w)  [query_bias] qp = Add(qm, b)
    [key] kp = MatMul(x, u)
    {HEADS.format("q")} {HEADS.format("k")}
    [layer] y = Attention {{}}(qh, kh, kh)
"""
TYPES = "float[n,t,12] x, float[12,15] w, float[15] b, float[12,15] u, int64[4] shape"
random = np.random.default_rng(0)
CONSTANTS = {
    "w": random.standard_normal((12, 15)).astype(np.float32),
    "b": random.standard_normal(15).astype(np.float32),
    "u": random.standard_normal((12, 15)).astype(np.float32),
    "shape": np.array([0, 0, 3, 5]),
}


@pytest.mark.parametrize("attributes", ["", "<scale = 0.25>"])
def test_the_scale_moves_into_the_projection(attributes, graph, rewritten):
    model = graph(f"({TYPES}) => (float[n,3,t,5] y) {{ {BODY.format(attributes)} }}", **CONSTANTS)
    assert rewritten(model, fold_attention_scale, runtimes=("onnxruntime",), n=2) == 1
    assert model.graph[-1].attributes["scale"].as_float() == 1
    assert fold_attention_scale(model) == 0  # and it is done once


def test_a_query_that_is_read_twice_stays(graph, rewritten):
    body = BODY.format("") + "[other] z = Relu(qp)"
    model = graph(f"({TYPES}) => (float[n,3,t,5] y, float[n,t,15] z) {{ {body} }}", **CONSTANTS)
    assert rewritten(model, fold_attention_scale, runtimes=("onnxruntime",)) == 0
