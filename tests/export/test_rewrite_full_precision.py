"""Single operators of a typed graph that go back to float32."""

from __future__ import annotations

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.full_precision import (  # noqa: E402
    conv_transpose_in_fp32,
    depthwise_conv_in_fp32,
    softmax_in_fp32,
)

CASES = {
    "ConvTranspose(l, wl)": (conv_transpose_in_fp32, (4, 4, 1, 1)),
    "Conv <group = 4> (l, wl)": (depthwise_conv_in_fp32, (4, 1, 1, 1)),
    "Softmax(l)": (softmax_in_fp32, (4, 4, 1, 1)),
}


@pytest.mark.parametrize("node", CASES)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_it_computes_in_float32_between_casts(node, kind, graph):
    rewrite, shape = CASES[node]
    code = {"float16": 10, "bfloat16": 16}[kind]
    model = graph(
        f"""(float[1,4,3,3] x, float[{",".join(map(str, shape))}] w) => ({kind}[1,4,3,3] y, float[1,4,3,3] z)
        {{ [cast] l = Cast <to = {code}>(x) [weight] wl = Cast <to = {code}>(w)
          ["m/op"] y = {node} [back] z = Cast <to = 1>(y) }}""",
        opset=22,
        w=np.ones(shape, np.float32),
    )
    assert rewrite(model) == 1 and rewrite(model) == 0
    (changed,) = [item for item in model.graph if item.op_type == node.split("(")[0].split(" ")[0]]
    assert {value.dtype for value in (*changed.inputs, *changed.outputs)} == {ir.DataType.FLOAT}
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    low = ir.DataType.FLOAT16 if kind == "float16" else ir.DataType.BFLOAT16
    assert model.graph.outputs[0].dtype == low
    import onnx

    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_names_stay_unique_in_a_graph_that_was_typed(graph):
    """Types, and the rehearsal of them, name casts after the same node."""
    from edgevtx.export.rehearsal import simulate
    from edgevtx.export.rewrite.low_precision import lower_precision

    model = graph(
        """(float[1,4,3,3] x, float[4,4,1,1] w) => (float[1,4,3,3] y)
        { ["up/conv"] c = ConvTranspose(x, w) ["up/act"] a = Relu(c) ["up/soft"] s = Softmax(c)
          ["up/end"] y = Add(a, s) }""",
        opset=22,
        w=np.ones((4, 4, 1, 1), np.float32),
    )
    for value in [value for node in model.graph for value in node.outputs if not value.is_graph_output()]:
        value.name = value.producer().name
    assert lower_precision(model, "bf16", {}) and conv_transpose_in_fp32(model) == 1
    for typed in (model, simulate(model)):
        names = [node.name for node in typed.graph]
        values = [value.name for node in typed.graph for value in node.outputs]
        assert len(set(names)) == len(names) and len(set(values)) == len(values)


def test_a_float32_graph_stays_as_it_is(graph):
    model = graph("(float[1,4] x) => (float[1,4] y) { [a] y = Softmax(x) }")
    assert softmax_in_fp32(model) == 0 and len(model.graph) == 1


def test_dense_convolutions_stay_low(graph):
    model = graph(
        "(float16[1,4,3,3] x, float16[4,4,1,1] w) => (float16[1,4,3,3] y) { [a] y = Conv(x, w) }",
        w=np.ones((4, 4, 1, 1), np.float16),
    )
    assert depthwise_conv_in_fp32(model) == 0
