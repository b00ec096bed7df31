"""What an exporter left in an ONNX file's metadata: Ultralytics writes the task, the classes' names and the size."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.onnx_settings import Style

Metadata = Mapping[str, str]

LONGEST = 1 << 20
"""Characters of a value that are read; the names of 21 000 classes take 600 000."""

# a task -> what its outputs hold beside the boxes, and the decodings that read them
_TASKS: dict[str, tuple[str, tuple[Style, ...]]] = {
    "detect": ("class scores", ("yolox", "yolov5", "yolov8", "detr", "rtdetr")),
    "classify": ("class scores alone", ("classify",)),
    "segment": ("class scores and the coefficients of masks", ()),
    "pose": ("class scores and keypoints", ()),
    "obb": ("class scores and an angle", ()),
}

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_FLAT = re.compile(r"\s*[\[{][\d\s:,]*[\]}]\s*")


def check_task(path: Path, metadata: Metadata, style: Style) -> None:
    """Raise `CheckpointError` where the metadata states a task that `style` does not decode; other words pass."""
    task = metadata.get("task") or ("pose" if "kpt_shape" in metadata else "")
    held, readers = _TASKS.get(task, ("", (style,)))
    if style in readers:
        return
    advice = f"choose --decode {' or '.join(readers)}" if readers else "export a model of the task detect or classify"
    raise CheckpointError(
        f"{path} is a model of the task {task}, says its metadata: its outputs hold {held}, which --decode {style} "
        f"would misread; {advice}"
    )


def stated_names(metadata: Metadata) -> tuple[str, ...] | None:
    """The classes' names in id order, of a list or of a dict by number; None where there are none to be read."""
    table = _read_flat(metadata.get("names", ""))
    if isinstance(table, list):
        table = dict(enumerate(table))
    if not isinstance(table, dict) or not table or sorted(table) != list(range(len(table))):
        return None
    return tuple(str(table[index]) for index in range(len(table)))


def stated_size(metadata: Metadata) -> tuple[int, int] | None:
    """The (height, width) that the graph was exported for."""
    size = _read_flat(metadata.get("imgsz", ""))
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        return None
    return size[0], size[1]


def _read_flat(text: str) -> Any:
    """A Python list or dict of numbers and strings; None for anything else.

    The text is a stranger's, so nothing nested and no operator reaches the parser.
    """
    if len(text) > LONGEST or not _FLAT.fullmatch(_QUOTED.sub("", text)):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError):
        return None
