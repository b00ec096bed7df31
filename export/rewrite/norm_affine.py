"""The scale and shift of layer normalisation, folded into the linear layers that read it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.affine import Linear, linear_behind
from edgevtx.export.rewrite.edit import constant, insert, nodes, replace, tensor_of


def fold_norm_affine(model: ir.Model) -> int:
    """(norm(x) * g + s) W + b becomes norm(x) (g W) + (s W + b), where nothing but such linear layers reads the norm."""
    return sum(_fold(node) for node in nodes(model, "LayerNormalization"))


def _fold(node: ir.Node) -> bool:
    output, (gain, shift) = node.outputs[0], (tensor_of(value) for value in (node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None))
    readers = list(output.uses())
    if gain is None or shift is None or output.is_graph_output() or not readers:
        return False
    linears = [_linear(use.node) if use.idx == 0 else None for use in readers]
    if any(item is None or item.weight.shape[0] != gain.size or item.bias_add is None for item in linears):
        return False
    gains, shifts = gain.numpy().astype(np.float64), shift.numpy().astype(np.float64)
    for item in linears:
        assert item is not None
        _absorb(item, gains, shifts)
    width = gain.size
    node.replace_input_with(1, constant(node, "gain", np.ones(width, np.float32)))
    node.replace_input_with(2, constant(node, "shift", np.zeros(width, np.float32)))
    return True


def _linear(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMul" or len(list(node.outputs[0].uses())) != 1:
        return None
    follower = next(iter(node.outputs[0].uses())).node
    for value in (follower.outputs[0] if follower.op_type == "Add" else None, ):
        if value is None:
            return None
        left, right = (tensor_of(v) for v in follower.inputs)
        bias = right if left is None else left
        weight = tensor_of(node.inputs[1])
        if bias is None or weight is None or len(weight.shape) != 2:
            return None
        return Linear(node, weight, 1, bias, follower)
    return None


def _absorb(item: Linear, gains, shifts) -> None:
    weight = item.weight.numpy()
    bias = (shifts @ weight.astype(np.float64) + item.bias.numpy()).astype(np.float32)
    node, add = item.node, item.bias_add
    node.replace_input_with(1, constant(node, "weight", (weight * gains[:, None]).astype(np.float32)))
    at = 0 if tensor_of(add.inputs[0]) is not None else 1
    add.replace_input_with(at, constant(add, "bias", bias))
