"""An existing ONNX graph as a bundle: YOLOX, YOLOv5, YOLOv8, DETR and RT-DETR detectors, and classifiers.

The graph is wrapped, in ONNX, so that it takes uint8 frames and gives this project's outputs: before it the cast, the
transposition and the normalisation, behind it grids, strides, sigmoids, box formats and the best K rows. The outputs
expected are those of each project's own ONNX export, as its documentation describes them.

Ge et al., "YOLOX: Exceeding YOLO Series in 2021", 2021; Jocher, YOLOv5 (2020) and YOLOv8 (2023): documentation alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export import onnx_reference
from edgevtx.export.boxes import check_top_k
from edgevtx.export.onnx_file import Body, ImportedGraph, OnnxFile, prepare_body
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, detect_outputs, needless_frame, pixels_spec
from edgevtx.manifest import (
    ClassifyDecode,
    Decode,
    DetectDecode,
    Exact,
    Letterbox,
    Preprocess,
    ShortestEdge,
    Suppress,
    TensorInfo,
)
from edgevtx.runtimes.base import Array

Style = Literal["yolox", "yolov5", "yolov8", "detr", "rtdetr", "classify"]
Boxes = Literal["raw", "decoded"]
Activation = Literal["softmax", "sigmoid", "none"]
STYLES: tuple[Style, ...] = get_args(Style)

ROWS = 1000
"""Rows that a YOLO's graph keeps for the suppression. While no more than this score above the threshold, the result is
that of the project's own post-processing; TensorRT's TopK ends at 3840."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

YOLOV5_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""(width, height) px of YOLOv5's anchors at strides 8, 16 and 32, as its P5 models publish them."""


@dataclass(frozen=True)
class ImportOptions:
    """How an ONNX file is to be read; None takes the decoding's own default (`DEFAULTS`).

    `size` (height, width) fixes an input that leaves it open. `boxes`: "raw" where grids, strides and anchors are
    still to be applied (YOLOX and YOLOv5), "decoded" where the graph did so. `letterbox` is the grey level that fills
    what the frame leaves of the input, -1 for none; `shortest_edge` scales that edge to so many px and crops the
    centre. `iou` is the overlap above which the worse of two boxes is dropped. `activation` is what a classifier's
    outputs still need.
    """

    decode: Style
    size: tuple[int, int] | None = None
    scale: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channel_order: Literal["rgb", "bgr"] | None = None
    letterbox: int | None = None
    shortest_edge: int | None = None
    boxes: Boxes | None = None
    activation: Activation | None = None
    threshold: float | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Defaults:
    """What a style's own preprocessing and post-processing do.

    YOLOs resize with OpenCV without antialiasing into a letterbox of grey 114: YOLOX at the top left, unscaled BGR,
    edges rounded down; the others centred, RGB in 0..1, edges rounded to the nearest. The others resize to the
    graph's size with Pillow.
    """

    rgb: bool = True
    scale: float = 1 / 255
    normalised: bool = False
    letterbox: int = -1
    centered: bool = True
    boxes: Boxes | None = None
    threshold: float = 0.5
    iou: float | None = None
    keep: int = 300


DEFAULTS: dict[Style, Defaults] = {
    "yolox": Defaults(
        rgb=False, scale=1.0, letterbox=114, centered=False, boxes="raw", threshold=0.25, iou=0.45, keep=ROWS
    ),
    "yolov5": Defaults(letterbox=114, boxes="decoded", threshold=0.25, iou=0.45),
    "yolov8": Defaults(letterbox=114, boxes="decoded", threshold=0.25, iou=0.7),
    "detr": Defaults(normalised=True),
    "rtdetr": Defaults(),
    "classify": Defaults(normalised=True),
}


