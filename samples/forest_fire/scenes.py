"""Procedural forest-fire scenes with exact boxes, for training, for tests and for the demo clip.

Everything is a function of the seed. Sizes are ``(height, width)`` in pixels, frames are (H,W,3) uint8 BGR,
boxes are xyxy pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .backdrop import Landscape, finish, landscape, texture
from .fire import Flame, Mark, Plume, paint_flame, paint_plume
from .noise import Array, Noise

LABELS = ("smoke", "flame")
SMOKE, FLAME = 0, 1
UNKNOWN = 255
_MIN_SIDE = 5.0  # pixels; what is smaller is no use as a label


class Scene(NamedTuple):
    """``frame`` (H,W,3) uint8 BGR, ``boxes`` (N,4) float32 xyxy pixels, ``class_ids`` (N,) int64 into LABELS.

    ``segments`` (H,W) uint8 says which object is seen in a pixel: i + 1 for row i, 0 for none, UNKNOWN for one
    without a row.
    """

    frame: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    segments: NDArray[np.uint8]

    def class_map(self) -> NDArray[np.uint8]:
        """(H,W) uint8: 0 for the background, 1 + the class id of what is seen elsewhere, UNKNOWN where that is."""
        table = np.full(256, UNKNOWN, np.uint8)
        table[: 1 + len(self.class_ids)] = [0, *(1 + self.class_ids)]
        return table[self.segments]


def _pack(frame: NDArray[np.uint8], found: list[tuple[Mark, int]], left: int = 0) -> Scene:
    """The scene of a frame that shows the canvas from column ``left`` on, and of the marks painted on the canvas."""
    height, width = frame.shape[:2]
    segments = np.zeros((height, left + width), np.uint8)
    boxes, class_ids = [], []
    for mark, kind in found:  # in the order of painting: what came later hides what came before
        x0, y0, x1, y1 = mark.box
        x0, x1 = (x0, x1) if left == 0 else (max(x0 - left, 0.0), min(x1 - left, float(width)))
        if min(x1 - x0, y1 - y0) >= _MIN_SIDE:
            boxes.append((x0, y0, x1, y1))
            class_ids.append(kind)
            area = mark.region
            view = segments[area.top : area.bottom, area.left : area.right]
            view[mark.seen[:, : view.shape[1]]] = len(boxes)
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    return Scene(frame, rows, np.array(class_ids, np.int64), segments[:, left:])


def _smoke_colour(
    rng: np.random.Generator, canvas: Array, x: float, y: float, height: float, ambient: float
) -> tuple[float, float, float]:
    """A smoke grey that can be told from what is behind the middle of the column."""
    grey = float(rng.choice([225.0, 190.0, 140.0, 85.0, 45.0], p=[0.3, 0.28, 0.2, 0.14, 0.08]))
    grey *= (0.35 + 0.65 * ambient) * rng.uniform(0.88, 1.1)
    rows, cols = canvas.shape[:2]
    top, bottom = int(np.clip(y - height, 0, rows - 2)), int(np.clip(y, 1, rows - 1))
    left, right = int(np.clip(x - height * 0.2, 0, cols - 2)), int(np.clip(x + height * 0.2, 1, cols - 1))
    behind = float(canvas[top : bottom + 1 : 3, left : right + 1 : 3].mean())
    if abs(grey - behind) < 40:
        grey = behind - rng.uniform(45, 90) if behind > 150 else behind + rng.uniform(45, 100)
    warm = rng.uniform(-0.04, 0.06)
    return (grey * (1 - warm), grey, grey * (1 + warm))


def random_plume(
    rng: np.random.Generator, x: float, y: float, height: float, colour: tuple[float, float, float]
) -> Plume:
    """A plume of the given height (pixels) standing on (x, y); shape and wind are drawn from ``rng``."""
    wind = float(rng.normal(0, 0.45))
    return Plume(
        x=x,
        y=y,
        height=height,
        base=height * rng.uniform(0.03, 0.12),
        spread=height * rng.uniform(0.12, 0.36),
        drift=height * wind,
        bend=rng.uniform(0.9, 2.2),
        opacity=rng.uniform(0.55, 0.98),
        colour=colour,
        salt=int(rng.integers(0, 12)),
        billow=rng.uniform(0.4, 1.2),
        speed=rng.uniform(0.7, 1.3),
    )


def random_flame(rng: np.random.Generator, x: float, y: float, height: float, glow: float) -> Flame:
    """A fire front about ``height`` pixels tall with one to seven tongues, on the ground at (x, y)."""
    count = int(rng.integers(1, 8))
    tongues = []
    for index in range(count):
        tall = height * (1.0 if index == 0 else rng.uniform(0.4, 0.95))
        wide = max(tall * rng.uniform(0.16, 0.34), 1.2)
        offset = 0.0 if index == 0 else float(rng.normal(0, 0.22 * height * count**0.5))
        tongues.append((offset, wide, max(tall, 3.0)))
    return Flame(x, y, tuple(tongues), glow, int(rng.integers(0, 12)), rng.uniform(0.7, 1.4))


class _Fire(NamedTuple):
    plume: Plume | None
    flame: Flame | None
    layer: int


def _ignite(land: Landscape, scale: float = 1.0) -> _Fire:
    """A fire somewhere on the ground: a column, flames or both, smaller where it is farther away."""
    rng = land.rng
    height, width = land.canvas.shape[:2]
    layer = int(rng.integers(len(land.ridges)))
    x = rng.uniform(0.04, 0.96) * width
    far = float(land.ridges[layer][int(x)])
    close = float(land.ridges[layer + 1][int(x)]) if layer + 1 < len(land.ridges) else 0.97 * height
    y = float(np.clip(rng.uniform(far, max(close, far + 2) + 0.02 * height), 0.12 * height, 0.97 * height))
    near = 0.55 + 0.45 * (layer + 1) / len(land.ridges)
    side = min(height, width) * scale
    burning = float(rng.random())
    plume = flame = None
    if burning < 0.82:
        tall = side * near * rng.uniform(0.14, 0.75)
        ambient = float(np.mean(land.light.ambient))
        colour = _smoke_colour(rng, land.canvas, x, y, tall, ambient)
        plume = random_plume(rng, x, y, tall, colour)
    if burning > 0.45:
        tall = side * near * rng.uniform(0.035, 0.15)
        flame = random_flame(rng, x, y + 0.01 * side, tall, 1.0 if land.light.dark else rng.uniform(0.1, 0.4))
    return _Fire(plume, flame, layer + 1)


def _burn(
    canvas: Array, depth: NDArray[np.uint8], fires: list[_Fire], noise: Noise, time: float
) -> list[tuple[Mark, int]]:
    """Paint fires far to near, each behind the ridges in front of it."""
    found: list[tuple[Mark, int]] = []
    for fire in sorted(fires, key=lambda f: f.layer):
        free = (depth <= fire.layer).astype(np.float32)
        if fire.plume is not None:
            mark = paint_plume(canvas, fire.plume, noise, time, free)
            found += [(mark, SMOKE)] if mark else []
        if fire.flame is not None:
            mark = paint_flame(canvas, fire.flame, noise, time, free)
            found += [(mark, FLAME)] if mark else []
    return found


def render_scene(seed: int, size: tuple[int, int] = (384, 384), fires: tuple[int, int] | None = None) -> Scene:
    """A landscape with ``fires`` (least, most) fires in it; None draws 0 to 4, about one scene in six with none.

    Clouds, fog, dust, lamps, red roofs and autumn trees are not labelled.
    """
    rng = np.random.default_rng((seed, 1))
    if fires is None:
        count = int(rng.choice(5, p=[0.17, 0.36, 0.27, 0.13, 0.07]))
    else:
        count = int(rng.integers(fires[0], fires[1] + 1))
    land = landscape(rng, *size, extra=2.0 if count == 0 else 1.0)
    scale = 1.0 if count <= 4 else 0.6
    found = _burn(land.canvas, land.depth, [_ignite(land, scale) for _ in range(count)], land.noise, rng.uniform(0, 40))
    return _pack(finish(land.canvas, rng), found)


def render_clip(seed: int, frames: int, size: tuple[int, int] = (384, 384), fps: float = 25.0) -> Iterator[Scene]:
    """A coherent clip: one camera, fixed or panning slowly, a fire that grows, smoke that drifts.

    Yields ``frames`` scenes of the same size; the first column appears after a tenth of the clip.
    """
    height, width = size
    rng = np.random.default_rng((seed, 2))
    travel = int(width * 0.12) if rng.random() < 0.5 else 0
    land = landscape(rng, height, width + travel)
    fires = [_ignite(land) for _ in range(int(rng.integers(1, 4)))]
    starts = np.sort(rng.uniform(0.1, 0.5, len(fires)))
    for index in range(frames):
        done = index / max(frames - 1, 1)
        lit = [_grown(f, (done - s) / 0.4) for f, s in zip(fires, starts, strict=True) if done > s]
        canvas = land.canvas.copy()
        found = _burn(canvas, land.depth, lit, land.noise, index / fps * 2.0)
        left = round(travel * done)
        camera, grain = np.random.default_rng((seed, 3)), np.random.default_rng((seed, 3, index))
        yield _pack(finish(canvas[:, left : left + width], camera, grain), found, left)


def _grown(fire: _Fire, age: float) -> _Fire:
    """The fire at ``age`` in [0, 1..): a column starts thin, short and transparent."""
    size = float(np.clip(age, 0.05, 1.0)) ** 0.7
    plume = fire.plume and replace(
        fire.plume,
        height=fire.plume.height * size,
        base=fire.plume.base * size,
        spread=fire.plume.spread * size,
        drift=fire.plume.drift * size,
        opacity=fire.plume.opacity * min(0.4 + 0.6 * size, 1.0),
    )
    flame = fire.flame and replace(
        fire.flame, tongues=tuple((o * size, max(w * size, 1.2), max(h * size, 3.0)) for o, w, h in fire.flame.tongues)
    )
    return _Fire(plume, flame, fire.layer)


def paste_onto(photo: NDArray[np.uint8], seed: int, count: int = 30, decoys: int = 0) -> Scene:
    """Paint ``count`` smoke columns and flames over a photograph (H,W,3) uint8 BGR, which is left as it is.

    ``decoys`` more are flames with blue and red exchanged, and are not labelled. Objects avoid one another
    while there is room.
    """
    rng = np.random.default_rng((seed, 4))
    canvas = photo.astype(np.float32)
    found = _scatter(canvas, rng, Noise(rng), count, decoys)
    return _pack(np.clip(canvas, 0, 255).astype(np.uint8), found)


def render_dense(seed: int, size: tuple[int, int] = (192, 256)) -> Scene:
    """5 to 40 objects on a landscape or on a texture, for teaching a detector to find many at once."""
    rng = np.random.default_rng((seed, 5))
    canvas = landscape(rng, *size, extra=1.5).canvas if rng.random() < 0.3 else texture(rng, *size)
    canvas = np.clip(canvas, 0, 255)
    decoys = int(rng.integers(1, 6)) if rng.random() < 0.4 else 0
    found = _scatter(canvas, rng, Noise(rng), int(rng.integers(5, 41)), decoys)
    return _pack(finish(canvas, rng), found)


def render_mixed(seed: int, size: tuple[int, int] = (256, 256)) -> Scene:
    """A scene with a few fires where the seed is even, and one full of objects where it is odd."""
    return (render_dense if seed % 2 else render_scene)(seed, size)


def _scatter(canvas: Array, rng: np.random.Generator, noise: Noise, count: int, decoys: int) -> list[tuple[Mark, int]]:
    height, width = canvas.shape[:2]
    side = min(height, width)
    taken: list[tuple[float, float, float]] = []
    found: list[tuple[Mark, int]] = []
    kinds = [FLAME] * (count // 2) + [SMOKE] * (count - count // 2) + [-1] * decoys
    for kind in rng.permutation(kinds):
        tall = side * (rng.uniform(0.12, 0.3) if kind == SMOKE else rng.uniform(0.07, 0.18))
        x, y = _room(rng, taken, tall, height, width)
        if kind == SMOKE:
            colour = _smoke_colour(rng, canvas, x, y, tall, 1.0)
            plume = replace(random_plume(rng, x, y, tall, colour), opacity=rng.uniform(0.75, 1.0))
            mark = paint_plume(canvas, plume, noise, rng.uniform(0, 40), None)
        else:
            flame = random_flame(rng, x, y, tall, rng.uniform(0.1, 0.5))
            mark = paint_flame(canvas, flame, noise, rng.uniform(0, 40), None, swap=kind < 0)
        if mark and kind >= 0:
            found.append((mark, int(kind)))
    return found


def _room(
    rng: np.random.Generator, taken: list[tuple[float, float, float]], tall: float, height: int, width: int
) -> tuple[float, float]:
    """The best of 24 random places for an object of this height: farthest from the others for its size."""
    xs = rng.uniform(0.05, 0.95, 24) * width
    ys = rng.uniform(min(tall, 0.5 * height), 0.98 * height, 24)
    best = 0
    if taken:
        others = np.array(taken)
        gap = np.hypot(xs[:, None] - others[None, :, 0], ys[:, None] - tall / 2 - others[None, :, 1])
        best = int(np.argmax((gap - (others[None, :, 2] + tall) * 0.5).min(1)))
    x, y = float(xs[best]), float(ys[best])
    taken.append((x, y - tall / 2, tall))
    return x, y
