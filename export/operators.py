"""Which ONNX operators the parsers of TensorRT and TensorRT-RTX know, and in which types, by version.

TensorRT: docs/operators.md of onnx/onnx-tensorrt at the commits that TensorRT 10.1, 10.14, 10.15 and 11.1 were
released with, and that project's changelog and TensorRT's release notes for the versions between and after. 10.3 adds
no operator to 10.1. TensorRT-RTX publishes no such table: its first versions are taken to know what TensorRT 10.3
does but for DeformConv, and 1.7 what its parser said when it was asked for each operator
(`OnnxParser.supports_operator` of 1.7.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain, takewhile

from edgevtx.errors import ExportError
from edgevtx.versions import release

_HALF = "FLOAT FLOAT16"
_FLOAT = "FLOAT FLOAT16 BFLOAT16"
_NUMBER = f"{_FLOAT} INT32 INT64"
_ANY = f"{_NUMBER} BOOL"

_FIRST = {
    _HALF: "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign",
    _FLOAT: (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM "
        "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization "
        "PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike Reciprocal Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign "
        "Sqrt Tan Tanh ThresholdedRelu Upsample"
    ),
    f"{_NUMBER} INT8": "Gelu",
    f"{_NUMBER} FLOAT8E4M3FN": "Mean",
    _NUMBER: (
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul "
        "Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK"
    ),
    _ANY: (
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot "
        "Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where"
    ),
    f"{_ANY} UINT8": "Cast CastLike",
    "BOOL": "And Not Or Xor",
    "INT8 FLOAT8E4M3FN INT4": "DequantizeLinear",
}
TENSORS = frozenset(_ANY.split())
"""The types that a tensor may have beside those of quantisation, and of uint8 inputs and outputs."""

_FIRST_RTX = {**_FIRST, _HALF: "GridSample Mish NonMaxSuppression NonZero RoiAlign"}  # no DeformConv
_WINDOWS = {_HALF: "BlackmanWindow HammingWindow HannWindow"}
_FOURIER = {"FLOAT": "STFT"}
_POWERS = {_NUMBER: "Pow"}
_ATTENTION = {f"{_FLOAT} INT8 FLOAT8E4M3FN": "Attention"}
_LANGUAGE = {_FLOAT: "RMSNormalization RotaryEmbedding", f"{_FLOAT} INT32": "TensorScatter"}
_SWISH = {_FLOAT: "Swish"}


@dataclass(frozen=True)
class _Release:
    """What a version adds: the opset that it is documented for, types -> operators that are new or have new types."""

    version: str
    opset: int
    adds: tuple[dict[str, str], ...] = ()


_RELEASES = {
    "tensorrt": (
        _Release("10.3", 20, (_FIRST,)),
        _Release("10.4", 20, (_WINDOWS,)),
        _Release("10.5", 20, (_FOURIER,)),
        _Release("10.12", 20, (_POWERS,)),
        _Release("10.13", 20),
        _Release("10.14", 24, (_ATTENTION,)),
        _Release("10.15", 24, (_LANGUAGE,)),
        _Release("11.0", 24, (_SWISH,)),
        _Release("11.2", 24, ({_FLOAT: "DFT"},)),
        _Release("11.5", 25),
    ),
    "tensorrt-rtx": (
        _Release("1.0", 20, (_FIRST_RTX,)),
        _Release("1.3", 20, (_ATTENTION,)),
        _Release("1.7", 24, (_WINDOWS, _FOURIER, _POWERS, _LANGUAGE, _SWISH)),
    ),
}


@dataclass(frozen=True)
class Operators:
    """What one version's parser knows: operator -> the names of the types that it takes."""

    target: str
    version: str
    opset: int
    types: dict[str, frozenset[str]]


TARGETS = tuple(_RELEASES)


def versions(target: str) -> tuple[str, ...]:
    """The versions of a target from which on its parser knows more, oldest first; none where there is no table."""
    return tuple(item.version for item in _RELEASES.get(target, ()))


@cache
def operators_of(target: str, version: str) -> Operators:
    """The table of the newest release that is no newer than `version`.

    Raises `ExportError` for a target without tables and for a version older than all of them.
    """
    if target not in _RELEASES:
        raise ExportError(f"no operators are listed for {target!r}; the targets are {', '.join(_RELEASES)}")
    passed = list(takewhile(lambda item: release(item.version) <= release(version), _RELEASES[target]))
    if not passed:
        raise ExportError(f"{target} {version} is not supported; use {versions(target)[0]} or newer")
    types: dict[str, frozenset[str]] = {}
    for added in chain.from_iterable(item.adds for item in passed):
        for kinds, names in added.items():
            types.update(dict.fromkeys(names.split(), frozenset(kinds.split())))
    return Operators(target, version, passed[-1].opset, types)
