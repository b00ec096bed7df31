"""Layer norms in single operators become one."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.fuse_layer_norm import fuse_layer_norm

SQUARES = {"power": "s = Pow(d, two)", "product": "s = Mul(d, d)"}
QUOTIENTS = {"quotient": "y = Div(d, r)", "reciprocal": "i = Reciprocal(r) [o] y = Mul(d, i)"}


def norm(graph, square="power", quotient="quotient", axis=-1, affine="", epsilon=1e-5):
    return graph(
        f"""(float[n,7,16] x, int64[1] axis, float two, float eps, float[16] w, float[16] b) => (float[n,7,16] z)
        {{ [m] m = ReduceMean(x, axis) [d] d = Sub(x, m) [s] {SQUARES[square]} [v] v = ReduceMean(s, axis)
          [a] a = Add(v, eps) [r] r = Sqrt(a) [q] {QUOTIENTS[quotient]} {affine or "[z] z = Relu(y)"} }}""",
        opset=18,
        axis=np.array([axis]),
        two=np.float32(2),
        eps=np.float32(epsilon),
        w=np.linspace(0.5, 1.5, 16, dtype=np.float32),
        b=np.linspace(-1, 1, 16, dtype=np.float32),
    )


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize(
    ("affine", "left"),
    [("", ["Relu"]), ("[w] z = Mul(y, w)", []), ("[w] t = Mul(y, w) [b] z = Add(t, b)", []), ("[b] z = Add(y, b)", [])],
)
def test_each_spelling_is_one_operator_that_computes_the_same(square, quotient, affine, left, graph, rewritten):
    model = norm(graph, square, quotient, affine=affine, epsilon=0.1)
    assert rewritten(model, fuse_layer_norm) == 1
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    expected = ["LayerNormalization", *left]
    if affine == "[b] z = Add(y, b)":  # a bias without a scale
        expected = ["LayerNormalization", "Add"]
    assert [node.op_type for node in model.graph] == expected


def test_a_norm_over_another_axis_stays(graph):
    assert fuse_layer_norm(norm(graph, axis=1)) == 0


def test_what_is_no_norm_stays(graph):
    model = graph(
        """(float[n,16] x, int64[1] axis, float eps) => (float[n,16] z)
        { [s] s = Mul(x, x) [v] v = ReduceMean(s, axis) [a] a = Add(v, eps) [r] r = Sqrt(a) [q] z = Div(x, r) }""",
        axis=np.array([-1]),
        eps=np.float32(1e-6),
    )
    assert fuse_layer_norm(model) == 0
