"""The reference for imported graphs: the file as it is in ONNX Runtime, and each project's own steps around it.

Written apart from the wrapper, from the projects' documentation, in numpy and frame by frame: what the two have in
common is the file. Two things differ from the projects on purpose. They undo the letterbox with the ratio from before
it was rounded to whole pixels, which misplaces boxes by up to one pixel of the input; here each axis has its true
scale. And YOLOv5 and YOLOv8 clip boxes to the frame, which no detector of this project does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from edgevtx.export.onnx_outputs import Outputs
from edgevtx.export.onnx_settings import DEFAULTS, Anchors, ImportOptions
from edgevtx.results import Classification, Detections
from edgevtx.rules import ClassifyDecode, Decode, DetectDecode, Exact, Letterbox, Preprocess, ShortestEdge
from edgevtx.runtimes.base import Array


def answer(
    session: Any,
    settings: ImportOptions,
    found: Outputs,
    preprocess: Preprocess,
    rule: Decode,
    labels: tuple[str, ...],
    batch: int,
    frame: Array,
) -> Detections | Classification:
    """The reference's answer to a frame (H,W,3) uint8 BGR, with no score threshold applied.

    `session` runs the file, `batch` frames at a time. Of `found` only the names of the outputs and the anchors are
    used, as of `settings` only what the graph's layout is.
    """
    image, undo = _fit(frame, preprocess)
    values = image[..., ::-1] if preprocess.channel_order == "rgb" else image
    values = (values * preprocess.scale - np.array(preprocess.mean)) / np.array(preprocess.std)
    outputs = _run(session, values.astype(np.float32), batch)
    tables = [outputs[name][0].astype(np.float64) for name in found.names]
    if isinstance(rule, ClassifyDecode):
        return _classification(tables[0], rule, labels)
    assert isinstance(rule, DetectDecode)
    style = settings.decode
    if style == "detr":
        boxes, scores, ids = _detr(*tables)
    elif style == "rtdetr":
        boxes, scores, ids = _rtdetr(*tables)
    else:
        boxes, scores, ids = _yolo(settings, found.anchors, tables, image.shape[:2])
    order = np.argsort(-scores, kind="stable")[: rule.top_k]
    boxes, scores, ids = boxes[order], scores[order], ids[order]
    if rule.suppress is not None:
        kept = _suppress(boxes, ids, rule.suppress.iou)[: rule.suppress.keep]
        boxes, scores, ids = boxes[kept], scores[kept], ids[kept]
    left, top, across, down = undo
    if style in ("detr", "rtdetr"):  # in 0..1
        boxes = boxes * ([image.shape[1], image.shape[0]] * 2)
    boxes = (boxes - [left, top] * 2) * ([across, down] * 2)
    return Detections(
        boxes.astype(np.float32), scores.astype(np.float32), ids.astype(np.int64), tuple(labels[i] for i in ids)
    )


def _run(session: Any, values: Array, batch: int) -> dict[str, Array]:
    """Every output by name, for `batch` times the same image (h,w,3)."""
    feeds = {}
    for item in session.get_inputs():
        if len(item.shape) == 4:
            image = values.transpose(2, 0, 1) if item.shape[1] == 3 else values
            feeds[item.name] = np.ascontiguousarray(np.broadcast_to(image, (batch, *image.shape)))
        else:
            free = (batch, 2) if len(item.shape) == 2 else (batch, *values.shape[:2])
            shape = [size if isinstance(size, int) else free[axis] for axis, size in enumerate(item.shape)]
            kind = item.type.removeprefix("tensor(").removesuffix(")")
            feeds[item.name] = np.ones(shape, {"float": "float32"}.get(kind, kind))
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _fit(frame: Array, preprocess: Preprocess) -> tuple[Array, tuple[float, float, float, float]]:
    """The network's image (h,w,3) uint8 BGR, and left, top and the frame's px per px of the image across and down."""
    rule, (height, width) = preprocess.size, frame.shape[:2]
    if isinstance(rule, Letterbox):
        ratio = min(rule.height / height, rule.width / width)
        rounded = int if rule.rounding == "floor" else round
        across, down = rounded(width * ratio), rounded(height * ratio)
        canvas = np.full((rule.height, rule.width, 3), rule.fill, np.uint8)
        left, top = ((rule.width - across) // 2, (rule.height - down) // 2) if rule.centered else (0, 0)
        canvas[top : top + down, left : left + across] = _resized(frame, across, down, preprocess)
        return canvas, (left, top, width / across, height / down)
    if isinstance(rule, ShortestEdge):
        assert preprocess.crop is not None
        short, (rows, columns) = rule.shortest, preprocess.crop
        down, across = (short, short * width // height) if height <= width else (short * height // width, short)
        resized = _resized(frame, across, down, preprocess)
        top, left = (down - rows) // 2, (across - columns) // 2
        return resized[top : top + rows, left : left + columns], (-left, -top, width / across, height / down)
    assert isinstance(rule, Exact)
    resized = _resized(frame, rule.width, rule.height, preprocess)
    return resized, (0, 0, width / rule.width, height / rule.height)


def _resized(frame: Array, width: int, height: int, preprocess: Preprocess) -> Array:
    """Bilinear: YOLOs' OpenCV without antialiasing, or Pillow, of which "opencv" is an approximation."""
    if preprocess.resize == "opencv-plain":
        import cv2

        return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR))
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _yolo(
    settings: ImportOptions, anchors: Anchors, tables: list[Array], size: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Boxes xyxy in px of the input, scores and class ids of every anchor."""
    style, boxes = settings.decode, settings.boxes or DEFAULTS[settings.decode].boxes
    if style == "yolov8":
        rows = tables[0].T
        scores = rows[:, 4:]
    else:
        rows = tables[0]
        if boxes == "raw":
            rows = _yolox_rows(rows, size) if style == "yolox" else _yolov5_rows(tables, anchors, size)
        scores = rows[:, 5:] * rows[:, 4:5]
    x, y, width, height = rows[:, :4].T
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return corners, scores.max(1), scores.argmax(1)


def _yolox_rows(table: Array, size: tuple[int, int]) -> Array:
    rows: Array = table.copy()
    at = 0
    stride = 4 if len(rows) > (size[0] // 4) * (size[1] // 4) else 8  # the finest level has most rows
    while at < len(rows):
        for row in range(size[0] // stride):
            for column in range(size[1] // stride):
                rows[at, 0] = (rows[at, 0] + column) * stride
                rows[at, 1] = (rows[at, 1] + row) * stride
                rows[at, 2:4] = np.exp(rows[at, 2:4]) * stride
                at += 1
        stride *= 2
    return rows


def _yolov5_rows(maps: list[Array], anchors: Anchors, size: tuple[int, int]) -> Array:
    found = []
    for values, level in zip(maps, anchors, strict=True):
        stride = size[0] // values.shape[1]
        chances = 1 / (1 + np.exp(-values))
        for anchor, (wide, high) in enumerate(level):
            for row in range(values.shape[1]):
                for column in range(values.shape[2]):
                    x, y, width, height, *rest = chances[anchor, row, column]
                    centre = ((2 * x - 0.5 + column) * stride, (2 * y - 0.5 + row) * stride)
                    found.append([*centre, (2 * width) ** 2 * wide, (2 * height) ** 2 * high, *rest])
    return np.array(found)


def _detr(logits: Array, boxes: Array) -> tuple[Array, Array, Array]:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares = (shares / shares.sum(1, keepdims=True))[:, :-1]
    return _corners(boxes), shares.max(1), shares.argmax(1)


def _rtdetr(first: Array, second: Array, third: Array | None = None) -> tuple[Array, Array, Array]:
    if third is not None:  # labels, boxes, scores
        return second, third, first.astype(np.int64)
    chances = 1 / (1 + np.exp(-first))
    order = np.argsort(-chances, axis=None, kind="stable")[: len(first)]
    rows, ids = np.unravel_index(order, chances.shape)
    return _corners(second)[rows], chances[rows, ids], np.asarray(ids)


def _corners(boxes: Array) -> Array:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def _suppress(boxes: Array, ids: Array, limit: float) -> list[int]:
    """Rows that stay, of rows that are sorted by their scores."""
    kept: list[int] = []
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for row in range(len(boxes)):
        alike = [other for other in kept if ids[other] == ids[row]]
        low = np.maximum(boxes[alike, :2], boxes[row, :2])
        high = np.minimum(boxes[alike, 2:], boxes[row, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        if not (shared > limit * (areas[alike] + areas[row] - shared)).any():
            kept.append(row)
    return kept


def _classification(values: Array, rule: ClassifyDecode, labels: tuple[str, ...]) -> Classification:
    if rule.activation == "softmax":
        values = np.exp(values - values.max())
        values = values / values.sum()
    elif rule.activation == "sigmoid":
        values = 1 / (1 + np.exp(-values))
    ids = np.argsort(-values, kind="stable")[: rule.top_k].astype(np.int64)
    return Classification(ids, values[ids].astype(np.float32), tuple(labels[i] for i in ids))
