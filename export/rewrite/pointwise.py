"""Linear layers as convolutions of kernel 1, where a compiler's convolution is the better matrix product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.affine import bias_behind
from edgevtx.export.rewrite.edit import constant, insert, ints, made_by, nodes, only_user, remove, replace, tensor_of

# What was measured: OpenVINO's bf16 convolutions (AMX) run ViT-B's and late Swin stages' layers in half to two thirds
# of the time of its fully connected ones; over many tokens or with small weights there is no difference.
MOST_TOKENS = 700
FEWEST_WEIGHTS = 1 << 17
TURN = (0, 2, 1)


def use_pointwise_convolutions(model: ir.Model) -> int:
    """x (N,L,K) W + b, and the Gelu behind it, become a convolution over (N,K,L) between two transposes.

    Compilers keep such a tensor as it lies in memory and only read it otherwise. The weights stay the shared ones:
    their turn to (out, in, 1) is a constant that the compiler folds.
    """
    return sum(_use(node) for node in nodes(model, "MatMul"))


def _use(node: ir.Node) -> bool:
    tokens, weight = node.inputs
    tensor = tensor_of(weight)
    if tokens is None or tokens.shape is None or len(tokens.shape) != 3 or tensor is None or len(tensor.shape) != 2:
        return False
    length = tokens.shape[1]
    if not isinstance(length, int) or length > MOST_TOKENS or tensor.size < FEWEST_WEIGHTS:
        return False
    bias = bias_behind(node)
    end = node if bias is None else bias.add
    behind = next(iter(end.outputs[0].uses())).node if only_user(end.outputs[0]) else None
    gelu = behind if behind is not None and behind.op_type == "Gelu" else None
    end = gelu or end

    axis = constant(end, "axis", np.array([2], np.int64))
    kernel = insert(
        end, "Unsqueeze", [insert(end, "Transpose", [weight], "turned_weight", perm=(1, 0)), axis], "kernel"
    )
    before = made_by(tokens, "Transpose")
    if before is not None and ints(before, "perm", ()) == TURN:  # of another such layer
        turned = before.inputs[0]
    else:
        turned = insert(end, "Transpose", [tokens], "turned", perm=TURN)
    made = insert(end, "Conv", [turned, kernel, *([] if bias is None else [bias.value])], "conv")
    if gelu is not None:
        made = insert(end, "Gelu", [made], "gelu", approximate=_approximation(gelu))
    chain = [item for item in (node, None if bias is None else bias.add, gelu) if item is not None]
    replace(end, insert(end, "Transpose", [made], "back", perm=TURN))
    for old in reversed(chain[:-1]):
        remove(old)
    return True


def _approximation(gelu: ir.Node) -> str:
    return gelu.attributes["approximate"].as_string() if "approximate" in gelu.attributes else "none"
