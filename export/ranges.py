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
    0 where it was always empty."""

    largest: float


def measure_ranges(model: ir.Model, feeds: Sequence[Arrays]) -> dict[str, Range]:
    """The range of every float32 input and computed value of a graph, by name, over all `feeds` (inputs by name).

    The graph is left as it is. Of each tensor only its smallest and largest value leave the graph: one layer of SAM has
    scores of 805 MB.
    """
    probed = model.clone()
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
    return {name: Range(size) for name, size in largest.items()}


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


def _magnitude(low: float, high: float) -> float:
    if low > high:  # of an empty tensor: infinity and its negative
        return 0.0
    return max(abs(low), abs(high)) if math.isfinite(low) and math.isfinite(high) else math.inf
