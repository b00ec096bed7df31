"""What the import of an ONNX graph refuses: each with what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from onnx import TensorProto, helper  # noqa: E402

from edgevtx.errors import CheckpointError, EdgevtxError, ExportError, InputError  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.onnx_graph import build  # noqa: E402
from edgevtx.export.onnx_settings import DEFAULTS, ImportOptions  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from tests.export.onnx_files import SIZE, STYLES, Graph, Written, network  # noqa: E402

ROWS = 126  # cells of SIZE at strides 8, 16 and 32
MAPS = ((8, 12), (4, 6), (2, 3))  # their rows and columns


# -- files and inputs ------------------------------------------------------------------------------------------


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
        (Written(shape=(1, 4, *SIZE)), r"takes images float32\[1,4,64,96\]; expected three channels.* colour images"),
        (Written(shape=("n", "c", "h", "w")), r"takes images float32\[n,c,h,w\]; expected three channels"),
        (Written(dtype=TensorProto.FLOAT16), r"takes images float16\[1,3,64,96\]; expected one image.* in float32"),
        (Written(dtype=TensorProto.DOUBLE), r"takes images float64\[1,3,64,96\]; expected one image"),
        (Written(dtype=TensorProto.UINT8), r"takes images uint8\[1,3,64,96\].* without its own preprocessing"),
        (
            Written(inputs=(("depth", TensorProto.FLOAT, (1, 1, 64, 96)),)),
            r"takes images float32\[1,3,64,96\], depth float32\[1,1,64,96\]; expected one image",
        ),
        (Written(inputs=(("text", TensorProto.INT64, (1, 7)),)), "text int64.*beside which pixel_mask and orig_target"),
        (Written(shape=(1, 3, "h", "w")), r"float32\[1,3,h,w\], which leaves the size open; fix it with --size W"),
        (
            Written(shape=(1, 3, "h", "w"), metadata=(("imgsz", "[64, 96]"),)),
            "leaves the size open; fix it with --size 96x64, which its metadata states",
        ),
    ],
    ids=["rank", "channels", "open channels", "half", "double", "uint8", "two images", "text", "open", "stated size"],
)
def test_inputs_other_than_one_image_are_refused(how: Written, words: str, constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"logits": np.zeros((1, 5))}, how)
    with pytest.raises(EdgevtxError, match=words):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions())


# -- options and outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"batch": 4}, None, "so --batch 4 does not fit; export it with --batch 1"),
        ({"batch": None}, None, "so --dynamic-batch does not fit"),
        ({}, (96, 96), "so --size 96x96 does not fit"),
        ({"batch": 0}, None, "the batch is 0"),
        ({"labels": ("a", "b")}, None, "2 labels were given, but the graph has 3 classes"),
        ({"top_k": 0}, None, "top_k is 0"),
        ({"top_k": ROWS + 1}, None, "top_k is 127"),
        ({"task": "classify"}, None, "--decode yolox is for the task detect; leave --task classify out"),
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
            r"gives o \[1, 99, 8\]; expected one output \[N, 126, 5 \+ classes\] for 96x64 px, without suppression",
        ),
        ("yolox", {"o": (1, 126, 5)}, r"expected one output \[N, 126, 5"),
        ("yolox", {"a": (1, 126, 8), "b": (1, 126, 8)}, "expected one output"),
        ("yolov5", {"o": (1, 126, 8)}, r"expected one output \[N, 378, 5"),
        ("yolov8", {"o": (1, 126, 7)}, r"expected one output \[N, 4 \+ classes, 126\]"),
        ("yolov8", {"o": (1, 39, 126), "masks": (1, 32, 16, 24)}, "expected one output"),
        ("yolov8", {"o": (1, 300, 6)}, r"gives o \[1, 300, 6\].* without suppression inside"),
        (
            "yolov5-raw",
            {"o": (1, 378, 8)},
            r"a map for each level, such as \[N, 3, 8, 12, 5 \+ classes\], \[N, 3, 4, 6,",
        ),
        ("yolov5-raw", {"a": (1, 3, 8, 12, 8)}, "a map for each level"),
        (
            "yolov5-raw",
            {"a": (1, 3, 8, 12, 8), "b": (1, 3, 4, 6, 9)},
            r"gives a \[1, 3, 8, 12, 8\], b .* a map for each",
        ),
        ("yolov5-raw", {"a": (1, 3, 8, 12, 8), "b": (1, 3, 2, 3, 8)}, "a map for each level"),
        ("yolov5-raw", {"a": (1, 3, 8, 12, 8), "b": (1, 3, 4, 5, 8)}, "a map for each level"),
        ("yolov5", {"a": (1, 3, 8, 12, 8), "b": (1, 3, 4, 6, 8)}, "for raw maps pass --boxes raw and their --anchors"),
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


def raw(anchors: Any) -> ImportOptions:
    return ImportOptions(decode="yolov5", boxes="raw", anchors=anchors)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ImportOptions(decode="yolo11"), "unknown decoding 'yolo11'; choose one of: yolox"),  # type: ignore[arg-type]
        (ImportOptions(decode="classify", threshold=0.5), "have no threshold; leave --threshold out"),
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
        (ImportOptions(decode="detr", shortest_edge=99, letterbox=0), "two ways to fill the input; give one"),
        (ImportOptions(decode="yolov5", anchors="published"), "for YOLOv5's raw maps: add --decode yolov5 --boxes raw"),
        (ImportOptions(decode="yolox", boxes="raw", anchors="published"), "for YOLOv5's raw maps"),
        (raw(((((1, 2), (3, 4))), ((0, 5), (6, 7)))), "widths and heights above 0 in px"),
        (raw(((), ())), "widths and heights above 0 in px"),
        (raw((((300, 200),), ((10, 13),))), "give the finest level first"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: ImportOptions, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        build(OnnxFile.open(network(tmp_path / "x.onnx", "yolox"), settings), BuildOptions())


@pytest.mark.parametrize(
    ("anchors", "maps", "words"),
    [
        (
            None,
            MAPS,
            "do not say their anchors.* pass --anchors published where .* such as --anchors 10,13,16,30,33,23/30",
        ),
        (
            "published",
            MAPS[:2],
            "2 maps of strides 8, 16, 3 anchors each; anchors are published for three each at strides",
        ),
        ((((9, 9), (9, 9)),) * 3, MAPS, "3 maps of strides 8, 16, 32, 3 anchors each, but --anchors has 2/2/2; give 3"),
        ((((9, 9),) * 3,) * 4, MAPS, "but --anchors has 3/3/3/3; give 3 for each level, the finest first"),
    ],
    ids=["none", "two levels", "too few", "too many levels"],
)
def test_anchors_that_the_maps_do_not_bear_out_are_refused(
    anchors: Any, maps: tuple[tuple[int, int], ...], words: str, constant_graph: Callable[..., Path]
) -> None:
    path = constant_graph({f"map_{rows}": np.zeros((1, 3, rows, columns, 8)) for rows, columns in maps})
    with pytest.raises(InputError, match=words):
        build(OnnxFile.open(path, raw(anchors)), BuildOptions())


@pytest.mark.parametrize("resize", ["pillow", "opencv", "nearest"])
def test_a_yolo_takes_no_other_resize_than_its_projects(resize: str, tmp_path: Path) -> None:
    for style in ("yolox", "yolov5", "yolov8"):
        file = OnnxFile.open(network(tmp_path / f"{style}.onnx", style), STYLES[style])
        with pytest.raises(InputError, match=f"{style} is shown what OpenCV's plain resize gives.* leave it out"):
            build(file, BuildOptions(resize=resize))


def test_an_unknown_resize_is_refused(tmp_path: Path) -> None:
    file = OnnxFile.open(network(tmp_path / "x.onnx", "detr"), STYLES["detr"])
    with pytest.raises(InputError, match="resize is 'nearest'; choose pillow or opencv"):
        build(file, BuildOptions(resize="nearest"))


# -- other models than detectors and classifiers ---------------------------------------------------------------


def yolov8_table(channels: int, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    """A table of boxes and `channels` values for each, from `low` to `high`."""
    table = np.random.default_rng(0).uniform(low, high, (1, 4 + channels, ROWS))
    table[:, :4] *= 50
    return {"output0": table}


@pytest.mark.parametrize(
    ("style", "metadata", "words"),
    [
        ("yolov8", {"task": "pose", "kpt_shape": "[17, 3]"}, "of the task pose.* class scores and keypoints"),
        ("yolov8", {"kpt_shape": "[17, 3]"}, "of the task pose"),
        ("yolov8", {"task": "obb"}, "of the task obb.* class scores and an angle"),
        ("yolov8", {"task": "segment"}, "of the task segment.* coefficients of masks"),
        ("yolov8", {"task": "classify"}, "of the task classify.* choose --decode classify"),
        ("classify", {"task": "detect"}, "of the task detect.* choose --decode yolox or yolov5 or yolov8"),
        ("yolov5", {"task": "segment"}, "which --decode yolov5 would misread; export a model of the task detect"),
    ],
)
def test_a_model_of_another_task_is_told_by_its_metadata(
    style: str, metadata: dict[str, str], words: str, constant_graph: Callable[..., Path]
) -> None:
    path = constant_graph(yolov8_table(52), Written(metadata=tuple(metadata.items())))
    with pytest.raises(CheckpointError, match=words):
        build(OnnxFile.open(path, STYLES[style]), BuildOptions(labels=tuple("abc")))


def test_a_task_of_other_words_and_one_that_fits_pass(constant_graph: Callable[..., Path]) -> None:
    for task in ("detect", "find the cows"):
        path = constant_graph(yolov8_table(3), Written(metadata=(("task", task),)))
        assert build(OnnxFile.open(path, STYLES["yolov8"]), BuildOptions()).task == "detect"


@pytest.mark.parametrize("labels", [None, ("person",)])
def test_more_scores_than_named_classes_are_no_scores(
    labels: tuple[str, ...] | None, constant_graph: Callable[..., Path]
) -> None:
    path = constant_graph(yolov8_table(52), Written(metadata=(("names", "{0: 'person'}"),)))
    with pytest.raises(CheckpointError, match="names 1 classes in its metadata, but its output has room for 52"):
        build(OnnxFile.open(path, STYLES["yolov8"]), BuildOptions(labels=labels))


def test_more_scores_than_labels_are_no_scores(constant_graph: Callable[..., Path]) -> None:
    file = OnnxFile.open(constant_graph(yolov8_table(52)), STYLES["yolov8"])
    with pytest.raises(InputError, match=r"1 labels were given, but the graph has 52 classes.* keypoints"):
        build(file, BuildOptions(labels=("person",)))


@pytest.mark.parametrize(
    ("style", "shape"), [("yolov8", (1, 56, ROWS)), ("yolov5", (1, 3 * ROWS, 40)), ("yolox", (1, ROWS, 40))]
)
@pytest.mark.parametrize(("low", "high"), [(-2, 640), (-9, 0.5), (0, 7), (np.nan, np.nan)])
def test_keypoints_angles_and_masks_are_not_taken_for_scores(
    style: str, shape: tuple[int, ...], low: float, high: float, constant_graph: Callable[..., Path]
) -> None:
    table = np.zeros(shape)
    table[0, -1, -1], table[0, -2, -2] = low, high
    words = rf"output0 \[{', '.join(map(str, shape))}\] has values from .* where class scores in 0..1 are expected"
    with pytest.raises(CheckpointError, match=words):
        build(OnnxFile.open(constant_graph({"output0": table}), STYLES[style]), BuildOptions())


@pytest.mark.parametrize("style", ["detr", "rtdetr"])
def test_boxes_in_px_are_refused_where_shares_are_expected(style: str, constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"logits": np.zeros((1, 5, 4)), "pred_boxes": np.full((1, 5, 4), 64.0)})
    with pytest.raises(CheckpointError, match=r"pred_boxes \[1, 5, 4\] has values from 0 to 64 where boxes in 0..1"):
        build(OnnxFile.open(path, STYLES[style]), BuildOptions())


def test_outputs_of_another_type_are_refused(constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"logits": np.zeros((1, 5), np.float16)})
    with pytest.raises(
        CheckpointError, match=r"gives logits as float16\[1, 5\]; expected float32; export it in float32"
    ):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions())


# -- ... and what their values contradict ----------------------------------------------------------------------


@pytest.mark.parametrize(("boxes", "other"), [("raw", "decoded"), ("decoded", "raw")])
def test_boxes_that_are_clearly_of_the_other_kind_are_refused(
    boxes: Any, other: str, constant_graph: Callable[..., Path]
) -> None:
    table = np.zeros((1, ROWS, 8))
    if boxes == "raw":  # decoded ones: the cells' centres in px
        table[0, :, 0] = [
            (column + 0.5) * 96 / across for rows, across in MAPS for _ in range(rows) for column in range(across)
        ]
    outputs = {"output": table}
    with pytest.raises(InputError, match=f"taken as {boxes}, but .* pass --boxes {other}"):
        build(OnnxFile.open(constant_graph(outputs), ImportOptions(decode="yolox", boxes=boxes)), BuildOptions())


def test_a_second_softmax_is_refused(constant_graph: Callable[..., Path]) -> None:
    path = constant_graph({"probabilities": np.array([[0.5, 0.25, 0.25]])})
    with pytest.raises(InputError, match=r"already a softmax .* --activation none"):
        build(OnnxFile.open(path, STYLES["classify"]), BuildOptions())


def test_the_command_line_offers_every_setting() -> None:
    from edgevtx.cli import onnx_options

    assert tuple(DEFAULTS) == onnx_options.STYLES
    assert set(onnx_options.FIELDS) == {item.name for item in fields(ImportOptions)}


def test_the_deployed_form_needs_names(constant_graph: Callable[..., Path]) -> None:
    outputs = {"labels": np.zeros((1, 5), np.int64), "boxes": np.zeros((1, 5, 4)), "scores": np.zeros((1, 5))}
    path = constant_graph(outputs)
    with pytest.raises(InputError, match="does not say how many classes it has; name them with --labels"):
        build(OnnxFile.open(path, STYLES["rtdetr"]), BuildOptions())
