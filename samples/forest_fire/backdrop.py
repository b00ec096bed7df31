"""Procedural landscapes without any fire: sky, ridges, forest, weather, and the things taken for fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from .noise import Array, Noise, smoothstep

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """A time of day, colours BGR: sky at the zenith and at the horizon, and what reaches the ground."""

    zenith: Colour
    horizon: Colour
    ambient: Colour
    haze: float
    dark: bool = False


LIGHTS: tuple[tuple[float, Light], ...] = (
    (0.26, Light((205, 145, 85), (238, 218, 195), (1.0, 1.0, 1.0), 0.55)),
    (0.18, Light((188, 182, 176), (216, 213, 209), (0.86, 0.84, 0.82), 0.65)),
    (0.14, Light((205, 196, 188), (226, 222, 220), (0.95, 0.95, 0.95), 0.9)),
    (0.14, Light((175, 140, 110), (125, 185, 245), (0.72, 0.9, 1.08), 0.6)),
    (0.14, Light((95, 58, 46), (92, 112, 198), (0.42, 0.36, 0.38), 0.45, True)),
    (0.14, Light((26, 16, 10), (48, 34, 28), (0.17, 0.13, 0.11), 0.35, True)),
)
# two ground colours a season, BGR: canopy and clearing
SEASONS: tuple[tuple[Colour, Colour], ...] = (
    ((42, 84, 50), (70, 130, 105)),
    ((40, 72, 52), (95, 150, 165)),
    ((38, 80, 125), (70, 120, 150)),
    ((90, 96, 92), (222, 222, 220)),
    ((52, 92, 66), (60, 125, 88)),
)


@dataclass
class Landscape:
    """``canvas`` (H,W,3) float32 BGR, ``depth`` (H,W) uint8: 0 sky, then 1.. from the far to the near ridge."""

    canvas: Array
    depth: NDArray[np.uint8]
    ridges: list[Array]
    light: Light
    noise: Noise
    rng: np.random.Generator


def _mix(a: Array | Colour, b: Array | Colour, t: float) -> Array:
    mixed = np.asarray(a, np.float32) * np.float32(1 - t) + np.asarray(b, np.float32) * np.float32(t)
    return np.asarray(mixed, np.float32)


def _sky(height: int, width: int, light: Light, horizon: float, noise: Noise, rng: np.random.Generator) -> Array:
    ramp = np.clip(np.arange(height, dtype=np.float32) / max(horizon, 1), 0, 1)[:, None, None] ** 1.3
    zenith = np.array(light.zenith, np.float32) * np.float32(rng.uniform(0.85, 1.12))
    sky = zenith * (1 - ramp) + np.array(light.horizon, np.float32) * ramp
    canvas = np.array(np.broadcast_to(sky, (height, width, 3)), np.float32, order="C")
    rows = min(int(horizon) + 1, height)
    if rng.random() < 0.7 and rows > 8:
        cell = rng.uniform(0.12, 0.5) * width
        cover = noise.fbm(rows, width, cell, 5, stretch=rng.uniform(1.2, 3.5), salt=9)
        low = rng.uniform(-0.6, 1.0)
        alpha = smoothstep(low, low + rng.uniform(0.5, 1.6), cover) * np.float32(rng.uniform(0.4, 0.95))
        alpha *= 1 - smoothstep(0.7, 1.0, np.asarray(np.arange(rows) / rows, np.float32))[:, None]
        bright = np.array(light.horizon, np.float32) * np.float32(rng.uniform(0.85, 1.12))
        cloud = bright * (1 - 0.12 * np.clip(cover, -1, 1.5))[..., None]
        canvas[:rows] += alpha[..., None] * (cloud - canvas[:rows])
    return canvas


def _sun(canvas: Array, light: Light, horizon: float, rng: np.random.Generator) -> None:
    """Sun or moon with its glare: bright, warm, and no fire."""
    height, width = canvas.shape[:2]
    x, y = rng.uniform(0, width), rng.uniform(0.1, 1.0) * horizon
    radius = rng.uniform(0.01, 0.03) * width
    ys, xs = np.ogrid[:height, :width]
    distance = np.sqrt((xs - x) ** 2 + (ys - y) ** 2).astype(np.float32) / np.float32(radius)
    warm = np.array([150, 205, 255] if rng.random() < 0.6 else [245, 250, 255], np.float32)
    strength = 0.35 if light.dark else 1.0
    glare = strength * (np.exp(-distance / 5) * 0.7 + (1 - smoothstep(0.8, 1.2, distance)))
    canvas += glare[..., None] * (warm - canvas * 0.4)


def _ridge(land: Landscape, base: float, rough: float, near: float, salt: int) -> Array:
    """Sky line of one layer, (W,) float32 row numbers, with conifer tops where it is near enough to see them."""
    height, width = land.canvas.shape[:2]
    line = base - rough * land.noise.line(width, width * land.rng.uniform(0.3, 0.9), 5, salt=salt)
    if near < 0.25:
        return np.asarray(line, np.float32)
    size = height * 0.09 * near
    top = line.copy()
    for x in land.rng.uniform(0, 1, int(10 + 1.6 * width / max(size, 2))) * width:
        tall = size * land.rng.uniform(0.35, 1.0)
        half = max(tall * 0.24, 1.0)
        left, right = max(int(x - half), 0), min(int(x + half) + 1, width)
        if left < right:
            fall = np.abs(np.arange(left, right) - x) / half
            top[left:right] = np.minimum(top[left:right], line[left:right] - tall * (1 - fall))
    return np.asarray(top, np.float32)


def _ground(land: Landscape, index: int, season: tuple[Colour, Colour]) -> None:
    """Paint one ridge layer down to where the next one hides it: canopy and clearings, paler with distance."""
    canvas, light, noise, rng = land.canvas, land.light, land.noise, land.rng
    height, width = canvas.shape[:2]
    ridge, count = land.ridges[index], len(land.ridges)
    start = max(int(ridge.min()), 0)
    stop = height if index + 1 == count else min(int(land.ridges[index + 1].max()) + 2, height)
    if start >= stop - 1:
        return
    cover = np.clip(np.arange(start, stop, dtype=np.float32)[:, None] - ridge[None, :] + 0.5, 0, 1)
    near = (index + 1) / count
    shape = (stop - start, width)
    patches = noise.fbm(*shape, width * 0.25 * (0.4 + near), 3, 2.5, salt=index)
    crowns = noise.fbm(*shape, 2.5 + 0.018 * height * near, 3, 0.9, salt=index + 3)
    clearing = smoothstep(0.3, 0.9, patches + np.float32(rng.uniform(-1.2, 0.6)))
    jitter = rng.uniform(0.85, 1.15, 3)
    canopy, meadow = (np.array(c) * jitter * np.array(light.ambient) for c in season)
    grain = np.clip(1 + (0.06 + 0.2 * near) * crowns * (1 - 0.7 * clearing) + 0.05 * patches, 0.2, 2.0)
    veil = float(np.clip(light.haze * (1 - near) ** 1.2 * rng.uniform(0.8, 1.3), 0, 0.92))
    far = (np.array(light.horizon) * 0.95 * veil).astype(np.float32)
    view = canvas[start:stop]
    for channel in range(3):  # one plane at a time: broadcasting over the last axis is several times slower
        tone = np.float32(canopy[channel]) + clearing * np.float32(meadow[channel] - canopy[channel])
        tone = tone * grain * np.float32(1 - veil) + far[channel]
        plane = view[..., channel]
        plane += cover * (tone - plane)
    land.depth[start:][(np.arange(start, height)[:, None] > ridge[None, :])] = index + 1
    _conifers(land, index, canopy * (1 - veil) + far, clearing, start)


def _conifers(land: Landscape, index: int, colour: NDArray[np.float64], clearing: Array, start: int) -> None:
    """Scatter trees over a near layer, far rows first so that the nearer ones cover them."""
    height, width = land.canvas.shape[:2]
    near = (index + 1) / len(land.ridges)
    if near < 0.45 or land.rng.random() < 0.25:
        return
    stop = start + len(clearing)
    edges = np.linspace(start, min(stop + 0.05 * height, height * 1.05), 7)
    for top, bottom in pairwise(edges):
        size = height * (0.025 + 0.075 * near * (bottom / height) ** 2)
        count = int(land.rng.uniform(0.4, 1.3) * width / size)
        xs, ys = land.rng.uniform(0, width, count), land.rng.uniform(top, bottom, count)
        rows = np.clip(ys - start, 0, len(clearing) - 1).astype(int)
        cols = xs.astype(int)
        stands = (clearing[rows, cols] < 0.5) & (ys > land.ridges[index][cols])
        xs, ys = xs[stands], ys[stands]
        tall = size * land.rng.uniform(0.6, 1.3, len(xs))
        half = tall * land.rng.uniform(0.16, 0.28, len(xs))
        for side, shade in ((-1, 0.98), (1, 0.66)):  # a lit and a shaded half
            outline = np.stack(
                [np.stack([xs, ys - tall], -1), np.stack([xs + side * half, ys], -1), np.stack([xs, ys], -1)], 1
            )
            tone = tuple(float(c) for c in colour * shade * land.rng.uniform(0.75, 1.15))
            for group in range(3):
                polygons = list(outline[group::3].astype(np.int32))
                mixed = tuple(c * (0.88 + 0.12 * group) for c in tone)
                cv2.fillPoly(land.canvas, polygons, mixed, cv2.LINE_AA)


def _spot(land: Landscape, near_only: bool = False) -> tuple[float, float, float]:
    """A random ground point (x, y) and the size of a 10 m object there, all in pixels."""
    height, width = land.canvas.shape[:2]
    low = float(np.median(land.ridges[-1 if near_only else land.rng.integers(len(land.ridges))]))
    low = min(max(low, 0.2 * height), 0.9 * height)
    y = land.rng.uniform(low, height)
    scale = height * (0.02 + 0.07 * (y / height) ** 2)
    return land.rng.uniform(0, width), y, scale


def _lit(land: Landscape, colour: Colour) -> tuple[float, ...]:
    shade = np.array(colour) * np.array(land.light.ambient) * land.rng.uniform(0.8, 1.15)
    return tuple(float(c) for c in shade)


def _house(land: Landscape) -> None:
    x, y, s = _spot(land)
    wall, roof = _lit(land, (200, 210, 215)), _lit(land, (50, 65, 190))
    cv2.rectangle(land.canvas, (int(x), int(y - s * 0.6)), (int(x + s), int(y)), wall, -1)
    top = np.array([[x - 0.1 * s, y - 0.6 * s], [x + 1.1 * s, y - 0.6 * s], [x + 0.5 * s, y - 1.1 * s]])
    cv2.fillPoly(land.canvas, [top.astype(np.int32)], roof, cv2.LINE_AA)
    if land.light.dark:
        pane = (int(x + 0.3 * s), int(y - 0.4 * s))
        cv2.rectangle(land.canvas, pane, (int(x + 0.5 * s), int(y - 0.2 * s)), (110, 200, 250), -1)


def _vehicle(land: Landscape) -> None:
    x, y, s = _spot(land)
    body = _lit(land, ((20, 110, 240), (40, 40, 200), (30, 190, 240), (230, 230, 230))[land.rng.integers(4)])
    cv2.rectangle(land.canvas, (int(x), int(y - 0.3 * s)), (int(x + 0.8 * s), int(y)), body, -1)
    cv2.rectangle(land.canvas, (int(x + 0.5 * s), int(y - 0.45 * s)), (int(x + 0.75 * s), int(y)), body, -1)
    for wheel in (0.15, 0.62):
        cv2.circle(land.canvas, (int(x + wheel * s), int(y)), max(int(0.08 * s), 1), (25, 25, 25), -1, cv2.LINE_AA)


def _tree(land: Landscape) -> None:
    """A broad-leaved tree, often in autumn red or orange."""
    x, y, s = _spot(land)
    hue = ((30, 90, 215), (35, 60, 180), (40, 150, 225), (45, 100, 60))[land.rng.integers(4)]
    cv2.line(land.canvas, (int(x), int(y)), (int(x), int(y - s)), _lit(land, (40, 55, 70)), max(int(s / 12), 1))
    for _ in range(14):
        dx, dy = land.rng.normal(0, 0.25 * s, 2)
        centre = (int(x + dx), int(y - s + dy * 0.8))
        cv2.circle(land.canvas, centre, max(int(s * land.rng.uniform(0.1, 0.24)), 1), _lit(land, hue), -1, cv2.LINE_AA)


def _lamp(land: Landscape) -> None:
    x, y, s = _spot(land)
    s = max(s, 6)
    radius = int(s * 1.5) + 2
    left, top = max(int(x) - radius, 0), max(int(y - s) - radius, 0)
    view = land.canvas[top : int(y - s) + radius, left : int(x) + radius]
    if not view.size:
        return
    ys, xs = np.ogrid[top : top + view.shape[0], left : left + view.shape[1]]
    distance = np.sqrt((xs - x) ** 2 + (ys - y + s) ** 2)[..., None]
    warm = np.array((120, 205, 255) if land.rng.random() < 0.7 else (255, 245, 235), np.float32)
    strength = 1.0 if land.light.dark else 0.3
    view += (warm * np.exp(-distance / (0.22 * s)) * strength).astype(np.float32)


def _lake(land: Landscape) -> None:
    x, y, s = _spot(land, near_only=True)
    colour = tuple(float(c) for c in _mix(land.light.horizon, land.light.zenith, 0.5) * 0.8)
    axes = (int(s * land.rng.uniform(2, 6)), max(int(s * land.rng.uniform(0.15, 0.5)), 1))
    cv2.ellipse(land.canvas, (int(x), int(y)), axes, 0, 0, 360, colour, -1, cv2.LINE_AA)


def _fog(land: Landscape) -> None:
    """A flat bank of fog in a valley: grey, soft and wide, and no smoke."""
    height, width = land.canvas.shape[:2]
    base = float(np.median(land.ridges[land.rng.integers(len(land.ridges))])) + land.rng.uniform(0, 0.1) * height
    thick = height * land.rng.uniform(0.02, 0.07)
    top, bottom = max(int(base - 3 * thick), 0), min(int(base + 3 * thick), height)
    if bottom - top < 4:
        return
    rows = np.arange(top, bottom, dtype=np.float32)[:, None]
    wisps = land.noise.fbm(bottom - top, width, width * 0.3, 4, stretch=4.0, salt=7)
    band = np.exp(-(((rows - base - wisps * thick * 0.5) / thick) ** 2))
    alpha = band * np.clip(0.55 + 0.45 * wisps, 0, 1) * land.rng.uniform(0.4, 0.9)
    colour = np.array(land.light.horizon, np.float32) * 0.97
    view = land.canvas[top:bottom]
    view += np.asarray(alpha, np.float32)[..., None] * (colour - view)


def _dust(land: Landscape) -> None:
    """Dust behind a vehicle: low, brown and long."""
    x, y, s = _spot(land)
    long, tall = s * land.rng.uniform(2, 6), s * land.rng.uniform(0.3, 0.9)
    height, width = land.canvas.shape[:2]
    left, right = max(int(x - long), 0), min(int(x + long), width)
    top, bottom = max(int(y - 2 * tall), 0), min(int(y + tall), height)
    if right - left < 4 or bottom - top < 4:
        return
    ys = (np.arange(top, bottom, dtype=np.float32)[:, None] - y + tall * 0.3) / tall
    xs = (np.arange(left, right, dtype=np.float32)[None] - x) / long
    puffs = land.noise.fbm(bottom - top, right - left, max(tall, 4), 4, 1.6, salt=5)
    alpha = np.clip(np.exp(-4 * xs**2 - 1.5 * ys**2) * (0.6 + 0.35 * puffs), 0, 1) * land.rng.uniform(0.3, 0.7)
    colour = np.array(_lit(land, (125, 165, 195)), np.float32)
    view = land.canvas[top:bottom, left:right]
    view += np.asarray(alpha, np.float32)[..., None] * (colour - view)


# what a careless detector takes for fire: (mean number in a scene, painter)
DISTRACTORS: tuple[tuple[float, Callable[[Landscape], None]], ...] = (
    (0.4, _lake),
    (0.9, _fog),
    (0.8, _tree),
    (0.6, _house),
    (0.5, _vehicle),
    (0.4, _dust),
    (0.6, _lamp),
)


def landscape(rng: np.random.Generator, height: int, width: int, extra: float = 1.0) -> Landscape:
    """Render a landscape without fire.

    ``extra`` scales the number of distractors. The canvas is float32 BGR in 0..255 (not clipped).
    """
    noise = Noise(rng)
    weights = np.array([w for w, _ in LIGHTS])
    light = LIGHTS[int(rng.choice(len(LIGHTS), p=weights / weights.sum()))][1]
    season = SEASONS[int(rng.integers(len(SEASONS)))]
    horizon = rng.uniform(0.22, 0.62) * height
    canvas = _sky(height, width, light, horizon, noise, rng)
    if rng.random() < 0.25:
        _sun(canvas, light, horizon, rng)
    land = Landscape(canvas, np.zeros((height, width), np.uint8), [], light, noise, rng)
    count = int(rng.integers(2, 5))
    for index in range(count):
        near = (index + 1) / count
        base = horizon + (height - horizon) * 0.7 * (index / count) ** 1.2
        rough = height * rng.uniform(0.02, 0.07)
        land.ridges.append(_ridge(land, base, rough, near if index else 0.0, index))
    for index in range(count):
        _ground(land, index, season)
    for mean, paint in DISTRACTORS:
        for _ in range(int(rng.poisson(mean * extra))):
            paint(land)
    return land


def finish(canvas: Array, rng: np.random.Generator, grain: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """Camera effects: exposure, softness, sensor noise, compression. Returns (H,W,3) uint8 BGR.

    The noise comes from ``grain`` where that is given: in a clip it changes while the camera's settings stay.
    """
    height, width = canvas.shape[:2]
    canvas = canvas * np.asarray(rng.uniform(0.9, 1.1) * rng.uniform(0.96, 1.04, 3), np.float32)
    if rng.random() < 0.4:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.1)), np.float32)
    tile = (grain or rng).standard_normal((96, 128, 3), np.float32) * np.float32(rng.uniform(0.5, 5.0))
    canvas += np.tile(tile, (height // 96 + 1, width // 128 + 1, 1))[:height, :width]
    frame = np.clip(canvas, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(55, 96))
        packed = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        frame = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return frame


def texture(rng: np.random.Generator, height: int, width: int) -> Array:
    """Fallen-leaves texture, (H,W,3) float32 BGR: occluding shapes have the edge statistics of photographs."""
    noise = Noise(rng)
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = np.clip(rng.uniform(20, 235) + rng.normal(0, 45, 3), 0, 255)
    side = max(height, width)
    for _ in range(int(rng.integers(5, 90))):
        radius = side * min(0.02 / rng.random() ** 0.6, 0.4)
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        grey, tint = rng.uniform(0, 255), rng.normal(0, 30, 3)
        colour = tuple(float(c) for c in np.clip(grey + tint, 0, 255))
        if rng.random() < 0.5:
            axes = (int(radius) + 1, int(radius * rng.uniform(0.3, 1)) + 1)
            cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            points = np.array(centre) + rng.normal(0, radius, (int(rng.integers(3, 6)), 2))
            cv2.fillPoly(canvas, [points.astype(np.int32)], colour, cv2.LINE_AA)
    for salt in range(2):
        grain = noise.fbm(height, width, side * rng.uniform(0.01, 0.4), 4, salt=salt)
        canvas += grain[..., None] * rng.normal(0, 14, 3).astype(np.float32)
    if rng.random() < 0.4:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.6, 3.0)), np.float32)
    return canvas