# -- what the outputs must be ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """The outputs that a style reads: their names in its own order, and what their shapes say.

    `rows` anchors, queries or classes; `cells` (stride, rows, columns) of each level of a YOLO's grid.
    """

    names: tuple[str, ...]
    classes: int
    rows: int
    cells: tuple[tuple[int, int, int], ...] = ()


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple((stride, size[0] // stride, size[1] // stride) for stride in strides)


def _unexpected(body: Body, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the graph gives {body.described}; expected {expected}; choose another --decode or export the graph so"
    )


def _find_table(body: Body, *, anchors: int, columns: int, transposed: bool, strides: tuple[int, ...]) -> Outputs:
    """One output of a row an anchor (or, transposed, a column an anchor): (N,A,columns+C)."""
    options = [_cells(body.size, strides[:count]) for count in range(3, len(strides) + 1)]
    counts = [anchors * sum(rows * across for _, rows, across in cells) for cells in options]
    layout = f"{columns} + classes, {counts[0]}" if transposed else f"{counts[0]}, {columns} + classes"
    # YOLOv5's older exports give its raw maps as well
    tables = {name: shape for name, shape in body.shapes.items() if len(shape) != 5}
    shape = next(iter(tables.values()), ())
    rows, width = (shape[2], shape[1]) if transposed and len(shape) == 3 else (*shape[1:], 0, 0)[:2]
    if len(tables) != 1 or len(shape) != 3 or rows not in counts or width <= columns:
        height, across = body.size
        raise _unexpected(body, f"one output [N, {layout}] for {across}x{height} px")
    return Outputs((next(iter(tables)),), width - columns, rows, options[counts.index(rows)])


def _find_maps(body: Body) -> Outputs:
    """YOLOv5's three raw maps (N,3,h,w,5+C), by falling resolution."""
    cells = _cells(body.size, (8, 16, 32))
    maps = {shape[2:4]: (name, shape[4]) for name, shape in body.shapes.items() if len(shape) == 5 and shape[1] == 3}
    found = [maps.get((rows, across)) for _, rows, across in cells]
    widths = {item[1] for item in found if item}
    if None in found or len(widths) != 1 or min(widths) <= 5:
        wanted = ", ".join(f"[N, 3, {rows}, {across}, 5 + classes]" for _, rows, across in cells)
        raise _unexpected(body, f"three outputs {wanted}")
    names = tuple(item[0] for item in found if item)
    return Outputs(names, widths.pop() - 5, 3 * sum(rows * across for _, rows, across in cells), cells)


def _find_queries(body: Body, style: Style) -> Outputs:
    """Logits (N,Q,C) and boxes (N,Q,4), or RT-DETR's deployed form: labels, boxes and scores."""
    for names in (("logits", "pred_boxes"), ("pred_logits", "pred_boxes"), ("labels", "boxes", "scores")):
        shapes = [body.shapes.get(name, ()) for name in names]
        deployed = len(names) == 3
        if deployed and style != "rtdetr":
            continue
        ranks = [2, 3, 2] if deployed else [3, 3]
        if [len(shape) for shape in shapes] == ranks and len({shape[1] for shape in shapes}) == 1 and shapes[1][2] == 4:
            # the deployed form does not say how many classes there are
            classes = 0 if deployed else shapes[0][2] - (style == "detr")
            if deployed or classes > 0:
                return Outputs(names, classes, shapes[0][1])
    expected = "outputs logits [N, queries, classes" + (" + 1]" if style == "detr" else "]")
    more = "" if style == "detr" else ", or labels [N, queries], boxes [N, queries, 4] and scores [N, queries]"
    raise _unexpected(body, f"{expected} and pred_boxes [N, queries, 4]{more}")


def _find_logits(body: Body) -> Outputs:
    logits = {name: shape for name, shape in body.shapes.items() if len(shape) == 2}
    if len(logits) != 1 or len(body.shapes) != 1:
        raise _unexpected(body, "one output [N, classes]")
    name, shape = next(iter(logits.items()))
    return Outputs((name,), shape[1], shape[1])


