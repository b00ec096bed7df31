"""Attention spelled out: MatMul, Softmax, MatMul, for runtimes without the operator and compilers that fuse it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from edgevtx.errors import ExportError
from edgevtx.export.quiet import quiet
from edgevtx.export.rewrite.edit import constant, insert, nodes, replace, tensor_of

FOLD_LIMIT = 1 << 20  # elements; queries are few, and weights beyond them stay as they are


def drop_true_masks(model: ir.Model) -> int:
    """Remove masks that hide nothing: constant, and all true or all zero."""
    count = 0
    for node in nodes(model, "Attention"):
        mask = tensor_of(node.inputs[3]) if len(node.inputs) > 3 else None
        if mask is not None and (mask.numpy().all() if mask.dtype == ir.DataType.BOOL else not mask.numpy().any()):
            node.replace_input_with(3, None)
            count += 1
    return count


def fold_constant_attention(model: ir.Model) -> int:
    """Compute attention over nothing but constants, and what follows from it.

    DETR's first decoder layer attends over its own queries before any of them has seen the image.
    """
    found = [node for node in nodes(model, "Attention") if all(map(_is_constant_or_absent, node.inputs))]
    for node in found:
        _spell_out(node)
    if found:
        with quiet():
            fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
        RemoveUnusedNodesPass()(model)
    return len(found)


def spell_out_attention(model: ir.Model) -> int:
    """Replace each `Attention` (opset 23) by softmax(q k^T scale + mask) v.

    Vaswani et al., "Attention Is All You Need", 2017, eq. 1. No guard for rows without any key: no family here
    masks a whole row, and the guard (IsNaN, Where) is what keeps compilers from fusing the chain.
    """
    found = nodes(model, "Attention")
    for node in found:
        _spell_out(node)
    return len(found)


def spell_out_broadcast_masks(model: ir.Model) -> int:
    """Replace each `Attention` whose mask is one row for all queries, as that of a padded batch is.

    The operator allows such a mask; ONNX Runtime's CPU kernel (1.23 to 1.32) refuses it: "inconsistent
    q_sequence_length (between attn_mask and Q)".
    """
    found = [
        node for node in nodes(model, "Attention") if _is_one_row(node.inputs[3] if len(node.inputs) > 3 else None)
    ]
    for node in found:
        _spell_out(node)
    return len(found)


def _is_constant_or_absent(value: ir.Value | None) -> bool:
    return value is None or tensor_of(value) is not None


def _is_one_row(mask: ir.Value | None) -> bool:
    return mask is not None and mask.shape is not None and len(mask.shape) > 1 and mask.shape[-2] == 1


def scale_of(node: ir.Node) -> float:
    """What an Attention over (N,heads,T,d) multiplies its scores by: its attribute, or 1/sqrt(d)."""
    if "scale" in node.attributes:
        return node.attributes["scale"].as_float()
    query = node.inputs[0]
    if query is None or query.shape is None or len(query.shape) != 4 or not isinstance(query.shape[3], int):
        raise ExportError(f"{node.name}: attention over other than (N,heads,T,d) tensors of known d cannot be lowered")
    return float(query.shape[3] ** -0.5)


def _spell_out(node: ir.Node) -> None:
    replace(node, spelled_out(node))


def spelled_out(node: ir.Node) -> ir.Value:
    """What an `Attention` computes, by new nodes ahead of it. Raises `ExportError` for options that no family has."""
    query, key, value = node.inputs[:3]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    asked = [name for name in ("is_causal", "softcap", "q_num_heads") if is_set(node, name)]
    asked += ["a key-value cache"] if any(node.inputs[4:]) or len(node.outputs) > 1 else []
    if asked:
        raise ExportError(f"{node.name}: attention with {' and '.join(asked)} cannot be lowered; export without it")

    scale = scale_of(node)
    if scale != 1:
        query = insert(node, "Mul", [query, constant(node, "scale", np.float32(scale))], "query")
    turned = insert(node, "Transpose", [key], "key", perm=[0, 1, 3, 2])
    scores = insert(node, "MatMul", [query, turned], "scores")
    if mask is not None:
        if mask.dtype == ir.DataType.BOOL:
            # the lowest float and not -inf: no sum with it is NaN
            shown, hidden = constant(node, "shown", np.float32(0)), constant(node, "hidden", np.finfo(np.float32).min)
            mask = insert(node, "Where", [mask, shown, hidden], "bias")
        scores = insert(node, "Add", [scores, mask], "masked")
    weights = insert(node, "Softmax", [scores], "softmax", axis=-1)
    return insert(node, "MatMul", [weights, value], "mix")


def is_set(node: ir.Node, name: str) -> bool:
    """Whether an attribute is there and not zero."""
    return name in node.attributes and bool(node.attributes[name].value)
