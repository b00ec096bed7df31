"""Smoke plumes and flames: parameters, and painting them into a float32 BGR canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .noise import Array, Noise, smoothstep

Box = tuple[float, float, float, float]

# flame colour over intensity, BGR: deep red edge to nearly white core
_FLAME_STOPS = np.array([0.0, 0.3, 0.6, 1.0], np.float32)
_FLAME_COLOURS = np.array([[15, 35, 170], [15, 95, 240], [50, 190, 255], [190, 245, 255]], np.float32)
_MIN_CHANGE = 9.0  # grey levels that the eye still tells from the background


@dataclass(frozen=True)
class Plume:
    """A smoke column; lengths in pixels, ``drift`` is where its top lies to the right of its base."""

    x: float
    y: float
    height: float
    base: float
    spread: float
    drift: float
    bend: float
    opacity: float
    colour: tuple[float, float, float]
    salt: int
    billow: float = 0.45
    speed: float = 1.0


@dataclass(frozen=True)
class Flame:
    """A fire front; ``tongues`` rows are (offset, width, height) in pixels from (x, y), its ground point."""

    x: float
    y: float
    tongues: tuple[tuple[float, float, float], ...]
    glow: float
    salt: int
    speed: float = 1.0


@dataclass(frozen=True)
class Region:
    """The part of the canvas that an object can touch: [top, bottom) x [left, right)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


class Mark(NamedTuple):
    """What a viewer can see of an object: its tight ``box``, and where in its ``region`` it is ``seen`` (h,w) bool."""

    box: Box
    region: Region
    seen: NDArray[np.bool_]


def _clip(canvas: Array, left: float, top: float, right: float, bottom: float) -> Region | None:
    height, width = canvas.shape[:2]
    region = Region(max(int(left), 0), max(int(top), 0), min(int(right) + 1, width), min(int(bottom) + 1, height))
    return region if min(region.shape) >= 3 else None


def extent(mask: NDArray[np.bool_], region: Region) -> Mark | None:
    """The mark with a tight xyxy box around a boolean mask of the region; None when too little is left."""
    least = 2 + min(mask.shape) // 40  # a stray wisp of a few pixels must not stretch the box
    cols = np.flatnonzero(mask.sum(0) >= least)
    rows = np.flatnonzero(mask.sum(1) >= least)
    if len(cols) < 3 or len(rows) < 3:
        return None
    box = (
        float(region.left + cols[0]),
        float(region.top + rows[0]),
        float(region.left + cols[-1] + 1),
        float(region.top + rows[-1] + 1),
    )
    return Mark(box, region, mask)


def _plume_alpha(plume: Plume, region: Region, noise: Noise, time: float, step: int) -> tuple[Array, Array]:
    """Opacity and shading of a plume on the region, computed on every ``step``-th pixel."""
    ys = np.arange(region.top, region.bottom, step, dtype=np.float32)[:, None]
    xs = np.arange(region.left, region.right, step, dtype=np.float32)[None, :]
    height, width = len(ys), xs.shape[1]
    u = (np.float32(plume.y) - ys) / np.float32(plume.height)
    along = np.clip(u, 0, 1.2)
    centre = plume.x + plume.drift * along**plume.bend
    slope = plume.drift / plume.height * plume.bend * np.clip(along, 0.05, 1.2) ** (plume.bend - 1)
    half = (plume.base + (plume.spread - plume.base) * along**0.85) * np.sqrt(1 + 0.4 * slope**2)
    rise = -plume.speed * time * plume.height * 0.05
    drift = plume.speed * time * plume.drift * 0.04
    cell = max((0.5 * plume.base + 0.5 * plume.spread) / step * 1.3, 3.0)
    shift = ((drift + region.left * -1.0 + plume.x) / step, (rise + plume.y - region.top) / step)
    swirl = noise.fbm(height, width, cell * 1.6, 2, shift=shift, salt=plume.salt)
    puffs = noise.fbm(height, width, cell, 5, shift=shift, salt=plume.salt + 1)
    side = (xs - centre + swirl * half * np.float32(0.28)) / half
    profile = np.exp(-1.4 * side * side)
    # billows break up the edge, but no puff floats free of the column: its box would be a matter of taste
    torn = plume.billow * 0.42 * puffs * (0.3 + along) * np.minimum(1, 3 * profile)
    density = smoothstep(0.22, 0.85, np.asarray(profile + torn, np.float32))
    ends = (1 - smoothstep(0.72, 1.04, np.asarray(u + 0.07 * swirl, np.float32))) * smoothstep(-0.03, 0.03, u)
    thin = 1 - 0.45 * along
    alpha = plume.opacity * density * ends * thin
    shade = 1 + 0.13 * puffs - 0.14 * np.clip(side, -1.2, 1.2) + 0.12 * (along - 0.5)
    return np.asarray(alpha, np.float32), np.asarray(shade, np.float32)


