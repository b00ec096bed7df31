"""Symmetric int8: a pair of QuantizeLinear and DequantizeLinear on both sides of the products with weights.

TensorRT and TensorRT-RTX multiply in int8 where both operands of a product come from such pairs, and fold those of the
weights. Scales are one a tensor for activations and one an output channel for weights, zero points are 0:
Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020, sec. 3.

Quantised are the projections of attention, the MLPs and the convolutions. Attention's own two products stay as they
are: no weights are saved there, one scale for all probabilities loses the small ones, the scores go through an
exponential, and TensorRT has fused attention in int8 for few tokens alone (NVIDIA/TensorRT#3724). So do the heads: the
last products before a value that needs its digits. Where that product has no weights, as a mask's (a query times the
map of features), it is the head, and the layers that make its two operands are quantised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgevtx.export.ranges import LARGEST_INT8, PRODUCTS, Range
from edgevtx.export.rewrite.edit import Array, constant, insert, made_by, nodes, tensor_of
from edgevtx.export.rewrite.low_precision import exact_uses, lower_precision, walk_back
from edgevtx.runtimes import precision

NARROW = 4
"""Products that sum over no more channels than this are not quantised: an image's colours, a box's coordinates, a
channel of its own (depthwise). There is little to gain, and what the first layer loses of an image is lost to all."""

NOMINAL = 64
"""A dynamic dimension's size when products are weighed."""

LEAST_STEP = float(np.finfo(np.float16).tiny)
"""The least scale that half precision has at full accuracy; below are subnormal numbers, which not all kernels know."""


def quantize(
    model: ir.Model,
    ranges: Mapping[str, Range],
    limits: Mapping[str, float],
    keep: Iterable[str] = (),
    unquantised: Iterable[str] = (),
) -> int:
    """Quantise a float32 graph in place; returns how many products read int8.

    What is not quantised runs in fp16 as `lower_precision` has it, with the same `ranges` and `keep`; a product whose
    scales are too small for half precision is int8 among float32. `limits` are the largest magnitudes that int8 stands
    for, by the name of the activation (see `edgevtx.export.ranges.choose_limits`); what has none is left alone, and so
    are nodes whose names match one of the regular expressions `keep` and `unquantised`. Weights stay float32 and are
    quantised in the graph (compilers fold that), so that graphs of all precisions share them.
    """
    keep = tuple(keep)
    patterns = [re.compile(pattern) for pattern in (*keep, *unquantised)]
    chosen = {  # their operands' magnitudes, before anything is cast
        node: (np.float64(limits[name]), _largest(node))
        for node, name in _quantisable(model).items()
        if name in limits and not any(pattern.search(node.name or "") for pattern in patterns)
    }
    fine = [rf"^{re.escape(node.name or '')}$" for node, magnitudes in chosen.items() if _is_fine(magnitudes)]
    lower_precision(model, "fp16", ranges, [*keep, *fine])
    pairs: dict[tuple[ir.Value, int | None], ir.Value] = {}
    for node, magnitudes in chosen.items():
        for index, (largest, axis) in enumerate(zip(magnitudes, (None, _output_axis(node)), strict=True)):
            value = node.inputs[index]
            assert value is not None  # a product has both operands
            if (value, axis) not in pairs:
                pairs[value, axis] = _pair(node, value, largest, axis)
            node.replace_input_with(index, pairs[value, axis])
    return len(chosen)


def activations(model: ir.Model) -> list[str]:
    """The names of the values in a float32 graph that `quantize` may want a limit of."""
    return list(dict.fromkeys(_quantisable(model).values()))


def int8_share(model: ir.Model) -> float:
    """The share of a graph's multiply-adds that read int8, as compilers weigh them; 1 of a graph without products."""
    model = ShapeInferencePass()(model.clone()).model  # what a rewrite inserted has no shape yet
    work = [
        ("i8" if all(made_by(value, "DequantizeLinear") for value in node.inputs[:2]) else "", _work(node))
        for node in nodes(model, *PRODUCTS)
    ]
    return precision.shares(work).get("i8", 0.0) if work else 1.0


