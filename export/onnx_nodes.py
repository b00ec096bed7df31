"""The nodes before and behind an imported graph: frames to its input, its outputs to boxes, scores and class ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from edgevtx.export.onnx_file import Body
from edgevtx.export.onnx_outputs import Outputs
from edgevtx.export.onnx_settings import Activation, Boxes, Style
from edgevtx.manifest import TensorInfo
from edgevtx.rules import Preprocess
from edgevtx.runtimes.base import Array


class Wrapper:
    """Writes the nodes before and behind the imported graph; values are `onnx_ir` values of the growing graph."""

    def __init__(self) -> None:
        self.tape = Tape()
        self._count = 0

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A node's only output."""
        return self.tape.op(kind, inputs, attributes=attributes)

    def outputs(self, count: int, kind: str, *inputs: ir.Value, **attributes: Any) -> Sequence[ir.Value]:
        """A node's outputs where they are several."""
        return self.tape.op_multi_out(kind, inputs, attributes=attributes, num_outputs=count)

    def constant(self, value: Any, dtype: Any) -> ir.Value:
        """A constant of the graph."""
        self._count += 1
        array = np.asarray(value, dtype)
        return self.tape.initializer(ir.tensor(array, name=f"edgevtx_constant_{self._count}"))

    def floats(self, value: Any) -> ir.Value:
        return self.constant(value, np.float32)

    def ints(self, *values: int) -> ir.Value:
        return self.constant(values, np.int64)

    def split(self, value: ir.Value, axis: int, *sizes: int) -> list[ir.Value]:
        return list(self.outputs(len(sizes), "Split", value, self.ints(*sizes), axis=axis))

    def frames(self, pixels: ir.Value, body: Body, preprocess: Preprocess) -> ir.Value:
        """pixels (N,H,W,3) uint8 BGR -> the imported graph's float32 input."""
        op, rgb = self.op, preprocess.channel_order == "rgb"
        mean, std = (np.array(values, np.float64) for values in (preprocess.mean, preprocess.std))
        value = op("Cast", pixels, to=ir.DataType.FLOAT)
        axis, shape = 3, (1, 1, 1, 3)
        if body.layout == "NCHW":
            value = op("Transpose", value, perm=[0, 3, 1, 2])
            axis, shape = 1, (1, 3, 1, 1)
        if rgb:
            value = op("Gather", value, self.ints(2, 1, 0), axis=axis)
        gain, offset = preprocess.scale / std, -mean / std
        if (gain != 1).any():
            value = op("Mul", value, self.floats(gain.reshape(shape)))
        return op("Add", value, self.floats(offset.reshape(shape))) if offset.any() else value

    def corners(self, centre: ir.Value, extent: ir.Value) -> ir.Value:
        """Centres and extents (N,A,2) -> xyxy (N,A,4)."""
        half = self.op("Mul", extent, self.floats(0.5))
        return self.op("Concat", self.op("Sub", centre, half), self.op("Add", centre, half), axis=2)

    def best(self, scores: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
        """The best class of each row: scores and class ids (N,A)."""
        return (
            self.op("ReduceMax", scores, self.ints(axis), keepdims=0),
            self.op("ArgMax", scores, axis=axis, keepdims=0),
        )

    def keep(self, top_k: int, boxes: ir.Value, scores: ir.Value, class_ids: ir.Value) -> tuple[ir.Value, ...]:
        """The `top_k` rows of the highest scores."""
        best, rows = self.outputs(2, "TopK", scores, self.ints(top_k), axis=1)
        return self.pick(boxes, rows), best, self.op("GatherElements", class_ids, rows, axis=1)

    def pick(self, boxes: ir.Value, rows: ir.Value) -> ir.Value:
        """Rows (N,K) of boxes (N,A,4)."""
        index = self.op("Expand", self.op("Unsqueeze", rows, self.ints(2)), self.ints(1, 1, 4))
        return self.op("GatherElements", boxes, index, axis=1)


Decoded = tuple[ir.Value, ...]


def _yolox(w: Wrapper, values: list[ir.Value], found: Outputs, body: Body, boxes: Boxes | None) -> Decoded:
    """(N,A,5+C): centre, extent, objectness, class scores; raw ones are offsets from the cell and logarithms."""
    op = w.op
    centre, extent, objectness, classes = w.split(values[0], 2, 2, 2, 1, found.classes)
    unit = np.array(body.size[::-1], np.float64)
    if boxes == "raw":
        grid, stride = _grid(found)
        step = w.floats(stride / unit)
        centre = op("Mul", op("Add", centre, w.floats(grid)), step)
        extent = op("Mul", op("Exp", extent), step)
    else:
        centre, extent = (op("Mul", value, w.floats(1 / unit)) for value in (centre, extent))
    scores, class_ids = w.best(classes, 2)
    scores = op("Mul", scores, op("Squeeze", objectness, w.ints(2)))
    return w.corners(centre, extent), scores, class_ids


def _grid(found: Outputs) -> tuple[Array, Array]:
    """Cell (x, y) and stride of every anchor, level by level, row by row: (1,A,2) each."""
    grids, strides = [], []
    for stride, rows, columns in found.cells:
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        grids.append(np.stack((x, y), -1).reshape(-1, 2))
        strides.append(np.full((rows * columns, 2), stride))
    return np.concatenate(grids)[None], np.concatenate(strides)[None]


def _yolov5(w: Wrapper, values: list[ir.Value], found: Outputs, body: Body, boxes: Boxes | None) -> Decoded:
    """Decoded as YOLOX's decoded form; raw: maps (N,anchors,h,w,5+C) of logits, one a level.

    Centres are (2s - 0.5 + cell) * stride, extents (2s)^2 * anchor, s the sigmoid, as its documentation says.
    """
    if boxes != "raw":
        return _yolox(w, values, found, body, "decoded")
    op, tables = w.op, []
    for value, (stride, rows, columns), anchors in zip(values, found.cells, found.anchors, strict=True):
        centre, extent, rest = w.split(op("Sigmoid", value), 4, 2, 2, 1 + found.classes)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        cell = np.stack((x, y), -1)[None, None]
        centre = op("Add", op("Mul", centre, w.floats(2)), w.floats(cell - 0.5))
        centre = op("Mul", centre, w.floats(stride))
        doubled = op("Mul", extent, w.floats(2))
        extent = op("Mul", op("Mul", doubled, doubled), w.floats(np.array(anchors).reshape(1, -1, 1, 1, 2)))
        table = op("Concat", centre, extent, rest, axis=4)
        tables.append(op("Reshape", table, w.ints(0, -1, 5 + found.classes)))
    return _yolox(w, [op("Concat", *tables, axis=1)], found, body, "decoded")


def _yolov8(w: Wrapper, values: list[ir.Value], found: Outputs, body: Body, boxes: Boxes | None) -> Decoded:
    """(N,4+C,A): centre and extent in px of the input, class scores; no objectness."""
    op = w.op
    table, classes = w.split(values[0], 1, 4, found.classes)
    unit = np.array([*body.size[::-1]] * 2, np.float64)
    rows = op("Mul", op("Transpose", table, perm=[0, 2, 1]), w.floats(1 / unit))
    return w.corners(*w.split(rows, 2, 2, 2)), *w.best(classes, 1)


def _detr(w: Wrapper, values: list[ir.Value], found: Outputs, body: Body, boxes: Boxes | None) -> Decoded:
    """Logits (N,Q,C+1), the last class "no object", and boxes cx, cy, w, h in 0..1."""
    classes = w.split(w.op("Softmax", values[0], axis=2), 2, found.classes, 1)[0]
    return w.corners(*w.split(values[1], 2, 2, 2)), *w.best(classes, 2)


def _rtdetr(w: Wrapper, values: list[ir.Value], found: Outputs, body: Body, boxes: Boxes | None) -> Decoded:
    """Logits (N,Q,C) of sigmoids and boxes cx, cy, w, h in 0..1: the Q best of all queries and classes.

    The deployed form has chosen already; its boxes are xyxy in units of `orig_target_sizes`, which is 1 here.
    """
    op = w.op
    if len(values) == 3:
        return values[1], values[2], op("Cast", values[0], to=ir.DataType.INT64)
    flat = op("Reshape", op("Sigmoid", values[0]), w.ints(0, -1))
    scores, index = w.outputs(2, "TopK", flat, w.ints(found.rows), axis=1)
    count = w.ints(found.classes)
    rows = op("Div", index, count)
    corners = w.corners(*w.split(values[1], 2, 2, 2))
    return w.pick(corners, rows), scores, op("Sub", index, op("Mul", rows, count))


def write_classes(w: Wrapper, values: list[ir.Value], activation: Activation, top_k: int) -> Decoded:
    scores = values[0]
    if activation == "softmax":
        scores = w.op("Softmax", scores, axis=1)
    elif activation == "sigmoid":
        scores = w.op("Sigmoid", scores)
    return tuple(w.outputs(2, "TopK", scores, w.ints(top_k), axis=1))


WRITE_BOXES: dict[Style, Callable[[Wrapper, list[ir.Value], Outputs, Body, Boxes | None], Decoded]] = {
    "yolox": _yolox,
    "yolov5": _yolov5,
    "yolov8": _yolov8,
    "detr": _detr,
    "rtdetr": _rtdetr,
}


def wrap(
    body: Body,
    preprocess: Preprocess,
    outputs: tuple[TensorInfo, ...],
    decode: Callable[[Wrapper, list[ir.Value]], Decoded],
    names: tuple[str, ...],
) -> ir.Model:
    """The imported graph between its preprocessing and its decoding, as one model; the body's model is used up."""
    graph = body.model.graph
    pixels = ir.Value(
        name="pixels",
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape(["batch" if body.batch is None else body.batch, *body.size, 3]),
    )
    before, behind = Wrapper(), Wrapper()
    image = next(value for value in graph.inputs if value.name == body.image)
    ir.convenience.replace_all_uses_with(image, before.frames(pixels, body, preprocess))
    by_name = {value.name: value for value in graph.outputs}
    decoded = decode(behind, [by_name[name] for name in names])
    for value, info in zip(decoded, outputs, strict=True):
        value.name = info.name
        value.shape = ir.Shape(["batch" if length is None else length for length in info.shape])
        value.dtype = ir.DataType[{"float32": "FLOAT", "int64": "INT64"}[info.dtype]]
    graph.insert_before(graph[0], before.tape.nodes)
    graph.extend(behind.tape.nodes)
    for wrapper, prefix in ((before, "before"), (behind, "behind")):
        for value in wrapper.tape.initializers:
            value.name = f"{prefix}_{value.name}"
            graph.register_initializer(value)
    graph.inputs[:] = [pixels]
    graph.outputs[:] = list(decoded)
    return body.model
