"""What an NVIDIA compiler will refuse, or get wrong, of a graph: found without a GPU and without the compiler.

Every operator and type against the version's table (`edgevtx.export.operators`), restrictions of single operators,
shapes that depend on data, and the rows of `edgevtx.runtimes.known_bad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from edgevtx.export.operators import TENSORS, Operators, operators_of, versions
from edgevtx.export.rewrite.edit import ints, tensor_of
from edgevtx.export.rewrite.patterns import nodes_of
from edgevtx.runtimes.known_bad import REFUSE, WARN
from edgevtx.versions import in_range


@dataclass(frozen=True)
class Finding:
    """What is wrong with one node. `module` is the path of the module that made it; `remedy` says what to do.

    An "error" means no engine, or a wrong one; a "warning" what may be so.
    """

    node: str
    module: str
    what: str
    remedy: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = f"{self.node} in {self.module}" if self.module else self.node
        return f"{where}: {self.what}; {self.remedy}"


def preflight(model: ir.Model, target: str, version: str) -> tuple[Finding, ...]:
    """Everything that a version of "tensorrt" or "tensorrt-rtx" is expected to refuse or to get wrong of a graph.

    Raises `ExportError` for a target or version without a table.
    """
    table = operators_of(target, version)
    found = [*_check_opset(model, table)]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        found += _check_operator(node, table)
    found += _check_shapes(model)
    found += _check_known(model, target, version)
    return tuple(dict.fromkeys(found))


def preflight_file(path: Path, target: str, specifier: str) -> dict[str, tuple[Finding, ...]]:
    """The findings in a graph file for each version of the target in a range such as ">=10.3" that has its own table.

    Nothing for targets without tables. Weights are not read.
    """
    model = None
    found = {}
    for version in versions(target):
        if in_range(version, specifier):
            model = model or ir.load(path)
            found[version] = preflight(model, target, version)
    return found


def by_finding(found: dict[str, tuple[Finding, ...]]) -> dict[Finding, tuple[str, ...]]:
    """What `preflight_file` found, each with the versions that it concerns."""
    every = dict.fromkeys(item for items in found.values() for item in items)
    return {item: tuple(version for version, items in found.items() if item in items) for item in every}


def explain_findings(found: dict[str, tuple[Finding, ...]]) -> str:
    """The first error of `preflight_file` in a sentence, with the versions that have it and the number of others."""
    errors = {item: having for item, having in by_finding(found).items() if item.level == "error"}
    if not errors:
        return ""
    first, having = next(iter(errors.items()))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"preflight for {', '.join(having)}: {first}{more}"


def _finding(node: ir.Node, what: str, remedy: str, level: Literal["error", "warning"] = "error") -> Finding:
    name = node.name or node.op_type
    module, _, rest = name.partition("/")
    return Finding(name, module if rest else "", what, remedy, level)


# -- operators and types ---------------------------------------------------------------------------------------

_LEAVE_OUT = "leave it out of what is exported, or express it in other operators"
_CAST_64 = "cast to float32 before the export"
_QUANTISED = ("INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT4E2M1")

# operator -> its input whose type the table speaks of; 0 for all others, none where an attribute says the type
_TYPED_INPUT = {"Where": 1, "ConstantOfShape": None, "Constant": None}


def _check_opset(model: ir.Model, table: Operators) -> Iterator[Finding]:
    opset = model.opset_imports.get("", 0)
    if opset > table.opset:
        what = f"the graph declares opset {opset}, the parser is documented for {table.opset}"
        yield Finding("graph", "", what, "nothing to do while each operator means the same in both", "warning")


def _check_operator(node: ir.Node, table: Operators) -> Iterator[Finding]:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if node.domain != "" or node.op_type not in table.types:
        yield _finding(node, f"{table.target} does not have {name}", _LEAVE_OUT)
        return
    yield from _check_types(node, table)
    for restriction in RESTRICTIONS.get(node.op_type, ()):
        if what := restriction(node):
            yield _finding(node, f"{table.target} takes {node.op_type} {what}", _LEAVE_OUT)


def _check_types(node: ir.Node, table: Operators) -> Iterator[Finding]:
    allowed = table.types[node.op_type]
    for value in (*node.inputs, *node.outputs):
        kind = _kind(value)
        if kind in ("", *_QUANTISED) or kind in TENSORS:
            continue
        remedy = _CAST_64 if kind == "DOUBLE" else _LEAVE_OUT
        yield _finding(node, f"{table.target} has no tensors of type {kind.lower()}", remedy)
        return
    index = _TYPED_INPUT.get(node.op_type, 0)
    value = node.inputs[index] if index is not None and index < len(node.inputs) else None
    kind = _kind(value)
    # a uint8 tensor that is read by another operator than Cast is a row of the known-bad table
    if kind not in ("", "UINT8") and kind not in allowed:
        kinds = ", ".join(sorted(item.lower() for item in allowed))
        yield _finding(
            node, f"{table.target} takes {node.op_type} of {kinds}, this one is of {kind.lower()}", _LEAVE_OUT
        )


def _kind(value: ir.Value | None) -> str:
    """The name of a tensor's type, or "" where it is not known."""
    return "" if value is None or value.dtype is None else value.dtype.name


