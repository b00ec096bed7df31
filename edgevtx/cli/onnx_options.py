"""The options of `edgevtx export onnx`: how an existing ONNX graph is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common

if TYPE_CHECKING:
    from edgevtx.export.onnx_file import OnnxFile

STYLES = ("yolox", "yolov5", "yolov8", "detr", "rtdetr", "classify")
# the click options that are fields of `edgevtx.export.onnx_settings.ImportOptions` under the same name
FIELDS = (
    "decode", "size", "scale", "mean", "std", "channel_order", "letterbox", "shortest_edge", "boxes", "anchors",
    "activation", "threshold", "iou",
)  # fmt: skip


def _triple(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """X or X,Y,Z as three numbers."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"{value!r} is neither one number nor three; write 0.5 or 0.485,0.456,0.406")
    return numbers * 3 if len(numbers) == 1 else numbers


def _anchors(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[tuple[tuple[float, float], ...], ...] | str | None:
    """WIDTH,HEIGHT,... of each level, levels separated by /; or the word published."""
    if value is None or value == "published":
        return value
    try:
        levels = [[float(side) for side in level.split(",")] for level in value.split("/")]
    except ValueError:
        levels = []
    if not levels or any(len(level) % 2 for level in levels):
        raise click.BadParameter(
            f"{value!r} is neither the word published nor a width and a height in px for each anchor; write "
            "10,13,16,30,33,23/30,61,62,45,59,119/116,90,156,198,373,326"
        )
    return tuple(tuple(zip(level[::2], level[1::2], strict=True)) for level in levels)


def onnx_options(command: common.Command) -> common.Command:
    """Options of the family onnx; all but --graph and --decode default to what that decoding's project does."""
    options = [
        click.option("--graph", metavar="FILE", help="onnx: the ONNX model to import."),
        click.option("--decode", type=click.Choice(STYLES), help="onnx: what its outputs are."),
        click.option(
            "--size",
            metavar="WIDTHxHEIGHT",
            callback=common.parse_size,
            help="onnx: the input's size, where the graph leaves it open.",
        ),
        click.option("--scale", metavar="X", type=float, help="onnx: what pixels are multiplied by."),
        click.option("--mean", metavar="X[,Y,Z]", callback=_triple, help="onnx: subtracted after scaling."),
        click.option("--std", metavar="X[,Y,Z]", callback=_triple, help="onnx: divided by after that."),
        click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), help="onnx: of the graph's input."),
        click.option(
            "--letterbox",
            metavar="GREY",
            type=click.IntRange(-1, 255),
            help="onnx: keep the aspect ratio and fill the rest with this grey level; -1 stretches.",
        ),
        click.option(
            "--shortest-edge",
            metavar="PX",
            type=click.IntRange(1),
            help="onnx: scale the shorter edge to this and crop the centre.",
        ),
        click.option(
            "--boxes",
            type=click.Choice(["raw", "decoded"]),
            help="onnx: whether grids and strides are still to be applied (yolox: raw, yolov5: decoded).",
        ),
        click.option(
            "--anchors",
            metavar="W,H,.../...",
            callback=_anchors,
            help="onnx: of yolov5's raw maps, in px of the input, level by level, the finest first; published: those "
            "of YOLOv5's P5 or P6 models.",
        ),
        click.option(
            "--activation",
            type=click.Choice(["softmax", "sigmoid", "none"]),
            help="onnx: what a classifier's outputs still need (softmax).",
        ),
        click.option("--threshold", metavar="X", type=click.FloatRange(0, 1), help="onnx: default score threshold."),
        click.option(
            "--iou", metavar="X", type=click.FloatRange(0, 1), help="onnx: overlap above which a YOLO box is dropped."
        ),
    ]
    return common.with_options(command, options)


def check_onnx_options(options: Mapping[str, Any]) -> None:
    """Raise `UsageError` where the family onnx lacks its graph, or another family was given onnx's options."""
    given = [name for name in ("graph", *FIELDS) if options[name] is not None]
    if options["family"] != "onnx":
        if given:
            option = given[0].replace("_", "-")
            raise click.UsageError(f"--{option} belongs to the family onnx; leave it out, or use: edgevtx export onnx")
        return
    if options["graph"] is None or options["decode"] is None:
        raise click.UsageError("edgevtx export onnx needs --graph FILE and --decode " + "|".join(STYLES))
    if options["checkpoint"] is not None or options["config"] is not None:
        raise click.UsageError("edgevtx export onnx takes --graph in place of --checkpoint and --config")


def open_graph(options: Mapping[str, Any]) -> OnnxFile:
    """The ONNX file of `--graph` with its settings."""
    from edgevtx.export.onnx_file import OnnxFile
    from edgevtx.export.onnx_settings import ImportOptions

    return OnnxFile.open(options["graph"], ImportOptions(**{name: options[name] for name in FIELDS}))