def _work(node: ir.Node) -> int:
    first, weights, out = (_sizes(value) for value in (*node.inputs[:2], node.outputs[0]))
    if node.op_type == "Conv":
        return precision.convolution_work(weights, out)
    if node.op_type == "ConvTranspose":
        return precision.convolution_work(weights, first)
    return precision.product_work(first, out)


def _sizes(value: ir.Value | None) -> list[int]:
    """A value's shape, with `NOMINAL` for what is dynamic; one row where the batch is."""
    shape = value.shape if value is not None and value.shape is not None else ()
    return [size if isinstance(size, int) else (NOMINAL if axis else 1) for axis, size in enumerate(shape)]


# -- which products --------------------------------------------------------------------------------------------


def _quantisable(model: ir.Model) -> dict[ir.Node, str]:
    """The products of a float32 graph that can be quantised, with the names of their activations."""
    heads = walk_back(exact_uses(model), ends=frozenset({"Conv"}), through=_is_in_head)
    return {
        node: str(node.inputs[0].name)
        for node in nodes(model, "Conv", "Gemm", "MatMul")
        if node.inputs[0] is not None and _is_wide(node) and node not in heads
    }


def _is_in_head(node: ir.Node) -> bool:
    """Whether a node before a head's end is part of it: a layer of a perceptron, or the best of the classes' scores."""
    return node.op_type == "ReduceMax" or (node.op_type in ("Gemm", "MatMul") and _has_weight(node))


def _has_weight(node: ir.Node) -> bool:
    weight = tensor_of(node.inputs[1])
    return (
        weight is not None
        and weight.dtype == ir.DataType.FLOAT
        and tensor_of(node.inputs[0]) is None
        and (node.op_type == "Conv" or len(weight.shape) == 2)
    )


def _is_wide(node: ir.Node) -> bool:
    if not _has_weight(node):
        return False
    shape = _weight(node).shape.numpy()
    return shape[1 if node.op_type == "Conv" else 1 - _output_axis(node)] > NARROW


def _weight(node: ir.Node) -> ir.TensorProtocol:
    weight = tensor_of(node.inputs[1])
    assert weight is not None  # `_has_weight` was asked
    return weight


def _output_axis(node: ir.Node) -> int:
    """The axis of the weights along which each output channel has a slice of its own."""
    turned = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return 0 if node.op_type == "Conv" or turned else 1


# -- pairs -----------------------------------------------------------------------------------------------------


def _largest(node: ir.Node) -> Array:
    """The largest magnitude of the weights of each output channel."""
    weight, axis = _weight(node).numpy(), _output_axis(node)
    return np.asarray(np.abs(weight).max(axis=tuple(other for other in range(weight.ndim) if other != axis)))


def _is_fine(magnitudes: Iterable[Array | np.float64]) -> bool:
    """Whether a step is too small for half precision; a channel of nothing but zeros needs none."""
    steps = np.concatenate([np.ravel(largest) for largest in magnitudes]) / LARGEST_INT8
    return bool(((steps > 0) & (steps < LEAST_STEP)).any())


def _pair(node: ir.Node, value: ir.Value, largest: Array | np.float64, axis: int | None) -> ir.Value:
    """The value as int8 and back, ahead of the product `node` and in the type that it computes in."""
    kind = node.outputs[0].dtype
    assert kind is not None  # a rewrite's graph has been inferred
    side = "activation" if axis is None else "weight"
    # a channel of nothing but zeros has a scale too
    steps = np.maximum(largest / LARGEST_INT8, np.finfo(kind.numpy()).tiny).astype(kind.numpy())
    scale = constant(node, f"{side}/scale", steps)
    zero = constant(node, f"{side}/zero", np.zeros(steps.shape, np.int8))
    along: dict[str, Any] = {} if axis is None else {"axis": axis}
    whole = insert(node, "QuantizeLinear", [value, scale, zero], f"{side}/quantised", dtype=ir.DataType.INT8, **along)
    back = insert(node, "DequantizeLinear", [whole, scale, zero], f"{side}/dequantised", **along)
    whole.shape = back.shape = value.shape
    return back
