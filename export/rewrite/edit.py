"""The few edits that rewrites are made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    suffix: str = "",
    *,
    domain: str = "",
    dtype: ir.DataType | None = None,
    **attributes: Any,
) -> ir.Value:
    """A new node ahead of `before`, named after it, and its one output, of the type of `before`'s or of `dtype`."""
    name = f"{before.name}/{suffix}" if suffix else before.name
    node = ir.node(op_type, inputs, attributes or None, domain=domain, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = before.outputs[0].type if dtype is None else ir.TensorType(dtype)
    _graph(before).insert_before(before, node)
    return node.outputs[0]


def constant(near: ir.Node, suffix: str, array: Array | np.generic) -> ir.Value:
    """A new initialiser, named after the node `near`."""
    return _register(near, ir.tensor(np.asarray(array), name=f"{near.name}/{suffix}"))


def derived(near: ir.Node, suffix: str, shape: Sequence[int], make: Callable[[], Array]) -> ir.Value:
    """A new float32 initialiser that is computed when it is written: a large model is never in memory twice."""

    def make_tensor() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(make(), dtype=np.float32))

    name = f"{near.name}/{suffix}"
    return _register(near, ir.LazyTensor(make_tensor, ir.DataType.FLOAT, ir.Shape(shape), name=name))


def _register(near: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
    taken = _graph(near).initializers
    name = next(name for name in _numbered(tensor.name or "") if name not in taken)  # a node may be edited twice
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    _graph(near).register_initializer(value)
    return value


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{index}" for index in itertools.count(1))


def replace(node: ir.Node, value: ir.Value) -> None:
    """Put `value` in the place of the only output of `node`, and remove the node. Outputs of the graph keep names."""
    old = node.outputs[0]
    if old.is_graph_output() and (value.producer() is None or value.is_graph_output()):
        value = insert(node, "Identity", [value])
    if value.producer() is not None:
        value.shape, value.type = old.shape, old.type
    if old.is_graph_output():
        value.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    remove(node)


def remove(node: ir.Node) -> None:
    """Remove a node whose outputs nothing reads."""
    _graph(node).remove(node, safe=True)


def set_inputs(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
    """Give a node these inputs, however many it had."""
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind a value, or None."""
    return None if value is None else ir.convenience.get_const_tensor(value)


def only_user(value: ir.Value | None) -> bool:
    """Whether exactly one input of one node reads the value, and it is no output of the graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of this type in ONNX's own domain that makes the value, or None."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of these types in ONNX's own domain, in order; a list, so that the graph may change under way."""
    return [node for node in model.graph if node.domain == "" and node.op_type in op_types]


def ints(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute of integers."""
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else tuple(default)


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)  # functions are inlined before any rewrite
    return node.graph
