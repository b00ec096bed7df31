"""Group normalisation, spelled out for runtimes that do not have it, or crash on it.

ONNX Runtime runs the operator as the standard's function body, whose variance is the mean of squares less the square of
the mean: what is left of float32 where the mean is large is noise. It also takes a dozen passes over the tensor.
OpenVINO 2026.4 ends with a segmentation fault while it compiles relu(norm(conv(x)) + x) for x of 28x28 and smaller, the
end of a residual layer, as one GroupNormalization.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.edit import constant, insert, nodes, replace


def spell_out_group_normalization(model: ir.Model) -> int:
    """GroupNormalization (opset 21) becomes InstanceNormalization of its groups, a product and a sum."""
    return sum(_spell_out(node) for node in nodes(model, "GroupNormalization"))


def _spell_out(node: ir.Node) -> bool:
    x, scale, bias = node.inputs
    assert x is not None
    if x.shape is None or not isinstance(x.shape[1], int):
        return False
    groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes.get("epsilon")
    dims = list(x.shape)
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    grouped = insert(node, "Reshape", [x, constant(node, "split", np.array([0, groups, -1]))], "groups")
    normal = insert(
        node,
        "InstanceNormalization",
        [grouped, constant(node, "one", ones), constant(node, "zero", zeros)],
        "normal",
        epsilon=1e-5 if epsilon is None else epsilon.as_float(),
    )
    if all(isinstance(size, int) for size in dims[1:]):
        shape = constant(node, "size", np.array([0, *dims[1:]]))
    else:
        shape = insert(node, "Shape", [x], "shape", dtype=ir.DataType.INT64)
    whole = insert(node, "Reshape", [normal, shape], "whole")
    broadcast = constant(node, "broadcast", np.array([-1, *[1] * (len(dims) - 2)]))
    scaled = insert(node, "Mul", [whole, insert(node, "Reshape", [scale, broadcast], "scale")], "scaled")
    replace(node, insert(node, "Add", [scaled, insert(node, "Reshape", [bias, broadcast], "bias")]))
    return True
