"""Graphs to files: a small `.onnx` for each, and one `weights.bin` that all of them point into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgevtx.errors import ExportError, OutputError
from edgevtx.export.rewrite import LoweredGraph
from edgevtx.manifest import Graph

WEIGHTS = "weights.bin"
INLINE_BELOW = 1024  # bytes: shapes, axes and scales stay readable in the graph, where shape inference wants them
LARGE = 1 << 16
PAGE, CACHE_LINE = 4096, 64


def write_graphs(lowered: Mapping[str, Sequence[LoweredGraph]], folder: Path) -> tuple[Graph, ...]:
    """Write `graph[.<part>].<target>[.<variant>].onnx` for each graph and their `weights.bin` into `folder`.

    `lowered` maps the networks of the bundle ("" is the one that takes frames) to their lowered graphs. Tensors with
    equal bytes are stored once, whichever graphs use them; one tensor at a time is in memory. Equal models give equal
    bytes. Raises `OutputError` when a file cannot be written and `ExportError` when ONNX refuses a graph; what is in
    `folder` then is of no use.
    """
    try:
        with (folder / WEIGHTS).open("wb") as file:
            weights = _Weights(file)
            written = [_write(item, part, folder, weights) for part, graphs in lowered.items() for item in graphs]
    except OSError as error:
        raise OutputError(
            f"cannot write the graphs to {folder}: {error.strerror}; free some space or choose another folder"
        ) from None
    for graph in written:
        _check(folder / graph.file)
    return tuple(written)


class _Weights:
    """An open weights file and where each content lies in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        self._seen: dict[int, tuple[ir.TensorProtocol, tuple[int, int]]] = {}  # holds the tensor, so ids stay unique

    def place(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        """(offset, length) of the tensor's bytes, written if no equal ones are there."""
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = tensor, self._put(tensor.tobytes())
        return self._seen[id(tensor)][1]

    def _put(self, data: bytes) -> tuple[int, int]:
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            alignment = PAGE if len(data) >= LARGE else CACHE_LINE
            padding = -self._size % alignment
            self._file.write(b"\0" * padding)
            self._file.write(data)
            self._places[digest] = self._size + padding, len(data)
            self._size += padding + len(data)
        return self._places[digest]


def _write(item: LoweredGraph, part: str, folder: Path, weights: _Weights) -> Graph:
    model = item.model.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= INLINE_BELOW:
            offset, length = weights.place(tensor)
            value.const_value = ir.ExternalTensor(
                WEIGHTS,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
    name = ".".join(word for word in ("graph", part, item.target, item.variant, "onnx") if word)
    ir.save(model, folder / name)
    return Graph(
        file=name,
        part=part,
        target=item.target,
        variant=item.variant,
        versions=item.versions,
        precisions=item.precisions,
        opset=model.opset_imports[""],
        rewrites=item.rewrites,
        avoids=item.avoids,
        patterns=item.patterns,
        kept_fp32=item.kept_fp32,
        unquantised=item.unquantised,
    )


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))  # by path: the only way that serves weights beyond 2 GB
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{path.name} is no valid ONNX graph: {str(error).splitlines()[0]}; please report it"
        ) from None
