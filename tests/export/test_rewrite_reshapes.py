"""Reshapes of dynamic sizes say with a constant what the exporter computes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.reshapes import fix_reshapes

SHAPE = "n1 = Shape <start = 0, end = 1>(x) t1 = Shape <start = 1, end = 2>(x) "


@pytest.mark.parametrize(
    ("source", "target", "parts", "count"),
    [
        ("n,t,24", "n,t,3,8", "n1, t1, rest", 1),
        ("n,1,t,24", "n,t,3,8", "n1, t3, rest", 1),  # the second size has moved: the rest
        ("n,t,24", "t,n,3,8", "t1, n1, rest", 0),  # two that moved are more than one -1 can say
    ],
)
def test_a_shape_that_zero_and_minus_one_can_say(source, target, parts, count, graph, rewritten):
    text = f"""(float[{source}] x, int64[2] rest) => (float[{target}] y)
        {{ {SHAPE} t3 = Shape <start = 2, end = 3>(x) shape = Concat <axis = 0>({parts})
           [layer] y = Reshape <allowzero = 1>(x, shape) }}"""
    model = graph(text, rest=np.array([3, 8]))
    assert rewritten(model, fix_reshapes, n=2, t=5) == count
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    assert (reshape.inputs[1].const_value is not None) == bool(count)


def test_sizes_without_a_name_are_not_taken_for_equal(graph):
    text = """(float[?,4] x, int64[1] rest) => (float[?,2] y)
        { n1 = Shape <start = 0, end = 1>(x) twice = Add(n1, n1) shape = Concat <axis = 0>(twice, rest)
          [layer] y = Reshape(x, shape) }"""
    model = graph(text, rest=np.array([2]))
    fix_reshapes(model)
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    constant = reshape.inputs[1].const_value
    assert constant is None or constant.numpy().tolist() == [-1, 2]
