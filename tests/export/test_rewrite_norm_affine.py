"""The affine part of layer normalisation moves into the layers behind it, and only where they are all that reads it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.norm_affine import fold_norm_affine

random = np.random.default_rng(0)


def noise(*shape):
    return random.standard_normal(shape).astype(np.float32)


CONSTANTS = {"g": noise(8), "s": noise(8), "w": noise(8, 5), "u": noise(8, 6), "b": noise(5), "c": noise(6)}
TYPES = "float[n,t,8] x, float[8] g, float[8] s, float[8,5] w, float[8,6] u, float[5] b, float[6] c"
NORM = "[norm] a = LayerNormalization <axis = -1, epsilon = 0.001>(x, g, s)"
TWO = "[p] d = MatMul(a, w) [q] y = Add(d, b) [r] e = MatMul(a, u) [t] z = Add(c, e)"


def test_the_scale_and_shift_move_into_every_layer(graph, rewritten):
    model = graph(f"({TYPES}) => (float[n,t,5] y, float[n,t,6] z) {{ {NORM} {TWO} }}", **CONSTANTS)
    assert rewritten(model, fold_norm_affine) == 1
    norm = model.graph[0]
    assert (norm.inputs[1].const_value.numpy() == 1).all() and not norm.inputs[2].const_value.numpy().any()
    assert fold_norm_affine(model) == 0  # and it is done once


@pytest.mark.parametrize(
    "behind",
    [
        "[p] d = MatMul(a, w) [q] y = Add(d, b) [o] z = Relu(a)",  # another reader
        "[p] y = MatMul(a, w) [o] z = Sigmoid(x)",  # no bias that could take the shift
    ],
)
def test_another_reader_or_a_layer_without_a_bias_keeps_it(behind, graph, rewritten):
    model = graph(f"({TYPES}) => (float[n,t,5] y, float[n,t,8] z) {{ {NORM} {behind} }}", **CONSTANTS)
    assert rewritten(model, fold_norm_affine) == 0
