"""An existing ONNX graph as a bundle: YOLOX, YOLOv5, YOLOv8, DETR and RT-DETR detectors, and classifiers.

The graph is wrapped, in ONNX, so that it takes uint8 frames and gives this project's outputs: before it the cast, the
transposition and the normalisation, behind it grids, strides, sigmoids, box formats and the best K rows. The outputs
expected are those of each project's own ONNX export, as its documentation describes them.

Ge et al., "YOLOX: Exceeding YOLO Series in 2021", 2021; Jocher, YOLOv5 (2020) and YOLOv8 (2023): documentation alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import onnx_ir as ir

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export import onnx_reference
from edgevtx.export.boxes import check_top_k
from edgevtx.export.onnx_file import Body, ImportedGraph, OnnxFile, prepare_body
from edgevtx.export.onnx_metadata import check_task, stated_names
from edgevtx.export.onnx_nodes import WRITE_BOXES, Decoded, Wrapper, wrap, write_classes
from edgevtx.export.onnx_outputs import Outputs, find_outputs
from edgevtx.export.onnx_settings import DEFAULTS, ROWS, Activation, ImportOptions, check_settings, preprocess_of
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, detect_outputs, needless_frame, pixels_spec
from edgevtx.manifest import Task, TensorInfo
from edgevtx.rules import ClassifyDecode, Decode, DetectDecode, Suppress
from edgevtx.runtimes.base import Array


def build(file: OnnxFile, options: BuildOptions) -> Traceable:
    """The wrapped graph of a file, see `ImportOptions`; raises `CheckpointError` where it is not as its style says."""
    settings = cast(ImportOptions, file.settings)
    check_batch(options.batch)
    check_settings(settings)
    check_task(file.path, file.metadata, settings.decode)
    task: Task = "classify" if settings.decode == "classify" else "detect"
    if options.task not in (None, task):
        raise InputError(f"--decode {settings.decode} is for the task {task}; leave --task {options.task} out")
    body = prepare_body(file, options.batch, settings.size)
    preprocess = preprocess_of(settings, body.size, options.resize)
    found = find_outputs(body, settings)
    labels = _class_names(file, found.classes, options.labels)
    ending = (_classes if task == "classify" else _boxes)(body, found, settings, options, len(labels))
    graph = wrap(body, preprocess, ending.outputs, ending.write, found.names)
    return Traceable(
        family=RECIPE.family,
        task=task,
        module=ImportedGraph(graph).eval(),
        inputs=(pixels_spec(options.batch, body.size),),
        outputs=ending.outputs,
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=body.size,
        other_size=body.size,
        preprocess=preprocess,
        decode=ending.rule,
        labels=labels,
        reference=partial(
            onnx_reference.answer, file.session(), settings, found, preprocess, ending.rule, labels, options.batch or 1
        ),
        notes=(*_notes(file, settings), *needless_frame(options.frame, body.size)),
    )


class Ending(NamedTuple):
    """What follows the imported graph: the manifest's rule, the outputs, and what writes their nodes."""

    rule: Decode
    outputs: tuple[TensorInfo, ...]
    write: Callable[[Wrapper, list[ir.Value]], Decoded]


def _classes(body: Body, found: Outputs, settings: ImportOptions, options: BuildOptions, count: int) -> Ending:
    top_k = min(5, count) if options.top_k is None else options.top_k
    if not 1 <= top_k <= count:
        raise InputError(f"top_k is {top_k}, this graph has {count} classes; choose 1 to {count}")
    activation = settings.activation or "softmax"
    _check_activation(body.samples[found.names[0]], activation)
    outputs = (
        TensorInfo(name="scores", shape=(options.batch, top_k), dtype="float32"),
        TensorInfo(name="class_ids", shape=(options.batch, top_k), dtype="int64"),
    )
    rule = ClassifyDecode(top_k=top_k, activation=activation)
    return Ending(rule, outputs, lambda w, values: write_classes(w, values, activation, top_k))


def _boxes(body: Body, found: Outputs, settings: ImportOptions, options: BuildOptions, count: int) -> Ending:
    style, default = settings.decode, DEFAULTS[settings.decode]
    yolo = default.iou is not None
    top_k = check_top_k(min(ROWS, found.rows) if yolo and options.top_k is None else options.top_k, found.rows)
    boxes = settings.boxes or default.boxes

    def write(w: Wrapper, values: list[ir.Value]) -> Decoded:
        decoded = WRITE_BOXES[style](w, values, found, body, boxes)
        return w.keep(top_k, *decoded) if yolo or top_k < found.rows else decoded

    suppress = None
    if default.iou is not None:
        suppress = Suppress(iou=default.iou if settings.iou is None else settings.iou, keep=min(default.keep, top_k))
    rule = DetectDecode(
        top_k=top_k,
        threshold=default.threshold if settings.threshold is None else settings.threshold,
        units="input",
        suppress=suppress,
    )
    return Ending(rule, detect_outputs(options.batch, top_k), write)


def _check_activation(scores: Array, activation: Activation) -> None:
    """Raise `InputError` for a softmax over what is one already: it would flatten every score."""
    shares = bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) < 1e-3).all())
    if shares and activation != "none" and scores.shape[1] > 1:
        raise InputError("the graph's output is already a softmax (it adds up to 1); pass --activation none")


def _class_names(file: OnnxFile, classes: int, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    """`labels`, or the names in the model's metadata, or numbers."""
    stated = stated_names(file.metadata)
    if stated is not None and classes and len(stated) != classes:
        raise CheckpointError(
            f"{file.path} names {len(stated)} classes in its metadata, but its output has room for {classes}: a model "
            "of keypoints, rotated boxes or masks has more than scores there; choose another --decode or export a "
            "detection model"
        )
    names = labels or stated
    if names is None and not classes:
        raise InputError(f"{file.path} does not say how many classes it has; name them with --labels FILE")
    if names is None:
        return tuple(f"class {index}" for index in range(classes))
    if classes and len(names) != classes:
        raise InputError(
            f"{len(names)} labels were given, but the graph has {classes} classes; give {classes}, or check --decode: "
            "keypoints, angles and masks count as classes where they are taken for scores"
        )
    return names


def _notes(file: OnnxFile, settings: ImportOptions) -> tuple[str, ...]:
    boxes = settings.boxes or DEFAULTS[settings.decode].boxes
    how = f", boxes {boxes}" if boxes else ""
    anchors = f", anchors {settings.anchors}" if settings.anchors else ""
    return (f"imported from {file.name}, decoded as {settings.decode}{how}{anchors}",)


RECIPE = Recipe(
    family="onnx",
    title="Existing ONNX graphs: YOLOX, YOLOv5, YOLOv8, DETR, RT-DETR, classifiers",
    paper="https://arxiv.org/abs/2107.08430",
    task="detect",
    result="Detections",
    further={"classify": "Classification"},
    variants=tuple(f"--decode {style}: {default.outputs}" for style, default in DEFAULTS.items()),
    model_types=(),
    layouts=("an ONNX file and how it is to be decoded (--graph, --decode)",),
    build=build,
    tiny_config=dict,
    options=("batch", "top_k", "labels", "resize"),
)
