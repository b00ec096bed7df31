"""Layer norms that were written in single operators, as one: graphs of opsets below 17 have no other form.

Ba et al., "Layer Normalization", 2016, eq. 3. As one operator it is computed in float32 whatever the graph's types;
its parts, the squares above all, overflow in half precision.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.edit import constant, insert, made_by, only_user, replace, tensor_of
from edgevtx.export.rewrite.patterns import DecomposedNorm, decomposed_norms


def fuse_layer_norm(model: ir.Model) -> int:
    """Replace each mean, difference, square, mean, root and quotient over the last axis by LayerNormalization."""
    found = [norm for norm in decomposed_norms(model) if _fits(norm)]
    for norm in found:
        _fuse(norm)
    return len(found)


def _fits(norm: DecomposedNorm) -> bool:
    known = norm.x.shape is not None and isinstance(norm.x.shape[-1], int)
    return known and norm.last_axis and norm.epsilon is not None and norm.x.dtype == ir.DataType.FLOAT


def _fuse(norm: DecomposedNorm) -> None:
    assert norm.x.shape is not None and isinstance(norm.x.shape[-1], int) and norm.epsilon is not None
    width = norm.x.shape[-1]
    end, scale = norm.quotient, constant(norm.quotient, "scale", np.ones(width, np.float32))
    inputs = [norm.x, scale]
    for op_type, at in (("Mul", 1), ("Add", 2)):  # the affine part, where it follows
        (value,) = end.outputs
        user = next(iter(value.uses())).node if only_user(value) else None
        other = _other(user, value, width) if user is not None and made_by(user.outputs[0], op_type) else None
        if user is None or other is None:
            break
        inputs[at:] = [other]
        end = user
    replace(end, insert(end, "LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon))


def _other(user: ir.Node, value: ir.Value, width: int) -> ir.Value | None:
    """The constant (width,) beside `value`, or None."""
    other = next((item for item in user.inputs if item is not value), None)
    tensor = tensor_of(other)
    return other if tensor is not None and tuple(tensor.shape.numpy()) == (width,) else None
