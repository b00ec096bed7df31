"""Multiplications and additions by constants, folded into the convolution or matrix product ahead of them.

Frozen batch normalisation leaves Mul and Add after every convolution, layer scale a Mul after a linear layer.
Compilers fold most of them too, but not all, and each in its own way; folded here, all targets share the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.edit import (
    Array,
    constant,
    derived,
    made_by,
    nodes,
    only_user,
    replace,
    set_inputs,
    tensor_of,
)


def fold_affine(model: ir.Model) -> int:
    """Fold Mul and Add by a scalar or by one number a channel into a preceding Conv, or Mul into MatMul (+ Add)."""
    return sum(_fold(node) for node in nodes(model, "Mul", "Add"))


def drop_neutral(model: ir.Model) -> int:
    """Remove additions of zeros and multiplications by ones that change no shape."""
    count = 0
    for node in nodes(model, "Mul", "Add"):
        tensor, other = _operands(node)
        if tensor is None or other is None or tensor.size > 1 << 16:
            continue
        neutral = 1 if node.op_type == "Mul" else 0
        if (tensor.numpy() == neutral).all() and _keeps_shape(tensor, other):
            replace(node, other)
            count += 1
    return count


@dataclass(frozen=True)
class Linear:
    """A convolution or matrix product with constant weights, whose result nothing else reads.

    `axis` is the weight's axis of output channels. `bias_add` is the Add of a constant after a MatMul.
    """

    node: ir.Node
    weight: ir.TensorProtocol
    axis: int
    bias: ir.TensorProtocol | None
    bias_add: ir.Node | None = None

    @property
    def channels(self) -> int:
        size = self.weight.shape[self.axis]
        assert isinstance(size, int)
        return size

    def scale(self, factors: Array) -> None:
        """Multiply the result by `factors` (channels,) or ()."""
        node, weight, bias = self.node, self.weight, self.bias
        shape = [-1 if axis == self.axis else 1 for axis in range(len(weight.shape))]
        spread = np.broadcast_to(factors, (self.channels,))
        sizes = weight.shape.numpy()
        scaled = derived(node, "weight", sizes, lambda: weight.numpy() * spread.reshape(shape))
        node.replace_input_with(1, scaled)
        if bias is not None:
            holder, index = (self.bias_add, _constant_index(self.bias_add)) if self.bias_add else (node, 2)
            holder.replace_input_with(index, constant(holder, "bias", (bias.numpy() * spread).astype(np.float32)))

    def shift(self, offsets: Array) -> None:
        """Add `offsets` (channels,) or () to a convolution's result."""
        bias = 0.0 if self.bias is None else self.bias.numpy()
        total = np.broadcast_to(bias + offsets, (self.channels,)).astype(np.float32)
        inputs = [*self.node.inputs[:2], constant(self.node, "bias", total)]
        set_inputs(self.node, inputs)


@dataclass(frozen=True)
class Bias:
    """The constant (channels,) that `add` adds to a MatMul with the constant `weight`: its input `index`."""

    add: ir.Node
    index: int
    value: ir.Value
    tensor: ir.TensorProtocol
    weight: ir.TensorProtocol


def bias_behind(node: ir.Node) -> Bias | None:
    """The bias that the one reader of a MatMul with constant weights adds to it, or None."""
    add = next(iter(node.outputs[0].uses())).node if only_user(node.outputs[0]) else None
    weight = tensor_of(node.inputs[1])
    if add is None or (add.domain, add.op_type) != ("", "Add") or weight is None or len(weight.shape) != 2:
        return None
    tensor, _ = _operands(add)
    index = _constant_index(add)
    value = add.inputs[index]
    if tensor is None or value is None or tuple(tensor.shape) != (weight.shape[1],):
        return None
    return Bias(add, index, value, tensor, weight)


def linear_behind(value: ir.Value | None) -> Linear | None:
    """The Conv, or MatMul with or without an Add of a constant, that makes `value`, if nothing else reads it."""
    if not only_user(value):
        return None
    node, bias = made_by(value, "Conv"), None
    if node is not None:
        weight = tensor_of(node.inputs[1])
        bias = tensor_of(node.inputs[2]) if len(node.inputs) > 2 else None
        known = len(node.inputs) < 3 or node.inputs[2] is None or bias is not None
        return Linear(node, weight, 0, bias) if weight is not None and known else None
    add = made_by(value, "Add")
    if add is not None:
        bias, value = _operands(add)
        if bias is None or not only_user(value):
            return None
    node = made_by(value, "MatMul")
    weight = tensor_of(node.inputs[1]) if node is not None else None
    if node is None or weight is None or len(weight.shape) != 2:
        return None
    if bias is not None and tuple(bias.shape) not in ((), (weight.shape[1],)):
        return None
    return Linear(node, weight, 1, bias, add)


def _fold(node: ir.Node) -> bool:
    tensor, other = _operands(node)
    linear = linear_behind(other) if tensor is not None else None
    if tensor is None or linear is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    factors = _per_channel(tensor, linear) if _keeps_rank(tensor, other) else None
    if factors is None or (node.op_type == "Add" and linear.node.op_type != "Conv"):
        return False
    if node.op_type == "Mul":
        linear.scale(factors)
    else:
        linear.shift(factors)
    assert other is not None
    replace(node, other)
    return True


def _per_channel(tensor: ir.TensorProtocol, linear: Linear) -> Array | None:
    """The constant as (channels,) or (), if it broadcasts over all but the channels of the result."""
    if tensor.size == 1:
        return tensor.numpy().reshape(())
    behind = len(linear.weight.shape) - 2 if linear.node.op_type == "Conv" else 0  # (N,C,H,W), (N,C,T,H,W) and (...,C)
    shape = tuple(tensor.shape.numpy())
    if len(shape) > behind and shape[len(shape) - 1 - behind] == tensor.size == linear.channels:
        return tensor.numpy().reshape(-1)
    return None


def _operands(node: ir.Node) -> tuple[ir.TensorProtocol | None, ir.Value | None]:
    """(constant, other operand) of a commutative node; the constant is None unless exactly one operand is."""
    first, second = node.inputs
    left, right = tensor_of(first), tensor_of(second)
    if (left is None) == (right is None):
        return None, None
    return (right, first) if left is None else (left, second)


def _constant_index(node: ir.Node | None) -> int:
    assert node is not None
    return 0 if tensor_of(node.inputs[0]) is not None else 1


def _keeps_rank(tensor: ir.TensorProtocol, other: ir.Value | None) -> bool:
    """Whether the constant adds no axis, as far as the other operand's are known."""
    return other is None or other.shape is None or len(tensor.shape) <= len(other.shape)


def _keeps_shape(tensor: ir.TensorProtocol, other: ir.Value) -> bool:
    if other.shape is None or len(tensor.shape) > len(other.shape):
        return False
    sizes = tuple(tensor.shape.numpy())
    return all(
        mine in (1, size) for mine, size in zip(sizes, list(other.shape)[len(other.shape) - len(sizes) :], strict=True)
    )
