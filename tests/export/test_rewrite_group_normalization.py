"""Group normalisation as the operators that runtimes compute well."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.group_normalization import spell_out_group_normalization


def weights(channels=64):
    rng = np.random.default_rng(0)
    return {
        "w": (rng.normal(size=(channels, channels, 1, 1)) / 8).astype(np.float32),
        "s": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        "b": rng.normal(size=channels).astype(np.float32),
    }


@pytest.mark.parametrize("shape", ["1,64,4,4", "n,64,14,10", "n,64,h,w"])
def test_a_residual_layers_end_computes_the_same_on_both_runtimes(shape, graph, rewritten):
    """As one operator, this very graph ends OpenVINO 2026.4 with a segmentation fault."""
    model = graph(
        f"""(float[{shape}] x, float[64,64,1,1] w, float[64] s, float[64] b) => (float[{shape}] y)
        {{ [relu] r = Relu(x) [conv] c = Conv(r, w)
          [norm] g = GroupNormalization <num_groups = 4, epsilon = 0.01>(c, s, b)
          [add] a = Add(g, r) [end] y = Relu(a) }}""",
        **weights(),
    )
    assert rewritten(model, spell_out_group_normalization) == 1
    kinds = [node.op_type for node in model.graph]
    assert "GroupNormalization" not in kinds
    assert ("Shape" in kinds) == ("h" in shape)
    assert spell_out_group_normalization(model) == 0


def test_an_output_of_the_graph_keeps_its_name_and_epsilon_has_its_default(graph, rewritten):
    model = graph(
        """(float[2,64,3] x, float[64] s, float[64] b) => (float[2,64,3] y)
        { [norm] y = GroupNormalization <num_groups = 32>(x, s, b) }""",
        **{name: array for name, array in weights().items() if name != "w"},
    )
    assert rewritten(model, spell_out_group_normalization) == 1
    assert model.graph.outputs[0].name == "y"


def test_a_mean_far_from_zero_leaves_the_variance_exact(graph, graph_runner):
    """The difference of two means of squares, 90001 - 90000, would have lost three digits."""
    values = {name: array for name, array in weights().items() if name != "w"}
    model = graph(
        """(float[2,64,9,11] x, float[64] s, float[64] b) => (float[2,64,9,11] y)
        { [norm] y = GroupNormalization <num_groups = 8>(x, s, b) }""",
        **values,
    )
    x = (np.random.default_rng(1).standard_normal((2, 64, 9, 11)) + 300).astype(np.float32)
    groups = x.astype(np.float64).reshape(2, 8, -1)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    expected = normal.reshape(x.shape) * values["s"][:, None, None] + values["b"][:, None, None]
    spell_out_group_normalization(model)
    for runtime in ("onnxruntime", "openvino"):
        np.testing.assert_allclose(graph_runner(model, runtime, {"x": x})["y"], expected, atol=2e-4, err_msg=runtime)
