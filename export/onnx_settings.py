"""How an ONNX file is to be read: the decodings that are known, what each does by default, what the user may change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edgevtx.errors import InputError
from edgevtx.export.processor import resize_backend
from edgevtx.rules import Exact, Letterbox, Preprocess, ResizeBackend, ShortestEdge

Style = Literal["yolox", "yolov5", "yolov8", "detr", "rtdetr", "classify"]
Boxes = Literal["raw", "decoded"]
Activation = Literal["softmax", "sigmoid", "none"]
Anchors = tuple[tuple[tuple[float, float], ...], ...]
"""(width, height) in px of the input of each level's anchors, the finest level first."""

STYLES: tuple[Style, ...] = get_args(Style)

ROWS = 1000
"""Rows that a YOLO's graph keeps for the suppression. While no more than this score above the threshold, the result is
that of the project's own post-processing; TensorRT's TopK ends at 3840."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PUBLISHED_ANCHORS: dict[tuple[int, ...], Anchors] = {
    (8, 16, 32): (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    ),
    (8, 16, 32, 64): (
        ((19, 27), (44, 40), (38, 94)),
        ((96, 68), (86, 152), (180, 137)),
        ((140, 301), (303, 264), (238, 542)),
        ((436, 615), (739, 380), (925, 792)),
    ),
}
"""The anchors of YOLOv5's published P5 and P6 models, by the strides of their levels."""


