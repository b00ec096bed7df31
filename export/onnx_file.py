"""An ONNX file of somebody else's: opened, checked, and brought to one opset, one size and one input of frames.

What the rest of the export needs to know of it is a `Body`: an `onnx_ir` model whose image input is float32 and whose
other inputs, if it had any, became constants, with the shapes that its outputs really have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import version_converter
from torch import nn

from edgevtx.errors import CheckpointError, ExportError, InputError
from edgevtx.export.onnx_metadata import stated_size
from edgevtx.runtimes.base import Array, Arrays

Layout = Literal["NCHW", "NHWC"]

OPSETS = (20, 23)
"""What the rewrites and every target read; older and newer graphs are converted."""

IR_VERSION = 10  # ONNX Runtime 1.23 refuses 13 and above

FIXED_INPUTS = ("pixel_mask", "orig_target_sizes")
"""Inputs besides the image that are known to mean "nothing is padded" and "boxes in units of the frame" when all are 1.
They become constants."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was opened with `OnnxFile.open`; `settings` says how it is to be read (see the recipe)."""

    path: Path
    settings: Any = None
    proto: onnx.ModelProto = field(repr=False, default_factory=onnx.ModelProto)

    @classmethod
    def open(cls, path: str | Path, settings: Any = None) -> OnnxFile:
        """Read and check a file. Raises `CheckpointError` where there is none, it is damaged, its weights file is
        missing, or it uses operators that only one vendor's runtime has."""
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path} is no file; --graph takes an ONNX model, such as yolox_nano.onnx")
        try:
            if absent := [file.name for file in _weight_files(path) if not file.is_file()]:
                raise CheckpointError(
                    f"{path} keeps its weights in {absent[0]}, which is missing; copy it beside the graph"
                )
            proto = onnx.load(path)
        except CheckpointError:
            raise
        except Exception as error:  # protobuf and onnx raise what they find, from DecodeError to ValidationError
            raise CheckpointError(
                f"{path} cannot be read as an ONNX model ({_brief(error)}); copy or export it again"
            ) from None
        if not proto.graph.node or not proto.opset_import:
            raise CheckpointError(f"{path} is no ONNX model: it has no operators; copy or export it again")
        try:
            onnx.checker.check_model(str(path))  # by path: the only way beyond 2 GB
        except Exception as error:
            raise CheckpointError(f"{path} is no valid ONNX model: {_brief(error)}; export it again") from None
        _check_domains(path, proto)
        return cls(path, settings, proto)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hex over the graph's file and the files of its weights."""
        digest = hashlib.sha256()
        for file in (self.path, *_weight_files(self.path)):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    @property
    def metadata(self) -> dict[str, str]:
        """The key-value pairs that the exporter left in the model."""
        return {item.key: item.value for item in self.proto.metadata_props}

    @property
    def licence(self) -> str:
        """The licence that the model's metadata states, or an empty string."""
        return self.metadata.get("license", self.metadata.get("licence", ""))

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing is assumed of a graph: what it needs is said with its import."""
        return ()

    def session(self) -> Any:
        """ONNX Runtime's session of the file as it is, with every optimisation off: the reference.

        Raises `CheckpointError` where ONNX Runtime cannot open it.
        """
        return unoptimised(self.path, str(self.path))


@dataclass(frozen=True)
class Body:
    """An ONNX file made ready to be wrapped.

    `image` is its input in `model`, of `size` (height, width) and `layout`; `batch` None where it takes any number
    of frames. `shapes` are those of its outputs for `batch` frames, or for two.
    """

    model: ir.Model
    image: str
    layout: Layout
    size: tuple[int, int]
    batch: int | None
    shapes: dict[str, tuple[int, ...]]
    samples: Arrays = field(repr=False)

    @property
    def described(self) -> str:
        """The outputs in words, for messages."""
        return ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())


def prepare_body(file: OnnxFile, batch: int | None, size: tuple[int, int] | None) -> Body:
    """Fix the file's dimensions to `batch` frames (None: any number) of `size`, and bring it to an opset of `OPSETS`.

    Raises `InputError` where what was asked for does not fit the graph, `CheckpointError` where its inputs are not
    one float32 image, and `ExportError` where its opset cannot be converted.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    image = _image_input(file, proto)
    layout = _layout(file, image)
    fixed = _fix_shape(file, image, layout, batch, size)
    extra = _fix_others(file, proto, image, batch, fixed)
    proto = _convert(file, proto)
    model = ir.from_proto(proto)
    model.ir_version = IR_VERSION
    _bake(model, extra)
    shape = (2 if batch is None else batch, *((3, *fixed) if layout == "NCHW" else (*fixed, 3)))
    grey = np.full(shape, 0.5, np.float32)
    outputs = run(unoptimised(serialised(model), str(file.path)), {image.name: grey})
    if batch is None and (wrong := [name for name, array in outputs.items() if array.shape[:1] != (2,)]):
        raise InputError(
            f"{file.path} gives {wrong[0]} {list(outputs[wrong[0]].shape)} for two frames, so its batch is not "
            "dynamic; export it with --batch 1"
        )
    shapes = {name: tuple(int(length) for length in array.shape) for name, array in outputs.items()}
    return Body(model, image.name, layout, fixed, batch, shapes, outputs)