def paint_plume(canvas: Array, plume: Plume, noise: Noise, time: float, free: Array | None) -> Mark | None:
    """Blend a plume into ``canvas`` in place; ``free`` (H,W) in [0,1] is where nothing nearer hides it.

    Returns what a viewer can see of it, or None when that is nothing.
    """
    reach = plume.spread * 1.7
    left, right = sorted((plume.x, plume.x + plume.drift * 1.1))
    region = _clip(canvas, left - reach, plume.y - plume.height * 1.1, right + reach, plume.y + plume.height * 0.04)
    if region is None:
        return None
    # smoke has no fine detail: above 200 pixels it is computed on a coarser grid
    step = max(1, round(max(region.shape) / 200))
    alpha, shade = _plume_alpha(plume, region, noise, time, step)
    if step > 1:
        size = (region.shape[1], region.shape[0])
        alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_LINEAR), np.float32)
        shade = np.asarray(cv2.resize(shade, size, interpolation=cv2.INTER_LINEAR), np.float32)
    if free is not None:
        alpha = alpha * free[region.top : region.bottom, region.left : region.right]
    view = canvas[region.top : region.bottom, region.left : region.right]
    colour = shade[..., None] * np.array(plume.colour, np.float32)
    change = alpha[..., None] * (np.clip(colour, 0, 255) - view)
    view += change
    seen = (alpha > 0.12) & (np.abs(change).max(-1) > _MIN_CHANGE)
    return extent(seen, region)


def _flame_heat(flame: Flame, region: Region, noise: Noise, time: float) -> Array:
    ys = np.arange(region.top, region.bottom, dtype=np.float32)[:, None]
    xs = np.arange(region.left, region.right, dtype=np.float32)[None, :]
    tallest = max(t[2] for t in flame.tongues)
    shift = (flame.x - region.left, flame.y - region.top - flame.speed * time * tallest * 0.35)
    wave = noise.fbm(len(ys), xs.shape[1], max(tallest * 0.45, 3.0), 3, 0.7, shift=shift, salt=flame.salt)
    heat = np.zeros(wave.shape, np.float32)
    for index, (offset, width, height) in enumerate(flame.tongues):
        flicker = 1 + 0.22 * np.sin(time * flame.speed * (1.1 + 0.37 * index) + index * 2.1)
        v = (np.float32(flame.y) - ys) / np.float32(height * flicker)
        inside = np.clip(v, 0, 1)
        half = width * (1 - inside) ** 0.75 * (0.75 + 0.5 * np.sin(np.pi * np.clip(inside * 1.5, 0, 1))) + 0.3
        side = (xs - flame.x - offset + wave * width * 0.55 * (0.15 + inside)) / half
        tongue = (1 - side * side) * (1 - 0.55 * inside) * smoothstep(-0.08, 0.02, v) * (v < 1)
        np.maximum(heat, tongue, out=heat)
    return np.asarray(np.clip(heat * (1 + 0.18 * wave), 0, 1), np.float32)


def paint_flame(
    canvas: Array, flame: Flame, noise: Noise, time: float, free: Array | None, swap: bool = False
) -> Mark | None:
    """Paint a flame and its glow in place; arguments and return value as :func:`paint_plume`.

    ``swap`` exchanges blue and red: a shape that is no flame, for teaching a detector to look at colour.
    """
    tallest = max(t[2] for t in flame.tongues)
    span = max(abs(t[0]) + t[1] for t in flame.tongues)
    pad = tallest * 0.5 + 2
    region = _clip(
        canvas, flame.x - span - pad, flame.y - tallest * 1.25 - pad, flame.x + span + pad, flame.y + pad * 0.6
    )
    if region is None:
        return None
    heat = _flame_heat(flame, region, noise, time)
    alpha = smoothstep(0.04, 0.3, heat)
    if free is not None:
        alpha = alpha * free[region.top : region.bottom, region.left : region.right]
    view = canvas[region.top : region.bottom, region.left : region.right]
    colour = np.stack([np.interp(heat, _FLAME_STOPS, _FLAME_COLOURS[:, c]) for c in range(3)], -1)
    halo = cv2.GaussianBlur(alpha, (0, 0), max(pad * 0.33, 1.0))[..., None]
    tint = np.array([25, 85, 200], np.float32) * np.float32(flame.glow)
    if swap:
        colour, tint = colour[..., ::-1], tint[::-1]
    view += halo * tint
    view += alpha[..., None] * (colour.astype(np.float32) - view)
    return extent(alpha > 0.4, region)
