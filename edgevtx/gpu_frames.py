"""Frames in a GPU's memory, and frames of the host that are resized there: what an engine on that GPU is given of them.

A frame on the GPU that is the network's input already, by size, goes in as it is. With `resize="gpu"` the GPU resizes
every frame as Pillow does (see `edgevtx.runtimes.resample`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry, plan
from edgevtx.manifest import Manifest
from edgevtx.prepared import check_input
from edgevtx.preprocess import check_frame, check_layout
from edgevtx.rules import Letterbox, PromptDecode
from edgevtx.runtimes.base import Array, DeviceArray, Frames, device_facts
from edgevtx.runtimes.cuda import adopt
from edgevtx.runtimes.resample import INTERPOLATIONS

Resize = Literal["host", "gpu"]

RUNTIMES = ("tensorrt", "tensorrt-rtx")
"""Those whose engines take frames of the GPU."""


def are_for_gpu(frames: Sequence[Any], resize: Resize) -> bool:
    """Whether frames are to be resized on the GPU, or one lies there."""
    return resize == "gpu" or any(device_facts(frame) is not None for frame in frames)


def check_manifest(manifest: Manifest, resize: Resize) -> None:
    """Raise `InputError` where a bundle's frames must be prepared, or with "gpu" be resized, on the host."""
    rule = manifest.preprocess
    reasons = {
        "answers prompts": isinstance(manifest.decode, PromptDecode),
        "looks at clips": rule.clip is not None,
        "looks at windows of an image": rule.windows is not None,
        "denoises its frames": rule.denoise is not None,
    }
    resizing = {
        f"resizes with {rule.interpolation!r}": rule.interpolation not in INTERPOLATIONS,
        "resizes without antialiasing (opencv-plain)": rule.resize == "opencv-plain",
    }
    if resize == "gpu":
        reasons |= resizing
    if found := [reason for reason, holds in reasons.items() if holds]:
        left = ", and leave resize='gpu' out" if resize == "gpu" else ""
        raise InputError(f"{manifest.name} {found[0]}, which is not done on the GPU; give it frames of the host{left}")


def place(
    frames: Sequence[Any],
    manifest: Manifest,
    resize: Resize,
    *,
    color: Literal["bgr", "rgb"] = "bgr",
    roi: tuple[int, int, int, int] | None = None,
    rotation: int = 0,
) -> tuple[dict[str, Any], tuple[Geometry, ...]]:
    """Inputs by name for an engine on a GPU, and each frame's geometry; the arguments are those of `Predictor`.

    Frames are (H,W,3) uint8, or (H,W) or (H,W,1) grey, numpy's or with `__cuda_array_interface__`. Raises `InputError`
    for what is no frame, for a rotation, and for a frame that would have to be resized where `resize` is "host".
    """
    check_manifest(manifest, resize)
    if rotation:
        raise InputError(f"a frame on the GPU is not rotated, but rotation={rotation} was asked; rotate it before")
    if color not in ("bgr", "rgb"):
        raise InputError(f'color must be "bgr" or "rgb", but got {color!r}')
    given = [_read(frame) for frame in frames]
    geometries = tuple(plan((frame.shape[0], frame.shape[1]), manifest.preprocess, roi=roi) for frame in given)
    for geometry in geometries:
        check_input((*geometry.input_size, 3), manifest.image_input)
    pixels = _pixels(given, geometries, manifest, resize, color)
    repeated = [*geometries, *geometries[-1:] * (len(pixels) - len(given))]
    valid = np.array([geometry.input_size for geometry in repeated], np.int32)
    names = [item.name for item in manifest.inputs]
    return dict(zip(names, (pixels, valid), strict=False)), geometries


def _read(frame: Any) -> Array | DeviceArray:
    adopted = adopt(frame)
    if not isinstance(adopted, DeviceArray):
        return check_frame(frame)
    check_layout(adopted)
    return adopted


def _pixels(
    given: list[Array | DeviceArray],
    geometries: tuple[Geometry, ...],
    manifest: Manifest,
    resize: Resize,
    color: Literal["bgr", "rgb"],
) -> DeviceArray | Frames:
    """The batch as the runtime takes it; a short one repeats its last frame where the batch is static."""
    batch, first, rule = manifest.image_input.shape[0], given[0], manifest.preprocess
    as_it_is = len(given) == 1 and batch in (None, 1) and color == "bgr" and _is_input(first, geometries[0])
    if isinstance(first, DeviceArray) and as_it_is:
        return replace(first, shape=(1, *first.shape))
    if resize != "gpu":
        height, width = geometries[0].input_size
        raise InputError(
            f"a frame on the GPU goes in alone and as it is where it is ({height}, {width}, 3) uint8 BGR and "
            f"contiguous, but got {len(given)} of {first.shape} as {color}; open the bundle with resize='gpu', or copy "
            "the frame to the host"
        )
    more = (batch or 0) - len(given)
    return Frames(
        frames=(*given, *given[-1:] * more),
        geometries=(*geometries, *geometries[-1:] * more),
        input_size=(max(item.input_size[0] for item in geometries), max(item.input_size[1] for item in geometries)),
        interpolation=rule.interpolation,
        fill=rule.size.fill if isinstance(rule.size, Letterbox) else 0,
        rgb=color == "rgb",
    )


def _is_input(frame: Array | DeviceArray, geometry: Geometry) -> bool:
    """Whether a frame is the network's input already, pixel by pixel."""
    size = geometry.input_size
    whole = geometry.upright_size == geometry.resized == geometry.valid_size == size == geometry.frame_size
    return whole and frame.shape == (*size, 3)
