"""Cumulative sums as matrix products."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.cumulative_sum import spell_out_cumulative_sum


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("attributes", ["", "<exclusive = 1>", "<reverse = 1>", "<exclusive = 1, reverse = 1>"])
@pytest.mark.parametrize("shape", ["2,9,5", "n,h,w"])
def test_it_computes_the_same_along_each_axis(shape, attributes, axis, graph, rewritten):
    model = graph(
        f"""(float[{shape}] x, int64 axis) => (float[{shape}] y) {{ ["m/sum"] y = CumSum {attributes}(x, axis) }}""",
        axis=np.array(axis),
    )
    assert rewritten(model, spell_out_cumulative_sum, h=11, w=6, n=2) == 1
    assert not {"CumSum"} & {node.op_type for node in model.graph}
    assert spell_out_cumulative_sum(model) == 0


def test_both_axes_of_one_tensor_are_told_apart(graph, rewritten):
    """The fault that this avoids: along one axis both sums."""
    model = graph(
        """(float[n,h,w] x, int64 one, int64 two) => (float[n,h,w] y)
        { [a] down = CumSum(x, one) [b] across = CumSum(x, two) [c] y = Mul(down, across) }""",
        one=np.array(1),
        two=np.array(2),
    )
    assert rewritten(model, spell_out_cumulative_sum) == 2


def test_counts_of_integers_and_a_moving_axis_are_left_alone(graph):
    model = graph("(int64[n,h] x, int64 axis) => (int64[n,h] y) { [a] y = CumSum(x, axis) }", axis=np.array(1))
    assert spell_out_cumulative_sum(model) == 0
    model = graph("(float[n,h] x, int64 axis) => (float[n,h] y) { [a] y = CumSum(x, axis) }")
    assert spell_out_cumulative_sum(model) == 0
