"""Prompts: points, boxes, masks and texts in pixels of the frame, read, checked, and as a mask decoder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import PromptDecode
    from edgevtx.runtimes.base import Arrays

Array = NDArray[Any]

BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT = 0, 1, 2, 3
NO_POINT, TEXT = -1, -2
"""Labels of a decoder's points, as SAM counts them; a text's place has one of our own."""


@dataclass(frozen=True)
class Prompts:
    """N prompts for one frame, read and checked by `read_prompts`.

    `points` N arrays (K,2) x, y in px of the frame and `labels` N arrays (K,), K of any size; `boxes` (N,4) xyxy;
    `masks` (N,h,w) float32 logits of an earlier answer; `texts` N texts. What a prompt does not have is None.
    """

    points: tuple[Array, ...] | None = None
    labels: tuple[Array, ...] | None = None
    boxes: Array | None = None
    masks: Array | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return next(len(item) for item in (self.points, self.boxes, self.masks, self.texts) if item is not None)


@dataclass(frozen=True)
class Batch:
    """Prompts with the same number of points as inputs of a decoder; `rows` says which of the N they are."""

    rows: NDArray[np.intp]
    inputs: Arrays


def read_prompts(
    points: Any = None,
    point_labels: Any = None,
    boxes: Any = None,
    mask: Any = None,
    text: Any = None,
    *,
    rule: PromptDecode,
) -> Prompts:
    """What a user gave as prompts; see `edgevtx.prompt.PromptPredictor.predict`. Raises `InputError`."""
    if points is None and point_labels is not None:
        raise InputError("point_labels were given without points; give the points that they belong to")
    if all(item is None for item in (points, boxes, mask, text)):
        raise InputError("a prompt needs points, boxes, a mask or a text, but got none of them; give at least one")
    read_points = None if points is None else _read_points(points)
    labels = _read_labels(point_labels, read_points)
    found = Prompts(
        points=read_points,
        labels=labels,
        boxes=None if boxes is None else _read_boxes(boxes),
        masks=None if mask is None else _read_masks(mask, rule.mask_size),
        texts=None if text is None else _read_texts(text, rule),
    )
    counts = {
        name: len(item)
        for name, item in (
            ("points", found.points),
            ("boxes", found.boxes),
            ("mask", found.masks),
            ("text", found.texts),
        )
        if item is not None
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} by {name}" for name, count in counts.items())
        raise InputError(f"prompts must be as many by each of their kinds, but got {listed}; give one of each a prompt")
    return found


def check_inside(prompts: Prompts, geometry: Geometry) -> None:
    """Raise `InputError` for a point outside the frame, or outside the roi that is looked at, and for a box of which no
    part lies inside.

    A box that reaches beyond the edge is asked as it is, as by the reference: a detector's boxes are not clipped.
    """
    x0, y0, x1, y1 = geometry.roi
    place = f"the frame of {x1}x{y1} px"
    if geometry.roi != (0, 0, *geometry.frame_size[::-1]):
        place = f"the roi {geometry.roi}, the only part of the frame that is looked at"
    for item in prompts.points or ():
        outside = np.flatnonzero(((item < (x0, y0)) | (item > (x1, y1))).any(1))
        if len(outside):
            x, y = item[outside[0]]
            raise InputError(
                f"the point at x {x:g}, y {y:g} lies outside {place}; give x in {x0}..{x1} and y in {y0}..{y1}, in px "
                "of the frame"
            )
    if prompts.boxes is not None:
        upper, lower = np.maximum(prompts.boxes[:, :2], (x0, y0)), np.minimum(prompts.boxes[:, 2:], (x1, y1))
        outside = np.flatnonzero((upper >= lower).any(1))
        if len(outside):
            shown = ", ".join(f"{value:g}" for value in prompts.boxes[outside[0]])
            raise InputError(
                f"the box ({shown}) lies wholly outside {place}; leave it out, or give x0, y0, x1, y1 in px of the "
                f"frame, some of it in x {x0}..{x1} and y {y0}..{y1}"
            )


def encode_prompts(prompts: Prompts, geometry: Geometry, rule: PromptDecode) -> list[Batch]:
    """Prompts as inputs of the decoder: those with equally many points together, so that none is padded.

    `points` (P,K,2) float32 in px of the input, `point_labels` (P,K) int32, `mask_prompt` (P,1,h,w), `has_mask` (P,)
    float32. As the reference does, a point that is none is added to points without a box; a box is two more points, and
    a mask alone is none: K is 0.
    """
    rows = [_tokens(prompts, row, geometry) for row in range(len(prompts))]
    lengths = np.array([len(labels) for _, labels in rows])
    batches = []
    for length in sorted(set(lengths.tolist())):
        chosen = np.flatnonzero(lengths == length)
        given = prompts.masks is not None
        masks = np.zeros((len(chosen), *rule.mask_size), np.float32) if prompts.masks is None else prompts.masks[chosen]
        inputs = {
            "points": np.stack([rows[row][0] for row in chosen]).astype(np.float32).reshape(len(chosen), length, 2),
            "point_labels": np.stack([rows[row][1] for row in chosen]).astype(np.int32),
            "mask_prompt": np.ascontiguousarray(masks[:, None]),
            "has_mask": np.full(len(chosen), given, np.float32),
        }
        batches.append(Batch(chosen, inputs))
    return batches


def _tokens(prompts: Prompts, row: int, geometry: Geometry) -> tuple[Array, Array]:
    """The points (K,2) in px of the input and the labels (K,) that one prompt stands for."""
    places, labels = [np.zeros((0, 2))], [np.zeros(0, np.int64)]
    if prompts.points is not None and prompts.labels is not None:
        places.append(geometry.points_to_input(prompts.points[row].astype(np.float64)))
        labels.append(prompts.labels[row])
        if prompts.boxes is None:
            places.append(np.zeros((1, 2)))
            labels.append(np.array([NO_POINT]))
    if prompts.boxes is not None:
        places.append(geometry.boxes_to_input(prompts.boxes[row][None].astype(np.float64)).reshape(2, 2))
        labels.append(np.array([UPPER_LEFT, LOWER_RIGHT]))
    if prompts.texts is not None:
        places.append(np.zeros((1, 2)))
        labels.append(np.array([TEXT]))
    return np.concatenate(places), np.concatenate(labels)


# -- reading ---------------------------------------------------------------------------------------------------


def _read_points(points: Any) -> tuple[Array, ...]:
    """One prompt (K,2), N prompts (N,K,2), or a sequence of N arrays (K,2)."""
    wanted = "points must be (K, 2) x, y of one prompt, or (N, K, 2) of N, or a list of N such (K, 2)"
    if isinstance(points, Sequence) and points and _depth(points) >= 3:
        items = [_array(item, wanted) for item in points]
    else:
        array = _array(points, wanted)
        items = list(array) if array.ndim > 2 else [array]
    if not items or any(item.ndim != 2 or item.shape[1] != 2 for item in items):
        raise InputError(f"{wanted}, but got {np.shape(points) if len(items) < 2 else [item.shape for item in items]}")
    if any(len(item) == 0 for item in items):
        raise InputError("a prompt has no points; give each prompt at least one, or leave points out")
    return tuple(items)


def _read_labels(labels: Any, points: tuple[Array, ...] | None) -> tuple[Array, ...] | None:
    if points is None:
        return None
    if labels is None:
        return tuple(np.full(len(item), FOREGROUND) for item in points)
    wanted = f"point_labels must be one a point, {[len(item) for item in points]} for these prompts"
    if isinstance(labels, Sequence) and labels and _depth(labels) >= 2:
        items = [_array(item, wanted) for item in labels]
    else:
        array = _array(labels, wanted)
        items = list(array) if array.ndim > 1 else [array]
    found = [item.shape for item in items]
    if found != [(len(item),) for item in points]:
        raise InputError(f"{wanted}, but got shapes {found}; give 1 for a point on the object, 0 for one not on it")
    if any(not np.isin(item, (BACKGROUND, FOREGROUND)).all() for item in items):
        strange = next(value for item in items for value in item if value not in (BACKGROUND, FOREGROUND))
        raise InputError(
            f"point_labels must be 1 (on the object) or 0 (not on it), but got {strange:g}; a box is given as boxes"
        )
    return tuple(item.astype(np.int64) for item in items)


def _read_boxes(boxes: Any) -> Array:
    wanted = "boxes must be (4,) xyxy of one prompt, or (N, 4) of N"
    array = _array(boxes, wanted)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != 4 or not len(array):
        raise InputError(f"{wanted}, but got {np.shape(boxes)}")
    flat = np.flatnonzero((array[:, 2:] <= array[:, :2]).any(1))
    if len(flat):
        shown = ", ".join(f"{value:g}" for value in array[flat[0]])
        raise InputError(f"a box must have x0 < x1 and y0 < y1, but got ({shown}); give its two corners in that order")
    return array


def _read_masks(mask: Any, size: tuple[int, int]) -> Array:
    wanted = (
        f"mask must be ({size[0]}, {size[1]}) float logits of one prompt, or (N, {size[0]}, {size[1]}) of N, as "
        "low_res_logits of an earlier answer holds them"
    )
    array = _array(mask, wanted)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != size or not len(array):
        raise InputError(f"{wanted}, but got {np.shape(mask)}; pass found.low_res_logits[prompt, mask]")
    return array.astype(np.float32)


def _read_texts(text: Any, rule: PromptDecode) -> tuple[str, ...]:
    if rule.text is None:
        raise InputError(
            "this bundle takes no texts, since its checkpoint was not trained for them; prompt with points, boxes or a "
            "mask, or export a checkpoint with a text encoder"
        )
    texts = (text,) if isinstance(text, str) else tuple(text) if isinstance(text, Sequence) else (text,)
    if not texts or any(not isinstance(item, str) or not item.strip() for item in texts):
        raise InputError(f"text must be a text or a list of texts, each with words, but got {text!r}")
    return texts


def _array(values: Any, wanted: str) -> Array:
    """Finite numbers as float64."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{wanted}, but got {type(values).__name__} that is no array of numbers") from None
    if not np.isfinite(array).all():
        raise InputError(f"{wanted}, but some are NaN or infinite; check where they come from")
    return array


def _depth(values: Any) -> int:
    """How deep sequences and arrays are nested, by their first items."""
    if isinstance(values, np.ndarray):
        return values.ndim
    if isinstance(values, Sequence) and not isinstance(values, str):
        return 1 + (_depth(values[0]) if len(values) else 0)
    return 0
