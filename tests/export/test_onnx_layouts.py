"""What each layout of an imported graph means, by hand: boxes, scores and classes, and what the graph is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from onnx import TensorProto  # noqa: E402

from edgevtx.decode import decode  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.onnx_graph import build  # noqa: E402
from edgevtx.export.onnx_settings import ImportOptions  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.results import Classification, Detections  # noqa: E402
from edgevtx.runtimes.base import Array  # noqa: E402
from tests.export.onnx_files import CLASSES, SIZE, STYLES, Graph, Written, cells_of, network  # noqa: E402

CELLS = cells_of()
ANCHORS = sum(rows * columns for _, rows, columns in CELLS)
FRAME = (128, 96)  # (height, width): half of it fits SIZE, beside it are 48 columns of padding


def answer(path: Path, settings: ImportOptions, frame: Array, threshold: float | None = None, **options: Any) -> Any:
    """What the wrapped graph gives for a frame, decoded, with the manifest's own threshold where none is given."""
    traceable = build(OnnxFile.open(path, settings), BuildOptions(**options))
    image, geometry = prepare(frame, traceable.preprocess)
    pixels = np.repeat(image[None], options.get("batch") or 1, 0)
    values = traceable.module(torch.from_numpy(pixels))
    outputs = {spec.name: value.numpy() for spec, value in zip(traceable.outputs, values, strict=True)}
    for spec in traceable.outputs:
        assert outputs[spec.name].dtype == np.dtype(spec.dtype)
    manifest: Any = SimpleNamespace(decode=traceable.decode, labels=traceable.labels)
    return decode(outputs, [geometry], manifest, threshold=threshold)[0]


# -- what each layout means, by hand ---------------------------------------------------------------------------

# the object: in level 1 (stride 16), row 2, column 3 of the input; centre (56, 36), 32 px wide and 48 high; class 1
INPUT_BOX = np.array([40.0, 12, 72, 60])
AT = 8 * 12 + 2 * 6 + 3
SCORE = 0.8


def centres() -> Array:
    """The centre of every cell in px of the input (A,2)."""
    found = [((c + 0.5) * s, (r + 0.5) * s) for s, rows, columns in CELLS for r in range(rows) for c in range(columns)]
    return np.array(found)


def decoded_rows(columns: int) -> Array:
    """Boxes cx, cy, w, h in px of the input and scores of nothing but the one object (A,columns + classes)."""
    rows = np.zeros((ANCHORS, columns + CLASSES))
    rows[:, :2], rows[:, 2:4] = centres(), 8
    rows[AT, :4] = (56, 36, 32, 48)
    scores = [0.9, 0.1, SCORE / 0.9, 0.2] if columns == 5 else [0.1, SCORE, 0.2]
    rows[AT, 4 : columns + CLASSES] = scores
    return rows


def yolox_raw() -> dict[str, Array]:
    rows = decoded_rows(5)
    rows[:, :4] = 0
    rows[AT, :4] = (56 / 16 - 3, 36 / 16 - 2, math.log(32 / 16), math.log(48 / 16))
    return {"output": rows[None]}


def yolov5_decoded() -> dict[str, Array]:
    rows = decoded_rows(5)
    other = rows.copy()
    other[:, 4] = 0
    at, levels = 0, []  # three anchors a level, each over all of its cells
    for _, height, width in CELLS:
        level = slice(at, at + height * width)
        levels += [other[level], rows[level], other[level]]
        at += height * width
    return {"output0": np.concatenate(levels)[None]}


def logit(value: float) -> float:
    return math.log(value / (1 - value))


def yolov5_raw() -> dict[str, Array]:
    # anchor 2 of stride 16 is 59 x 119 px
    return raw_maps(CELLS, level=1, anchor=2, side=(59, 119), cell=(2, 3), box=(56, 36, 32, 48))


