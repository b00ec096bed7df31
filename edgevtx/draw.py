"""Drawing results over frames, for people to look at.

Lines and labels touch only their own pixels, with numpy; Pillow renders the words once and they are kept. So a
1080p video frame is annotated in about the time of copying it, and without OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry
from edgevtx.preprocess import check_frame
from edgevtx.results import Classification, Detections, Features, PanopticSegmentation, SemanticSegmentation

Array = NDArray[Any]
Frame = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Okabe and Ito's palette for all kinds of colour vision, without black, as BGR
PALETTE: tuple[Colour, ...] = (
    (0, 94, 213),  # vermillion
    (233, 180, 86),  # sky blue
    (66, 228, 240),  # yellow
    (115, 158, 0),  # bluish green
    (167, 121, 204),  # reddish purple
    (0, 159, 230),  # orange
    (178, 114, 0),  # blue
)
_DARK: Colour = (20, 20, 20)
_LIGHT: Colour = (255, 255, 255)
# viridis at five points, as BGR: even in brightness, and readable for all kinds of colour vision
_HEAT = np.array([(84, 1, 68), (139, 82, 59), (140, 145, 33), (98, 201, 94), (37, 231, 253)], np.float32)
_BLEND = 0.65  # weight of a feature picture over the frame
_LISTED = 5
_INK = 0.45  # weight of a mask's colour over the frame
_COARSE = 8  # px; labels find their place on a grid this wide
_UNCOLOURED = "background"  # a class of this name leaves the frame as it is


def draw_detections(frame: Array, found: Detections) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR with boxes, labels, scores and, where there are any, masks and track numbers.

    Colours go by class; the best detection is drawn last, over the others.
    """
    canvas = canvas_of(frame)
    height, width = canvas.shape[:2]
    if found.masks is not None:
        check_size(found.masks.size, canvas)
        for i in reversed(range(len(found))):
            x, y = found.masks.offsets[i].tolist()
            crop = found.masks.crops[i]
            part = canvas[y : y + crop.shape[0], x : x + crop.shape[1]]
            part[crop] = _tint(part[crop], PALETTE[int(found.class_ids[i]) % len(PALETTE)])
    line = max(1, round(min(height, width) / 360))
    labels = []
    for i in reversed(range(len(found))):
        x0, y0, x1, y1 = (int(value) for value in np.rint(np.clip(found.boxes[i], -1e6, 1e6)))
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            continue
        colour = PALETTE[int(found.class_ids[i]) % len(PALETTE)]
        # a cut-off box is closed along the frame's edge
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        _outline(canvas, (x0 - 1, y0 - 1, x1 + 1, y1 + 1), line + 2, _DARK)  # sets the line off on any background
        _outline(canvas, (x0, y0, x1, y1), line, colour)
        number = "" if found.track_ids is None else f"#{found.track_ids[i]} "
        label = _label(f"{number}{found.labels[i]} {found.scores[i]:.2f}", _font_size(canvas), colour)
        labels.append((label, x0, y0 - label.shape[0] if y0 >= label.shape[0] else y0))
    for label, left, top in labels:  # after all boxes, whose lines would cross the words
        _paste(canvas, label, left, top)
    return canvas


