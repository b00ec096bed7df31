"""What the outputs of an imported graph are: which of them a decoding reads, and what their shapes and values say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.onnx_file import Body
from edgevtx.export.onnx_settings import DEFAULTS, PUBLISHED_ANCHORS, Anchors, Boxes, ImportOptions, Style
from edgevtx.runtimes.base import Array

Cells = tuple[tuple[int, int, int], ...]

PYRAMIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
"""The strides of a YOLO's levels: P5, P6 and P2 models. Each makes another number of rows."""


@dataclass(frozen=True)
class Outputs:
    """The outputs that a style reads: their names in its own order, and what their shapes say.

    `rows` anchors, queries or classes; `cells` (stride, rows, columns) of each level of a YOLO's grid; `anchors` of
    YOLOv5's raw maps, one row for each level.
    """

    names: tuple[str, ...]
    classes: int
    rows: int
    cells: Cells = ()
    anchors: Anchors = ()


def find_outputs(body: Body, settings: ImportOptions) -> Outputs:
    """The outputs of the graph that a style decodes.

    Raises `CheckpointError` saying what was found and expected, and `InputError` where the settings do not fit.
    """
    style, boxes = settings.decode, settings.boxes or DEFAULTS[settings.decode].boxes
    if style == "classify":
        found = _find_logits(body)
    elif style in ("detr", "rtdetr"):
        found = _find_queries(body, style)
    elif (style, boxes) == ("yolov5", "raw"):
        found = _find_maps(body, settings)
    else:
        found = _find_table(body, style)
    _check_types(body, found)
    if style == "yolox" and boxes is not None:
        _check_boxes(body, found, boxes)
    return found


def _unexpected(body: Body, expected: str, advice: str = "choose another --decode or export the graph so") -> Exception:
    return CheckpointError(f"the graph gives {body.described}; expected {expected}; {advice}")


