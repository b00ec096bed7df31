"""Cumulative sums as products with a triangle of ones, for compilers that mistake the axis.

DETR as its authors export it counts the pixels of a padded image along both axes, for its position terms.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.edit import constant, insert, nodes, replace, tensor_of

_FLOAT, _INT64, _BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def spell_out_cumulative_sum(model: ir.Model) -> int:
    """Replace each CumSum of a float32 tensor along a fixed axis by a MatMul; the axis may be of dynamic size."""
    return sum(_spell_out(node) for node in nodes(model, "CumSum"))


def _spell_out(node: ir.Node) -> bool:
    x, axis = node.inputs[0], tensor_of(node.inputs[1])
    if x is None or x.shape is None or axis is None or x.dtype != _FLOAT:
        return False
    rank = len(x.shape)
    at = int(axis.numpy().item()) % rank
    if at == rank - 1:
        replace(node, insert(node, "MatMul", [x, _triangle(node, x, at)]))
        return True
    turned = [*(other for other in range(rank) if other != at), at]
    rows = insert(node, "Transpose", [x], "rows", perm=turned)
    sums = insert(node, "MatMul", [rows, _triangle(node, x, at)], "sums")
    replace(node, insert(node, "Transpose", [sums], perm=[turned.index(other) for other in range(rank)]))
    return True


def _triangle(node: ir.Node, x: ir.Value, axis: int) -> ir.Value:
    """(T,T) float32: 1 where the value of a row is part of the sum of a column."""
    exclusive, reverse = (
        name in node.attributes and bool(node.attributes[name].as_int()) for name in ("exclusive", "reverse")
    )
    assert x.shape is not None
    size = x.shape[axis]
    if isinstance(size, int):
        ones = np.triu(np.ones((size, size), np.float32), k=int(exclusive))
        return constant(node, "triangle", np.ascontiguousarray(ones.T if reverse else ones))
    make, const = partial(insert, node, dtype=_INT64), partial(constant, node)
    count = make("Squeeze", [make("Shape", [x], "shape", start=axis, end=axis + 1)], "size")
    places = make("Range", [const("begin", np.int64(0)), count, const("step", np.int64(1))], "places")
    pair = [
        make("Unsqueeze", [places, const(f"{name}_axis", np.array([at]))], name)
        for at, name in ((1, "from"), (0, "to"))
    ]
    part = insert(node, "Less" if exclusive else "LessOrEqual", pair[::-1] if reverse else pair, "part", dtype=_BOOL)
    return insert(node, "Cast", [part], "triangle", to=int(_FLOAT))