def draw_panoptic(frame: Array, found: PanopticSegmentation) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR under the colours of its segments, outlined, each with its label once.

    Colours go by class, and vary a little among the segments of one. A label lies where its segment is widest; those
    of segments that have no room for a word are left out.
    """
    canvas = canvas_of(frame)
    check_size(found.segment_map.shape, canvas)
    if not found.segments:
        return canvas
    best = {segment.id: segment for segment in reversed(found.segments)}
    colours = np.zeros((max(best) + 1, 3), np.float32)
    for i, segment in best.items():
        colours[i] = _shade(PALETTE[segment.class_id % len(PALETTE)], i)
    segment_map = found.segment_map
    weight = np.where(segment_map > 0, np.float32(_INK), np.float32(0))
    for channel in range(3):
        canvas[..., channel] = np.rint(weight * colours[:, channel][segment_map] + (1 - weight) * canvas[..., channel])
    line = max(1, round(min(canvas.shape[:2]) / 540))
    canvas[_edges(segment_map, line)] = _LIGHT
    for i, (x, y, room) in _places(segment_map, best).items():
        label = _label(best[i].label, _font_size(canvas), _bytes(colours[i]))
        if room >= label.shape[0] / 2:
            _paste(canvas, label, x - label.shape[1] // 2, y - label.shape[0] // 2)
    return canvas


def _shade(colour: Colour, number: int) -> NDArray[np.float32]:
    """A colour a little lighter or darker, so that neighbours of one class can be told apart."""
    factor = (1.0, 0.75, 1.25, 0.6, 1.1)[number % 5]
    shade: NDArray[np.float32] = np.clip(np.array(colour, np.float32) * np.float32(factor), 0, 255)
    return shade


def _bytes(colour: NDArray[np.float32]) -> Colour:
    blue, green, red = (int(value) for value in np.rint(colour))
    return blue, green, red


def _tint(pixels: Frame, colour: Colour) -> Frame:
    """(N,3) uint8 under a colour."""
    return np.rint(_INK * np.array(colour, np.float32) + (1 - _INK) * pixels).astype(np.uint8)


def _edges(segment_map: NDArray[np.int32], line: int) -> NDArray[np.bool_]:
    """(H,W) bool: within `line` px of where one segment meets another or nothing."""
    edges = np.zeros(segment_map.shape, np.bool_)
    for axis in (0, 1):
        lines, out = np.moveaxis(segment_map, axis, 0), np.moveaxis(edges, axis, 0)
        changed = lines[1:] != lines[:-1]
        for k in range(line):
            out[k + 1 :] |= changed[: len(changed) - k]
    return edges


def _places(segment_map: NDArray[np.int32], ids: Iterable[int]) -> dict[int, tuple[int, int, float]]:
    """For each id x, y of the point that lies deepest inside its pixels, and how deep that is, in px.

    Found on every `_COARSE`-th pixel, by peeling one layer after the other off all segments at once.
    """
    grid = np.pad(segment_map[_COARSE // 2 :: _COARSE, _COARSE // 2 :: _COARSE], 1, constant_values=-1)
    inside = grid > 0
    depth = inside.astype(np.int32)
    neighbours = [(slice(None, -2), slice(1, -1)), (slice(2, None), slice(1, -1))]
    neighbours += [(columns, rows) for rows, columns in neighbours]
    same = [grid[1:-1, 1:-1] == grid[part] for part in neighbours]
    while inside.any():
        kept = inside[1:-1, 1:-1].copy()
        for part, alike in zip(neighbours, same, strict=True):
            kept &= inside[part] & alike
        inside = np.pad(kept, 1)
        depth += inside
    places = {}
    for i in ids:
        at = np.where(grid == i, depth, 0)
        y, x = np.unravel_index(int(at.argmax()), at.shape)
        if at[y, x] > 0:
            places[i] = (
                int(x - 1) * _COARSE + _COARSE // 2,
                int(y - 1) * _COARSE + _COARSE // 2,
                float(at[y, x] - 0.5) * _COARSE,
            )
    return places


def check_size(size: tuple[int, ...], canvas: Frame) -> None:
    """Raise `InputError` unless masks of `size` (h,w) are of the frame that is drawn on."""
    if tuple(size) != canvas.shape[:2]:
        raise InputError(
            f"these masks are of a frame of {tuple(size)}, but got one of {canvas.shape[:2]} (height, width); draw on "
            "the frame that the model was given"
        )


def draw_classification(frame: Array, found: Classification) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR with the five best classes listed in its upper left corner."""
    canvas = canvas_of(frame)
    top = 0
    for i in range(min(_LISTED, len(found))):
        colour = PALETTE[int(found.class_ids[0]) % len(PALETTE)] if i == 0 else _DARK
        label = _label(f"{found.scores[i]:.2f} {found.labels[i]}", _font_size(canvas), colour)
        _paste(canvas, label, 0, top)
        top += label.shape[0]
    return canvas


