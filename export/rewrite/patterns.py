"""Patterns in graphs that `edgevtx.runtimes.known_bad` speaks of: which nodes of a graph have them.

What depends on a type counts in a float32 graph as well, since any of it may be lowered yet; in a typed graph it is
the type that the node has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgevtx.export.rewrite.edit import made_by, nodes, tensor_of
from edgevtx.runtimes.known_bad import KnownBad, find

LARGEST_K = 3840
LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
PRECISIONS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def precisions_of(model: ir.Model) -> tuple[str, ...]:
    """The precisions that a graph's types state: "fp32", unless something is of half precision or quantised."""
    types = {value.dtype for node in model.graph for value in node.outputs}
    found = [name for name, dtype in PRECISIONS.items() if dtype in types]
    found += ["int8"] if nodes(model, "QuantizeLinear", "DequantizeLinear") else []
    return tuple(found) or ("fp32",)


def rows_of(model: ir.Model, target: str, precisions: Sequence[str]) -> tuple[KnownBad, ...]:
    """What is known to go wrong with a graph in some version of a target, in one of the precisions."""
    rows = [row for row in find(target) if set(row.precisions) & set(precisions)]
    found = {pattern: PATTERNS[pattern](model) for pattern in {row.pattern for row in rows}}
    return tuple(row for row in rows if found[row.pattern])


def nodes_of(model: ir.Model, target: str, version: str) -> tuple[tuple[KnownBad, ir.Node], ...]:
    """What is known to go wrong with a graph in a version of a target, in its own precision, and with which nodes."""
    rows = dict.fromkeys(row for precision in precisions_of(model) for row in find(target, version, precision))
    return tuple((row, node) for row in rows for node in PATTERNS[row.pattern](model))


# -- by operator -----------------------------------------------------------------------------------------------


def _grid_samples(model: ir.Model) -> list[ir.Node]:
    return nodes(model, "GridSample")


def _grid_samples_linear(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in nodes(model, "GridSample")
        if "mode" in node.attributes and node.attributes["mode"].as_string() in ("linear", "cubic")
    ]


def _attentions(model: ir.Model) -> list[ir.Node]:
    return nodes(model, "Attention")


def _cumulative_sums(model: ir.Model) -> list[ir.Node]:
    return nodes(model, "CumSum")


def _parallel_products(model: ir.Model) -> list[ir.Node]:
    """Products of one tensor with several weights: query, key and value."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in nodes(model, "MatMul", "Gemm"):
        value, weight = node.inputs[:2]
        if value is not None and _is_weight(weight):
            readers[value].append(node)
    return [node for found in readers.values() if len(found) > 1 for node in found]


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or one that a typed graph casts or quantises."""
    while value is not None and tensor_of(value) is None:
        made = value.producer()
        typing = made is not None and made.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear")
        value = made.inputs[0] if made is not None and typing else None
    return value is not None


def _wide_top_ks(model: ir.Model) -> list[ir.Node]:
    found = []
    for node in nodes(model, "TopK"):
        count = tensor_of(node.inputs[1])
        if count is not None and int(count.numpy().item()) > LARGEST_K:
            found.append(node)
    return found


def _uint8_readers(model: ir.Model) -> list[ir.Node]:
    quantising = ("QuantizeLinear", "DequantizeLinear")  # their zero points are a pattern of their own
    return [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type not in ("Cast", *quantising)
        and any(value is not None and value.dtype == ir.DataType.UINT8 for value in node.inputs)
    ]


def _zero_points(model: ir.Model) -> list[ir.Node]:
    found = []
    for node in nodes(model, "QuantizeLinear", "DequantizeLinear"):
        point = node.inputs[2] if len(node.inputs) > 2 else None
        if point is not None and not _is_symmetric(point):
            found.append(node)
    return found


def _is_symmetric(point: ir.Value) -> bool:
    tensor = tensor_of(point)
    return tensor is not None and tensor.dtype != ir.DataType.UINT8 and not tensor.numpy().astype("float32").any()


# -- by type ---------------------------------------------------------------------------------------------------


def softmaxes_low(model: ir.Model) -> list[ir.Node]:
    """Softmax in half precision."""
    return _low(model, nodes(model, "Softmax"))


def conv_transposes_low(model: ir.Model) -> list[ir.Node]:
    """ConvTranspose in half precision."""
    return _low(model, nodes(model, "ConvTranspose"))


