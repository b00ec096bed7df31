"""Convolutions side by side become one, where they look at the same places."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.parallel_convs import merge_parallel_convs

random = np.random.default_rng(0)


def noise(*shape):
    return random.standard_normal(shape).astype(np.float32)


SAME, POINT = "<pads = [1,1,1,1]>", ""
CASES = {
    "RepVGG's 3x3 and 1x1": (SAME, POINT, (4, 3, 3, 3), (4, 3, 1, 1), 1),
    "the other way round": (POINT, SAME, (4, 3, 1, 1), (4, 3, 3, 3), 1),
    "with strides": (
        "<pads = [1,1,1,1], strides = [2,2]>",
        "<strides = [2,2]>",
        (4, 3, 3, 3),
        (4, 3, 1, 1),
        1,
    ),
    "unlike kernels": ("<pads = [0,1,0,1]>", "<pads = [1,0,1,0]>", (4, 3, 1, 3), (4, 3, 3, 1), 0),
    "unlike dilations": ("<pads = [2,2,2,2], dilations = [2,2]>", POINT, (4, 3, 3, 3), (4, 3, 1, 1), 0),
    "groups": ("<pads = [1,1,1,1], group = 3>", "<group = 3>", (6, 1, 3, 3), (6, 1, 1, 1), 0),
}
BIASES = {"two biases": ("b", "c"), "one bias": ("b", ""), "no bias": ("", "")}


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("case", CASES)
def test_the_sum_of_two_convolutions(case, biases, graph, rewritten):
    first, second, wide, narrow, merged = CASES[case]
    left, right = (f", {name}" if name else "" for name in BIASES[biases])
    text = f"""(float[n,3,h,11] x, float[{",".join(map(str, wide))}] w, float[{",".join(map(str, narrow))}] u,
        float[{wide[0]}] b, float[{wide[0]}] c) => (float[n,{wide[0]},i,j] y)
        {{ [one] p = Conv {first}(x, w{left}) [two] q = Conv {second}(x, u{right}) [sum] y = Add(p, q) }}"""
    model = graph(text, w=noise(*wide), u=noise(*narrow), b=noise(wide[0]), c=noise(wide[0]))
    assert rewritten(model, merge_parallel_convs, h=9, n=2) == merged
    assert [node.op_type for node in model.graph if node.outputs[0].uses() or node.outputs[0].is_graph_output()] == (
        ["Conv"] if merged else ["Conv", "Conv", "Add"]
    )


@pytest.mark.parametrize("body", ["[r] z = Relu(x) [two] q = Conv(z, u)", "[two] q = Conv(x, u) [r] z = Relu(q)"])
def test_convolutions_of_unlike_inputs_or_with_other_readers_stay(body, graph, rewritten):
    text = f"""(float[1,3,h,11] x, float[4,3,1,1] w, float[4,3,1,1] u) => (float[1,4,i,j] y, float[1,k,l,m] z)
        {{ [one] p = Conv(x, w) {body} [sum] y = Add(p, q) }}"""
    model = graph(text, w=noise(4, 3, 1, 1), u=noise(4, 3, 1, 1))
    assert rewritten(model, merge_parallel_convs, h=9) == 0
