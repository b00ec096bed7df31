"""A graph of half precision, rehearsed on a processor that computes in float32.

No device is needed to see where a lower precision overflows or loses too much: a graph of float32 that rounds each
tensor to the lower type, and back, has the values that a device would have which multiplies in that type and adds up in
float32. What is quantised to int8 is so here as well. The graph of half precision itself shows nothing here: ONNX
Runtime and OpenVINO compute it in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevtx.compare.tolerance import TOLERANCES, error_of
from edgevtx.export.evaluate import Evaluate, open_model
from edgevtx.export.rewrite.attention import spelled_out
from edgevtx.export.rewrite.edit import constant, insert, made_by, nodes, remove, replace
from edgevtx.export.rewrite.low_precision import MOVES, TYPES
from edgevtx.runtimes.base import Arrays

_PRECISIONS = {kind: precision for precision, kind in TYPES.items()}
_BLOCK = "block"  # of a rounding, in its node's own notes


@dataclass(frozen=True)
class Rehearsal:
    """What a graph of lower precision did, by block: the path of a module, to its last numbered one.

    `errors`: of each block that rounds, in the order of computation, how far what it hands on is from the exact
    graph's, in standard deviations (see `edgevtx.compare.tolerance.error_of`); infinite where it is not finite.
    `overflows`: how many of its tensors are the first not to be finite. `outputs`: the answers, one for each input.
    """

    precision: str
    errors: dict[str, float]
    overflows: dict[str, int]
    outputs: tuple[Arrays, ...]

    @property
    def diverging(self) -> tuple[str, ...]:
        """The blocks where it goes wrong: those that overflow, else the first whose error exceeds the tolerance."""
        limit = TOLERANCES[self.precision].values
        beyond = [block for block, error in self.errors.items() if not error <= limit]
        return tuple(self.overflows) or tuple(beyond[:1])


def block_of(name: str) -> str:
    """The block of a node: "model.layer.3.attention.query/MatMul" is in "model.layer.3", "head/Gemm" in "head"."""
    parts = name.split("/")[0].split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[-1] + 1] if numbered else parts)


def widen(model: ir.Model) -> ir.Model:
    """The typed graph in float32 throughout; nothing is quantised."""
    return _in_float32(model, rounded=False)


def simulate(model: ir.Model) -> ir.Model:
    """The typed graph in float32 arithmetic, each tensor rounded to the type that it has there.

    Operators that are several on a device (Gelu, LayerNormalization, Attention, ...) are spelled out where they run
    low, so that what they compute on the way is rounded as well, and overflows. To be run with every optimisation off,
    so that no pair of casts is dropped. Values keep their names.
    """
    return _in_float32(model, rounded=True)


def rehearse(exact: ir.Model, typed: ir.Model, precision: str, feeds: Sequence[Arrays]) -> Rehearsal:
    """Run a typed graph as `simulate` has it beside the float32 graph it was made from, on inputs by name.

    `precision` is what it was made for, which its types do not tell: a file may quantise before it is typed.
    """
    trial = simulate(typed)
    sums = _add_sums(trial)
    rounding = {node.meta[_BLOCK] for node in sums}
    rounding |= {block_of(node.name or "") for node in nodes(trial, "QuantizeLinear")}
    handed = {name: block for name, block in _handed_on(exact).items() if block in rounding}
    answers = [str(value.name) for value in exact.graph.outputs]
    run_exact, run_trial = _open(exact, handed), _open(trial, [*answers, *handed, *sums.values()])
    errors: dict[str, float] = {}
    overflows: dict[str, int] = {}
    outputs = []
    for feed in feeds:
        expected, found = run_exact(feed), run_trial(feed)
        outputs.append({name: found[name] for name in answers})
        for name, block in handed.items():
            errors[block] = max(errors.get(block, 0.0), error_of(expected[name], found[name]))
        for node in _first_of(trial, {node for node, name in sums.items() if not np.isfinite(found[name])}):
            block = node.meta[_BLOCK]
            overflows[block] = overflows.get(block, 0) + 1
    return Rehearsal(precision, errors, overflows, tuple(outputs))


def _handed_on(model: ir.Model) -> dict[str, str]:
    """What each block computes for others: the values' names, and their blocks."""
    found = {}
    for node in model.graph:
        block = block_of(node.name or "")
        for value in node.outputs:
            readers = {block_of(use.node.name or "") for use in value.uses()}
            if value.dtype == ir.DataType.FLOAT and (value.is_graph_output() or readers - {block}):
                found[str(value.name)] = block
    return found


def _add_sums(model: ir.Model) -> dict[ir.Node, str]:
    """Behind each rounding the sum of its magnitudes, by name: no number where one of them is none or infinite."""
    found = {}
    for node in list(model.graph):
        if _BLOCK in node.meta:
            name = f"{node.outputs[0].name}/sum"
            total = ir.node("ReduceL1", node.outputs, {"keepdims": 0}, name=name)
            total.outputs[0].name, total.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
            model.graph.insert_after(node, total)
            found[node] = name
    return found


def _first_of(model: ir.Model, wild: set[ir.Node]) -> list[ir.Node]:
    """Those of the nodes that depend on no other of them."""
    reached: set[ir.Node | None] = set()
    found = []
    for node in model.graph:
        behind = any(value is not None and value.producer() in reached for value in node.inputs)
        if node in wild and not behind:
            found.append(node)
        if node in wild or behind:
            reached.add(node)
    return found


