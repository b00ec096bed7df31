"""Multiplications and additions by constants fold into the layer ahead of them, and only where they may."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.affine import drop_neutral, fold_affine

random = np.random.default_rng(0)


def noise(*shape):
    return random.standard_normal(shape).astype(np.float32)


CONV = "(float[n,3,h,11] x, float[5,3,3,3] w, float[5] b, {types}) => (float[n,5,i,j] y) {{ {body} }}"
CONV_CASES = {
    "frozen batch norm": (
        "float[1,5,1,1] g, float[1,5,1,1] o",
        "[c] a = Conv <pads = [1,1,1,1]>(x, w, b) [m] d = Mul(a, g) [s] y = Add(d, o)",
        {"g": noise(1, 5, 1, 1), "o": noise(1, 5, 1, 1)},
        ["Conv"],
    ),
    "no bias, constants first": (
        "float[5,1,1] g, float[5,1,1] o",
        "[c] a = Conv(x, w) [m] d = Mul(g, a) [s] y = Add(o, d)",
        {"g": noise(5, 1, 1), "o": noise(5, 1, 1)},
        ["Conv"],
    ),
    "scalars": (
        "float g, float[1] o",
        "[c] a = Conv <strides = [2,2]>(x, w, b) [m] d = Mul(a, g) [s] y = Add(d, o)",
        {"g": noise(), "o": noise(1)},
        ["Conv"],
    ),
    "a number for each column": (
        "float[11] g",
        "[c] a = Conv <pads = [1,1,1,1]>(x, w, b) [m] y = Mul(a, g)",
        {"g": noise(11)},
        ["Conv", "Mul"],
    ),
}


@pytest.mark.parametrize("case", CONV_CASES)
def test_affine_steps_behind_a_convolution(case, graph, rewritten):
    types, body, constants, left = CONV_CASES[case]
    text = CONV.format(types=types, body=body)
    model = graph(text, w=noise(5, 3, 3, 3), b=noise(5), **constants)
    before = len(model.graph)
    assert rewritten(model, fold_affine, h=9) == before - len(left)
    assert [node.op_type for node in model.graph] == left


@pytest.mark.parametrize(("shape", "left"), [((5, 1, 1, 1), ["Conv"]), ((5, 1, 1), ["Conv", "Mul"])])
def test_of_a_clip_the_channels_and_not_the_frames_are_folded(shape, left, graph, rewritten):
    """Of which there are as many here."""
    sizes = ",".join(map(str, shape))
    text = (
        f"(float[n,3,5,h,11] x, float[5,3,1,1,1] w, float[{sizes}] g) => (float[n,5,5,h,11] y) "
        "{ [c] a = Conv(x, w) [m] y = Mul(a, g) }"
    )
    model = graph(text, w=noise(5, 3, 1, 1, 1), g=noise(*shape))
    assert rewritten(model, fold_affine, n=2) == 2 - len(left)
    assert [node.op_type for node in model.graph] == left


LINEAR = "(float[n,t,6] x, float[6,5] w, float[5] b, float[5] g) => (float[n,t,5] y{more}) {{ {body} }}"
LINEAR_CASES = {
    "layer scale": ("", "[p] a = MatMul(x, w) [q] c = Add(a, b) [m] y = Mul(c, g)", ["MatMul", "Add"]),
    "bias first": ("", "[p] a = MatMul(x, w) [q] c = Add(b, a) [m] y = Mul(g, c)", ["MatMul", "Add"]),
    "no bias": ("", "[p] a = MatMul(x, w) [m] y = Mul(a, g)", ["MatMul"]),
    "an addition stays": ("", "[p] a = MatMul(x, w) [q] y = Add(a, b)", ["MatMul", "Add"]),
    "a product that is an output": (
        ", float[n,t,5] a",
        "[p] a = MatMul(x, w) [m] y = Mul(a, g)",
        ["MatMul", "Mul"],
    ),
    "a product that is read twice": (
        ", float[n,t,5] z",
        "[p] a = MatMul(x, w) [m] y = Mul(a, g) [r] z = Relu(a)",
        ["MatMul", "Mul", "Relu"],
    ),
}


@pytest.mark.parametrize("case", LINEAR_CASES)
def test_scales_behind_a_matrix_product(case, graph, rewritten):
    more, body, left = LINEAR_CASES[case]
    model = graph(LINEAR.format(more=more, body=body), w=noise(6, 5), b=noise(5), g=noise(5))
    before = len(model.graph)
    assert rewritten(model, fold_affine, n=2) == before - len(left)
    assert [node.op_type for node in model.graph] == left


@pytest.mark.parametrize("shape", ["1,1,5", "1,1,1"])
def test_a_constant_that_adds_an_axis_is_not_folded(shape, graph, rewritten):
    types = f"(float[n,6] x, float[6,5] w, float[{shape}] g) => (float[1,n,5] y)"
    model = graph(
        f"{types} {{ [p] a = MatMul(x, w) [m] y = Mul(a, g) }}", w=noise(6, 5), g=noise(*map(int, shape.split(",")))
    )
    assert rewritten(model, fold_affine) == 0


@pytest.mark.parametrize(
    ("operator", "array", "dropped"),
    [
        ("Add", np.zeros((1, 3, 1), np.float32), True),
        ("Mul", np.ones(4, np.float32), True),
        ("Add", np.ones(4, np.float32), False),
        ("Mul", np.zeros(4, np.float32), False),
        ("Add", np.zeros((2, 1, 3, 4), np.float32), False),  # widens the result
    ],
)
def test_neutral_steps_are_dropped(operator, array, dropped, graph, rewritten):
    shape = ",".join(map(str, array.shape))
    out = "2,2,3,4" if array.ndim == 4 else "2,3,4"
    model = graph(
        f"(float[2,3,4] x, float[{shape}] c) => (float[{out}] y) {{ [r] a = Relu(x) [s] y = {operator}(a, c) }}",
        c=array,
    )
    assert rewritten(model, drop_neutral) == dropped
    assert len(model.graph) == 2 - dropped
