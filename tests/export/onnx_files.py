"""ONNX files as others publish them, made here: graphs that give constants, and seeded networks of each layout."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevtx.export.onnx_file import OnnxFile
from edgevtx.export.onnx_settings import ImportOptions
from edgevtx.runtimes.base import Array

SIZE = (64, 96)
CLASSES = 3
STRIDES = (8, 16, 32)

STYLES: dict[str, ImportOptions] = {
    "yolox": ImportOptions(decode="yolox"),
    "yolov5": ImportOptions(decode="yolov5"),
    "yolov5-raw": ImportOptions(decode="yolov5", boxes="raw", anchors="published"),
    "yolov8": ImportOptions(decode="yolov8"),
    "detr": ImportOptions(decode="detr"),
    "rtdetr": ImportOptions(decode="rtdetr"),
    "classify": ImportOptions(decode="classify"),
}
"""The layouts of `network`, and how each is read."""


def cells_of(size: tuple[int, int] = SIZE, strides: tuple[int, ...] = STRIDES) -> list[tuple[int, int, int]]:
    """Stride, rows and columns of each level."""
    return [(stride, size[0] // stride, size[1] // stride) for stride in strides]


@dataclass
class Graph:
    """Nodes and weights of a graph that is being written."""

    nodes: list[Any]
    weights: list[Any]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output


@dataclass(frozen=True)
class Written:
    """How a graph is written to its file.

    `shape` of the image input, (1,3,h,w) of `size` where it is None; `inputs` beside the image: (name, type, shape).
    """

    size: tuple[int, int] = SIZE
    shape: tuple[Any, ...] | None = None
    opset: int = 17
    dtype: int = TensorProto.FLOAT
    inputs: tuple[tuple[str, int, tuple[Any, ...]], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()

    def save(
        self, path: Path, graph: Graph, outputs: dict[str, int], types: dict[str, int] | None = None, **options: Any
    ) -> Path:
        """Write a graph with these outputs, by name and rank; of float32 unless `types` says otherwise."""
        shape = self.shape or (1, 3, *self.size)
        infos = [helper.make_tensor_value_info("images", self.dtype, shape)]
        infos += [helper.make_tensor_value_info(*item) for item in self.inputs]
        results = [
            helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), [None] * rank)
            for name, rank in outputs.items()
        ]
        made = helper.make_graph(graph.nodes, "tiny", infos, results, graph.weights)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        helper.set_model_props(model, dict(self.metadata))
        onnx.save(model, path, **options)
        return path


def write_constants(path: Path, outputs: dict[str, Array], how: Written = Written()) -> Path:
    """A graph that gives these arrays whatever it is shown; floats as float32, other types as they are."""
    graph, types = Graph([], []), {}
    image = graph.node("Cast", "images", to=TensorProto.FLOAT)
    zero = graph.node("Mul", graph.node("ReduceMax", image, keepdims=0), graph.constant(0))
    for key, array in outputs.items():
        value = graph.node("Add", graph.constant(array), zero)
        if array.dtype not in (np.float64, np.float32):
            types[key] = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.node("Cast", value, output=key, to=types[key])
        elif key == "boxes" and any(item[0] == "orig_target_sizes" for item in how.inputs):
            sizes = graph.node("Cast", "orig_target_sizes", to=TensorProto.FLOAT)
            sizes = graph.node("Concat", sizes, sizes, axis=1)
            graph.node("Mul", value, graph.node("Reshape", sizes, graph.constant((1, 1, 4), np.int64)), output=key)
        else:
            graph.node("Identity", value, output=key)
    return how.save(path, graph, {key: array.ndim for key, array in outputs.items()}, types)


def network(
    path: Path,
    style: str,
    how: Written = Written(),
    *,
    seed: int = 3,
    strides: tuple[int, ...] = STRIDES,
    trunk: int = 0,
    **options: Any,
) -> Path:
    """A seeded network of one convolution a level whose answers follow the image, in the layout of `style`.

    Before these come `trunk` convolutions of eight channels, which int8 may have, unlike the image's and the heads'.
    """
    random, graph = np.random.default_rng(seed), Graph([], [])
    image = "images"
    if how.shape and how.shape[3] == 3:  # NHWC
        image = graph.node("Transpose", image, perm=[0, 3, 1, 2])
    # of answers about 1 px or logit over a photograph: YOLOX is shown 0..255, classifiers and DETR about -2..2
    gain = {"yolox": 4 / 255, "classify": 1.0, "detr": 1.0}.get(style, 4.0)

    def convolve(stride: int, channels: int, spread: float, bias: float = 0) -> str:
        colour = random.normal(0, gain * spread / stride**2, (channels, 3, 1, 1))
        texture = random.normal(0, 0.3 * gain * spread / stride, (channels, 3, stride, stride))
        kernel = colour + texture
        offset = random.normal(bias, 0.3, channels)
        return graph.node("Conv", image, graph.constant(kernel), graph.constant(offset), strides=[stride, stride])

    widths = [3, *[8] * trunk, 3] if trunk else []
    for have, wanted in pairwise(widths):
        kernel = random.normal(0, (1 if have == 3 else 2) / (9 * have) ** 0.5, (wanted, have, 3, 3))
        image = graph.node("Relu", graph.node("Conv", image, graph.constant(kernel), pads=[1, 1, 1, 1]))

    def rows(value: str, channels: int) -> str:
        return graph.node("Reshape", value, graph.constant((0, channels, -1), np.int64))

    if style in ("detr", "rtdetr"):
        count = CLASSES + (style == "detr")
        logits = rows(convolve(16, count, 1.0, -3 if style == "rtdetr" else 0), count)
        boxes = rows(convolve(16, 4, 1.0), 4)
        graph.node("Transpose", logits, output="logits", perm=[0, 2, 1])
        graph.node("Sigmoid", graph.node("Transpose", boxes, perm=[0, 2, 1]), output="pred_boxes")
        return how.save(path, graph, {"logits": 3, "pred_boxes": 3}, **options)
    if style == "classify":
        graph.node("ReduceMean", convolve(16, 7, 2.0), output="logits", axes=[2, 3], keepdims=0)
        return how.save(path, graph, {"logits": 2}, **options)
    if style == "yolov5-raw":
        names = []
        for stride, height, width in cells_of(how.size, strides):
            value = convolve(stride, 3 * (5 + CLASSES), 0.4)
            shape = graph.constant((0, 3, 5 + CLASSES, height, width), np.int64)
            value = graph.node("Reshape", value, shape)
            names.append(graph.node("Transpose", value, output=f"map_{stride}", perm=[0, 1, 3, 4, 2]))
        return how.save(path, graph, dict.fromkeys(names, 5), **options)
    levels = []
    for stride, height, width in cells_of(how.size, strides):
        for _ in range(3 if style == "yolov5" else 1):
            centre, extent = convolve(stride, 2, 0.3), convolve(stride, 2, 0.3)
            scores = graph.node(
                "Sigmoid", convolve(stride, CLASSES + (style != "yolov8"), 1.0, -1 if style == "yolov8" else 0)
            )
            if style != "yolox":
                y, x = np.mgrid[:height, :width]
                centre = graph.node("Add", centre, graph.constant(np.stack((x, y))[None]))
                centre = graph.node("Mul", centre, graph.constant(stride))
                extent = graph.node("Mul", graph.node("Exp", extent), graph.constant(stride))
            columns = 5 + CLASSES - (style == "yolov8")
            levels.append(rows(graph.node("Concat", centre, extent, scores, axis=1), columns))
    table = graph.node("Concat", *levels, axis=2)
    if style != "yolov8":
        table = graph.node("Transpose", table, perm=[0, 2, 1])
    graph.node("Identity", table, output="output0")
    return how.save(path, graph, {"output0": 3}, **options)


def tiny_file(folder: Path) -> OnnxFile:
    """A small detector of seeded weights, in YOLOv8's layout, whose batch is open."""
    written = Written((64, 96), shape=("batch", 3, 64, 96))
    return OnnxFile.open(network(folder / "x.onnx", "yolov8", written, seed=0, trunk=6), STYLES["yolov8"])
