"""Attention spelled out computes what the operator does, and is left alone where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.errors import ExportError
from edgevtx.export.rewrite.attention import (
    drop_true_masks,
    fold_constant_attention,
    spell_out_attention,
    spell_out_broadcast_masks,
)

TYPES = "float[n,3,t,8] q, float[n,3,s,8] k, float[n,3,s,8] v"
CASES = {
    "no mask": ("", "", "", {}),
    "a scale": ("", "", "<scale = 0.3>", {}),
    "more keys than queries": ("", "", "", {"t": 5, "s": 11}),
    "a bool mask": (", bool[n,1,t,s] m", ", m", "", {"t": 5, "s": 9}),
    "a float mask": (", float[n,3,t,s] m", ", m", "", {"t": 5, "s": 9}),
    "one row of a bool mask": (", bool[n,1,1,s] m", ", m", "", {"t": 5, "s": 9, "n": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_spelled_out_attention_is_attention(case, graph, rewritten):
    declared, argument, attributes, sizes = CASES[case]
    model = graph(
        f"({TYPES}{declared}) => (float[n,3,t,8] y) {{ [layer] y = Attention {attributes}(q, k, v{argument}) }}"
    )
    assert rewritten(model, spell_out_attention, **sizes) == 1
    assert "Attention" not in {node.op_type for node in model.graph}
    assert not {"IsNaN", "Where"} & {node.op_type for node in model.graph} or "bool" in case


def test_only_masks_of_one_row_are_spelled_out_for_onnx_runtime(graph, rewritten):
    model = graph(
        f"""({TYPES}, bool[n,1,1,s] row, bool[n,1,t,s] full) => (float[n,3,t,8] y, float[n,3,t,8] z)
        {{ [rows] y = Attention(q, k, v, row)  [whole] z = Attention(q, k, v, full) }}"""
    )
    assert rewritten(model, spell_out_broadcast_masks, runtimes=("onnxruntime",), n=2) == 1
    assert [node.name for node in model.graph if node.op_type == "Attention"] == ["whole"]


@pytest.mark.parametrize(
    ("mask", "dropped"),
    [
        (np.ones((1, 1, 7, 7), bool), 1),
        (np.zeros((1, 1, 7, 7), np.float32), 1),
        (np.tri(7, dtype=bool)[None, None], 0),
        (np.full((1, 1, 7, 7), -1, np.float32), 0),
    ],
)
def test_a_mask_that_hides_nothing_is_dropped(mask, dropped, graph, rewritten):
    kind = "bool" if mask.dtype == bool else "float"
    model = graph(f"({TYPES}, {kind}[1,1,7,7] m) => (float[n,3,t,8] y) {{ [layer] y = Attention(q, k, v, m) }}", m=mask)
    assert rewritten(model, drop_true_masks, runtimes=("onnxruntime",)) == dropped
    assert any(len(node.inputs) > 3 and node.inputs[3] is not None for node in model.graph) is not bool(dropped)


def test_attention_over_constants_is_computed(graph, rewritten):
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 3, size, 8)).astype(np.float32) for size in (5, 9, 9))
    types = "float[1,3,5,8] q, float[1,3,9,8] k, float[1,3,9,8] v"
    model = graph(
        f"(float[1,3,5,8] x, {types}) => (float[1,3,5,8] y) {{ [layer] a = Attention(q, k, v) [add] y = Add(x, a) }}",
        q=q,
        k=k,
        v=v,
    )
    assert rewritten(model, fold_constant_attention) == 1
    assert [node.op_type for node in model.graph] == ["Add"]


def test_attention_over_a_computed_value_is_not_computed(graph, rewritten):
    k = np.ones((1, 3, 9, 8), np.float32)
    model = graph("(float[1,3,5,8] q, float[1,3,9,8] k) => (float[1,3,5,8] y) { [layer] y = Attention(q, k, k) }", k=k)
    assert rewritten(model, fold_constant_attention, runtimes=("onnxruntime",)) == 0


@pytest.mark.parametrize("attribute", ["is_causal = 1", "softcap = 2.0"])
def test_what_cannot_be_spelled_out_is_refused(attribute, graph):
    model = graph(f"({TYPES}) => (float[n,3,t,8] y) {{ [layer] y = Attention <{attribute}>(q, k, v) }}")
    with pytest.raises(ExportError, match=f"layer: attention with {attribute.split()[0]} cannot be lowered"):
        spell_out_attention(model)