def raw_maps(
    cells: list[tuple[int, int, int]],
    *,
    level: int,
    anchor: int,
    side: tuple[float, float],
    cell: tuple[int, int],
    box: tuple[float, ...],
) -> dict[str, Array]:
    """YOLOv5's maps of logits with one object: `box` cx, cy, w, h in px at `cell` (row, column), by an anchor (w,h)."""
    maps = {f"map_{stride}": np.full((1, 3, rows, columns, 5 + CLASSES), -9.0) for stride, rows, columns in cells}
    stride, (row, column), (x, y, width, height) = cells[level][0], cell, box
    centre = (x / stride - column + 0.5) / 2, (y / stride - row + 0.5) / 2
    extent = math.sqrt(width / side[0]) / 2, math.sqrt(height / side[1]) / 2
    values = (*centre, *extent, 0.9, 0.1, SCORE / 0.9, 0.2)
    maps[f"map_{stride}"][0, anchor, row, column] = [logit(value) for value in values]
    return maps


def queries(style: str) -> dict[str, Array]:
    """The object as the third of five queries."""
    boxes = np.full((1, 5, 4), 0.5)
    boxes[0, 2] = np.array([56, 36, 32, 48]) / [96, 64, 96, 64]
    if style == "detr":
        shares = np.array([0.05, SCORE, 0.05, 0.1])
        logits = np.tile([0, 0, 0, 9.0], (1, 5, 1))
        logits[0, 2] = np.log(shares)
    else:
        logits = np.full((1, 5, CLASSES), -9.0)
        logits[0, 2, 1] = logit(SCORE)
    return {"logits": logits, "pred_boxes": boxes}


def deployed() -> dict[str, Array]:
    scores, labels = np.full((1, 5), 0.01), np.zeros((1, 5), np.int64)
    boxes = np.tile([0.1, 0.1, 0.2, 0.2], (1, 5, 1))
    scores[0, 2], labels[0, 2], boxes[0, 2] = SCORE, 1, INPUT_BOX / [96, 64, 96, 64]
    return {"labels": labels, "boxes": boxes, "scores": scores}


