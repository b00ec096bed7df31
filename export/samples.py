"""The images that an export is verified on: the user's own, or scenes that the project rendered. Never noise.

A model of clips is verified on the user's videos, and on clips of a camera that moves over the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edgevtx.errors import InputError
from edgevtx.images import read_image
from edgevtx.rules import Clip
from edgevtx.runtimes.base import Array

LIMIT = 8
"""At most so many of the user's images are used: each is run through the reference and every engine."""

LARGEST = 1280
"""Images are reduced to this longest edge (px): the first one is stored in the bundle as the golden sample."""

LARGEST_CLIP = 4_000_000
"""Clips are reduced to so many px in all, for the same reason."""

LATEST = 20.0
"""A long video is read to this second, or its middle: a file cannot be entered at any place on every machine."""

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class Photo:
    """An image or a clip to verify on: frame (H,W,3) or (T,H,W,3) uint8 BGR."""

    name: str
    frame: Array


def load_photos(folder: Path | None, frame_size: tuple[int, int] | None = None) -> list[Photo]:
    """The images of `folder` in name order, or the project's rendered scenes.

    `frame_size` (height, width) fits them to the one camera that a graph is fixed for. Raises `InputError` where
    there are fewer than two: the second one shows that the first was no accident.
    """
    photos = _read_scenes() if folder is None else _read_all(folder)
    if len(photos) < 2:
        raise InputError(f"verification needs at least two images, {folder} has {len(photos)}; add more of your own")
    return [Photo(photo.name, _fit(photo.frame, frame_size)) for photo in photos]


def _read_scenes() -> list[Photo]:
    with resources.as_file(resources.files("edgevtx.export") / "scenes") as scenes:
        return _read_all(scenes)


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


# -- clips -----------------------------------------------------------------------------------------------------


def load_clips(folder: Path | None, clip: Clip) -> list[Photo]:
    """Clips of `clip.frames` frames: of the videos and images in `folder` in name order, or of the rendered scenes.

    A video gives frames of its middle at the model's rate, an image what a camera sees that moves over it. Raises
    `InputError` where there are fewer than two or a video is too short; `RuntimeUnavailableError` where there is a
    video and no OpenCV.
    """
    found = [] if folder is None or not folder.is_dir() else sorted(folder.iterdir())
    videos = [path for path in found if path.suffix.lower() in VIDEOS][:LIMIT]
    clips = [Photo(path.name, _from_video(path, clip)) for path in videos]
    if len(clips) < 2:
        clips += [
            Photo(photo.name, move_over(photo.frame, clip.frames, turn))
            for turn, photo in enumerate(_read_scenes() if folder is None else _read_all(folder))
        ]
    if len(clips) < 2:
        raise InputError(
            f"verification needs at least two videos or images, {folder} has {len(clips)}; add more of your own"
        )
    return clips


def move_over(frame: Array, count: int, turn: int = 0) -> Array:
    """A clip (`count`,h,w,3) of a camera that moves and zooms over a photograph (H,W,3); no two `turn`s are alike."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    size = _clip_size(image.size, count)
    heading = 0.7 + 2.4 * turn  # radians, a new direction for every clip
    frames = []
    for index in range(count):
        step = index / max(count - 1, 1)
        share = 0.75 - 0.2 * step if turn % 2 else 0.55 + 0.2 * step
        free = (1 - share) / 2  # of the edge, to either side of the centre
        middle = [0.5 + free * (2 * step - 1) * way for way in (math.cos(heading), math.sin(heading))]
        box = [
            (place + side * share / 2) * edge
            for side in (-1, 1)
            for place, edge in zip(middle, image.size, strict=True)
        ]
        frames.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=(box[0], box[1], box[2], box[3]))))
    return np.stack(frames)


def _from_video(path: Path, clip: Clip) -> Array:
    """(T,h,w,3): the frames nearest to the model's moments, from the video's middle (`LATEST`, if that is earlier)."""
    from edgevtx.clip import ClipBuffer
    from edgevtx.stream.sources import open_source

    with open_source(path) as source:
        length = (source.count or 0) / (source.fps or 25)
        begin = min(LATEST, max(0.0, (length - clip.frames / clip.fps) / 2))
        buffer = ClipBuffer(clip)
        for frame in source:
            time = frame.position or frame.index / (source.fps or 25)
            if time < begin:
                continue
            image = Image.fromarray(frame.image)
            image = image.resize(_clip_size(image.size, clip.frames), Image.Resampling.BICUBIC)
            if rows := buffer.push(np.asarray(image), time):
                return np.stack(rows)
    raise InputError(
        f"{path} has fewer than the {clip.frames} frames at {clip.fps:g} a second that the model takes; leave it out"
    )


def _clip_size(size: tuple[int, int], count: int) -> tuple[int, int]:
    """(width, height) of a clip's frames: as large as `LARGEST` and `LARGEST_CLIP` allow, not larger than they are."""
    width, height = size
    scale = min(1.0, LARGEST / max(size), math.sqrt(LARGEST_CLIP / (count * width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))