def serialised(model: ir.Model) -> bytes:
    """A model as the bytes that ONNX Runtime opens. Raises `ExportError` beyond protobuf's 2 GB."""
    try:
        data: bytes = ir.to_proto(model).SerializeToString()
    except Exception as error:  # protobuf's EncodeError, or a ValueError of its C++ side
        raise ExportError(f"the imported graph cannot be written: {_brief(error)}; graphs end at 2 GB") from None
    return data


def unoptimised(model: bytes | Path, name: str) -> Any:
    """An ONNX Runtime session with every optimisation off; raises `CheckpointError` where it refuses the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the bindings have no common base of their exceptions
        raise CheckpointError(f"ONNX Runtime cannot open {name}: {_brief(error)}; export the graph again") from None


def run(session: Any, feeds: Arrays) -> Arrays:
    """Run a session: outputs by name. Raises `CheckpointError` where the graph cannot be run on these inputs."""
    names = [item.name for item in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise CheckpointError(f"the graph cannot be run on {shapes}: {_brief(error)}; give another --size") from None


class ImportedGraph(nn.Module):
    """The wrapped graph as a module: pixels (N,H,W,3) uint8 -> outputs, by ONNX Runtime without optimisation.

    `graph` is what `edgevtx.export.trace.trace` gives in place of tracing.
    """

    def __init__(self, graph: ir.Model) -> None:
        super().__init__()
        self.graph = graph
        self._session = unoptimised(serialised(graph), "the wrapped graph")

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in run(self._session, {"pixels": pixels.numpy()}).values())


# -- inputs ----------------------------------------------------------------------------------------------------


def _weight_files(path: Path) -> list[Path]:
    """The files beside a graph that hold its weights."""
    graph = onnx.load(path, load_external_data=False).graph
    places = {entry.value for item in graph.initializer for entry in item.external_data if entry.key == "location"}
    return [path.parent / place for place in sorted(places)]


def _check_domains(path: Path, proto: onnx.ModelProto) -> None:
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign:
        raise CheckpointError(
            f"{path} uses {', '.join(foreign[:3])}, which ONNX's own opset does not have and not every target knows; "
            "export it without such operators (without built-in NMS, without another tool's optimisation)"
        )


def _inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are fed; old exporters list the weights among them."""
    constants = {item.name for item in proto.graph.initializer}
    return [item for item in proto.graph.input if item.name not in constants]


def describe(item: onnx.ValueInfoProto) -> str:
    """An input or output in words: "images float32[batch,3,640,640]"."""
    tensor = item.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    return f"{item.name} {kind}[{','.join(str(_size(dim) or dim.dim_param or '?') for dim in tensor.shape.dim)}]"


def _size(dim: Any) -> int | None:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None


_OTHER_TYPES = {
    onnx.TensorProto.FLOAT16: "export it in float32, without half precision (lower precisions are made at import)",
    onnx.TensorProto.UINT8: "export it without its own preprocessing, which is added at import",
}


def _image_input(file: OnnxFile, proto: onnx.ModelProto) -> onnx.ValueInfoProto:
    inputs = _inputs(proto)
    images = [item for item in inputs if len(item.type.tensor_type.shape.dim) == 4]
    others = [item for item in inputs if item not in images and item.name not in FIXED_INPUTS]
    advice = "export it so"
    if len(images) == 1 and not others:
        image = images[0]
        kind = image.type.tensor_type.elem_type
        if kind == onnx.TensorProto.FLOAT:
            return image
        advice = _OTHER_TYPES.get(kind, advice)
    raise CheckpointError(
        f"{file.path} takes {', '.join(map(describe, inputs)) or 'nothing'}; expected one image, float32[N,3,H,W] "
        f"or float32[N,H,W,3], beside which {' and '.join(FIXED_INPUTS)} are known; {advice}"
    )