SIZES = ("orig_target_sizes", TensorProto.INT64, ("N", 2))
YOLO_BOX = INPUT_BOX * 2  # undo YOLOX's letterbox: the frame at the top left, at half its size
CENTRED_BOX = (INPUT_BOX - [24, 0, 24, 0]) * 2  # the frame in the middle
STRETCHED_BOX = INPUT_BOX * [96 / 96, 128 / 64, 96 / 96, 128 / 64]
LAYOUTS: dict[str, tuple[Callable[[], dict[str, Array]], ImportOptions, Array, Written]] = {
    "yolox": (yolox_raw, STYLES["yolox"], YOLO_BOX, Written()),
    "yolox decoded": (
        lambda: {"output": decoded_rows(5)[None]},
        ImportOptions(decode="yolox", boxes="decoded"),
        YOLO_BOX,
        Written(),
    ),
    "yolov5": (yolov5_decoded, STYLES["yolov5"], CENTRED_BOX, Written()),
    "yolov5 with its maps": (
        lambda: {**yolov5_decoded(), **yolov5_raw()},
        STYLES["yolov5"],
        CENTRED_BOX,
        Written(),
    ),
    "yolov5 raw": (yolov5_raw, STYLES["yolov5-raw"], CENTRED_BOX, Written()),
    "yolov8": (lambda: {"output0": decoded_rows(4).T[None]}, STYLES["yolov8"], CENTRED_BOX, Written()),
    "detr": (lambda: queries("detr"), STYLES["detr"], STRETCHED_BOX, Written()),
    "detr with a mask": (
        lambda: queries("detr"),
        STYLES["detr"],
        STRETCHED_BOX,
        Written(inputs=(("pixel_mask", TensorProto.INT64, (1, 64, 64)),)),
    ),
    "rtdetr": (lambda: queries("rtdetr"), STYLES["rtdetr"], STRETCHED_BOX, Written()),
    "rtdetr deployed": (deployed, STYLES["rtdetr"], STRETCHED_BOX, Written(inputs=(SIZES,))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_decoded_as_its_documentation_says(layout: str, constant_graph: Callable[..., Path]) -> None:
    outputs, settings, box, how = LAYOUTS[layout]
    found = answer(
        constant_graph(outputs(), how), settings, np.zeros((*FRAME, 3), np.uint8), labels=("cat", "dog", "cow")
    )
    assert isinstance(found, Detections)
    assert found.labels == ("dog",) and found.class_ids.tolist() == [1]
    np.testing.assert_allclose(found.boxes, box[None], atol=1e-3)
    np.testing.assert_allclose(found.scores, [SCORE], atol=1e-5)


# (width, height) px, as the projects' model files list them
P5 = [[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)], [(116, 90), (156, 198), (373, 326)]]
P6 = [
    [(19, 27), (44, 40), (38, 94)],
    [(96, 68), (86, 152), (180, 137)],
    [(140, 301), (303, 264), (238, 542)],
    [(436, 615), (739, 380), (925, 792)],
]
# three a level, as k-means over somebody's own boxes gives them
OWN = [[(5, 6), (8, 14.5), (15, 11)], [(20, 31), (40, 22), (33, 60)]]


@pytest.mark.parametrize(
    ("levels", "stated"),
    [(P5, False), (P6, False), (P5, True), (P6, True), (OWN, True)],
    ids=["P5 published", "P6 published", "P5 stated", "P6 stated", "two levels"],
)
def test_raw_maps_have_the_levels_that_they_show_and_the_anchors_that_are_stated(
    levels: list[list[tuple[float, float]]], stated: bool, constant_graph: Callable[..., Path]
) -> None:
    size = (128, 192)
    cells = cells_of(size, tuple(8 << level for level in range(len(levels))))
    anchors: Any = tuple(map(tuple, levels)) if stated else "published"
    settings = ImportOptions(decode="yolov5", boxes="raw", anchors=anchors, size=size)
    for level, sides in enumerate(levels):
        for anchor, side in enumerate(sides):
            box = (100.0, 70.0, 0.8 * side[0], 1.3 * side[1])
            stride = cells[level][0]
            maps = raw_maps(
                cells, level=level, anchor=anchor, side=side, cell=(int(70 / stride), int(100 / stride)), box=box
            )
            maps = dict(reversed(maps.items()))  # in whatever order they come
            found = answer(constant_graph(maps, Written(size)), settings, np.zeros((*size, 3), np.uint8))
            x, y, width, height = box
            wanted = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            np.testing.assert_allclose(found.boxes, [wanted], rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(found.scores, [SCORE], atol=1e-5)


@pytest.mark.parametrize("style", ["yolox", "yolov5", "yolov5-raw", "yolov8"])
@pytest.mark.parametrize("strides", [(8, 16, 32, 64), (4, 8, 16, 32)], ids=["P6", "P2"])
def test_models_of_four_levels_give_the_references_answer(
    style: str, strides: tuple[int, ...], tmp_path: Path, photos: dict[str, Array]
) -> None:
    settings = STYLES[style]
    if style == "yolov5-raw" and strides[0] == 4:
        settings = replace(settings, anchors=tuple(map(tuple, P6)))
    path = network(tmp_path / "x.onnx", style, Written((128, 192)), strides=strides)
    assert_answers_as_the_reference(path, settings, photos["coffee"])


def assert_answers_as_the_reference(path: Path, settings: ImportOptions, frame: Array, **options: Any) -> None:
    reference = build(OnnxFile.open(path, settings), BuildOptions(**options)).reference(frame)
    threshold = None if settings.decode == "classify" else 0.0
    check = compare_results(reference, answer(path, settings, frame, threshold, **options))
    assert check.passed and check.compared >= 5, check


@pytest.mark.parametrize(
    "rule",
    [{"letterbox": 0}, {"letterbox": 200}, {"letterbox": -1}, {"shortest_edge": 100}],
    ids=["black", "grey", "stretched", "cropped"],
)
@pytest.mark.parametrize("style", STYLES)
def test_every_way_to_fill_the_input_serves_every_decoding(
    style: str, rule: dict[str, int], tmp_path: Path, photos: dict[str, Array]
) -> None:
    path = network(tmp_path / "x.onnx", style)
    for name in ("coffee", "portrait"):
        assert_answers_as_the_reference(path, replace(STYLES[style], **rule), photos[name])


@pytest.mark.parametrize("style", ["detr", "rtdetr", "classify"])
def test_the_resize_of_pillow_is_the_default_and_opencvs_is_near_it(
    style: str, tmp_path: Path, photos: dict[str, Array]
) -> None:
    file = OnnxFile.open(network(tmp_path / "x.onnx", style), STYLES[style])
    images = {}
    for resize, backend in ((None, "pillow"), ("pillow", "pillow"), ("opencv", "opencv")):
        preprocess = build(file, BuildOptions(resize=resize)).preprocess
        assert preprocess.resize == backend
        images[resize] = prepare(photos["coffee"], preprocess)[0].astype(int)
    np.testing.assert_array_equal(images[None], images["pillow"])
    difference = np.abs(images["opencv"] - images["pillow"])
    assert 0 < difference.mean() < 3


@pytest.mark.parametrize(
    ("activation", "values", "scores"),
    [
        ("softmax", np.log([1.0, 2, 5]) + 3, [0.625, 0.25, 0.125]),
        ("sigmoid", [logit(0.2), logit(0.9), logit(0.3)], [0.9, 0.3, 0.2]),
        ("none", [0.2, 0.1, 0.7], [0.7, 0.2, 0.1]),
    ],
)
def test_a_classifiers_scores_are_what_its_activation_says(
    activation: Any, values: Any, scores: list[float], constant_graph: Callable[..., Path]
) -> None:
    path = constant_graph({"logits": np.array([values])})
    found = answer(path, ImportOptions(decode="classify", activation=activation), np.zeros((*FRAME, 3), np.uint8))
    assert isinstance(found, Classification)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert found.labels == tuple(f"class {index}" for index in np.argsort(values)[::-1])


def picture_of_inputs(tmp_path: Path, how: Written) -> Path:
    """A "classifier" whose logits are three pixels of its input: what the graph is really shown."""
    graph, nhwc = Graph([], []), how.shape[3] == 3
    image = graph.node("Transpose", "images", perm=[0, 3, 1, 2]) if nhwc else "images"
    flat = graph.node("Reshape", image, graph.constant((0, -1), np.int64))
    picked = graph.constant([5 * 96 + 7, 6144 + 5 * 96 + 7, 2 * 6144 + 5 * 96 + 7], np.int64)
    graph.node("Gather", flat, picked, output="logits", axis=1)
    return how.save(tmp_path / "inputs.onnx", graph, {"logits": 2})


@pytest.mark.parametrize("shape", [(1, 3, *SIZE), (1, *SIZE, 3)], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda b, g, r: [(r / 255 - 0.485) / 0.229, (g / 255 - 0.456) / 0.224, (b / 255 - 0.406) / 0.225]),
        ({"channel_order": "bgr", "scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}, lambda b, g, r: [b, g, r]),
        (
            {"scale": 1.0, "mean": (10.0, 20.0, 30.0), "std": (2.0, 4.0, 5.0)},
            lambda b, g, r: [(r - 10) / 2, (g - 20) / 4, (b - 30) / 5],
        ),
    ],
    ids=["imagenet", "bgr", "mean and std"],
)
def test_the_graph_is_shown_what_it_was_trained_on(
    changes: dict[str, Any], expected: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    settings = ImportOptions(decode="classify", activation="none", **changes)
    found = answer(picture_of_inputs(tmp_path, Written(shape=shape)), settings, frame)
    values = dict(zip(found.class_ids.tolist(), found.scores.tolist(), strict=True))
    np.testing.assert_allclose([values[i] for i in range(3)], expected(*frame[5, 7].astype(float)), rtol=1e-5)