def _open(model: ir.Model, names: Iterable[str]) -> Evaluate:
    shown = model.clone()
    values = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs.clear()
    shown.graph.outputs.extend(values[name] for name in dict.fromkeys(names))
    return open_model(shown)


# -- lower types as float32 ------------------------------------------------------------------------------------


def _in_float32(model: ir.Model, *, rounded: bool) -> ir.Model:
    model = model.clone()
    if rounded:
        _spell_out(model)
    else:
        _drop_pairs(model)
    for value in model.graph.initializers.values():  # scales
        if value.dtype in _PRECISIONS and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(model.graph):
        for value in node.outputs:
            kind = value.dtype
            if kind not in _PRECISIONS:
                continue
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            if rounded and node.op_type not in MOVES:
                _round(model.graph, node, value, kind)
    return model


def _drop_pairs(model: ir.Model) -> None:
    for node in nodes(model, "DequantizeLinear"):
        made = made_by(node.inputs[0], "QuantizeLinear")
        if made is not None and made.inputs[0] is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], made.inputs[0])
            remove(node)
            if not made.outputs[0].uses():
                remove(made)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    """Let everything read the value as the type would hold it. What overflows in a cast is its reader's matter."""
    uses = tuple(value.uses())
    owner = uses[0].node if node.op_type == "Cast" and uses else node
    low = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}/low")
    back = ir.node("Cast", low.outputs, {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/rounded")
    back.meta[_BLOCK] = block_of(owner.name or "")
    back.outputs[0].name, value.name, low.outputs[0].name = value.name, f"{value.name}/exact", low.name
    back.outputs[0].type, low.outputs[0].type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(kind)
    back.outputs[0].shape = low.outputs[0].shape = value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, back.outputs[0])
    graph.insert_after(node, [low, back])


# -- operators that are several --------------------------------------------------------------------------------


def _spell_out(model: ir.Model) -> None:
    for node in nodes(model, *_COMPOSITES):
        if node.outputs[0].dtype in _PRECISIONS:
            name, value = node.outputs[0].name, _COMPOSITES[node.op_type](node)
            replace(node, value)
            value.name = name


def _gelu(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
    if tanh:
        cube = insert(node, "Mul", [insert(node, "Mul", [x, x], "square"), x], "cube")
        bent = insert(node, "Add", [x, _times(node, cube, 0.044715, "small")], "bent")
        gate = insert(node, "Tanh", [_times(node, bent, math.sqrt(2 / math.pi), "scaled")], "tanh")
    else:
        gate = insert(node, "Erf", [_times(node, x, math.sqrt(0.5), "scaled")], "erf")
    share = insert(node, "Add", [gate, _number(node, "one", 1.0)], "share")
    return insert(node, "Mul", [_times(node, x, 0.5, "half"), share], "gelu")


def _hard_swish(node: ir.Node) -> ir.Value:
    gate = insert(node, "HardSigmoid", node.inputs, "gate", alpha=1 / 6, beta=0.5)
    return insert(node, "Mul", [node.inputs[0], gate], "hard_swish")


def _softmax(node: ir.Node) -> ir.Value:
    axis = [node.attributes["axis"].as_int() if "axis" in node.attributes else -1]
    shifted = insert(node, "Sub", [node.inputs[0], _reduce(node, "ReduceMax", node.inputs[0], axis)], "shifted")
    weights = insert(node, "Exp", [shifted], "exp")
    return insert(node, "Div", [weights, _reduce(node, "ReduceSum", weights, axis)], "softmax")


def _layer_norm(node: ir.Node) -> ir.Value:
    x, (scale, bias) = node.inputs[0], (*node.inputs[1:], None)[:2]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    assert x is not None and x.shape is not None  # a norm's axes are counted from a known rank
    axes = list(range(axis % len(x.shape), len(x.shape)))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    centred = insert(node, "Sub", [x, _reduce(node, "ReduceMean", x, axes)], "centred")
    square = insert(node, "Mul", [centred, centred], "square")
    variance = _reduce(node, "ReduceMean", square, axes, "variance")
    steady = insert(node, "Add", [variance, _number(node, "epsilon", epsilon)], "steady")
    normal = insert(node, "Div", [centred, insert(node, "Sqrt", [steady], "deviation")], "normal")
    scaled = insert(node, "Mul", [normal, scale], "scaled")
    return scaled if bias is None else insert(node, "Add", [scaled, bias], "shifted")


_COMPOSITES: dict[str, Callable[[ir.Node], ir.Value]] = {
    "Attention": spelled_out,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
}


def _reduce(node: ir.Node, op_type: str, x: ir.Value | None, axes: list[int], suffix: str = "") -> ir.Value:
    return insert(node, op_type, [x, constant(node, "axes", np.array(axes))], suffix or op_type)


def _times(node: ir.Node, x: ir.Value | None, factor: float, suffix: str) -> ir.Value:
    return insert(node, "Mul", [x, _number(node, f"{suffix}_by", factor)], suffix)


def _number(node: ir.Node, suffix: str, value: float) -> ir.Value:
    return constant(node, suffix, np.float32(value))
