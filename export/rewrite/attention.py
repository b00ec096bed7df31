"""Attention spelled out: MatMul, Softmax, MatMul, for runtimes without the operator and compilers that fuse it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.errors import ExportError
from edgevtx.export.rewrite.edit import constant, insert, replace


def drop_true_masks(model: ir.Model) -> int:
    """Remove masks that hide nothing: constant, and all true or all zero."""
    count = 0
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "" and len(node.inputs) > 3 and node.inputs[3] is not None:
            mask = ir.convenience.get_const_tensor(node.inputs[3])
            if mask is not None and (mask.numpy().all() if mask.dtype == ir.DataType.BOOL else not mask.numpy().any()):
                node.replace_input_with(3, None)
                count += 1
    return count


def spell_out_attention(model: ir.Model) -> int:
    """Replace each `Attention` (opset 23) by softmax(q k^T scale + mask) v.

    Vaswani et al., "Attention Is All You Need", 2017, eq. 1. No guard for rows without any key: no family here
    masks a whole row, and the guard (IsNaN, Where) is what keeps compilers from fusing the chain.
    """
    found = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
    for node in found:
        _spell_out(node)
    return len(found)


def _spell_out(node: ir.Node) -> None:
    unsupported = [
        name
        for name in ("is_causal", "softcap", "qk_matmul_output_mode")
        if name in node.attributes and node.attributes[name].value
    ]
    query, key, value, *rest = node.inputs
    if unsupported or any(item is not None for item in rest[1:]) or len(node.outputs) > 1:
        raise ExportError(
            f"{node.name}: attention with {unsupported or 'a cache'} cannot be lowered; export without it"
        )
    assert query is not None
    assert key is not None
    assert value is not None
    mask = rest[0] if rest else None
    if query.shape is None or len(query.shape) != 4:
        raise ExportError(f"{node.name}: attention over other than (N,heads,T,d) tensors cannot be lowered")
    width = query.shape[3]
    assert isinstance(width, int)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else width**-0.5

    scaled = insert(node, "Mul", [query, constant(node, "scale", np.float32(scale))], "query")
    turned = insert(node, "Transpose", [key], "key", perm=[0, 1, 3, 2])
    scores = insert(node, "MatMul", [scaled, turned], "scores")
    if mask is not None:
        if mask.dtype == ir.DataType.BOOL:
            shown, hidden = constant(node, "shown", np.float32(0)), constant(node, "hidden", np.finfo(np.float32).min)
            mask = insert(node, "Where", [mask, shown, hidden], "bias")
        scores = insert(node, "Add", [scores, mask], "masked")
    weights = insert(node, "Softmax", [scores], "softmax", axis=-1)
    replace(node, insert(node, "MatMul", [weights, value], "mix"))