@dataclass(frozen=True)
class ImportOptions:
    """How an ONNX file is to be read; None takes the decoding's own default (`DEFAULTS`).

    `size` (height, width) fixes an input that leaves it open. `boxes`: "raw" where grids, strides and anchors are
    still to be applied (YOLOX and YOLOv5), "decoded" where the graph did so. `anchors` are those of YOLOv5's raw maps,
    which no graph states: "published" for `PUBLISHED_ANCHORS`. `letterbox` is the grey level that fills what the frame
    leaves of the input, -1 for none; `shortest_edge` scales that edge to so many px and crops the centre. `iou` is the
    overlap above which the worse of two boxes is dropped. `activation` is what a classifier's outputs still need.
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
    anchors: Anchors | Literal["published"] | None = None
    activation: Activation | None = None
    threshold: float | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Defaults:
    """What a style's own preprocessing and post-processing do; `outputs` says in words what it decodes.

    YOLOs resize with OpenCV without antialiasing into a letterbox of grey 114: YOLOX at the top left, unscaled BGR,
    edges rounded down; the others centred, RGB in 0..1, edges rounded to the nearest. The others resize to the
    graph's size with Pillow. A style with an `iou` answers objects several times, and suppression follows.
    """

    outputs: str
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
        "a table of boxes, raw or decoded, objectness and class scores",
        rgb=False,
        scale=1.0,
        letterbox=114,
        centered=False,
        boxes="raw",
        threshold=0.25,
        iou=0.45,
        keep=ROWS,
    ),
    "yolov5": Defaults(
        "a table of decoded boxes, objectness and class scores, or raw maps of P5 or P6 with their anchors",
        letterbox=114,
        boxes="decoded",
        threshold=0.25,
        iou=0.45,
    ),
    "yolov8": Defaults(
        "a table of decoded boxes and class scores", letterbox=114, boxes="decoded", threshold=0.25, iou=0.7
    ),
    "detr": Defaults("logits with the class no object, and boxes", normalised=True),
    "rtdetr": Defaults("logits and boxes of queries, or labels, boxes and scores"),
    "classify": Defaults("logits or scores of classes", normalised=True),
}


def check_settings(settings: ImportOptions) -> None:
    """Raise `InputError` for settings that contradict each other or their decoding."""
    if settings.decode not in STYLES:
        raise InputError(f"unknown decoding {settings.decode!r}; choose one of: {', '.join(STYLES)}")
    default = DEFAULTS[settings.decode]
    for name, value in (("threshold", settings.threshold), ("iou", settings.iou)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} must lie in 0..1, but got {value:g}")
    if settings.iou is not None and default.iou is None:
        raise InputError(f"{settings.decode} answers every object once, so nothing is suppressed; leave --iou out")
    if settings.threshold is not None and settings.decode == "classify":
        raise InputError("a classifier's best classes have no threshold; leave --threshold out")
    if settings.boxes is not None and (default.boxes is None or (settings.decode, settings.boxes) == ("yolov8", "raw")):
        raise InputError(f"--boxes {settings.boxes} is not known for {settings.decode}; leave it out")
    if settings.activation is not None and settings.decode != "classify":
        raise InputError(f"--activation is for classifiers, not for {settings.decode}; leave it out")
    if settings.letterbox is not None and settings.shortest_edge is not None:
        raise InputError("--letterbox and --shortest-edge are two ways to fill the input; give one of them")
    _check_anchors(settings)


def _check_anchors(settings: ImportOptions) -> None:
    anchors = settings.anchors
    if anchors is None:
        return
    if (settings.decode, settings.boxes) != ("yolov5", "raw"):
        raise InputError("--anchors are for YOLOv5's raw maps: add --decode yolov5 --boxes raw, or leave them out")
    if isinstance(anchors, str):
        return
    sides = [side for level in anchors for anchor in level for side in anchor]
    if not all(anchors) or not sides or not all(0 < side < math.inf for side in sides):
        raise InputError(f"anchors are widths and heights above 0 in px, but got {anchors}")
    first, last = (sum(width * height for width, height in anchors[at]) for at in (0, -1))
    if first > last:
        raise InputError(
            "the anchors of the first level are larger than those of the last; give the finest level first"
        )


def preprocess_of(settings: ImportOptions, size: tuple[int, int], resize: str | None) -> Preprocess:
    """The preprocessing of a style for an input of `size`, with what the user changed. Raises `InputError`."""
    default = DEFAULTS[settings.decode]
    order = settings.channel_order or ("rgb" if default.rgb else "bgr")
    if settings.std is not None and not all(value > 0 for value in settings.std):
        raise InputError(f"std must be above 0, but got {settings.std}")
    if settings.scale is not None and not settings.scale > 0:
        raise InputError(f"scale must be above 0, but got {settings.scale:g}; 0.00392157 makes 0..1 of 0..255")
    return Preprocess(
        size=_size_rule(settings, size),
        interpolation="bilinear",
        scale=default.scale if settings.scale is None else settings.scale,
        mean=settings.mean or (IMAGENET_MEAN if default.normalised else (0.0, 0.0, 0.0)),
        std=settings.std or (IMAGENET_STD if default.normalised else (1.0, 1.0, 1.0)),
        crop=None if settings.shortest_edge is None else size,
        channel_order=order,
        resize=_resize(settings.decode, resize),
    )


def _size_rule(settings: ImportOptions, size: tuple[int, int]) -> Exact | ShortestEdge | Letterbox:
    default, (height, width) = DEFAULTS[settings.decode], size
    shorter = settings.shortest_edge
    if shorter is not None:
        if shorter < max(size):
            raise InputError(
                f"the shortest edge of {shorter} px does not fill an input of {width}x{height} px; enlarge it"
            )
        return ShortestEdge(shortest=shorter)
    fill = default.letterbox if settings.letterbox is None else settings.letterbox
    if not -1 <= fill <= 255:
        raise InputError(f"the letterbox is filled with {fill}; choose a grey level 0 to 255, or -1 for no letterbox")
    if fill < 0:
        return Exact(height=height, width=width)
    rounding: Literal["floor", "nearest"] = "floor" if settings.decode == "yolox" else "nearest"
    return Letterbox(height=height, width=width, fill=fill, centered=default.centered, rounding=rounding)


def _resize(style: Style, asked: str | None) -> ResizeBackend:
    """YOLOs have learned from OpenCV's resize without antialiasing; another one is another input."""
    if DEFAULTS[style].iou is None:
        return resize_backend(asked)
    if asked is not None:
        raise InputError(
            f"{style} is shown what OpenCV's plain resize gives, as in its own project, so --resize {asked} does not "
            "apply; leave it out (--letterbox, --shortest-edge and --size say how the frame fills the input)"
        )
    return "opencv-plain"
