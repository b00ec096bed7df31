"""Seeded, periodic, band-limited noise: the one texture source of the scene renderer."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_TILE = 256  # pixels of a noise tile: warpAffine is fast only while most of the source lies inside one period
_COARSE, _FINE = 8, 2  # tile pixels to one lattice cell; coarse shows no lattice when magnified


def smoothstep(low: float, high: float, x: Array) -> Array:
    """Hermite step from 0 at ``low`` to 1 at ``high``; elementwise on float32."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


class Noise:
    """Value noise that can be sampled at any scale and offset, so that a pattern can drift over time."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._tiles = {cell: self._tile(rng, cell) for cell in (_COARSE, _FINE)}
        self._offsets = rng.random((16, 2)) * _TILE

    @staticmethod
    def _tile(rng: np.random.Generator, cell: int) -> Array:
        lattice = np.pad(rng.random((_TILE // cell, _TILE // cell), np.float32), 2, mode="wrap")
        tile = cv2.resize(lattice, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        tile = tile[2 * cell : -2 * cell, 2 * cell : -2 * cell]
        return np.ascontiguousarray((tile - tile.mean()) / tile.std(), np.float32)

    def fbm(
        self,
        height: int,
        width: int,
        cell: float,
        octaves: int = 4,
        stretch: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
        salt: int = 0,
    ) -> Array:
        """Fractal noise (height, width) float32, mean about 0 and deviation about 1.

        ``cell`` is the largest feature in pixels, ``stretch`` its width over its height, ``shift`` the
        pattern's displacement (x, y) in pixels, ``salt`` picks an independent pattern.
        """
        out = np.zeros((height, width), np.float32)
        gain, total = 1.0, 0.0
        for octave in range(octaves):
            size = cell / 2**octave
            if size < 1.5:
                break
            cell_pixels = _COARSE if size > _COARSE else _FINE
            scale_x, scale_y = cell_pixels / (size * stretch), cell_pixels / size
            # offsets are folded into one period: warpAffine works in fixed point and loses far coordinates
            ox, oy = self._offsets[(salt * 5 + octave) % 16] * (1 + salt)
            matrix = np.array(
                [
                    [scale_x, 0, (ox - shift[0] * scale_x) % _TILE],
                    [0, scale_y, (oy - shift[1] * scale_y) % _TILE],
                ]
            )
            layer = cv2.warpAffine(
                self._tiles[cell_pixels],
                matrix,
                (width, height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_WRAP,
            )
            out += np.float32(gain) * layer
            total += gain * gain
            gain *= 0.55
        return np.asarray(out / np.float32(max(total, 1e-6) ** 0.5), np.float32)

    def line(self, length: int, cell: float, octaves: int = 5, shift: float = 0.0, salt: int = 0) -> Array:
        """One row of fractal noise, (length,) float32: ridges and shore lines."""
        return np.asarray(self.fbm(1, length, cell, octaves, shift=(shift, 0.0), salt=salt)[0], np.float32)