def find_outputs(body: Body, style: Style, boxes: Boxes | None) -> Outputs:
    """The outputs of the graph that `style` decodes. Raises `CheckpointError` saying what was found and expected."""
    if style == "yolox":
        return _find_table(body, anchors=1, columns=5, transposed=False, strides=(8, 16, 32, 64))
    if style == "yolov8":
        return _find_table(body, anchors=1, columns=4, transposed=True, strides=(8, 16, 32, 64))
    if style == "yolov5":
        if boxes == "raw":
            return _find_maps(body)
        return _find_table(body, anchors=3, columns=5, transposed=False, strides=(8, 16, 32, 64))
    return _find_logits(body) if style == "classify" else _find_queries(body, style)


def _check_boxes(body: Body, found: Outputs, boxes: Boxes) -> None:
    """Raise `InputError` where a YOLOX's boxes are clearly not what was said: raw centres lie about 0, decoded ones
    about the anchor's own cell."""
    columns = np.concatenate([np.tile(np.arange(across), rows) for _, rows, across in found.cells])
    strides = np.concatenate([np.full(rows * across, stride) for stride, rows, across in found.cells])
    centres = body.samples[found.names[0]][0, :, 0].astype(np.float64)
    raw, decoded = np.median(np.abs(centres)), np.median(np.abs(centres / strides - columns))
    other = {"raw": "decoded", "decoded": "raw"}[boxes]
    if (raw > 10 * decoded) if boxes == "raw" else (decoded > 10 * raw):
        raise InputError(
            f"the boxes of {found.names[0]} were taken as {boxes}, but their values are those of {other} ones; "
            f"pass --boxes {other}"
        )


# -- nodes -----------------------------------------------------------------------------------------------------


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
    """Decoded as YOLOX's decoded form; raw: three maps (N,3,h,w,5+C) of logits.

    Centres are (2s - 0.5 + cell) * stride, extents (2s)^2 * anchor, s the sigmoid, as its documentation says.
    """
    if boxes != "raw":
        return _yolox(w, values, found, body, "decoded")
    op, tables = w.op, []
    for value, (stride, rows, columns), anchors in zip(values, found.cells, YOLOV5_ANCHORS, strict=True):
        centre, extent, rest = w.split(op("Sigmoid", value), 4, 2, 2, 1 + found.classes)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        cell = np.stack((x, y), -1)[None, None]
        centre = op("Add", op("Mul", centre, w.floats(2)), w.floats(cell - 0.5))
        centre = op("Mul", centre, w.floats(stride))
        doubled = op("Mul", extent, w.floats(2))
        extent = op("Mul", op("Mul", doubled, doubled), w.floats(np.array(anchors).reshape(1, 3, 1, 1, 2)))
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


def _classify(w: Wrapper, values: list[ir.Value], activation: Activation, top_k: int) -> Decoded:
    scores = values[0]
    if activation == "softmax":
        scores = w.op("Softmax", scores, axis=1)
    elif activation == "sigmoid":
        scores = w.op("Sigmoid", scores)
    return tuple(w.outputs(2, "TopK", scores, w.ints(top_k), axis=1))


