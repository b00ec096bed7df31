"""Casts: a graph whose matrix products run in half precision, and whose other arithmetic keeps float32 where it must.

TensorRT 11 and TensorRT-RTX build strongly typed networks alone: each operator runs in the type that the graph gives
it. Products run low. What follows a product runs low too, as far as it only moves values or combines them one by one.
All else is float32: norms, softmax, reductions, exponentials and roots, selections; and whatever lies between the last
product and a value whose use needs its digits (`_EXACT_USES`): attention scores, a place that is sampled, an index, a
box before its logarithm, an output. A box that moves by one part in 2048, which is what half precision keeps of it,
moves by a third of a pixel in 640.

What adds up must not overflow on the way either. Reductions are float32. In which type a product of half precision adds
up is the compiler's choice: TensorRT picks it by speed, and promises no more range than the inputs have (NVIDIA,
"Precision Control", of matrix multiplications). So a product keeps float32 where the magnitudes that an element adds up
come near the limit, though they may cancel in the end.

Micikevicius et al., "Mixed Precision Training", 2018, sec. 3: products in half precision, reductions in single.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgevtx.export.ranges import PRODUCTS, Range
from edgevtx.export.rewrite.edit import ints, nodes, tensor_of

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precision -> the type that its tensors have."""

LARGEST = {"fp16": 65504.0, "bf16": 3.3895314e38}
"""The largest finite value of each type."""

MARGIN = 4.0
"""What was measured on a few images may be exceeded on others by so much before it overflows."""

MOVES = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
        "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that compute nothing."""

FOLLOWERS = MOVES | {
    "Abs", "Add", "AveragePool", "Clip", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max",
    "MaxPool", "Min", "Mul", "Neg", "PRelu", "Relu", "Resize", "Sigmoid", "Sub", "Sum", "Tanh", "Where",
}  # fmt: skip
"""Operators that run low where one of their inputs is low."""

# elementwise too, or a choice among elements, and never low
_EXACT_ELEMENTWISE = frozenset(
    {
        "Ceil", "Div", "Elu", "Exp", "Floor", "Log", "Mod", "Pow", "Reciprocal", "ReduceMax", "ReduceMin", "Round",
        "Softplus", "Sqrt",
    }
)  # fmt: skip

# operator -> its inputs whose every digit counts
_EXACT_USES = {
    "ArgMax": (0,),
    "Equal": (0, 1),
    "Greater": (0, 1),
    "GreaterOrEqual": (0, 1),
    "GridSample": (1,),
    "Less": (0, 1),
    "LessOrEqual": (0, 1),
    "Log": (0,),
    "LogSoftmax": (0,),
    "Softmax": (0,),
    "TopK": (0,),
}
# ... so much that the product that made them counts as well: the phase of a wave may be many turns
_PHASES = ("Cos", "Sin")

BFLOAT16_OPSET = 22  # the first whose Conv, MaxPool and HardSwish know bfloat16; from 20 on no meaning changed


@dataclass(frozen=True)
class Typed:
    """A graph in a lower precision. `kept_fp32` are the modules that had to keep float32 as a whole, `unquantised`
    those of an int8 graph that had to keep half precision."""

    model: ir.Model
    kept_fp32: tuple[str, ...] = ()
    unquantised: tuple[str, ...] = ()


GiveTypes = Callable[[ir.Model, Sequence[str]], dict[str, Typed]]
"""(a float32 graph, precisions) -> the graph in each of them; the one given is left as it is."""


def lower_precision(model: ir.Model, precision: str, ranges: Mapping[str, Range], keep: Iterable[str] = ()) -> int:
    """Type a float32 graph in place as "fp16" or "bf16"; returns how many operators run low.

    `ranges` are the measured ones, by value (see `edgevtx.export.ranges`): an operator that reads, sums up or gives
    more than the type's largest value over `MARGIN` keeps float32; without a range nothing is known against it. So do
    the nodes whose names, which begin with their module's path, match one of the regular expressions `keep`. The
    graph's inputs and outputs keep their types; weights stay float32 and are cast in the graph (compilers fold that),
    so that graphs of all precisions share them.
    """
    opset = _opset_for(model, precision)
    low = _choose(model, precision, opset, ranges, [re.compile(pattern) for pattern in keep])
    if any(not _allows(node, precision, model.opset_imports[""]) for node in low):
        model.opset_imports[""] = opset
    _place_casts(model.graph, low, TYPES[precision], precision, opset)
    return len(low)


def by_operators(exact: ir.Model, precisions: Sequence[str]) -> dict[str, Typed]:
    """The graph in each of the precisions, by its operators alone: nothing is measured, and nothing tried.

    Without "int8", whose scales are measured.
    """
    found = {precision: Typed(exact.clone()) for precision in precisions if precision in TYPES}
    for precision, typed in found.items():
        lower_precision(typed.model, precision, {})
    return found


# -- which operators run low -----------------------------------------------------------------------------------


def _choose(
    model: ir.Model, precision: str, opset: int, ranges: Mapping[str, Range], keep: Sequence[re.Pattern[str]]
) -> dict[ir.Node, None]:
    limit = LARGEST[precision] / MARGIN
    exact = _exact_nodes(model)
    low: dict[ir.Node, None] = {}
    for node in nodes(model, *PRODUCTS, *FOLLOWERS):
        read = [node.inputs[index] for index in _typed_inputs(node, opset)]
        asked = node.op_type in PRODUCTS or any(value is not None and value.producer() in low for value in read)
        if (
            asked
            and node not in exact
            and _allows(node, precision, opset)
            and all(_is_float(value) for value in (*node.outputs, *read) if value is not None)
            and all(_size(value, ranges) <= limit for value in (*node.outputs, *read))
            and _summed(node, ranges) <= limit
            and not any(pattern.search(node.name or "") for pattern in keep)
        ):
            low[node] = None
    return low


