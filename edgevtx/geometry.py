"""Where a frame lies in the network's input, and the way back: points, boxes and masks, both ways.

Coordinates are continuous, in px, x to the right and y down: pixel (0, 0) covers [0, 1] x [0, 1], so a frame of
1920 x 1080 spans x in 0..1920. Sizes are (height, width).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.rules import Exact, Letterbox, LongestEdge, Preprocess, ShortestEdge, SizeRule

Array = NDArray[Any]
Size = tuple[int, int]
ROTATIONS = (0, 90, 180, 270)


@dataclass(frozen=True)
class Geometry:
    """The mapping frame <-> input: cut out `roi`, rotate it upright, resize it, lay it into the input.

    `frame_size` (h,w) of the frame as given. `roi` x0, y0, x1, y1 in frame px. `rotation` 0, 90, 180 or 270
    degrees clockwise, which make the roi upright. `resized` (h,w) of the upright roi after resizing. `offset`
    (top, left) of the resized image in the input; negative where a centred crop cuts it. `input_size` (h,w).
    """

    frame_size: Size
    roi: tuple[int, int, int, int]
    rotation: int
    resized: Size
    offset: Size
    input_size: Size

    @property
    def upright_size(self) -> Size:
        """(h,w) of the roi after rotation, before resizing."""
        x0, y0, x1, y1 = self.roi
        return (y1 - y0, x1 - x0) if self.rotation in (0, 180) else (x1 - x0, y1 - y0)

    @property
    def valid_box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the part of the input that shows the frame; the rest is padding."""
        (top, left), (height, width) = self.offset, self.input_size
        bottom, right = min(height, top + self.resized[0]), min(width, left + self.resized[1])
        return max(0, left), max(0, top), right, bottom

    @property
    def valid_size(self) -> Size:
        """(h,w) of the part of the input that shows the frame."""
        x0, y0, x1, y1 = self.valid_box
        return y1 - y0, x1 - x0

    # -- points and boxes --------------------------------------------------------------------------------------

    def points_to_input(self, points: Array) -> Array:
        """(N,2) xy in frame px -> (N,2) xy in input px; float64 stays float64, anything else gives float32."""
        upright = self._rotate(_floats(points, 2) - np.array(self.roi[:2]))
        return _like(upright * self._scale + np.array(self.offset[::-1]), points)

    def points_to_frame(self, points: Array) -> Array:
        """(N,2) xy in input px -> (N,2) xy in frame px; float64 stays float64, anything else gives float32."""
        upright = (_floats(points, 2) - np.array(self.offset[::-1])) / self._scale
        return _like(self._rotate_back(upright) + np.array(self.roi[:2]), points)

    def boxes_to_input(self, boxes: Array) -> Array:
        """(N,4) xyxy in frame px -> (N,4) xyxy in input px, corners reordered where the roi is rotated."""
        corners = _floats(boxes, 4).reshape(-1, 2)
        return _like(_ordered(self.points_to_input(corners)), boxes)

    def boxes_to_frame(self, boxes: Array) -> Array:
        """(N,4) xyxy in input px -> (N,4) xyxy in frame px, not clipped; corners reordered under rotation."""
        corners = _floats(boxes, 4).reshape(-1, 2)
        return _like(_ordered(self.points_to_frame(corners)), boxes)

    @property
    def _scale(self) -> NDArray[np.float64]:
        """(x, y) input px per px of the upright roi."""
        (height, width), (to_height, to_width) = self.upright_size, self.resized
        return np.array([to_width / width, to_height / height])

    def _rotate(self, points: Array) -> Array:
        """(N,2) xy in the roi -> (N,2) xy in the upright roi."""
        x, y = points[:, 0], points[:, 1]
        height, width = self.upright_size
        turned = {0: (x, y), 90: (width - y, x), 180: (width - x, height - y), 270: (y, height - x)}
        return np.stack(turned[self.rotation], -1)

    def _rotate_back(self, points: Array) -> Array:
        """(N,2) xy in the upright roi -> (N,2) xy in the roi."""
        x, y = points[:, 0], points[:, 1]
        height, width = self.upright_size
        turned = {0: (x, y), 90: (y, width - x), 180: (width - x, height - y), 270: (height - y, x)}
        return np.stack(turned[self.rotation], -1)

    # -- masks -------------------------------------------------------------------------------------------------

    def masks_to_frame(self, masks: Array, *, fill: float = 0.0) -> Array:
        """(N,h,w) maps of the whole input, at any resolution -> (N,H,W) maps of the frame.

        Bilinear between pixel centres that lie at half pixels, edge values held (torch's `align_corners=False`),
        without antialiasing. Floats must be finite and give float32; bool gives bool (interpolated, then > 0.5).
        What the input does not show (outside the roi, cut off by a centred crop) is `fill`.
        """
        maps = _maps(masks)
        height, width = self.upright_size
        size = maps.shape[1:]
        # frame px in the upright roi -> map px
        steps = [size[i] / self.input_size[i] for i in (0, 1)]
        rows = _interpolation(height, size[0], self.resized[0] / height * steps[0], self.offset[0] * steps[0])
        cols = _interpolation(width, size[1], self.resized[1] / width * steps[1], self.offset[1] * steps[1])
        upright = rows @ maps @ cols.T
        upright[:, ~rows.any(1)] = fill
        upright[:, :, ~cols.any(1)] = fill
        frame = np.full((len(maps), *self.frame_size), fill, np.float32)
        x0, y0, x1, y1 = self.roi
        frame[:, y0:y1, x0:x1] = np.rot90(upright, self.rotation // 90, axes=(1, 2))
        return frame > 0.5 if np.asarray(masks).dtype == np.bool_ else frame

    def masks_to_input(self, masks: Array, *, fill: float = 0.0) -> Array:
        """(N,H,W) maps of the frame -> (N,h,w) maps of the input, padding `fill`; else as `masks_to_frame`."""
        maps = _maps(masks)
        if maps.shape[1:] != self.frame_size:
            raise InputError(f"masks of this frame must be (N, {_by(self.frame_size)}), but got {maps.shape}")
        x0, y0, x1, y1 = self.roi
        upright = np.rot90(maps[:, y0:y1, x0:x1], -(self.rotation // 90), axes=(1, 2))
        scales = [self.upright_size[i] / self.resized[i] for i in (0, 1)]
        rows, cols = (
            _interpolation(self.input_size[i], self.upright_size[i], scales[i], -self.offset[i] * scales[i])
            for i in (0, 1)
        )
        result = rows @ upright @ cols.T
        result[:, ~rows.any(1)] = fill
        result[:, :, ~cols.any(1)] = fill
        return result if np.asarray(masks).dtype != np.bool_ else np.asarray(result > 0.5)


def plan(
    frame_size: Size,
    preprocess: Preprocess,
    *,
    roi: Sequence[int] | None = None,
    rotation: int = 0,
) -> Geometry:
    """Where a frame of (h,w) goes: apply the roi, the rotation, the size rule and the crop.

    `roi` x0, y0, x1, y1 in whole px inside the frame (None: all of it); `rotation` degrees clockwise that make the
    roi upright. Raises `InputError` for a roi outside the frame or a frame so narrow that nothing would be left.
    """
    region = _check_roi(roi, frame_size)
    if rotation not in ROTATIONS:
        raise InputError(f"rotation must be 0, 90, 180 or 270 degrees clockwise, but got {rotation!r}")
    height, width = region[3] - region[1], region[2] - region[0]
    upright = (height, width) if rotation in (0, 180) else (width, height)
    resized = resized_size(upright, preprocess.size)
    if min(resized) < 1:
        raise InputError(
            f"an image of {_by(upright)} px (height x width) would shrink to {_by(resized)} under this model's "
            "size rule; pass a frame or roi that is less narrow"
        )
    offset, input_size = _place(resized, preprocess)
    return Geometry(frame_size, region, rotation, resized, offset, input_size)


def resized_size(size: Size, rule: SizeRule) -> Size:
    """(h,w) of an image -> (h,w) after resizing by the rule, rounded as the rule's reference rounds.

    References: transformers' `get_resize_output_image_size` (shortest edge alone), `get_size_with_aspect_ratio`
    (shortest and longest edge: DETR), mmcv's `rescale_size` (both, rounded to the nearest), SAM's
    `_get_preprocess_shape` (longest edge); YOLOX's `preproc` and YOLOv5's `letterbox` (letterbox, rounded down and to
    the nearest).
    """
    height, width = size
    if isinstance(rule, Exact):
        return rule.height, rule.width
    if isinstance(rule, LongestEdge) or (isinstance(rule, ShortestEdge) and rule.rounding == "nearest"):
        scale = math.inf if rule.longest is None else rule.longest / max(height, width)
        if isinstance(rule, ShortestEdge):
            scale = min(scale, rule.shortest / min(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)
    if isinstance(rule, Letterbox):
        scale = min(rule.height / height, rule.width / width)
        whole = round if rule.rounding == "nearest" else int
        return whole(height * scale), whole(width * scale)
    short, long = min(size), max(size)
    new_short, new_long = _shortest_edge(short, long, rule)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def _shortest_edge(short: int, long: int, rule: ShortestEdge) -> Size:
    """(shorter, longer) edge under the shortest-edge rule; both roundings are the reference's."""
    if rule.longest is None or long / short * rule.shortest <= rule.longest:
        # DETR leaves an image alone whose shorter edge fits already; the plain rule gives the same number
        return rule.shortest, int(rule.shortest * long / short)
    target = rule.longest * float(short) / long
    new_short = round(target)
    return new_short, long if new_short == short else int(target * long / short)


def _place(resized: Size, preprocess: Preprocess) -> tuple[Size, Size]:
    """(top, left) of the resized image in the input, and the input's (h,w)."""
    rule = preprocess.size
    if preprocess.crop is not None:
        # transformers' `center_crop`: floor when it cuts, and the missing half rounded up when it pads
        top, left = (-((resized[i] - preprocess.crop[i]) // 2) for i in (0, 1))
        return (top, left), preprocess.crop
    if isinstance(rule, LongestEdge):
        return (0, 0), (rule.longest, rule.longest)
    if isinstance(rule, Letterbox):
        room = (rule.height - resized[0], rule.width - resized[1])
        return (room[0] // 2, room[1] // 2) if rule.centered else (0, 0), (rule.height, rule.width)
    return (0, 0), resized


def _check_roi(roi: Sequence[int] | None, frame_size: Size) -> tuple[int, int, int, int]:
    height, width = frame_size
    if roi is None:
        return 0, 0, width, height
    try:
        x0, y0, x1, y1 = (operator.index(value) for value in roi)
    except (TypeError, ValueError):
        raise InputError(f"roi must be four whole numbers x0, y0, x1, y1 in px, but got {roi!r}") from None
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"roi must be x0 < x1 and y0 < y1 inside the frame of {width}x{height} px, but got {(x0, y0, x1, y1)}"
        )
    return x0, y0, x1, y1


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _floats(values: Array, columns: int) -> NDArray[np.float64]:
    """(N, columns) as float64, in which the arithmetic is done: float32 alone loses 1e-3 px at 4K."""
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or array.shape[1] != columns:
        raise InputError(f"{'boxes' if columns == 4 else 'points'} must be (N, {columns}), but got {array.shape}")
    return array


def _like(values: NDArray[np.float64], given: Array) -> Array:
    return values if np.asarray(given).dtype == np.float64 else values.astype(np.float32)


def _ordered(corners: Array) -> Array:
    """(2N,2) opposite corners -> (N,4) xyxy with x0 <= x1 and y0 <= y1."""
    pairs = corners.reshape(-1, 2, 2)
    return np.concatenate([pairs.min(1), pairs.max(1)], 1)


def _maps(masks: Array) -> NDArray[np.float32]:
    maps = np.asarray(masks)
    if maps.ndim != 3 or 0 in maps.shape[1:] or maps.dtype.kind not in "bf":
        raise InputError(f"masks must be (N, h, w) bool or float, but got {maps.shape} {maps.dtype}")
    return maps.astype(np.float32, copy=False)


def _interpolation(length: int, source: int, scale: float, shift: float) -> NDArray[np.float32]:
    """(length, source) weights that resample a line linearly; rows outside the source are zero.

    The centre of pixel i lies at (i + 0.5) * scale + shift in the source. As a matrix, because two thin matrix
    products resample a whole stack of maps faster than gathering their pixels.
    """
    centre = (np.arange(length) + 0.5) * scale + shift
    inside = np.flatnonzero((centre >= 0) & (centre <= source))
    at = np.clip(centre[inside] - 0.5, 0, source - 1)
    low = np.minimum(at.astype(np.intp), max(source - 2, 0))
    weights = np.zeros((length, source), np.float32)
    weights[inside, low] = 1 - (at - low)
    if source > 1:
        weights[inside, low + 1] = at - low
    return weights
