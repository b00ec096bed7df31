"""Linear layers as convolutions of kernel 1, for compilers whose convolutions are the better matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.affine import linear_behind
from edgevtx.export.rewrite.edit import constant, insert, made_by, nodes, only_user, replace, tensor_of

import os
TURN = (0, 2, 1)
RES = "RES" in os.environ


def use_pointwise_convolutions(model: ir.Model) -> int:
    """x (N,L,K) W + b, and a Gelu behind it, become a convolution over L between two transposes."""
    count = 0
    for node in nodes(model, "MatMul"):
        count += _use(node)
    return count


def _use(node: ir.Node) -> bool:
    value, weight = node.inputs
    tensor = tensor_of(weight)
    if value is None or value.shape is None or len(value.shape) != 3 or tensor is None or len(tensor.shape) != 2:
        return False
    assert weight is not None
    last, bias = node.outputs[0], None
    follower = next(iter(last.uses())).node if only_user(last) else None
    if follower is not None and follower.op_type == "Add":
        found = linear_behind(follower.outputs[0])
        if found is not None and found.bias_add is follower and found.bias is not None and len(found.bias.shape) == 1:
            last = follower.outputs[0]
            bias = next(item for item in follower.inputs if item is not node.outputs[0])
    act = next(iter(last.uses())).node if only_user(last) else None
    gelu = act if act is not None and act.op_type == "Gelu" else None
    end = gelu or (last.producer())
    assert end is not None
    turned = insert(end, "Transpose", [value], "turned", perm=TURN)
    before = made_by(value, "Transpose")
    if before is not None and tuple(before.attributes["perm"].as_ints()) == TURN:
        turned = before.inputs[0]
    kernel = insert(end, "Unsqueeze", [insert(end, "Transpose", [weight], "kernel", perm=(1, 0)), constant(end, "axis", np.array([2], np.int64))], "kernel3")
    inputs = [turned, kernel] + ([bias] if bias is not None else [])
    made = insert(end, "Conv", inputs, "conv")
    if gelu is not None:
        made = insert(end, "Gelu", [made], "gelu", **{k: v.value for k, v in gelu.attributes.items()})
    user = next(iter(end.outputs[0].uses())).node if only_user(end.outputs[0]) else None
    if RES and gelu is None and user is not None and user.op_type == "Add" and tensor_of(user.inputs[0]) is None and tensor_of(user.inputs[1]) is None:
        other = user.inputs[1] if user.inputs[0] is end.outputs[0] else user.inputs[0]
        was = made_by(other, "Transpose")
        o = was.inputs[0] if was is not None and tuple(was.attributes["perm"].as_ints()) == TURN else insert(user, "Transpose", [other], "turned", perm=TURN)
        total = insert(user, "Add", [made, o], "sum")
        replace(user, insert(user, "Transpose", [total], "back", perm=TURN))
        return True
    replace(end, insert(end, "Transpose", [made], "back", perm=TURN))
    return True
