"""Attention as ONNX Runtime's own operator, which never stores the matrix of scores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.attention import is_set, scale_of
from edgevtx.export.rewrite.edit import constant, insert, ints, made_by, nodes, only_user, remove, replace, tensor_of

DOMAIN = "com.microsoft"


def use_multi_head_attention(model: ir.Model) -> int:
    """Replace each `Attention` between transposed heads by com.microsoft `MultiHeadAttention`.

    ONNX Runtime computes it in blocks that stay in the cache (Dao et al., "FlashAttention", 2022), and on
    (N,T,heads*d) tensors: the transposes ahead of the operator and behind it go as well. Of masks only constant ones
    that are added and name every query and key are taken along, such as Swin's bias of relative positions.
    """
    count = sum(_use(node) for node in nodes(model, "Attention"))
    if count:
        model.opset_imports[DOMAIN] = 1
    return count


def _use(node: ir.Node) -> bool:
    heads = [_heads_last(value) for value in node.inputs[:3]]
    output = node.outputs[0]
    behind = next(iter(output.uses())).node if only_user(output) else None
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if (
        any(node.inputs[4:])
        or is_set(node, "is_causal")
        or is_set(node, "softcap")
        or (mask is not None and not _is_bias(mask, heads))
        or len(node.outputs) > 1
        or any(value is None or _sizes(value) is None for value in heads)
        or behind is None
        or behind.op_type != "Transpose"
        or ints(behind, "perm", ()) != (0, 2, 1, 3)
    ):
        return False
    query, _, mixed_value = heads
    assert query is not None
    assert mixed_value is not None
    count, width = _sizes(query)[0], _sizes(mixed_value)[1]  # type: ignore[index]
    flat = [_flatten(node, value, name) for value, name in zip(heads, ("query", "key", "value"), strict=True) if value]
    inputs = flat if mask is None else [*flat, None, None, mask]  # no projection bias, no padding
    mixed = insert(node, "MultiHeadAttention", inputs, domain=DOMAIN, num_heads=count, scale=scale_of(node))
    shape = constant(node, "heads", np.array([0, 0, count, width], np.int64))
    replace(behind, insert(behind, "Reshape", [mixed, shape]))
    remove(node)
    return True


def _is_bias(mask: ir.Value, heads: list[ir.Value | None]) -> bool:
    """Whether a mask is a float32 constant (1 or N, 1 or heads, T, S); queries (N,T,heads,d), keys (N,S,heads,d)."""
    tensor, query, key = tensor_of(mask), heads[0], heads[1]
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or query is None or key is None:
        return False
    if query.shape is None or key.shape is None or len(tensor.shape) != 4:
        return False
    batch, length, count = query.shape[0], query.shape[1], query.shape[2]
    sizes = tuple(tensor.shape.numpy())
    return sizes[0] in (1, batch) and sizes[1] in (1, count) and sizes[2:] == (length, key.shape[1])


def _heads_last(value: ir.Value | None) -> ir.Value | None:
    """(N,T,heads,d) behind its transpose (N,heads,T,d), or None."""
    node = made_by(value, "Transpose")
    return node.inputs[0] if node is not None and ints(node, "perm", ()) == (0, 2, 1, 3) else None


def _sizes(value: ir.Value) -> tuple[int, int] | None:
    """(heads, d) of a value (N,T,heads,d), if they are fixed."""
    shape = value.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return None
    return shape[2], shape[3]


def _flatten(node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """(N,T,heads,d) as (N,T,heads*d): what was reshaped into it, or a reshape of it."""
    reshape = made_by(value, "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    count, width = _sizes(value) or (0, 0)
    if source is not None and source.shape is not None and len(source.shape) == 3 and source.shape[2] == count * width:
        pairs = zip(source.shape[:2], (value.shape or ())[:2], strict=False)
        if all(was == now for was, now in pairs if isinstance(was, int) and isinstance(now, int)):  # no windows of it
            return source
    return insert(node, "Reshape", [value, constant(node, f"flat_{name}", np.array([0, 0, -1], np.int64))], name)