def draw_segmentation(frame: Array, found: SemanticSegmentation) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR under the classes as colours, outlined, with a legend.

    A class named "background" and pixels that were not looked at stay as they are. The legend lists the classes with
    the largest shares.
    """
    canvas = canvas_of(frame)
    check_size(found.class_map.shape, canvas)
    present = [item for item in found.present() if found.labels[item[0]] != _UNCOLOURED]
    colours = {i: _shade(PALETTE[i % len(PALETTE)], i // len(PALETTE)) for i, _ in present}
    # what becomes of each brightness under each class, in three channels; the first row is what was not looked at
    brightness = np.arange(256, dtype=np.float32)
    tables = np.tile(brightness.astype(np.uint8), (3, 1 + len(found.labels), 1))
    for class_id, colour in colours.items():
        tables[:, class_id + 1] = np.rint(np.float32(_INK) * colour[:, None] + np.float32(1 - _INK) * brightness)
    rows = (found.class_map + 1) * 256
    for channel, table in enumerate(tables):
        canvas[..., channel] = table.reshape(-1).take(rows + canvas[..., channel])
    canvas[_edges(found.class_map, max(1, round(min(canvas.shape[:2]) / 540)))] = _LIGHT
    top = 0
    for class_id, share in present[:_LISTED]:
        label = _label(f"{found.labels[class_id]} {share:.1%}", _font_size(canvas), _bytes(colours[class_id]))
        _paste(canvas, label, 0, top)
        top += label.shape[0]
    return canvas


def draw_features(frame: Array, found: Features) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR under the first three principal components of the patches as colour.

    Where the patch grid does not reach (cut off by a centred crop, outside the roi) the frame stays as it is. Where
    there is attention, its heads lie in a row along the lower edge, a quarter of the frame high at most.
    """
    canvas = canvas_of(frame)
    if found.patches.size == 0:
        return canvas
    height, width = canvas.shape[:2]
    grid = (found.patches.shape[0], found.patches.shape[1])
    geometry = found.geometry or Geometry((height, width), (0, 0, width, height), 0, grid, (0, 0), grid)
    if geometry.frame_size != (height, width):
        raise InputError(
            f"these features are of a frame of {geometry.frame_size}, but got one of {(height, width)} (height, "
            "width); draw on the frame that the model was given"
        )
    colours = geometry.masks_to_frame(principal_components(found.patches).transpose(2, 0, 1), fill=-1)
    weight = _BLEND * (colours[0] >= 0).astype(np.float32)
    for channel, colour in enumerate(colours):  # not by a mask over (H,W,3), which takes numpy several times as long
        canvas[..., channel] = np.rint(255 * weight * colour + (1 - weight) * canvas[..., channel])
    if found.attention is not None:
        heads, rows, columns = found.attention.shape
        edge = min(height // 4, int(width * rows / (heads * columns)))
        _paste(canvas, attention_picture(found.attention, height=max(edge, 1)), 0, height)
    return canvas


def draw_pyramid(frame: Array, found: Features) -> Frame:
    """A picture as large as `frame` (H,W,3) uint8 BGR: a tile for each scale, finest first, row by row.

    Each tile is the whole frame, made smaller, under that scale's principal components, with the stride in its corner.
    """
    canvas = canvas_of(frame)
    height, width = canvas.shape[:2]
    across = math.ceil(math.sqrt(len(found.maps)))
    down = math.ceil(len(found.maps) / across)
    rows, columns = max(1, height // down), max(1, width // across)
    tiled = np.full_like(canvas, 255)
    for index in range(len(found.maps)):
        top, left = index // across * rows, index % across * columns
        tile = _shrink(draw_features(canvas, found.scale(index)), (rows, columns))
        label = _label(f"stride {found.strides[index]}", _font_size(canvas), _DARK)
        _paste(tile, label, 0, 0)
        room = tiled[top : top + rows, left : left + columns]
        room[:] = tile[: room.shape[0], : room.shape[1]]
    return tiled


def _shrink(picture: Frame, size: tuple[int, int]) -> Frame:
    """A picture at another size (h,w), antialiased."""
    from PIL import Image

    return np.array(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def principal_components(patches: NDArray[np.float32], count: int = 3) -> NDArray[np.float32]:
    """(h,w,D) vectors -> (h,w,count) in 0..1: their strongest principal components, scaled between percentiles.

    The 2nd and 98th percentile become 0 and 1, so that a few outlying patches do not grey out the rest. A
    component's sign is chosen so that its distribution leans to the right, which keeps colours the same from run
    to run.
    """
    height, width, channels = patches.shape
    vectors = patches.reshape(-1, channels).astype(np.float64)
    vectors -= vectors.mean(0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    scores = np.zeros((height * width, count))
    kept = min(count, channels)
    scores[:, :kept] = vectors @ axes[:, ::-1][:, :kept]
    scores *= np.where((scores**3).sum(0) < 0, -1, 1)
    low, high = np.percentile(scores, (2, 98), axis=0)
    scaled = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    components: NDArray[np.float32] = scaled.reshape(height, width, count).astype(np.float32)
    return components


def attention_picture(attention: NDArray[np.float32], *, height: int = 240) -> Frame:
    """(heads,h,w) attention maps -> a row of heat maps, one a head, each `height` px high: (height,W,3) uint8 BGR.

    Every head is scaled by its own range, 2nd to 98th percentile: heads differ in strength a lot, and what matters
    is where each one looks.
    """
    if attention.ndim != 3 or 0 in attention.shape:
        raise InputError(f"attention must be (heads, h, w), but got {attention.shape}")
    heads, rows, cols = attention.shape
    width, gap = max(1, round(height * cols / rows)), max(1, height // 60)
    low, high = np.percentile(attention, (2, 98), axis=(1, 2), keepdims=True)
    scaled = np.clip((attention - low) / np.maximum(high - low, 1e-12), 0, 1)
    geometry = Geometry((height, width), (0, 0, width, height), 0, (rows, cols), (0, 0), (rows, cols))
    maps = heat(geometry.masks_to_frame(scaled.astype(np.float32)))
    picture = np.full((height, heads * (width + gap) - gap, 3), 255, np.uint8)
    for i, one in enumerate(maps):
        picture[:, i * (width + gap) : i * (width + gap) + width] = one
    return picture


def heat(values: NDArray[np.float32]) -> Frame:
    """(...) in 0..1 -> (...,3) uint8 BGR, from dark violet over green to yellow."""
    at = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


# -- pixels ----------------------------------------------------------------------------------------------------


def canvas_of(frame: Array) -> Frame:
    """A copy of the frame to draw on; grey becomes three channels."""
    image = check_frame(frame)
    return image.copy(order="C") if image.ndim == 3 else np.stack([image] * 3, -1)


def _outline(canvas: Frame, box: tuple[int, int, int, int], line: int, colour: Colour) -> None:
    """A rectangle of `line` px inside `box`; parts outside the canvas are left out."""
    rows = canvas.reshape(len(canvas), -1)  # whole rows of bytes: numpy is slow over a last axis of three
    ink = _row(colour, canvas.shape[1])
    x0, y0, x1, y1 = box
    for left, top, right, bottom in (
        (x0, y0, x1, min(y0 + line, y1)),
        (x0, max(y1 - line, y0), x1, y1),
        (x0, y0, min(x0 + line, x1), y1),
        (max(x1 - line, x0), y0, x1, y1),
    ):
        left, right = max(left, 0), min(max(right, 0), canvas.shape[1])
        rows[max(top, 0) : max(bottom, 0), 3 * left : 3 * right] = ink[: 3 * max(right - left, 0)]


@lru_cache(maxsize=64)
def _row(colour: Colour, width: int) -> Frame:
    """A row of the colour, (3 * width,) uint8."""
    return np.tile(np.array(colour, np.uint8), width)


def _paste(canvas: Frame, label: Frame, left: int, top: int) -> None:
    """Put a label at (left, top), moved and cut so that it lies inside the canvas."""
    height, width = canvas.shape[:2]
    label = label[:height, :width]
    left = max(0, min(left, width - label.shape[1]))
    top = max(0, min(top, height - label.shape[0]))
    canvas[top : top + label.shape[0], left : left + label.shape[1]] = label


def _font_size(canvas: Frame) -> int:
    height, width = canvas.shape[:2]
    return max(11, int(min(height, width)) // 42)


@lru_cache(maxsize=2048)
def _label(text: str, size: int, colour: Colour) -> Frame:
    """Words on a filled box (h,w,3) uint8 BGR; kept, since the same words come again on the next frame."""
    from PIL import Image, ImageDraw

    font, margin = _font(size), max(2, size // 5)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ág")  # every label gets the same height
    brightness = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]
    ink = _DARK if brightness > 110 else _LIGHT
    image = Image.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), colour)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=font)
    return np.array(image)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
