"""The scale and shift of layer normalisation, folded into the linear layers that read it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.affine import Bias, bias_behind
from edgevtx.export.rewrite.edit import Array, constant, derived, nodes, tensor_of


def fold_norm_affine(model: ir.Model) -> int:
    """(norm(x) * g + s) W + b becomes norm(x) (g W) + (s W + b), where only such layers read the norm.

    A compiler that computes scale and shift in a pass of their own saves that pass.
    """
    return sum(_fold(node) for node in nodes(model, "LayerNormalization"))


def _fold(node: ir.Node) -> bool:
    gain, shift = (tensor_of(value) for value in (*node.inputs[1:3], None)[:2])
    uses = list(node.outputs[0].uses())
    if gain is None or shift is None or not uses or node.outputs[0].is_graph_output() or not gain.numpy().any():
        return False
    if (gain.numpy() == 1).all() and not shift.numpy().any():
        return False
    layers = [
        (use.node, bias_behind(use.node) if use.node.op_type == "MatMul" and use.idx == 0 else None) for use in uses
    ]
    if any(bias is None or tuple(gain.shape) != bias.weight.shape[:1] for _, bias in layers):
        return False
    gains, shifts = gain.numpy().astype(np.float64), shift.numpy().astype(np.float64)
    for layer, bias in layers:
        assert bias is not None
        _absorb(layer, bias, gains, shifts)
    node.replace_input_with(1, constant(node, "gain", np.ones(gain.size, np.float32)))
    node.replace_input_with(2, constant(node, "shift", np.zeros(gain.size, np.float32)))
    return True


def _absorb(layer: ir.Node, bias: Bias, gains: Array, shifts: Array) -> None:
    """Change the weights and the bias of one layer."""
    weight = bias.weight
    total = shifts @ weight.numpy().astype(np.float64) + bias.tensor.numpy()
    bias.add.replace_input_with(bias.index, constant(bias.add, "bias", total.astype(np.float32)))
    scaled = derived(layer, "weight", weight.shape.numpy(), lambda: weight.numpy() * gains[:, None])
    layer.replace_input_with(1, scaled)