# -- tables of YOLOs -------------------------------------------------------------------------------------------


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> Cells:
    return tuple((stride, size[0] // stride, size[1] // stride) for stride in strides)


def _find_table(body: Body, style: Style) -> Outputs:
    """One output of a row an anchor (N,A,5+C), or for YOLOv8 of a column an anchor (N,4+C,A)."""
    each, transposed = 3 if style == "yolov5" else 1, style == "yolov8"
    before = 4 if transposed else 5
    options = [_cells(body.size, strides) for strides in PYRAMIDS]
    counts = [each * sum(rows * across for _, rows, across in cells) for cells in options]
    # YOLOv5's older exports give its raw maps as well
    tables = {name: shape for name, shape in body.shapes.items() if len(shape) != 5}
    name, shape = next(iter(tables.items()), ("", ()))
    rows, width = (shape[2], shape[1]) if transposed and len(shape) == 3 else (*shape[1:], 0, 0)[:2]
    if len(tables) != 1 or len(shape) != 3 or rows not in counts or width <= before:
        layout = f"{before} + classes, {counts[0]}" if transposed else f"{counts[0]}, {before} + classes"
        expected = f"one output [N, {layout}] for {body.size[1]}x{body.size[0]} px, without suppression inside"
        if style == "yolov5" and body.shapes and not tables:
            raise _unexpected(body, expected, "for raw maps pass --boxes raw and their --anchors")
        raise _unexpected(body, expected)
    table = body.samples[name]
    _check_scores(name, table[:, before:] if transposed else table[:, :, before - 1 :], shape)
    return Outputs((name,), width - before, rows, options[counts.index(rows)])


def _check_scores(name: str, scores: Array, shape: tuple[int, ...]) -> None:
    """Raise `CheckpointError` unless what follows the boxes can be scores: keypoints, angles and the coefficients of
    masks stand in the same place, and shapes do not tell them from classes."""
    low, high = float(scores.min()), float(scores.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise CheckpointError(
            f"{name} {list(shape)} has values from {low:.3g} to {high:.3g} where class scores in 0..1 are expected: "
            "they are logits, or keypoints, angles or masks; export a detection model, with its sigmoid"
        )


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


# -- YOLOv5's raw maps -----------------------------------------------------------------------------------------


def _find_maps(body: Body, settings: ImportOptions) -> Outputs:
    """YOLOv5's raw maps (N,anchors,h,w,5+C), by falling resolution; their strides double from level to level."""
    maps = sorted(
        ((name, shape) for name, shape in body.shapes.items() if len(shape) == 5),
        key=lambda item: -item[1][2] * item[1][3],
    )
    cells = tuple((body.size[0] // max(shape[2], 1), shape[2], shape[3]) for _, shape in maps)
    strides = tuple(stride for stride, _, _ in cells)
    alike = {(shape[1], shape[4]) for _, shape in maps}
    fits = all((rows * stride, across * stride) == body.size for stride, rows, across in cells)
    doubles = strides == tuple(strides[0] << level for level in range(len(strides))) if strides else False
    if len(maps) < 2 or len(alike) != 1 or not fits or not doubles or min(alike)[1] <= 5:
        height, width = body.size
        some = ", ".join(f"[N, 3, {height // stride}, {width // stride}, 5 + classes]" for stride in (8, 16, 32))
        raise _unexpected(body, f"a map for each level, such as {some} for {width}x{height} px")
    each, columns = alike.pop()
    anchors = _anchors_of(settings, strides, each)
    rows = each * sum(rows * across for _, rows, across in cells)
    return Outputs(tuple(name for name, _ in maps), columns - 5, rows, cells, anchors)


def _anchors_of(settings: ImportOptions, strides: tuple[int, ...], each: int) -> Anchors:
    """The anchors that the user states, checked against the maps."""
    anchors, found = settings.anchors, f"{len(strides)} maps of strides {', '.join(map(str, strides))}"
    if anchors is None:
        raise InputError(
            "raw maps do not say their anchors, and with wrong ones every box has a wrong size: pass --anchors "
            "published where the model was trained with YOLOv5's own, else the model's, WIDTH,HEIGHT in px of the "
            "input, such as --anchors 10,13,16,30,33,23/30,61,62,45,59,119/116,90,156,198,373,326"
        )
    if isinstance(anchors, str):  # published
        if strides not in PUBLISHED_ANCHORS or each != 3:
            raise InputError(
                f"the graph gives {found}, {each} anchors each; anchors are published for three each at strides "
                f"{' and '.join(', '.join(map(str, known)) for known in PUBLISHED_ANCHORS)}; state the model's own"
            )
        return PUBLISHED_ANCHORS[strides]
    if [len(level) for level in anchors] != [each] * len(strides):
        given = "/".join(str(len(level)) for level in anchors)
        raise InputError(
            f"the graph gives {found}, {each} anchors each, but --anchors has {given}; give {each} for each level, the "
            "finest first, levels separated by /"
        )
    return anchors


# -- queries and classes ---------------------------------------------------------------------------------------


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
                _check_units(names[1], body.samples[names[1]])
                return Outputs(names, classes, shapes[0][1])
    expected = "outputs logits [N, queries, classes" + (" + 1]" if style == "detr" else "]")
    more = "" if style == "detr" else ", or labels [N, queries], boxes [N, queries, 4] and scores [N, queries]"
    raise _unexpected(body, f"{expected} and pred_boxes [N, queries, 4]{more}")


def _check_units(name: str, boxes: Array) -> None:
    """Raise `CheckpointError` for boxes in px. Those of objects at the frame's edge may reach beyond 0..1."""
    low, high = float(boxes.min(initial=0)), float(boxes.max(initial=0))
    if not (low > -1 and high < 2):
        raise CheckpointError(
            f"{name} {list(boxes.shape)} has values from {low:.3g} to {high:.3g} where boxes in 0..1 of the input are "
            "expected; export the graph without the scaling to px"
        )


def _find_logits(body: Body) -> Outputs:
    logits = {name: shape for name, shape in body.shapes.items() if len(shape) == 2}
    if len(logits) != 1 or len(body.shapes) != 1:
        raise _unexpected(body, "one output [N, classes]")
    name, shape = next(iter(logits.items()))
    return Outputs((name,), shape[1], shape[1])


def _check_types(body: Body, found: Outputs) -> None:
    """Raise `CheckpointError` for outputs other than float32; class ids are whole numbers of any width."""
    for name in found.names:
        dtype = body.samples[name].dtype
        if dtype != np.float32 and not (name == "labels" and dtype.kind == "i"):
            raise CheckpointError(
                f"the graph gives {name} as {dtype}{list(body.shapes[name])}; expected float32; export it in float32 "
                "(half precision is edgevtx's own work, see --precisions)"
            )
