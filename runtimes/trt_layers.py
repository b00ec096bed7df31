"""What a typed TensorRT network computes in: each layer's type, weighed by multiply-adds.

Networks are strongly typed, so the compiler keeps these types; which products run in int8 follows from what feeds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgevtx.runtimes import precision
from edgevtx.runtimes.base import TensorSpec
from edgevtx.runtimes.plan import PlanLayer

# the package's name of a type -> (ours, numpy's)
TYPES = {
    "FLOAT": ("f32", "float32"), "HALF": ("f16", "float16"), "BF16": ("bf16", "bfloat16"), "INT8": ("i8", "int8"),
    "FP8": ("f8", "float8"), "INT4": ("i4", "int4"), "FP4": ("f4", "float4"), "INT32": ("i32", "int32"),
    "INT64": ("i64", "int64"), "UINT8": ("u8", "uint8"), "BOOL": ("bool", "bool"),
}  # fmt: skip

# the kinds that only move or make data
_MOVING = (
    "CONSTANT", "SHUFFLE", "CAST", "IDENTITY", "SLICE", "CONCATENATION", "GATHER", "SHAPE", "SQUEEZE", "UNSQUEEZE",
    "QUANTIZE", "DEQUANTIZE", "SELECT", "FILL", "PADDING", "SCATTER", "NON_ZERO", "ONE_HOT", "ASSERTION",
)  # fmt: skip
_CONVOLUTIONS = ("CONVOLUTION", "DECONVOLUTION")
_PRODUCTS = ("MATRIX_MULTIPLY", "EINSUM")

# a dynamic dimension's size when operations are weighed; all of a graph's share it, so it nearly cancels out
_NOMINAL = 64


def specs(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a network; dynamic dimensions are None."""
    return tuple(
        TensorSpec(item.name, tuple(None if size < 0 else size for size in item.shape), TYPES[item.dtype.name][1])
        for item in tensors
    )


def layers(trt: Any, network: Any) -> tuple[PlanLayer, ...]:
    """Every layer of a network that computes in floating point, or in integers that stand for it."""
    makers: dict[str, Any] = {}
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            makers[layer.get_output(output).name] = layer
        kind = layer.type.name
        if kind in _MOVING or not layer.num_inputs or layer.get_input(0) is None:
            continue
        if TYPES[layer.get_output(0).dtype.name][0] in ("f32", "f16", "bf16"):
            found.append(PlanLayer(layer.name, kind.lower(), _computed_in(layer, makers), _work(trt, layer)))
    return tuple(found)


def shares(found: tuple[PlanLayer, ...]) -> dict[str, float]:
    """The share of the multiply-adds of each type; see `edgevtx.runtimes.base.BuildReport`."""
    return precision.shares((layer.type, layer.work) for layer in found)


def _computed_in(layer: Any, makers: dict[str, Any]) -> str:
    """The type of what a layer takes; of a product of dequantised tensors, the type that both were stored in."""
    first = layer.get_input(0)
    if layer.type.name in (*_CONVOLUTIONS, *_PRODUCTS) and layer.num_inputs > 1:
        stored = {_dequantised(layer.get_input(index), makers) for index in (0, 1)}
        if len(stored) == 1 and "" not in stored:
            return stored.pop()
    return TYPES[first.dtype.name][0]


def _dequantised(tensor: Any, makers: dict[str, Any]) -> str:
    """The type that a tensor had before it was dequantised, "" where it was not."""
    maker = None if tensor is None else makers.get(tensor.name)
    while maker is not None and maker.type.name in ("SHUFFLE", "IDENTITY"):
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type.name != "DEQUANTIZE":
        return ""
    return TYPES[maker.get_input(0).dtype.name][0]


def _work(trt: Any, layer: Any) -> int:
    kind = layer.type.name
    first, out = _shape(layer.get_input(0)), _shape(layer.get_output(0))
    if kind in _CONVOLUTIONS:
        # the bindings give the layer's own class on request alone
        layer.__class__ = {"CONVOLUTION": trt.IConvolutionLayer, "DECONVOLUTION": trt.IDeconvolutionLayer}[kind]
        slid, other = (out, first) if kind == "CONVOLUTION" else (first, out)
        return precision.convolution_work([1, other[1] // layer.num_groups, *layer.kernel_size_nd], slid)
    if kind in _PRODUCTS:
        return precision.product_work(first, out)
    if kind == "ATTENTION_INPUT":
        return precision.attention_work(first, _shape(layer.get_input(1))[-2])
    return 0


def _shape(tensor: Any) -> list[int]:
    return [size if size >= 0 else (_NOMINAL if axis else 1) for axis, size in enumerate(tensor.shape)]
