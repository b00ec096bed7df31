"""How large the values of a graph grow on real inputs: what decides where a lower precision would overflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgevtx.export.evaluate import open_model
from edgevtx.runtimes.base import Arrays


@dataclass(frozen=True)
class Range:
    """What a tensor's values were over all inputs. `largest`: the largest magnitude; infinite where one is not finite,
    0 where it was always empty. `summed`, of one of `PRODUCTS`: the largest sum of the magnitudes that an element adds
    up, which bounds what it comes to on the way, in whatever order it adds; 0 of all else."""

    largest: float
    summed: float = 0.0


def measure_ranges(model: ir.Model, feeds: Sequence[Arrays]) -> dict[str, Range]:
    """The range of every float32 input and computed value of a graph, by name, over all `feeds` (inputs by name).

    The graph is left as it is. Of each tensor only its smallest and largest value leave the graph: one layer of SAM has
    scores of 805 MB.
    """
    probed = model.clone()
    sums = _add_sums(probed)
    graph = probed.graph
    values = [value for value in (*graph.inputs, *_outputs(graph)) if value.dtype == ir.DataType.FLOAT]
    ends = [(_reduce(graph, "ReduceMin", value), _reduce(graph, "ReduceMax", value)) for value in values]
    graph.outputs.clear()
    graph.outputs.extend(end for pair in ends for end in pair)
    run = open_model(probed)
    largest = dict.fromkeys((str(value.name) for value in values), 0.0)
    for feed in feeds:
        found = run(feed)
        for value, (low, high) in zip(values, ends, strict=True):
            size = _magnitude(float(found[str(low.name)]), float(found[str(high.name)]))
            largest[str(value.name)] = max(largest[str(value.name)], size)
    summed = {name: largest.pop(total) for name, total in sums.items()}
    return {name: Range(size, summed.get(name, 0.0)) for name, size in largest.items()}


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _reduce(graph: ir.Graph, op_type: str, value: ir.Value) -> ir.Value:
    """The value's smallest or largest element, computed as soon as the value is there."""
    node = ir.node(op_type, [value], {"keepdims": 0}, name=f"{value.name}/{op_type}")
    end = node.outputs[0]
    end.name, end.type, end.shape = node.name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return end


PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that add up products of their inputs."""


def _add_sums(model: ir.Model) -> dict[str, str]:
    """Behind each product the same one of its inputs' magnitudes: the name of its output -> the name of that sum."""
    found = {}
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in PRODUCTS or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        name = f"{node.outputs[0].name}/magnitudes"
        given = [value for value in node.inputs if value is not None]
        sizes = {value: ir.node("Abs", [value], name=f"{name}_{at}") for at, value in enumerate(given)}
        for size in sizes.values():
            size.outputs[0].name = size.name  # and no type, which would have it measured as well
        inputs = [None if value is None else sizes[value].outputs[0] for value in node.inputs]
        total = ir.Node("", node.op_type, inputs, node.attributes.values(), name=name)
        total.outputs[0].name, total.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_after(node, [*sizes.values(), total])
        found[str(node.outputs[0].name)] = name
    return found


def _magnitude(low: float, high: float) -> float:
    if low > high:  # of an empty tensor: infinity and its negative
        return 0.0
    return max(abs(low), abs(high)) if math.isfinite(low) and math.isfinite(high) else math.inf