def _exact_nodes(model: ir.Model) -> set[ir.Node]:
    """The elementwise nodes between the uses that need every digit and the products before them."""
    phases = [node.inputs[0] for node in nodes(model, *_PHASES)]
    return walk_back(phases, ends=PRODUCTS) | walk_back(exact_uses(model))


def exact_uses(model: ir.Model) -> list[ir.Value | None]:
    """The values of a float32 graph that are used for their every digit; its outputs are among them."""
    uses = [node.inputs[index] for node in nodes(model, *_EXACT_USES) for index in _EXACT_USES[node.op_type]]
    uses += [node.inputs[0] for node in nodes(model, "Cast") if not _is_float(node.outputs[0])]
    return [*uses, *model.graph.outputs]


def walk_back(
    values: Sequence[ir.Value | None],
    *,
    ends: frozenset[str] = frozenset(),
    through: Callable[[ir.Node], bool] = lambda node: False,
) -> set[ir.Node]:
    """Every node that leads to the values through elementwise operators and those that `through` accepts, and the nodes
    of the types `ends` before them."""
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None and _is_float(value) else None
        if node is None or node in found or node.domain != "":
            continue
        if node.op_type in FOLLOWERS or node.op_type in _EXACT_ELEMENTWISE or through(node):
            found.add(node)
            waiting += node.inputs
        elif node.op_type in ends:
            found.add(node)
    return found


def _size(value: ir.Value | None, ranges: Mapping[str, Range]) -> float:
    """The largest magnitude of a value: a constant's own, or what was measured."""
    if value is None:
        return 0.0
    tensor = tensor_of(value)
    if tensor is not None:
        return float(np.abs(tensor.numpy()).max(initial=0.0))
    measured = ranges.get(value.name or "")
    return measured.largest if measured else 0.0


def _summed(node: ir.Node, ranges: Mapping[str, Range]) -> float:
    """The most that a node comes to while it adds up: of a product as measured, of pooling a window of the largest."""
    if node.op_type == "AveragePool":
        return prod(ints(node, "kernel_shape", ())) * _size(node.inputs[0], ranges)
    measured = ranges.get(node.outputs[0].name or "")
    return measured.summed if measured else 0.0


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


# -- what ONNX and compilers allow -----------------------------------------------------------------------------


def _opset_for(model: ir.Model, precision: str) -> int:
    declared = model.opset_imports[""]
    return max(declared, BFLOAT16_OPSET) if precision == "bf16" and declared >= 20 else declared


@cache
def _schema(op_type: str, opset: int) -> Any:
    return onnx.defs.get_schema(op_type, opset)


def _allows(node: ir.Node, precision: str, opset: int) -> bool:
    schema = _schema(node.op_type, opset)
    kind = schema.outputs[0].type_str
    allowed = next(item.allowed_type_strs for item in schema.type_constraints if item.type_param_str == kind)
    return f"tensor({TYPES[precision].name.lower()})" in allowed


def _typed_inputs(node: ir.Node, opset: int) -> list[int]:
    """The inputs that have the type of the output; Resize's scales and Gather's indices have their own."""
    schema = _schema(node.op_type, opset)
    last = len(schema.inputs) - 1
    kind = schema.outputs[0].type_str
    return [index for index in range(len(node.inputs)) if schema.inputs[min(index, last)].type_str == kind]


# -- casts -----------------------------------------------------------------------------------------------------


def _place_casts(graph: ir.Graph, low: Iterable[ir.Node], kind: ir.DataType, precision: str, opset: int) -> None:
    """One cast for each value whose type is not what some reader wants."""
    running = set(low)
    lowered = {value for node in running for value in node.outputs}
    casts: dict[ir.Value, ir.Value] = {}
    for made in lowered:
        made.type = ir.TensorType(kind)
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        typed = _typed_inputs(node, opset) if node in running else ()
        for index, value in enumerate(node.inputs):
            if value is None or (value in lowered) == (index in typed) or not (_is_float(value) or value in lowered):
                continue
            if value not in casts:
                to = ("fp32", ir.DataType.FLOAT) if value in lowered else (precision, kind)
                casts[value] = _cast(graph, value, *to, reader=node)
            node.replace_input_with(index, casts[value])
    for index, answer in enumerate(graph.outputs):
        if answer in lowered:
            name, answer.name = answer.name, f"{answer.name}/{precision}"
            graph.outputs[index] = casts.get(answer) or _cast(graph, answer, "fp32", ir.DataType.FLOAT)
            graph.outputs[index].name = name


def _cast(
    graph: ir.Graph, value: ir.Value, suffix: str, kind: ir.DataType, *, reader: ir.Node | None = None
) -> ir.Value:
    """A cast of the value right behind the node that makes it; of a weight or an input, ahead of its first reader."""
    node = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}/{suffix}")
    made = node.outputs[0]
    made.name, made.type, made.shape = node.name, ir.TensorType(kind), value.shape
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(reader if reader is not None and reader.graph is graph else graph[0], node)
    return made
