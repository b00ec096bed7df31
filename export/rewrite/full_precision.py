"""Single operators back in float32, in a graph that was typed lower: those that a compiler has no right kernel for."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgevtx.export.rewrite.edit import insert, made_by
from edgevtx.export.rewrite.patterns import LOW, conv_transposes_low, depthwise_convs_low, softmaxes_low


def softmax_in_fp32(model: ir.Model) -> int:
    """Every Softmax that runs low computes in float32, between two casts."""
    return _raise(softmaxes_low(model))


def conv_transpose_in_fp32(model: ir.Model) -> int:
    """Every ConvTranspose that runs low computes in float32, between two casts."""
    return _raise(conv_transposes_low(model))


def depthwise_conv_in_fp32(model: ir.Model) -> int:
    """Every depthwise Conv that runs low computes in float32, between two casts."""
    return _raise(depthwise_convs_low(model))


def _raise(found: Iterable[ir.Node]) -> int:
    low = [node for node in found if node.outputs[0].dtype in LOW]
    for node in low:
        _raise_one(node)
    return len(low)


def _raise_one(node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in LOW:
            node.replace_input_with(index, _in_fp32(node, value, index))
    (output,) = node.outputs
    assert output.dtype is not None and isinstance(node.graph, ir.Graph)
    cast = ir.node("Cast", [output], {"to": int(output.dtype)}, name=f"{node.name}/lowered")
    ir.convenience.replace_all_uses_with(output, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    lowered = cast.outputs[0]
    lowered.type, lowered.shape = output.type, output.shape
    lowered.name, output.name = output.name, f"{node.name}/raised"
    output.type = ir.TensorType(ir.DataType.FLOAT)
    node.graph.insert_after(node, cast)


def _in_fp32(node: ir.Node, value: ir.Value, index: int) -> ir.Value:
    """The value before it was cast, or a cast of it."""
    made = made_by(value, "Cast")
    source = made.inputs[0] if made is not None else None
    if source is not None and source.dtype == ir.DataType.FLOAT:
        return source
    cast = insert(node, "Cast", [value], f"raised_{index}", dtype=ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    cast.shape = value.shape
    return cast
