"""Two convolutions of one input whose results are added, merged into one.

RT-DETR trains its encoder with a 3x3 and a 1x1 convolution side by side, as RepVGG does, and means to run one
(Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021, section 3.3); the libraries' exports run both.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.affine import Linear, linear_behind
from edgevtx.export.rewrite.edit import Array, constant, derived, ints, nodes, replace, set_inputs


def merge_parallel_convs(model: ir.Model) -> int:
    """conv(x, W1) + conv(x, W2) becomes conv(x, W1 + W2), the smaller kernel centred in the larger one."""
    return sum(_merge(node) for node in nodes(model, "Add"))


def _merge(add: ir.Node) -> bool:
    pair = [linear_behind(value) for value in add.inputs]
    if any(item is None or item.node.op_type != "Conv" for item in pair):
        return False
    large, small = sorted((item for item in pair if item), key=lambda item: item.weight.size, reverse=True)
    if large.node is small.node or not _same_sampling(large.node, small.node):
        return False
    margins = _margins(large, small)
    if margins is None:
        return False
    wide, narrow = large.weight, small.weight

    def summed() -> Array:
        # widened to float64, so that one rounding is all that the merge adds
        total: Array = wide.numpy().astype(np.float64) + np.pad(narrow.numpy(), ((0, 0), (0, 0), *margins))
        return total

    weight = derived(large.node, "merged_weight", wide.shape.numpy(), summed)
    inputs: list[ir.Value | None] = [large.node.inputs[0], weight]
    biases = [item.bias.numpy() for item in (large, small) if item.bias is not None]
    if biases:
        inputs.append(constant(large.node, "merged_bias", sum(biases[1:], biases[0])))
    set_inputs(large.node, inputs)
    replace(add, large.node.outputs[0])
    return True


def _same_sampling(first: ir.Node, second: ir.Node) -> bool:
    """Whether both read the same input at the same places."""
    return (
        first.inputs[0] is second.inputs[0]
        and all(ints(first, name, (1, 1)) == ints(second, name, (1, 1)) for name in ("strides", "dilations"))
        and ints(first, "dilations", (1, 1)) == (1, 1)
        and all("group" not in node.attributes or node.attributes["group"].as_int() == 1 for node in (first, second))
        and all(
            node.attributes["auto_pad"].as_string() == "NOTSET"
            for node in (first, second)
            if "auto_pad" in node.attributes
        )
    )


def _margins(large: Linear, small: Linear) -> list[tuple[int, int]] | None:
    """How the small kernel is padded to the large one, (before, after) a spatial axis; None if they do not align."""
    sizes = [tuple(item.weight.shape.numpy()) for item in (large, small)]
    if sizes[0][:2] != sizes[1][:2] or len(sizes[0]) != len(sizes[1]):
        return None
    axes = len(sizes[0]) - 2
    wide, narrow = (ints(item.node, "pads", (0,) * (2 * axes)) for item in (large, small))
    before = [wide[axis] - narrow[axis] for axis in range(axes)]
    after = [wide[axes + axis] - narrow[axes + axis] for axis in range(axes)]
    fits = all(
        sizes[0][2 + axis] == sizes[1][2 + axis] + before[axis] + after[axis] and before[axis] >= 0 <= after[axis]
        for axis in range(axes)
    )
    return list(zip(before, after, strict=True)) if fits else None
