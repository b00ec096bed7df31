"""Importing ONNX graphs: what each layout decodes to, that it is verified like any other, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import edgevtx  # noqa: E402
from edgevtx.compare import compare  # noqa: E402
from edgevtx.decode import decode  # noqa: E402
from edgevtx.errors import CheckpointError, EdgevtxError, ExportError, InputError  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.onnx_graph import ImportOptions, build  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.export.trace import trace  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.results import Classification, Detections  # noqa: E402
from edgevtx.runtimes.base import Array  # noqa: E402

SIZE = (64, 96)
CELLS = [(8, 8, 12), (16, 4, 6), (32, 2, 3)]  # stride, rows, columns
ANCHORS = sum(rows * columns for _, rows, columns in CELLS)
CLASSES = 3
FRAME = (128, 96)  # (height, width): half of it fits SIZE, beside it are 48 columns of padding


# -- graphs ----------------------------------------------------------------------------------------------------


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
    """How a graph is written to its file; `inputs` beside the image: name -> (type, shape)."""

    shape: tuple[Any, ...] = (1, 3, *SIZE)
    opset: int = 17
    dtype: int = TensorProto.FLOAT
    inputs: tuple[tuple[str, int, tuple[Any, ...]], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()

    def save(self, path: Path, graph: Graph, outputs: dict[str, int], **options: Any) -> Path:
        """Write a graph with these outputs, by name and rank."""
        infos = [helper.make_tensor_value_info("images", self.dtype, self.shape)]
        infos += [helper.make_tensor_value_info(*item) for item in self.inputs]
        types = {"labels": TensorProto.INT64}
        results = [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), [None] * rank)
            for name, rank in outputs.items()
        ]
        made = helper.make_graph(graph.nodes, "tiny", infos, results, graph.weights)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        helper.set_model_props(model, dict(self.metadata))
        onnx.save(model, path, **options)
        return path


@pytest.fixture
def constant_graph(tmp_path: Path) -> Callable[..., Path]:
    """constant_graph({name: array}, Written()) -> a graph that gives these arrays whatever it is shown."""

    def make(outputs: dict[str, Array], how: Written = Written(), name: str = "constant.onnx") -> Path:
        graph = Graph([], [])
        image = graph.node("Cast", "images", to=TensorProto.FLOAT)
        zero = graph.node("Mul", graph.node("ReduceMax", image, keepdims=0), graph.constant(0))
        for key, array in outputs.items():
            value = graph.node("Add", graph.constant(array), zero)
            if key == "labels":
                graph.node("Cast", value, output=key, to=TensorProto.INT64)
            elif key == "boxes" and any(item[0] == "orig_target_sizes" for item in how.inputs):
                sizes = graph.node("Cast", "orig_target_sizes", to=TensorProto.FLOAT)
                sizes = graph.node("Concat", sizes, sizes, axis=1)
                graph.node("Mul", value, graph.node("Reshape", sizes, graph.constant((1, 1, 4), np.int64)), output=key)
            else:
                graph.node("Identity", value, output=key)
        return how.save(tmp_path / name, graph, {key: array.ndim for key, array in outputs.items()})

    return make


def network(path: Path, style: str, how: Written | None = None, **options: Any) -> Path:
    """A seeded network of one convolution a level whose answers follow the image, in the layout of `style`."""
    how = how or Written()
    random, graph = np.random.default_rng(3), Graph([], [])
    image, nhwc = "images", how.shape[3] == 3
    if nhwc:
        image = graph.node("Transpose", image, perm=[0, 3, 1, 2])
    # of answers about 1 px or logit over a photograph: YOLOX is shown 0..255, classifiers and DETR about -2..2
    gain = {"yolox": 4 / 255, "classify": 1.0, "detr": 1.0}.get(style, 4.0)

    def convolve(stride: int, channels: int, spread: float, bias: float = 0) -> str:
        colour = random.normal(0, gain * spread / stride**2, (channels, 3, 1, 1))
        texture = random.normal(0, 0.3 * gain * spread / stride, (channels, 3, stride, stride))
        kernel = colour + texture
        offset = random.normal(bias, 0.3, channels)
        return graph.node("Conv", image, graph.constant(kernel), graph.constant(offset), strides=[stride, stride])

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
        for stride, height, width in CELLS:
            value = convolve(stride, 3 * (5 + CLASSES), 0.4)
            shape = graph.constant((0, 3, 5 + CLASSES, height, width), np.int64)
            value = graph.node("Reshape", value, shape)
            names.append(graph.node("Transpose", value, output=f"map_{stride}", perm=[0, 1, 3, 4, 2]))
        return how.save(path, graph, dict.fromkeys(names, 5), **options)
    levels = []
    for stride, height, width in CELLS:
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


STYLES: dict[str, ImportOptions] = {
    "yolox": ImportOptions(decode="yolox"),
    "yolov5": ImportOptions(decode="yolov5"),
    "yolov5-raw": ImportOptions(decode="yolov5", boxes="raw"),
    "yolov8": ImportOptions(decode="yolov8"),
    "detr": ImportOptions(decode="detr"),
    "rtdetr": ImportOptions(decode="rtdetr"),
    "classify": ImportOptions(decode="classify"),
}
each_style = pytest.mark.parametrize("style", STYLES)


def answer(path: Path, settings: ImportOptions, frame: Array, **options: Any) -> Any:
    """What the wrapped graph gives for a frame, decoded, with the manifest's own threshold."""
    traceable = build(OnnxFile.open(path, settings), BuildOptions(**options))
    image, geometry = prepare(frame, traceable.preprocess)
    pixels = np.repeat(image[None], options.get("batch") or 1, 0)
    values = traceable.module(torch.from_numpy(pixels))
    outputs = {spec.name: value.numpy() for spec, value in zip(traceable.outputs, values, strict=True)}
    for spec in traceable.outputs:
        assert outputs[spec.name].dtype == np.dtype(spec.dtype)
    manifest: Any = SimpleNamespace(decode=traceable.decode, labels=traceable.labels)
    return decode(outputs, [geometry], manifest)[0]


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
    maps = {f"map_{stride}": np.full((1, 3, rows, columns, 5 + CLASSES), -9.0) for stride, rows, columns in CELLS}
    # anchor 2 of stride 16 is 59 x 119 px
    ratios = (56 / 16 - 3 + 0.5) / 2, (36 / 16 - 2 + 0.5) / 2, math.sqrt(32 / 59) / 2, math.sqrt(48 / 119) / 2
    scores = 0.9, 0.1, SCORE / 0.9, 0.2
    maps["map_16"][0, 2, 2, 3] = [logit(value) for value in (*ratios, *scores)]
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
    scores, labels = np.full((1, 5), 0.01), np.zeros((1, 5))
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