# -- restrictions of single operators --------------------------------------------------------------------------

Restriction = Callable[[ir.Node], str]


def _constant(index: int, name: str) -> Restriction:
    """An input that must be a constant, where it is given."""

    def check(node: ir.Node) -> str:
        value = node.inputs[index] if index < len(node.inputs) else None
        return "" if value is None or tensor_of(value) is not None else f"only with constant {name}"

    return check


def _attribute(name: str, allowed: Sequence[str | float], default: str | float) -> Restriction:
    """An attribute that must be one of these."""

    def check(node: ir.Node) -> str:
        found = node.attributes[name].value if name in node.attributes else default
        found = found.decode() if isinstance(found, bytes) else found
        return "" if found in allowed else f"only with {name} {' or '.join(map(str, allowed))}, not {found}"

    return check


def _one_output(node: ir.Node) -> str:
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    return "only with its first output" if used else ""


def _undilated(node: ir.Node) -> str:
    return "" if set(ints(node, "dilations", (1,))) == {1} else "only without dilations"


def _rank(index: int, rank: int) -> Restriction:
    def check(node: ir.Node) -> str:
        value = node.inputs[index] if index < len(node.inputs) else None
        shape = None if value is None else value.shape
        return "" if shape is None or len(shape) == rank else f"only of {rank}-dimensional tensors"

    return check


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")

RESTRICTIONS: dict[str, tuple[Restriction, ...]] = {
    "Attention": (_rank(0, 4), _rank(1, 4), _rank(2, 4), _one_output, _attribute("softcap", (0.0,), 0.0)),
    "AveragePool": (_undilated,),
    "BatchNormalization": (_attribute("training_mode", (0,), 0), _one_output),
    "CumSum": (_constant(1, "axis"),),
    "Dropout": (_constant(2, "training mode"),),
    "GridSample": (_rank(0, 4),),
    "LayerNormalization": (_one_output,),
    "MaxPool": (_undilated, _one_output),
    "OneHot": (_constant(1, "depth"),),
    "Resize": (
        _attribute("antialias", (0,), 0),
        _attribute("keep_aspect_ratio_policy", ("stretch",), "stretch"),
        _attribute("coordinate_transformation_mode", _COORDINATES, "half_pixel"),
    ),
    "ScatterND": (_attribute("reduction", ("none",), "none"),),
    "Squeeze": (_constant(1, "axes"),),
    "TopK": (_constant(1, "K"), _attribute("sorted", (1,), 1)),
    "Unsqueeze": (_constant(1, "axes"),),
    **{f"Reduce{name}": (_constant(1, "axes"),) for name in _REDUCTIONS},
}
"""Operator -> what each version of the parsers asks of it; a check says what it asks, or ""."""


# -- shapes that depend on data --------------------------------------------------------------------------------

_ROWS = ("NonMaxSuppression", "NonZero")  # the parsers know them; of the others of that kind (Unique, Compress) none
_FIXED_COUNT = "keep a fixed number of rows, as TopK does, and choose among them on the host"

# operator -> its inputs that say a shape
_SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
}
# what a shape may be computed with
_SHAPE_ARITHMETIC = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten", "Floor",
        "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg",
        "Not", "Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split",
        "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip


def _check_shapes(model: ir.Model) -> Iterator[Finding]:
    depends: dict[ir.Value, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "" and node.op_type in _ROWS:
            yield _finding(node, "how many rows it gives depends on the data", _FIXED_COUNT)
        for index in _SHAPE_INPUTS.get(node.op_type, ()) if node.domain == "" else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and (origin := _origin(value, depends)):
                yield _finding(node, f"its shape depends on the data of {origin}", _FIXED_COUNT)


def _origin(value: ir.Value, known: dict[ir.Value, str]) -> str:
    """What a value is computed of beside constants and shapes, or ""."""
    if value not in known:
        known[value] = ""
        node = value.producer()
        if tensor_of(value) is not None or (node is not None and node.op_type in ("Shape", "Size", "Constant")):
            return ""
        if node is None:
            known[value] = f"input {value.name}"
        elif node.op_type in _SHAPE_ARITHMETIC:
            origins = (_origin(item, known) for item in node.inputs if item is not None)
            known[value] = next((origin for origin in origins if origin), "")
        else:
            known[value] = node.name or node.op_type
    return known[value]


# -- what is known to go wrong ---------------------------------------------------------------------------------


def _check_known(model: ir.Model, target: str, version: str) -> Iterator[Finding]:
    for row, node in nodes_of(model, target, version):
        if row.remedy == WARN:
            gpus = f" on {', '.join(row.gpus)}" if row.gpus else ""
            yield _finding(node, f"may be wrong{gpus}: {row}", row.advice, "warning")
        else:
            yield _finding(node, str(row), row.advice if row.remedy == REFUSE else f"rewrite it: {row.remedy}")
