"""Linear layers become convolutions that compute the same, and only where they pay."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

import onnx_ir.passes.common as passes

from edgevtx.export.rewrite import pointwise
from edgevtx.export.rewrite.pointwise import use_pointwise_convolutions

random = np.random.default_rng(0)
WEIGHTS = {
    "w": random.standard_normal((12, 16)).astype(np.float32),
    "b": random.standard_normal(16).astype(np.float32),
    "u": random.standard_normal((16, 12)).astype(np.float32),
}
TYPES = "float[n,49,12] x, float[12,16] w, float[16] b, float[16,12] u"


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(pointwise, "FEWEST_WEIGHTS", 1)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_two_layers_with_a_gelu_become_two_convolutions_in_one_layout(approximate, graph, rewritten):
    model = graph(
        f"""({TYPES}) => (float[n,49,12] y) {{ [up] a = MatMul(x, w) [bias] c = Add(b, a)
        [gelu] d = Gelu <approximate = "{approximate}">(c) [down] y = MatMul(d, u) }}""",
        **WEIGHTS,
    )
    assert rewritten(model, use_pointwise_convolutions) == 2
    passes.RemoveUnusedNodesPass()(model)
    kinds = [node.op_type for node in model.graph if "weight" not in node.name and node.op_type != "Unsqueeze"]
    assert kinds == ["Transpose", "Conv", "Gelu", "Conv", "Transpose"]


def test_a_result_that_is_read_twice_keeps_its_readers(graph, rewritten):
    model = graph(
        f"({TYPES}) => (float[n,49,16] y, float[n,49,16] z) {{ "
        "[p] a = MatMul(x, w) [q] y = Add(a, b) [r] z = Gelu(y) }",
        **WEIGHTS,
    )
    assert rewritten(model, use_pointwise_convolutions) == 1


@pytest.mark.parametrize("tokens", ["t", "701"], ids=["unknown number", "many"])
def test_other_numbers_of_tokens_stay(tokens, graph, rewritten):
    model = graph(
        f"(float[n,{tokens},12] x, float[12,16] w) => (float[n,{tokens},16] y) {{ [p] y = MatMul(x, w) }}",
        w=WEIGHTS["w"],
    )
    assert rewritten(model, use_pointwise_convolutions) == 0


def test_small_weights_stay(graph, rewritten, monkeypatch):
    monkeypatch.setattr(pointwise, "FEWEST_WEIGHTS", 12 * 16 + 1)
    model = graph("(float[n,49,12] x, float[12,16] w) => (float[n,49,16] y) { [p] y = MatMul(x, w) }", w=WEIGHTS["w"])
    assert rewritten(model, use_pointwise_convolutions) == 0