_BOXES: dict[Style, Callable[[Wrapper, list[ir.Value], Outputs, Body, Boxes | None], Decoded]] = {
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


# -- the recipe ------------------------------------------------------------------------------------------------


def preprocess_of(settings: ImportOptions, size: tuple[int, int]) -> Preprocess:
    """The preprocessing of a style for an input of `size`, with what the user changed. Raises `InputError`."""
    default = DEFAULTS[settings.decode]
    fill = default.letterbox if settings.letterbox is None else settings.letterbox
    order = settings.channel_order or ("rgb" if default.rgb else "bgr")
    height, width = size
    if not -1 <= fill <= 255:
        raise InputError(f"the letterbox is filled with {fill}; choose a grey level 0 to 255, or -1 for no letterbox")
    if settings.std is not None and not all(value > 0 for value in settings.std):
        raise InputError(f"std must be above 0, but got {settings.std}")
    if settings.scale is not None and not settings.scale > 0:
        raise InputError(f"scale must be above 0, but got {settings.scale:g}; 0.00392157 makes 0..1 of 0..255")
    shorter = settings.shortest_edge
    if shorter is not None and shorter < max(size):
        raise InputError(f"the shortest edge of {shorter} px does not fill an input of {width}x{height} px; enlarge it")
    rule: Exact | ShortestEdge | Letterbox = Exact(height=height, width=width)
    if shorter is not None:
        rule = ShortestEdge(shortest=shorter)
    elif fill >= 0:
        rounding: Literal["floor", "nearest"] = "floor" if settings.decode == "yolox" else "nearest"
        rule = Letterbox(height=height, width=width, fill=fill, centered=default.centered, rounding=rounding)
    return Preprocess(
        size=rule,
        interpolation="bilinear",
        scale=default.scale if settings.scale is None else settings.scale,
        mean=settings.mean or (IMAGENET_MEAN if default.normalised else (0.0, 0.0, 0.0)),
        std=settings.std or (IMAGENET_STD if default.normalised else (1.0, 1.0, 1.0)),
        crop=None if shorter is None else size,
        channel_order=order,
        resize="opencv-plain" if default.iou is not None else "pillow",
    )


def build(file: OnnxFile, options: BuildOptions) -> Traceable:
    """The wrapped graph of a file, see `ImportOptions`; raises `CheckpointError` where it is not as its style says."""
    settings = cast(ImportOptions, file.settings)
    check_batch(options.batch)
    _check_settings(settings)
    style, default = settings.decode, DEFAULTS[settings.decode]
    body = prepare_body(file, options.batch, settings.size)
    boxes = settings.boxes or default.boxes
    found = find_outputs(body, style, boxes)
    if style == "yolox" and boxes is not None:
        _check_boxes(body, found, boxes)
    labels = _class_names(file, found.classes, options.labels)
    preprocess = preprocess_of(settings, body.size)
    if options.resize == "opencv" and preprocess.resize == "pillow":
        preprocess = msgspec.structs.replace(preprocess, resize="opencv")
    elif options.resize not in ("pillow", "opencv"):
        raise InputError(f"resize is {options.resize!r}; choose pillow or opencv")
    decode, outputs, emit = _decoding(body, found, settings, options, len(labels))
    graph = wrap(body, preprocess, outputs, emit, found.names)
    return Traceable(
        family=RECIPE.family,
        task=RECIPE.task if isinstance(decode, DetectDecode) else "classify",
        module=ImportedGraph(graph).eval(),
        inputs=(pixels_spec(options.batch, body.size),),
        outputs=outputs,
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=body.size,
        other_size=body.size,
        preprocess=preprocess,
        decode=decode,
        labels=labels,
        reference=partial(
            onnx_reference.answer,
            file.session(),
            style,
            boxes == "raw",
            preprocess,
            decode,
            labels,
            options.batch or 1,
            found.names,
        ),
        notes=(*_notes(file, settings, boxes), *needless_frame(options.frame, body.size)),
    )


def _decoding(
    body: Body, found: Outputs, settings: ImportOptions, options: BuildOptions, classes: int
) -> tuple[Decode, tuple[TensorInfo, ...], Callable[[Wrapper, list[ir.Value]], Decoded]]:
    """The manifest's decoding, the outputs, and what writes their nodes."""
    style, default = settings.decode, DEFAULTS[settings.decode]
    if style == "classify":
        top_k = min(5, classes) if options.top_k is None else options.top_k
        if not 1 <= top_k <= classes:
            raise InputError(f"top_k is {top_k}, this graph has {classes} classes; choose 1 to {classes}")
        activation = settings.activation or "softmax"
        _check_activation(body.samples[found.names[0]], activation)
        shapes = ((options.batch, top_k), "float32"), ((options.batch, top_k), "int64")
        names = ("scores", "class_ids")
        infos = tuple(TensorInfo(name=n, shape=s, dtype=d) for n, (s, d) in zip(names, shapes, strict=True))
        decode = ClassifyDecode(top_k=top_k, activation=activation)
        return decode, infos, lambda w, values: _classify(w, values, activation, top_k)
    yolo = default.iou is not None
    top_k = check_top_k(min(ROWS, found.rows) if yolo and options.top_k is None else options.top_k, found.rows)
    boxes = settings.boxes or default.boxes

    def emit(w: Wrapper, values: list[ir.Value]) -> Decoded:
        decoded = _BOXES[style](w, values, found, body, boxes)
        return w.keep(top_k, *decoded) if yolo or top_k < found.rows else decoded

    suppress = None
    if default.iou is not None:
        suppress = Suppress(iou=default.iou if settings.iou is None else settings.iou, keep=min(default.keep, top_k))
    rule = DetectDecode(
        top_k=top_k,
        threshold=default.threshold if settings.threshold is None else settings.threshold,
        units="input" if yolo else "frame",
        suppress=suppress,
    )
    return rule, detect_outputs(options.batch, top_k), emit


def _check_settings(settings: ImportOptions) -> None:
    if settings.decode not in STYLES:
        raise InputError(f"unknown decoding {settings.decode!r}; choose one of: {', '.join(STYLES)}")
    default = DEFAULTS[settings.decode]
    for name, value in (("threshold", settings.threshold), ("iou", settings.iou)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} must lie in 0..1, but got {value:g}")
    if settings.iou is not None and default.iou is None:
        raise InputError(f"{settings.decode} answers every object once, so nothing is suppressed; leave --iou out")
    if settings.boxes is not None and (default.boxes is None or (settings.decode, settings.boxes) == ("yolov8", "raw")):
        raise InputError(f"--boxes {settings.boxes} is not known for {settings.decode}; leave it out")
    if settings.activation is not None and settings.decode != "classify":
        raise InputError(f"--activation is for classifiers, not for {settings.decode}; leave it out")


def _check_activation(scores: Array, activation: Activation) -> None:
    """Raise `InputError` for a softmax over what is one already: it would flatten every score."""
    shares = bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) < 1e-3).all())
    if shares and activation != "none" and scores.shape[1] > 1:
        raise InputError("the graph's output is already a softmax (it adds up to 1); pass --activation none")


