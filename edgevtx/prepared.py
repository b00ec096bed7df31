"""Frames made ready for an engine: its inputs by name, stacked as its graph takes them, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry
from edgevtx.manifest import TensorInfo
from edgevtx.preprocess import pad_batch
from edgevtx.rules import Windows
from edgevtx.runtimes.base import Array, Arrays
from edgevtx.windows import cut_windows


class FrameOptions(TypedDict, total=False):
    """How a frame is looked at; see `Predictor.__call__`."""

    color: Literal["bgr", "rgb"]
    roi: tuple[int, int, int, int] | None
    rotation: int


@dataclass(frozen=True)
class Prepared:
    """Frames made ready for the engine: its inputs by name, and how to find the way back to each frame.

    Inputs are arrays, or what a runtime on a GPU takes in their place (see `edgevtx.gpu_frames`).

    `milliseconds` is what that took, less `denoise_ms`, which is None where the bundle does not denoise.
    """

    inputs: dict[str, Any]
    geometries: tuple[Geometry, ...]
    milliseconds: float = 0.0
    denoise_ms: float | None = None

    @property
    def stages(self) -> dict[str, float]:
        """The stages so far, in ms: "preprocess", and "denoise" where there is one."""
        return {"preprocess": self.milliseconds} | ({} if self.denoise_ms is None else {"denoise": self.denoise_ms})

    @property
    def pending(self) -> bool:
        """There is nothing to infer: the frame waits with others until a clip is full (see `edgevtx.clip`)."""
        return not self.inputs


def collate(images: list[Array], inputs: Sequence[TensorInfo], windows: Windows | None = None) -> Arrays:
    """Stack images (h,w,3) or clips (T,h,w,3) into a graph's batch: `pixels` (N,H,W,3) or (N,T,H,W,3) uint8 and, where
    it takes one, `valid_size`.

    With `windows` the rows are all windows of all images, whatever the batch. Otherwise, where the batch is static, a
    short one repeats its last image. Raises `InputError` where an image is not of the size that the graph was fixed
    for.
    """
    batch = inputs[0].shape[0]
    if windows is not None:
        return {inputs[0].name: np.stack([view for image in images for view in cut_windows(image, windows)])}
    for image in images:
        check_input(image.shape, inputs[0])
    images = images + [images[-1]] * ((batch or 0) - len(images))
    if len({image.shape for image in images}) > 1:
        pixels, valid = pad_batch(images)
    else:
        pixels = np.ascontiguousarray(images[0])[None] if len(images) == 1 else np.stack(images)
        valid = np.array([image.shape[-3:-1] for image in images], np.int32)
    names = [item.name for item in inputs]
    return dict(zip(names, (pixels, valid), strict=False))


def check_input(shape: Sequence[int], pixels: TensorInfo) -> None:
    """Raise `InputError` unless an image (h,w,3), or a clip, has the size that the graph's input was fixed for."""
    _, *wanted = pixels.shape
    if any(want is not None and want != got for want, got in zip(wanted, shape, strict=True)):
        raise InputError(
            f"this bundle was exported for one camera: its input is {wanted[-2]}x{wanted[-3]} px, but this frame "
            f"scales to {shape[-2]}x{shape[-3]}; use frames of that camera's aspect ratio, or export without --frame"
        )
