"""The images that an export is verified on: the user's own, or scenes that the project rendered. Never noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edgevtx.errors import InputError
from edgevtx.images import read_image
from edgevtx.runtimes.base import Array

LIMIT = 8
"""At most so many of the user's images are used: each is run through the reference and every engine."""

LARGEST = 1280
"""Images are reduced to this longest edge (px): the first one is stored in the bundle as the golden sample."""


@dataclass(frozen=True)
class Photo:
    """An image to verify on: frame (H,W,3) uint8 BGR."""

    name: str
    frame: Array


def load_photos(folder: Path | None, frame_size: tuple[int, int] | None = None) -> list[Photo]:
    """The images of `folder` in name order, or the project's rendered scenes.

    `frame_size` (height, width) fits them to the one camera that a graph is fixed for. Raises `InputError` where
    there are fewer than two: the second one shows that the first was no accident.
    """
    if folder is None:
        with resources.as_file(resources.files("edgevtx.export") / "scenes") as scenes:
            photos = _read_all(scenes)
    else:
        photos = _read_all(folder)
    if len(photos) < 2:
        raise InputError(f"verification needs at least two images, {folder} has {len(photos)}; add more of your own")
    return [Photo(photo.name, _fit(photo.frame, frame_size)) for photo in photos]


def _read_all(folder: Path) -> list[Photo]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --images takes a folder of photographs")
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    # spread over the folder, since neighbours in a camera's folder are nearly the same picture
    step = max(1, math.ceil(len(paths) / LIMIT))
    return [Photo(path.name, read_image(path)) for path in paths[::step]]


def _fit(frame: Array, frame_size: tuple[int, int] | None) -> Array:
    image = Image.fromarray(np.ascontiguousarray(frame))
    if frame_size is not None:
        image = ImageOps.fit(image, (frame_size[1], frame_size[0]), Image.Resampling.BICUBIC)
    elif max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    return np.array(image)
