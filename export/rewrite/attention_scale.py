"""The scale of attention, folded into the projection that makes the queries."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.affine import linear_behind
from edgevtx.export.rewrite.attention import scale_of
from edgevtx.export.rewrite.edit import nodes, only_user


def fold_attention_scale(model: ir.Model) -> int:
    """softmax(q k^T s) with q = x W + b becomes softmax(q' k^T) with q' = x (s W) + s b.

    Where a head has 64 channels, s is 1/8 and the result has the same bits.
    """
    return sum(_fold(node) for node in nodes(model, "Attention"))


def _fold(node: ir.Node) -> bool:
    scale, value = scale_of(node), node.inputs[0]
    while only_user(value) and value is not None:
        maker = value.producer()
        if maker is None or maker.op_type not in ("Transpose", "Reshape"):
            break
        value = maker.inputs[0]
    linear = linear_behind(value)
    if scale == 1 or linear is None:
        return False
    linear.scale(np.array(scale))
    node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return True
