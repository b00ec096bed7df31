"""ONNX Runtime's own attention operator computes what ONNX's does."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.multi_head_attention import use_multi_head_attention

SPLIT = "[split_{0}] {0}4 = Reshape({0}, shape) "
TURN = "[turn_{0}] {0}h = Transpose <perm = [0, 2, 1, 3]>({0}4) "
MERGE = "[back] a4 = Transpose <perm = [0, 2, 1, 3]>(a) [merge] y = Reshape(a4, flat)"
CONSTANTS = {"shape": np.array([0, 0, 3, 8]), "flat": np.array([0, 0, 24])}
HEADS = "".join(SPLIT.format(name) + TURN.format(name) for name in "qkv")
FLAT = "float[n,t,24] q, float[n,s,24] k, float[n,s,24] v, int64[4] shape, int64[3] flat"


@pytest.mark.parametrize("attributes", ["", "<scale = 1.0>"])
@pytest.mark.parametrize("sizes", [{"t": 5, "s": 5}, {"t": 5, "s": 13, "n": 3}, {"t": 301, "s": 203, "n": 1}])
def test_attention_over_flat_tensors(attributes, sizes, graph, rewritten):
    text = f"({FLAT}) => (float[n,t,24] y) {{ {HEADS} [layer] a = Attention {attributes}(qh, kh, vh) {MERGE} }}"
    model = graph(text, **CONSTANTS)
    assert rewritten(model, use_multi_head_attention, runtimes=("onnxruntime",), **sizes) == 1
    assert model.opset_imports["com.microsoft"] == 1


@pytest.mark.parametrize("attributes", ["<is_causal = 1>", "<softcap = 2.0>"])
def test_attention_that_the_operator_cannot_say_stays(attributes, graph):
    text = f"({FLAT}) => (float[n,t,24] y) {{ {HEADS} [layer] a = Attention {attributes}(qh, kh, vh) {MERGE} }}"
    assert use_multi_head_attention(graph(text, **CONSTANTS)) == 0


def test_attention_over_tensors_that_come_with_heads(graph, rewritten):
    turns = "".join(TURN.format(name) for name in "qkv")
    text = f"""(float[n,t,3,8] q4, float[n,s,3,8] k4, float[n,s,3,8] v4, int64[3] flat) => (float[n,t,24] y)
        {{ {turns} [layer] a = Attention(qh, kh, vh) {MERGE} }}"""
    model = graph(text, flat=CONSTANTS["flat"])
    assert rewritten(model, use_multi_head_attention, runtimes=("onnxruntime",), t=5, s=9) == 1


WINDOWS = "".join(SPLIT.format(name) + TURN.format(name) for name in "qkv").replace("shape)", "windows)")


@pytest.mark.parametrize("size", [(1, 3, 7, 7), (4, 3, 7, 7), (1, 1, 7, 7)], ids=str)
def test_a_constant_bias_over_windows_is_taken_along(size, graph, rewritten):
    text = f"""(float[1,28,24] q, float[1,28,24] k, float[1,28,24] v, float[{",".join(map(str, size))}] m,
        int64[4] windows, int64[3] flat) => (float[4,7,24] y) {{
            {WINDOWS} [layer] a = Attention(qh, kh, vh, m) {MERGE} }}"""
    bias = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    model = graph(text, windows=np.array([4, 7, 3, 8]), flat=CONSTANTS["flat"], m=bias)
    assert rewritten(model, use_multi_head_attention, runtimes=("onnxruntime",)) == 1


@pytest.mark.parametrize(
    ("declared", "argument", "behind"),
    [
        (", float[n,3,t,s] m", ", m", MERGE),  # a mask keeps ONNX's operator
        ("", "", "[merge] y = Relu(a)"),  # as does a result that is used with heads first
    ],
)
def test_other_attention_stays(declared, argument, behind, graph, rewritten):
    out = "float[n,t,24]" if behind == MERGE else "float[n,3,t,8]"
    text = f"({FLAT}{declared}) => ({out} y) {{ {HEADS} [layer] a = Attention(qh, kh, vh{argument}) {behind} }}"
    model = graph(text, **CONSTANTS)
    assert rewritten(model, use_multi_head_attention, runtimes=("onnxruntime",), t=5, s=9) == 0
    assert "com.microsoft" not in model.opset_imports


def test_values_may_be_of_another_width_than_keys(graph, rewritten):
    """As in SAM's windows, whose keys carry their place as further columns."""
    text = f"""(float[n,t,3,12] q4, float[n,s,3,12] k4, float[n,s,3,8] v4, int64[3] flat) => (float[n,t,24] y)
        {{ {"".join(TURN.format(name) for name in "qkv")} [layer] a = Attention <scale = 1.0>(qh, kh, vh) {MERGE} }}"""
    model = graph(text, flat=CONSTANTS["flat"])
    assert rewritten(model, use_multi_head_attention, runtimes=("onnxruntime",), t=5, s=9) == 1
