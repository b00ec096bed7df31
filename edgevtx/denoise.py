"""Locally adaptive denoising of the resized image, before the network: bilateral, non-local means, LARK.

It is done on the resized image and not on the frame. The network sees nothing else; resizing with antialiasing has
already averaged much of a large frame's noise away; the parameters then mean the same for every camera; and the cost,
which grows with the pixels, is that of 0.4 megapixels and not of 2. Padding is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.rules import Bilateral, Denoise, Lark, NonLocalMeans

Frame = NDArray[np.uint8]
Plane = NDArray[Any]  # float32

KINDS: dict[str, type[Denoise]] = {kind.__struct_config__.tag: kind for kind in get_args(Denoise)}
"""The denoisers by the names that `--denoise` takes."""


def denoise(image: Frame, how: Denoise) -> Frame:
    """An image (H,W,3) uint8 BGR without some of its noise; a new array of the same shape.

    Raises `RuntimeUnavailableError` where OpenCV does it and is missing.
    """
    found: Frame = _DENOISERS[type(how)](np.ascontiguousarray(image), how)
    return found


def parse_denoise(text: str) -> Denoise:
    """`NAME[:PARAMETER=VALUE,...]` as the manifest's data, such as "bilateral:diameter=9,sigma_color=50".

    Raises `InputError` for an unknown name or parameter, or a value that is no number or out of its range.
    """
    name, _, listed = text.partition(":")
    if name not in KINDS:
        raise InputError(f"unknown denoising {name!r}; choose one of: {', '.join(KINDS)}")
    types = {item.name: item.type for item in msgspec.structs.fields(KINDS[name])}
    values: dict[str, Any] = {}
    for item in filter(None, listed.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in types:
            raise InputError(f"{name} has no parameter {key!r}; it takes {', '.join(types)}")
        try:
            values[key] = types[key](value)
        except ValueError:
            kind = "a whole number" if types[key] is int else "a number"
            raise InputError(f"{key} of {name} must be {kind}, but got {value!r}; write {key}=...") from None
    return KINDS[name](**values)


# -- OpenCV's --------------------------------------------------------------------------------------------------


def _bilateral(image: Frame, how: Bilateral) -> Frame:
    found: Frame = _opencv().bilateralFilter(image, how.diameter, how.sigma_color, how.sigma_space)
    return found


def _nonlocal_means(image: Frame, how: NonLocalMeans) -> Frame:
    found: Frame = _opencv().fastNlMeansDenoisingColored(
        image, None, how.strength, how.strength_color, how.patch, how.search
    )
    return found


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise RuntimeUnavailableError(
            'this bundle denoises with OpenCV, which is not installed; install it with pip install "edgevtx[opencv]", '
            "or export the bundle with --denoise lark, which needs numpy alone"
        ) from None
    return cv2


# -- LARK ------------------------------------------------------------------------------------------------------

# the paper's regularisation of elongation and scaling, for grey levels 0 to 255
_ELONGATION, _SCALING = 1.0, 0.01
# h and radius in px of the classic kernel regression of second order that gives the gradients
_GRADIENT_H, _GRADIENT_RADIUS = 1.0, 2
_LUMA = np.array([0.114, 0.587, 0.299], np.float32)  # of B, G, R


def _lark(image: Frame, how: Lark) -> Frame:
    """Steering kernel regression of order 0: every pixel the mean of its neighbours y_i, weighted by

        K(x_i - x) = sqrt(det C_i) exp(-(x_i - x)' C_i (x_i - x) / (2 h^2)),

    C_i the covariance of the gradients about x_i. One kernel, of the lightness, serves the three colours.
    """
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    for _ in range(how.iterations):
        luma: Plane = np.tensordot(_LUMA, planes, 1)
        scale, xx, xy, yy = steering(luma, how.analysis // 2)
        planes = _regress(planes, scale, (xx, xy, yy), how.smoothing, how.window // 2)
    found: Frame = np.rint(planes).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    return found


def steering(luma: Plane, radius: int) -> tuple[Plane, Plane, Plane, Plane]:
    """sqrt(det C) and xx, xy, yy of the steering matrices C of an image (H,W): four planes (H,W) float32.

    The gradients of the (2 * radius + 1)^2 px about each pixel, as rows, have singular values s1 >= s2 and a dominant
    direction. C = gamma (sigma u u' + v v' / sigma): u across the edge and v along it, the elongation sigma =
    (s1 + 1) / (s2 + 1), the scaling gamma = sqrt((s1 s2 + 0.01) / M) for M px. Outside the image there are none.
    """
    across, down = _gradients(luma)
    count = _box_sum(np.ones_like(luma), radius)
    a, b, c = (_box_sum(product, radius) for product in (across * across, across * down, down * down))
    # the eigenvalues of [[a, b], [b, c]] are the squared singular values
    half, spread = (a + c) / 2, np.hypot((a - c) / 2, b)
    first, second = np.sqrt(half + spread), np.sqrt(np.maximum(half - spread, 0))
    sigma = (first + _ELONGATION) / (second + _ELONGATION)
    gamma = np.sqrt((first * second + _SCALING) / count)
    # twice the angle of the dominant direction, which is all that u u' and v v' need; any will do where none leads
    flat = spread <= 0
    safe = np.where(flat, 1, spread)
    cosine, sine = np.where(flat, 1, (a - c) / 2 / safe), np.where(flat, 0, b / safe)
    mean, difference = gamma * (sigma + 1 / sigma) / 2, gamma * (sigma - 1 / sigma) / 2
    return gamma, mean + difference * cosine, difference * sine, mean - difference * cosine


def _gradients(luma: Plane) -> tuple[Plane, Plane]:
    """The slopes (H,W) across and down of a quadratic fitted about each pixel with Gaussian weights.

    On a regular grid the fit's slope is sum(w x y) / sum(w x^2), which is separable. The image is mirrored at its
    edges.
    """
    at = np.arange(-_GRADIENT_RADIUS, _GRADIENT_RADIUS + 1, dtype=np.float32)
    weights = np.exp(-(at**2) / (2 * _GRADIENT_H**2)).astype(np.float32)
    smooth = weights / weights.sum()
    slope = weights * at / (weights * at**2).sum()
    return _correlate(_correlate(luma, slope, 1), smooth, 0), _correlate(_correlate(luma, slope, 0), smooth, 1)


def _correlate(plane: Plane, kernel: Plane, axis: int) -> Plane:
    """Correlate (H,W) with a kernel along an axis, mirrored at the edges."""
    radius, length = len(kernel) // 2, plane.shape[axis]
    widths = [(radius, radius) if index == axis else (0, 0) for index in (0, 1)]
    padded = np.pad(plane, widths, mode="symmetric")
    total = np.zeros_like(plane)
    for shift, weight in enumerate(kernel):
        if weight:
            part = slice(shift, shift + length)
            total += weight * (padded[part] if axis == 0 else padded[:, part])
    return total


def _box_sum(plane: Plane, radius: int) -> Plane:
    """The sum of the (2 * radius + 1)^2 px about each pixel, those outside being 0: (H,W)."""
    for axis in (0, 1):
        widths = [(radius, radius) if index == axis else (0, 0) for index in (0, 1)]
        padded, length = np.pad(plane, widths), plane.shape[axis]
        total = np.zeros_like(plane)
        for shift in range(2 * radius + 1):  # not by a running sum, which loses what float32 cannot hold
            part = slice(shift, shift + length)
            total += padded[part] if axis == 0 else padded[:, part]
        plane = total
    return plane


def _regress(planes: Plane, scale: Plane, steer: tuple[Plane, Plane, Plane], h: float, radius: int) -> Plane:
    """The weighted means of planes (3,H,W) over the (2 * radius + 1)^2 px about each pixel.

    A sample's weight is computed where the sample is, and added to the pixel that lies the offset before it; it is
    the same for the opposite offset.
    """
    height, width = scale.shape
    xx, xy, yy = (plane / np.float32(-2 * h * h) for plane in steer)
    samples = np.concatenate([planes, np.ones((1, height, width), np.float32)])
    total = samples * scale  # the pixel itself
    for y in range(radius + 1):
        for x in range(-radius, radius + 1):
            if y == 0 and x <= 0:
                continue
            exponent = np.float32(x * x) * xx + np.float32(2 * x * y) * xy + np.float32(y * y) * yy
            weighted = samples * (scale * np.exp(exponent))
            for down, across in ((y, x), (-y, -x)):
                (to_rows, rows), (to_columns, columns) = _overlap(height, down), _overlap(width, across)
                total[:, to_rows, to_columns] += weighted[:, rows, columns]
    mean: Plane = total[:3] / total[3]
    return mean


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Where pixels lie whose sample at +shift is inside, and where these samples lie."""
    return slice(max(0, -shift), max(0, length - max(0, shift))), slice(max(0, shift), max(0, length + min(0, shift)))


_DENOISERS: dict[type[Denoise], Callable[[Frame, Any], Frame]] = {
    Bilateral: _bilateral,
    NonLocalMeans: _nonlocal_means,
    Lark: _lark,
}