def _layout(file: OnnxFile, image: onnx.ValueInfoProto) -> Layout:
    sizes = [_size(dim) for dim in image.type.tensor_type.shape.dim]
    if sizes[1] == 3:
        return "NCHW"
    if sizes[3] == 3:
        return "NHWC"
    raise CheckpointError(
        f"{file.path} takes {describe(image)}; expected three channels, float32[N,3,H,W] or float32[N,H,W,3]; export "
        "it for colour images"
    )


def _fix_shape(
    file: OnnxFile, image: onnx.ValueInfoProto, layout: Layout, batch: int | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    """Write batch and size into the input's shape; returns (height, width)."""
    dims = image.type.tensor_type.shape.dim
    rows, columns = (dims[2], dims[3]) if layout == "NCHW" else (dims[1], dims[2])
    stated, words = (_size(rows), _size(columns)), describe(image)
    if None in stated and size is None:
        known = stated_size(file.metadata)
        advice = f"{known[1]}x{known[0]}, which its metadata states" if known else "WIDTHxHEIGHT"
        raise InputError(f"{file.path} takes {words}, which leaves the size open; fix it with --size {advice}")
    if size is not None and any(want not in (None, got) for want, got in zip(stated, size, strict=True)):
        raise InputError(
            f"{file.path} takes {words}, so --size {size[1]}x{size[0]} does not fit; leave it out, or export the graph "
            "for that size"
        )
    frames = _size(dims[0])
    if frames is not None and frames != batch:
        asked = "--dynamic-batch" if batch is None else f"--batch {batch}"
        raise InputError(f"{file.path} takes {words}, so {asked} does not fit; export it with --batch {frames}")
    height, width = size or (stated[0] or 0, stated[1] or 0)
    for dim, length in ((rows, height), (columns, width)):
        dim.dim_value = length
    if batch is None:
        dims[0].dim_param = "batch"
    else:
        dims[0].dim_value = batch
    return height, width


def _fix_others(
    file: OnnxFile, proto: onnx.ModelProto, image: onnx.ValueInfoProto, batch: int | None, size: tuple[int, int]
) -> dict[str, Array]:
    """Values of the inputs in `FIXED_INPUTS`, and no shapes but the image's: what was stated was for other sizes."""
    found: dict[str, Array] = {}
    for item in _inputs(proto):
        if item.name == image.name:
            continue
        if batch is None:
            raise InputError(f"{file.path} also takes {describe(item)}, which is fixed for one batch; give --batch")
        dims = item.type.tensor_type.shape.dim
        free = iter((batch, *size) if len(dims) == 3 else (batch, 2))
        shape = [_size(dim) or open_size for dim, open_size in zip(dims, free, strict=True)]
        found[item.name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return found


def _bake(model: ir.Model, values: dict[str, Array]) -> None:
    """Turn inputs into constants, and drop weights from the inputs where an old exporter listed them."""
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in values or value.name in graph.initializers]:
        graph.inputs.remove(value)
        if value.name in values:
            value.const_value = ir.tensor(values[value.name], name=value.name)
            graph.register_initializer(value)


# -- opset -----------------------------------------------------------------------------------------------------


def _convert(file: OnnxFile, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model at an opset of `OPSETS`, by onnx's own converter."""
    opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    target = min(max(opset, OPSETS[0]), OPSETS[1])
    if target == opset:
        return proto
    convert: Callable[[onnx.ModelProto, int], onnx.ModelProto] = version_converter.convert_version
    try:
        return convert(proto, target)
    except Exception as error:  # RuntimeError of the C++ side, or whatever an adapter raises
        raise ExportError(
            f"{file.path} has opset {opset}, which cannot be brought to {target}, one that the targets serve "
            f"({OPSETS[0]} to {OPSETS[1]}): {_brief(error)}; export it at opset 17 to {OPSETS[1]}"
        ) from None


def _brief(error: BaseException) -> str:
    """The start of an error's text, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
