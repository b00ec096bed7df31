"""How large the values of a graph grow on real inputs: what decides where a lower precision would overflow, and what
int8 has to stand for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevtx.export.evaluate import open_model
from edgevtx.runtimes.base import Arrays

LARGEST_INT8 = 127
"""The largest magnitude of int8 that has both signs."""

CLIPS = tuple(0.8**step for step in range(10))
"""The shares of a tensor's largest magnitude that are tried as what int8 reaches to."""


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
    values = _floats(graph)
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


def choose_limits(
    model: ir.Model, feeds: Sequence[Arrays], ranges: Mapping[str, Range], names: Iterable[str]
) -> dict[str, float]:
    """How far int8 should reach for each of the values `names`: the share in `CLIPS` of its largest magnitude in
    `ranges` whose quantisation is off by the least sum of squares over all `feeds`.

    A few outliers, which transformers have, would otherwise make the steps too wide for all others. Nagel et al., "A
    White Paper on Neural Network Quantization", 2021, sec. 3.1. A value that is always 0 or not always finite has none,
    nor has one without a range.
    """
    probed = model.clone()
    graph = probed.graph
    known = {name: ranges[name].largest for name in names if name in ranges}
    wanted = {name: largest for name, largest in known.items() if 0 < largest < math.inf}
    values = {str(value.name): value for value in _floats(graph)}
    errors = {
        name: [_squared_error(graph, values[name], largest * clip, str(step)) for step, clip in enumerate(CLIPS)]
        for name, largest in wanted.items()
    }
    graph.outputs.clear()
    graph.outputs.extend(error for found in errors.values() for error in found)
    if not errors:
        return {}
    run = open_model(probed)
    total = {name: np.zeros(len(CLIPS)) for name in wanted}
    for feed in feeds:
        found = run(feed)
        for name in wanted:
            total[name] += [float(found[str(error.name)]) for error in errors[name]]
    return {name: largest * CLIPS[int(total[name].argmin())] for name, largest in wanted.items()}


def _floats(graph: ir.Graph) -> list[ir.Value]:
    """The float32 inputs and computed values."""
    made = [value for node in graph for value in node.outputs]
    return [value for value in (*graph.inputs, *made) if value.dtype == ir.DataType.FLOAT]


def _squared_error(graph: ir.Graph, value: ir.Value, limit: float, suffix: str) -> ir.Value:
    """The sum of squares that quantising the value is off by, computed as soon as the value is there."""
    name = f"{value.name}/limit_{suffix}"
    scale, zero = (
        ir.Value(name=f"{name}/{kind}", type=ir.TensorType(tensor.dtype), shape=ir.Shape([]), const_value=tensor)
        for kind, tensor in (("scale", ir.tensor(np.float32(limit / LARGEST_INT8))), ("zero", ir.tensor(np.int8(0))))
    )
    for constant in (scale, zero):
        graph.register_initializer(constant)
    whole = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}/quantised")
    back = ir.node("DequantizeLinear", [*whole.outputs, scale, zero], name=f"{name}/dequantised")
    off = ir.node("Sub", [value, *back.outputs], name=f"{name}/off")
    total = ir.node("ReduceSumSquare", off.outputs, {"keepdims": 0}, name=name)
    chain = [whole, back, off, total]
    for node in chain:
        node.outputs[0].name = node.name
    return _append(graph, value, chain)


def _reduce(graph: ir.Graph, op_type: str, value: ir.Value) -> ir.Value:
    """The value's smallest or largest element, computed as soon as the value is there."""
    node = ir.node(op_type, [value], {"keepdims": 0}, name=f"{value.name}/{op_type}")
    node.outputs[0].name = node.name
    return _append(graph, value, [node])


def _append(graph: ir.Graph, value: ir.Value, chain: Sequence[ir.Node]) -> ir.Value:
    """Put nodes behind the one that makes the value; returns the last one's scalar."""
    end = chain[-1].outputs[0]
    end.type, end.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], chain)
    else:
        graph.insert_after(producer, chain)
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
