"""A cache of rendered scenes on disk and the augmentation that turns one into many training examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .scenes import UNKNOWN, Scene

Renderer = Callable[[int, tuple[int, int]], Scene]


@dataclass(frozen=True)
class Shard:
    """Scenes of one size: ``frames`` (N,H,W,3) uint8 BGR and ``segments`` (N,H,W) uint8 on disk.

    Scene i owns rows ``starts[i]:starts[i+1]``.
    """

    frames: NDArray[np.uint8]
    segments: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)

    def scene(self, index: int) -> Scene:
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Scene(self.frames[index], self.boxes[rows], self.class_ids[rows], self.segments[index])


def cached_shard(folder: Path, render: Renderer, size: tuple[int, int], seeds: range) -> Shard:
    """Render ``seeds`` at ``size`` (height, width) once; later calls map the files of the first."""
    stem = folder / f"{render.__name__}-{size[0]}x{size[1]}-{seeds.start}-{seeds.stop}"
    labels, pixels, owners = (stem.with_suffix(suffix) for suffix in (".rows.npz", ".u8", ".segments.u8"))
    shape = (len(seeds), *size, 3)
    if not labels.exists():
        folder.mkdir(parents=True, exist_ok=True)
        frames = np.memmap(pixels, np.uint8, "w+", shape=shape)
        segments = np.memmap(owners, np.uint8, "w+", shape=shape[:3])
        boxes, class_ids, starts = [], [], [0]
        for row, seed in enumerate(seeds):
            scene = render(seed, size)
            frames[row], segments[row] = scene.frame, scene.segments
            boxes.append(scene.boxes)
            class_ids.append(scene.class_ids)
            starts.append(starts[-1] + len(scene.boxes))
        frames.flush()
        segments.flush()
        np.savez(labels, boxes=np.concatenate(boxes), class_ids=np.concatenate(class_ids), starts=np.array(starts))
    with np.load(labels) as stored:
        return Shard(
            np.memmap(pixels, np.uint8, "r", shape=shape),
            np.memmap(owners, np.uint8, "r", shape=shape[:3]),
            stored["boxes"],
            stored["class_ids"],
            stored["starts"],
        )


def augment(scene: Scene, size: tuple[int, int], rng: np.random.Generator, zoom: float = 0.55) -> Scene:
    """Random crop to ``size`` (height, width), flip and colour; ``zoom`` is the shortest crop side as a share.

    A box that keeps less than 40% of its area in the crop is dropped, the others are clipped. Its pixels become
    UNKNOWN in ``segments``: something is there that no row stands for.
    """
    height, width = scene.frame.shape[:2]
    top = left = 0
    bottom, right = height, width
    if rng.random() < 0.75:
        tall, wide = (int(side * rng.uniform(zoom, 1.0)) for side in (height, width))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        bottom, right = top + tall, left + wide
    frame = cv2.resize(scene.frame[top:bottom, left:right], size[::-1], interpolation=cv2.INTER_AREA)
    segments = cv2.resize(scene.segments[top:bottom, left:right], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    boxes = scene.boxes.copy()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    boxes[:, 0::2] = np.clip(boxes[:, 0::2], left, right) - left
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], top, bottom) - top
    kept = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 0.4 * area
    boxes[:, 0::2] *= size[1] / (right - left)
    boxes[:, 1::2] *= size[0] / (bottom - top)
    if rng.random() < 0.5:
        frame, segments = frame[:, ::-1], segments[:, ::-1]
        boxes[:, 0::2] = size[1] - boxes[:, 2::-2]
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    ramp = 255 * (np.arange(256) / 255) ** rng.uniform(0.8, 1.25)
    table = np.clip(ramp[:, None] * gain, 0, 255).astype(np.uint8)
    coloured = cv2.LUT(np.ascontiguousarray(frame), table[None])
    owners = np.concatenate([[0], np.where(kept, np.cumsum(kept), UNKNOWN)]).astype(np.uint8)
    return Scene(np.asarray(coloured, np.uint8), boxes[kept], scene.class_ids[kept], owners[segments])


def pick(shards: Sequence[Shard], size: tuple[int, int], count: int, rng: np.random.Generator) -> list[Scene]:
    """``count`` scenes as they were rendered, for learning them by heart; ``size`` is theirs."""
    picked = [shards[int(i)] for i in rng.integers(len(shards), size=count)]
    return [s.scene(int(rng.integers(len(s)))) for s in picked]


def sample(shards: Sequence[Shard], size: tuple[int, int], count: int, rng: np.random.Generator) -> list[Scene]:
    """``count`` augmented scenes of ``size`` drawn from all shards alike."""
    picked = [shards[int(i)] for i in rng.integers(len(shards), size=count)]
    return [augment(s.scene(int(rng.integers(len(s)))), size, rng) for s in picked]