def _class_names(file: OnnxFile, classes: int, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    """`labels`, or the names in the model's metadata (Ultralytics' exporter leaves a dict there), or numbers."""
    if labels is None:
        labels = _stated_names(file.metadata)
    if labels is None and not classes:
        raise InputError(f"{file.path} does not say how many classes it has; name them with --labels FILE")
    if labels is None:
        return tuple(f"class {index}" for index in range(classes))
    if classes and len(labels) != classes:
        raise InputError(f"{len(labels)} labels were given, but the graph has {classes} classes; give {classes}")
    return labels


def _stated_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    try:
        table = ast.literal_eval(metadata.get("names", ""))
    except (SyntaxError, ValueError):
        return None
    if not isinstance(table, dict) or sorted(table) != list(range(len(table))):
        return None
    return tuple(str(table[index]) for index in range(len(table)))


def _notes(file: OnnxFile, settings: ImportOptions, boxes: Boxes | None) -> tuple[str, ...]:
    how = f", boxes {boxes}" if boxes else ""
    return (f"imported from {file.name}, decoded as {settings.decode}{how}",)


RECIPE = Recipe(
    family="onnx",
    title="Existing ONNX graphs: YOLOX, YOLOv5, YOLOv8, DETR, RT-DETR, classifiers",
    paper="https://arxiv.org/abs/2107.08430",
    task="detect",
    result="Detections or Classification",
    model_types=(),
    layouts=("an ONNX file and how it is to be decoded (--graph, --decode)",),
    build=build,
    tiny_config=dict,
    options=("batch", "top_k", "labels", "resize"),
)