@pytest.fixture
def pictures(tmp_path: Path, photos: dict[str, Array]) -> Path:
    """A folder of two photographs to verify on: these networks give the flat parts of rendered scenes equal scores."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("chelsea", "portrait"):
        write_image(folder / f"{name}.png", photos[name])
    return folder


# -- a bundle like any other -----------------------------------------------------------------------------------


@each_style
def test_it_is_exported_and_gives_the_references_answer(
    style: str, tmp_path: Path, photos: dict[str, Array], pictures: Path, empty_cache: Path
) -> None:
    path = network(tmp_path / f"{style}.onnx", style)
    file = OnnxFile.open(path, STYLES[style])
    report = export("onnx", file, tmp_path / "model.vtx", ExportOptions(images=pictures))
    assert [item.status for item in report.manifest.verdicts] == ["passed-here"] * 2, report.manifest.verdicts
    assert report.manifest.provenance.checkpoint == path.name
    assert report.manifest.provenance.checkpoint_sha256 == file.sha256
    frame = photos["coffee"]
    reference = build(file, BuildOptions()).reference(frame)
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(tmp_path / "model.vtx", runtime=runtime) as model:
            found = model(frame, threshold=0.0)
            check = compare_results(reference, found)
            assert check.passed and check.compared >= 5, check
            if isinstance(found, Detections):
                assert 2 <= len(model(frame)) < len(found)  # what scores above the default is some, not all


@each_style
@pytest.mark.parametrize("batch", [2, None])
def test_a_batch_gives_what_its_frames_give_alone(
    style: str, batch: int | None, tmp_path: Path, photos: dict[str, Array]
) -> None:
    alone = build(OnnxFile.open(network(tmp_path / "one.onnx", style), STYLES[style]), BuildOptions())
    how = Written(shape=("batch", 3, *SIZE) if batch is None else (batch, 3, *SIZE))
    several = build(OnnxFile.open(network(tmp_path / "n.onnx", style, how), STYLES[style]), BuildOptions(batch=batch))
    names = ("coffee", "chelsea", "portrait")[: batch or 3]
    frames = np.stack([prepare(photos[name], alone.preprocess)[0] for name in names])
    together = several.module(torch.from_numpy(frames))
    for index, frame in enumerate(frames):
        values = alone.module(torch.from_numpy(frame[None]))
        names_of = [spec.name for spec in alone.outputs]
        one = {name: value.numpy() for name, value in zip(names_of, values, strict=True)}
        row = {name: value.numpy()[index : index + 1] for name, value in zip(names_of, together, strict=True)}
        checks = compare(one, row, alone.decode, "fp32")  # rows of equal scores may swap their places
        assert all(check.passed for check in checks), checks


def test_a_dynamic_batch_is_exported(
    tmp_path: Path, photos: dict[str, Array], pictures: Path, empty_cache: Path
) -> None:
    path = network(tmp_path / "n.onnx", "yolov8", Written(shape=("batch", 3, *SIZE)))
    options = ExportOptions(build=BuildOptions(batch=None), images=pictures)
    report = export("onnx", OnnxFile.open(path, STYLES["yolov8"]), tmp_path / "model.vtx", options)
    assert not report.refused
    frames = [photos[name] for name in ("coffee", "chelsea", "flower")]
    with edgevtx.load(tmp_path / "model.vtx") as model:
        for one, found in zip([model(frame) for frame in frames], model.batch(frames), strict=True):
            np.testing.assert_allclose(found.boxes, one.boxes, atol=1e-2)


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 22, 23])
def test_graphs_of_every_opset_become_one_that_the_targets_read(opset: int, tmp_path: Path) -> None:
    path = network(tmp_path / "old.onnx", "yolov8", Written(opset=min(opset, 17)))
    if opset > 17:
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    expected = build(OnnxFile.open(network(tmp_path / "new.onnx", "yolov8"), STYLES["yolov8"]), BuildOptions())
    found = build(OnnxFile.open(path, STYLES["yolov8"]), BuildOptions())
    assert 20 <= trace(found).opset_imports[""] <= 23
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8))
    for one, other in zip(expected.module(pixels), found.module(pixels), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_weights_in_another_file_are_read_and_hashed(tmp_path: Path) -> None:
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 64}
    path = network(tmp_path / "big.onnx", "yolox", **options)
    before = OnnxFile.open(path, STYLES["yolox"]).sha256
    build(OnnxFile.open(path, STYLES["yolox"]), BuildOptions())
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[2] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert OnnxFile.open(path, STYLES["yolox"]).sha256 != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=r"big\.onnx keeps its weights in weights\.bin, which is missing"):
        OnnxFile.open(path, STYLES["yolox"])


def test_an_open_size_is_fixed_and_the_grid_follows(tmp_path: Path) -> None:
    how = Written(shape=("n", 3, "h", "w"))
    path = network(tmp_path / "open.onnx", "yolov5-raw", how)
    with pytest.raises(CheckpointError, match=r"cannot be run on images \[1, 3, 128, 128\]: .* give another --size"):
        # its reshape has the rows and columns of another size
        build(OnnxFile.open(path, replace(STYLES["yolov5-raw"], size=(128, 128))), BuildOptions())
    traceable = build(OnnxFile.open(path, replace(STYLES["yolov5-raw"], size=SIZE)), BuildOptions())
    assert traceable.inputs[0].shape == (1, *SIZE, 3)


def test_names_come_from_the_metadata_or_the_user(tmp_path: Path) -> None:
    how = Written(metadata=(("names", "{0: 'ant', 1: 'bee', 2: 'fly'}"), ("license", "MIT")))
    file = OnnxFile.open(network(tmp_path / "named.onnx", "yolov8", how), STYLES["yolov8"])
    assert build(file, BuildOptions()).labels == ("ant", "bee", "fly")
    assert build(file, BuildOptions(labels=("a", "b", "c"))).labels == ("a", "b", "c")
    assert file.licence == "MIT"
    nameless = OnnxFile.open(
        network(tmp_path / "plain.onnx", "yolov8", Written(metadata=(("names", "__import__('os')"),))), STYLES["yolov8"]
    )
    assert build(nameless, BuildOptions()).labels == ("class 0", "class 1", "class 2")


def test_a_wrong_wrapper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    from edgevtx.export import onnx_graph

    grid = onnx_graph._grid
    monkeypatch.setattr(onnx_graph, "_grid", lambda found: (grid(found)[0][..., ::-1], grid(found)[1]))
    file = OnnxFile.open(network(tmp_path / "x.onnx", "yolox"), STYLES["yolox"])
    report = export("onnx", file, tmp_path / "model.vtx", ExportOptions())
    assert report.bundle is None
    assert report.refused[0].reason.startswith("reference")


def test_denoising_is_verified_and_changes_what_the_network_sees(
    tmp_path: Path, photos: dict[str, Array], pictures: Path, empty_cache: Path
) -> None:
    from edgevtx.manifest import Lark

    file = OnnxFile.open(network(tmp_path / "x.onnx", "yolox"), STYLES["yolox"])
    answers = {}
    for how in (None, Lark(smoothing=2.5)):
        out = tmp_path / f"{how is None}.vtx"
        options = ExportOptions(denoise=how, targets=("onnxruntime",), images=pictures)
        report = export("onnx", file, out, options)
        assert not report.refused
        assert report.manifest.preprocess.denoise == how
        with edgevtx.load(out) as model:
            answers[how] = model(photos["coffee"], threshold=0.0)
            assert ("denoise" in model.stages) == (how is not None)
    (plain, denoised) = answers.values()
    assert not np.array_equal(plain.scores, denoised.scores)


# -- what is refused -------------------------------------------------------------------------------------------


def test_files_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "good.onnx", "yolox")
    data = path.read_bytes()
    for name, content in {
        "text.onnx": b"hello, this is no graph at all",
        "empty.onnx": b"",
        "cut.onnx": data[: len(data) // 2],
        "flipped.onnx": data[:40] + bytes(byte ^ 0xFF for byte in data[40:90]) + data[90:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} (cannot be read|is no|has|uses)"):
            OnnxFile.open(tmp_path / name, STYLES["yolox"])
    for absent in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(CheckpointError, match="is no file; --graph takes an ONNX model"):
            OnnxFile.open(absent, STYLES["yolox"])


def test_operators_of_one_vendor_are_refused(tmp_path: Path) -> None:
    graph = Graph([], [])
    graph.nodes.append(helper.make_node("EfficientNMS_TRT", ["images"], ["logits"], domain="trt.plugins"))
    path = Written().save(tmp_path / "trt.onnx", graph, {"logits": 2})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("trt.plugins", 1))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"uses trt\.plugins\.EfficientNMS_TRT, which ONNX's own opset does not"):
        OnnxFile.open(path, STYLES["classify"])


def test_an_opset_that_no_target_serves_is_refused(tmp_path: Path) -> None:
    if onnx.defs.onnx_opset_version() < 24:
        pytest.skip("this onnx knows no opset above 23")
    graph = Graph([], [])
    graph.node(
        "ReduceMean", graph.node("Swish", "images"), graph.constant((2, 3), np.int64), output="logits", keepdims=0
    )
    path = Written(opset=24).save(tmp_path / "new.onnx", graph, {"logits": 2})
    with pytest.raises((ExportError, CheckpointError), match="opset"):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Written(shape=(1, 3, 64)), r"takes images float32\[1,3,64\]; expected one image"),
        (Written(shape=(1, 4, *SIZE)), r"takes images float32\[1,4,64,96\]; expected three channels"),
        (Written(dtype=TensorProto.FLOAT16), r"takes images float16\[1,3,64,96\]; expected one image"),
        (Written(dtype=TensorProto.UINT8), r"takes images uint8\[1,3,64,96\]; expected one image"),
        (Written(inputs=(("text", TensorProto.INT64, (1, 7)),)), "text int64.*beside which pixel_mask and orig_target"),
        (Written(shape=(1, 3, "h", "w")), r"float32\[1,3,h,w\], which leaves the size open; fix it with --size"),
    ],
    ids=["rank", "channels", "half", "uint8", "text", "open"],
)
def test_inputs_other_than_one_image_are_refused(how: Written, words: str, constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"logits": np.zeros((1, 5))}, how)
    with pytest.raises(EdgevtxError, match=words):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions())


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"batch": 4}, None, "so --batch 4 does not fit; export it with --batch 1"),
        ({"batch": None}, None, "so --dynamic-batch does not fit"),
        ({}, (96, 96), "so --size 96x96 does not fit"),
        ({"batch": 0}, None, "the batch is 0"),
        ({"labels": ("a", "b")}, None, "2 labels were given, but the graph has 3 classes"),
        ({"top_k": 0}, None, "top_k is 0"),
        ({"top_k": ANCHORS + 1}, None, "top_k is 127"),
        ({"resize": "nearest"}, None, "choose pillow or opencv"),
    ],
)
def test_options_that_do_not_fit_the_graph_are_refused(
    options: dict[str, Any], size: Any, words: str, tmp_path: Path
) -> None:
    path = network(tmp_path / "x.onnx", "yolox")
    with pytest.raises(InputError, match=words):
        build(OnnxFile.open(path, replace(STYLES["yolox"], size=size)), BuildOptions(**options))


def test_a_batch_that_the_graph_has_baked_in_is_not_dynamic(constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"logits": np.zeros((1, 5))}, Written(shape=("n", 3, *SIZE)))
    with pytest.raises(InputError, match=r"gives logits .* for two frames, so its batch is not dynamic"):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions(batch=None))


@pytest.mark.parametrize(
    ("style", "outputs", "words"),
    [
        (
            "yolox",
            {"o": (1, 99, 8)},
            r"gives o \[1, 99, 8\]; expected one output \[N, 126, 5 \+ classes\] for 96x64",
        ),
        ("yolox", {"o": (1, 126, 5)}, r"expected one output \[N, 126, 5"),
        ("yolox", {"a": (1, 126, 8), "b": (1, 126, 8)}, "expected one output"),
        ("yolov5", {"o": (1, 126, 8)}, r"expected one output \[N, 378, 5"),
        ("yolov8", {"o": (1, 126, 7)}, r"expected one output \[N, 4 \+ classes, 126\]"),
        ("yolov8", {"o": (1, 39, 126), "masks": (1, 32, 16, 24)}, "expected one output"),
        ("yolov5-raw", {"o": (1, 378, 8)}, r"three outputs \[N, 3, 8, 12, 5 \+ classes\]"),
        ("detr", {"o": (1, 9, 4)}, r"expected outputs logits \[N, queries, classes \+ 1\] and pred_boxes"),
        ("detr", {"logits": (1, 9, 4), "pred_boxes": (1, 8, 4)}, "expected outputs logits"),
        ("rtdetr", {"logits": (1, 9, 4), "pred_boxes": (1, 9, 5)}, r"or labels \[N, queries\], boxes"),
        ("classify", {"o": (1, 9, 4)}, r"expected one output \[N, classes\]"),
        ("classify", {"o": (1, 9), "p": (1, 9)}, r"expected one output \[N, classes\]"),
    ],
)
def test_unexpected_outputs_are_told_with_what_was_expected(
    style: str, outputs: dict[str, tuple[int, ...]], words: str, constant_graph: Callable[..., Path]
) -> None:
    path = constant_graph({name: np.zeros(shape) for name, shape in outputs.items()})
    with pytest.raises(CheckpointError, match=words):
        build(OnnxFile.open(path, STYLES[style]), BuildOptions())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ImportOptions(decode="yolo11"), "unknown decoding 'yolo11'; choose one of: yolox"),  # type: ignore[arg-type]
        (ImportOptions(decode="detr", iou=0.5), "nothing is suppressed; leave --iou out"),
        (ImportOptions(decode="yolov8", boxes="raw"), "--boxes raw is not known for yolov8"),
        (ImportOptions(decode="rtdetr", boxes="decoded"), "--boxes decoded is not known for rtdetr"),
        (ImportOptions(decode="yolox", activation="none"), "--activation is for classifiers"),
        (ImportOptions(decode="yolox", threshold=1.5), "threshold must lie in 0..1, but got 1.5"),
        (ImportOptions(decode="yolox", iou=-1), "iou must lie in 0..1"),
        (ImportOptions(decode="yolox", letterbox=300), "choose a grey level 0 to 255"),
        (ImportOptions(decode="yolox", std=(1, 0, 1)), "std must be above 0"),
        (ImportOptions(decode="yolox", scale=0), "scale must be above 0"),
        (ImportOptions(decode="yolox", shortest_edge=64), "64 px does not fill an input of 96x64 px"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: ImportOptions, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        build(OnnxFile.open(network(tmp_path / "x.onnx", "yolox"), settings), BuildOptions())


@pytest.mark.parametrize(("boxes", "other"), [("raw", "decoded"), ("decoded", "raw")])
def test_boxes_that_are_clearly_of_the_other_kind_are_refused(
    boxes: Any, other: str, constant_graph: Callable[..., Path]
) -> None:
    outputs = {"output": decoded_rows(5)[None]} if boxes == "raw" else yolox_raw()
    with pytest.raises(InputError, match=f"taken as {boxes}, but .* pass --boxes {other}"):
        build(OnnxFile.open(constant_graph(outputs), ImportOptions(decode="yolox", boxes=boxes)), BuildOptions())


def test_a_second_softmax_is_refused(constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"probabilities": np.array([[0.5, 0.25, 0.25]])})
    with pytest.raises(InputError, match=r"already a softmax .* --activation none"):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions())


def test_the_command_line_offers_every_setting() -> None:
    from edgevtx.cli import onnx_options
    from edgevtx.export.onnx_graph import DEFAULTS

    assert tuple(DEFAULTS) == onnx_options.STYLES
    assert set(onnx_options.FIELDS) == {item.name for item in fields(ImportOptions)}


def test_the_deployed_form_needs_names(constant_graph: Callable[..., Path]) -> None:
    path = constant_graph(deployed(), Written(inputs=(SIZES,)))
    with pytest.raises(InputError, match="does not say how many classes it has; name them with --labels"):
        build(OnnxFile.open(path, STYLES["rtdetr"]), BuildOptions())
