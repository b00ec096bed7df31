"""The few edits that rewrites are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    suffix: str,
    *,
    domain: str = "",
    **attributes: Any,
) -> ir.Value:
    """A new node ahead of `before`, named after it, and its one output."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    name = f"{before.name}/{suffix}"
    node = ir.node(op_type, inputs, attributes or None, domain=domain, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = before.outputs[0].type
    graph.insert_before(before, node)
    return node.outputs[0]


def constant(near: ir.Node, suffix: str, array: NDArray[Any] | np.generic) -> ir.Value:
    """A new initialiser, named after the node `near`."""
    graph = near.graph
    assert isinstance(graph, ir.Graph)
    tensor = ir.tensor(np.asarray(array), name=f"{near.name}/{suffix}")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def replace(node: ir.Node, value: ir.Value) -> None:
    """Put `value` in the place of the only output of `node`, and remove the node."""
    old = node.outputs[0]
    value.shape, value.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.remove(node, safe=True)