def depthwise_convs_low(model: ir.Model) -> list[ir.Node]:
    """Conv in half precision that has a group for each of its channels."""
    return _low(model, [node for node in nodes(model, "Conv") if _is_depthwise(node)])


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return groups > 1 and weight is not None and weight.shape is not None and weight.shape[0] == groups


def _low(model: ir.Model, found: list[ir.Node]) -> list[ir.Node]:
    """Those that run in half precision; in a graph that has none of it, all: they may be lowered yet."""
    if not found or not set(PRECISIONS) & set(precisions_of(model)):
        return found
    return [node for node in found if node.outputs[0].dtype in LOW]


# -- layer norms in single operators ---------------------------------------------------------------------------


@dataclass(frozen=True)
class DecomposedNorm:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon). `square` and `quotient` are its nodes."""

    x: ir.Value
    square: ir.Node
    quotient: ir.Node
    epsilon: float | None
    last_axis: bool


def decomposed_norms(model: ir.Model) -> list[DecomposedNorm]:
    """Every layer norm of a graph that is written in single operators."""
    return [norm for node in nodes(model, "Sqrt") if (norm := _decomposed_norm(node))]


def _decomposed_norm(root: ir.Node) -> DecomposedNorm | None:
    total = made_by(root.inputs[0], "Add")
    if total is None:
        return None
    variance, epsilon = _of_two(total, "ReduceMean")
    square = variance.inputs[0].producer() if variance is not None and variance.inputs[0] is not None else None
    if variance is None or square is None or square.op_type not in ("Pow", "Mul") or not _is_square(square):
        return None
    difference = made_by(square.inputs[0], "Sub")
    mean = made_by(difference.inputs[1], "ReduceMean") if difference is not None else None
    if difference is None or mean is None or mean.inputs[0] is not difference.inputs[0] or mean.inputs[0] is None:
        return None
    quotient = _quotient(root, difference.outputs[0])
    if quotient is None:
        return None
    tensor = tensor_of(epsilon)
    rank = len(mean.inputs[0].shape) if mean.inputs[0].shape is not None else None
    return DecomposedNorm(
        x=mean.inputs[0],
        square=square,
        quotient=quotient,
        epsilon=float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None,
        last_axis=all(_axes(node) in ((-1,), (rank and rank - 1,)) for node in (mean, variance)),
    )


def _of_two(node: ir.Node, op_type: str) -> tuple[ir.Node | None, ir.Value | None]:
    """The input of a node of two that a node of this type makes, and the other input."""
    first, second = node.inputs
    made = made_by(first, op_type)
    return (made, second) if made is not None else (made_by(second, op_type), first)


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    power = tensor_of(node.inputs[1])
    return power is not None and power.size == 1 and float(power.numpy().item()) == 2


def _quotient(root: ir.Node, difference: ir.Value) -> ir.Node | None:
    """difference / root, or difference * (1 / root)."""
    for use in root.outputs[0].uses():
        node = use.node
        if node.op_type == "Div" and node.inputs[0] is difference:
            return node
        if node.op_type == "Reciprocal":
            products = [item.node for item in node.outputs[0].uses() if item.node.op_type == "Mul"]
            return next((product for product in products if difference in product.inputs), None)
    return None


def _axes(node: ir.Node) -> tuple[int, ...]:
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    tensor = tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return () if tensor is None else tuple(int(axis) for axis in tensor.numpy())


def _layer_norms_decomposed(model: ir.Model) -> list[ir.Node]:
    return _low(model, [norm.square for norm in decomposed_norms(model)])


PATTERNS: dict[str, Callable[[ir.Model], list[ir.Node]]] = {
    "grid-sample": _grid_samples,
    "grid-sample-linear": _grid_samples_linear,
    "attention": _attentions,
    "cumsum": _cumulative_sums,
    "parallel-products": _parallel_products,
    "softmax-low": softmaxes_low,
    "conv-transpose-low": conv_transposes_low,
    "depthwise-conv-low": depthwise_convs_low,
    "layer-norm-decomposed": _layer_norms_decomposed,
    "uint8-reader": _uint8_readers,
    "wide-top-k": _wide_top_ks,
    "zero-point": _zero_points,
}
"""Pattern of `KnownBad.pattern` -> the nodes of a graph that have it."""
