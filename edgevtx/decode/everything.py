"""Segmenting everything: grids of points over the frame and crops of it, and what is kept of their masks.

As the automatic mask generators of SAM and of transformers (`SamImageProcessor.generate_crop_boxes`, `filter_masks`,
`post_process_for_mask_generation`); Kirillov et al., "Segment Anything", 2023, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevtx.decode.detect import suppress as suppress_classes
from edgevtx.decode.prompt import resampling, stability_scores
from edgevtx.decode.upsample import threshold_maps
from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.masks import MaskSet, tight
from edgevtx.results import Masks

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import PromptDecode
    from edgevtx.runtimes.base import Arrays

Array = NDArray[Any]
Box = tuple[int, int, int, int]
OVERLAP = 512 / 1500  # of neighbouring crops, in the shorter side of the frame
NEAR = 20.0  # px between a mask's box and a crop's edge that count as touching it
_LEAST = {"points_per_side": 1, "crop_layers": 0, "crop_downscale": 1, "min_region_area": 0, "batch": 1}


@dataclass(frozen=True)
class Everything:
    """How everything is looked for.

    A grid of `points_per_side` points a side over the frame; with `crop_layers`, once more over 4, 16, ... overlapping
    crops, on grids that are `crop_downscale` times as coarse for each layer. Masks are kept that have a predicted IoU
    above `iou_threshold` and a stability above `stability_threshold`, that do not touch the edge of a crop, and whose
    box overlaps no better mask's by more than `overlap` (IoU). `min_region_area`: holes and islands of fewer px are
    filled and removed, which needs OpenCV; 0 leaves them. `batch`: points that the decoder takes at once. Raises
    `InputError` for what makes no sense.
    """

    points_per_side: int = 32
    crop_layers: int = 0
    crop_downscale: int = 1
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    overlap: float = 0.7
    min_region_area: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, but got {value!r}")
        for name in ("iou_threshold", "stability_threshold", "overlap"):
            value = getattr(self, name)
            # NaN fails both comparisons
            if not isinstance(value, int | float | np.integer | np.floating) or not 0 <= value <= 1:
                raise InputError(f"{name} must lie in 0..1, but got {value!r}")
        if self.points_per_side // self.crop_downscale**self.crop_layers < 1:
            raise InputError(
                f"{self.points_per_side} points a side leave none in crop layer {self.crop_layers} at a downscale of "
                f"{self.crop_downscale}; give more points or fewer layers"
            )

    @classmethod
    def of(cls, rule: PromptDecode) -> Everything:
        """What a bundle's manifest says; the rest by default."""
        return cls(
            points_per_side=rule.points_per_side,
            iou_threshold=rule.iou_threshold,
            stability_threshold=rule.stability_threshold,
            overlap=rule.overlap,
        )


def point_grid(per_side: int, box: Box) -> NDArray[np.float64]:
    """(per_side squared, 2) x, y in px of the frame, evenly spaced in a box xyxy, row by row."""
    offset = 1 / (2 * per_side)
    line = np.linspace(offset, 1 - offset, per_side)
    x, y = np.meshgrid(line, line)
    x0, y0, x1, y1 = box
    return np.stack([x.ravel() * (x1 - x0) + x0, y.ravel() * (y1 - y0) + y0], 1)


def crop_boxes(whole: Box, layers: int) -> list[tuple[Box, int]]:
    """The crops xyxy of a frame, or of its part `whole`, and the layer of each: that itself, then 4, 16, ... of it.

    Fewer of a frame so small that some would be empty.
    """
    x0, y0, x1, y1 = whole
    width, height = x1 - x0, y1 - y0
    boxes: list[tuple[Box, int]] = [(whole, 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(OVERLAP * min(height, width) * (2 / count))
        wide, tall = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        lefts = [x0 + (wide - overlap) * i for i in range(count)]
        tops = [y0 + (tall - overlap) * i for i in range(count)]
        crops = [(left, top, min(left + wide, x1), min(top + tall, y1)) for left in lefts for top in tops]
        # rounded up, the last crops of a small frame begin beyond its end
        boxes += [(crop, layer) for crop in crops if crop[0] < crop[2] and crop[1] < crop[3]]
    return boxes


def last_pixels(masks: MaskSet) -> NDArray[np.float64]:
    """(N,4) boxes xyxy whose right and bottom are the last px that belong to the mask, as the reference counts."""
    boxes = masks.boxes.astype(np.float64)
    boxes[:, 2:] -= (masks.areas > 0)[:, None]
    return boxes


def touches_crop(boxes: Array, crop: Box, whole: Box) -> NDArray[np.bool_]:
    """Which boxes (N,4) xyxy in px of the frame end at an edge of the crop that is not an edge of the whole."""
    near_crop, near_whole = (np.abs(boxes - np.array(edges, np.float64)) <= NEAR for edges in (crop, whole))
    return np.asarray((near_crop & ~near_whole).any(1))


def keep_stable(found: Arrays, geometry: Geometry, rule: PromptDecode, settings: Everything, whole: Box) -> Masks:
    """Of `low_res_logits` (n,1,h,w) and `iou` (n,1) the masks that are good, stable, and do not end where a crop does.

    `whole` is the part of the frame that was cut into crops.
    """
    good = found["iou"][:, 0] > settings.iou_threshold
    logits, iou = found["low_res_logits"][good], found["iou"][good]
    stability = stability_scores(logits[:, 0], geometry, rule)
    stable = stability > settings.stability_threshold
    logits, iou, stability = logits[stable], iou[stable], stability[stable]
    masks = threshold_maps(np.ascontiguousarray(logits[:, 0]), resampling(geometry, rule), rule.mask_threshold)
    free = ~touches_crop(last_pixels(masks), geometry.roi, whole)
    return Masks(masks[free], iou[free], logits[free], geometry, rule, known_stability=stability[free][:, None])


def best_of(found: Sequence[Masks], settings: Everything) -> Masks:
    """All crops' masks, best first, without those that a better one's box covers; small regions removed if asked."""
    masks = MaskSet.concatenate([item.masks for item in found])
    iou, logits, stability = (
        np.concatenate([getattr(item, name) for item in found]) for name in ("iou", "low_res_logits", "stability")
    )
    first = found[0]
    order = suppress(last_pixels(masks), iou[:, 0], settings.overlap)
    if settings.min_region_area:
        masks, same = remove_small_regions(masks[order], settings.min_region_area)
        iou, logits, stability = iou[order], logits[order], stability[order]
        # masks that were not changed go first, as in SAM's own generator
        order = suppress(last_pixels(masks), same.astype(np.float64), settings.overlap)
        order = order[np.argsort(-iou[order, 0], kind="stable")]
    masks = masks[order]
    # crops are views of all candidates' pixels, which must not live as long as the few that are kept
    masks = MaskSet(masks.size, tuple(crop.copy() for crop in masks.crops), masks.offsets)
    return Masks(masks, iou[order], logits[order], first.geometry, first.rule, known_stability=stability[order])


def suppress(boxes: Array, scores: Array, overlap: float) -> NDArray[np.intp]:
    """Non-maximum suppression: which boxes (N,4) xyxy stay, best first, none overlapping a better one by more (IoU)."""
    order = np.argsort(-scores, kind="stable")
    one_class = np.zeros(len(boxes), np.int64)
    return np.asarray(order[suppress_classes(boxes[order], one_class, overlap)], np.intp)


def remove_small_regions(masks: MaskSet, area: int) -> tuple[MaskSet, NDArray[np.bool_]]:
    """Fill holes and remove islands of fewer than `area` px; also which masks (N,) bool were left as they are.

    The largest island stays whatever its size. Raises `RuntimeUnavailableError` where OpenCV is missing.
    """
    if area <= 0:
        return masks, np.ones(len(masks), np.bool_)
    crops, offsets, same = [], [], []
    for item in range(len(masks)):
        mask, (left, top), outside = _surrounded(masks, item, area)
        filled, holes = _without(mask, area, "holes", outside)
        whole, islands = _without(filled, area, "islands")
        x0, y0, x1, y1 = tight(whole)
        crops.append(whole[y0:y1, x0:x1].copy())
        offsets.append((left + x0, top + y0))
        same.append(not (holes or islands))
    changed = MaskSet(masks.size, tuple(crops), np.array(offsets, np.int64).reshape(-1, 2))
    return changed, np.array(same, np.bool_)


def _surrounded(masks: MaskSet, item: int, area: int) -> tuple[Array, tuple[int, int], list[tuple[int, int]]]:
    """A mask (h,w) with a px of background around it, the x, y of this part of the frame, and a row and column in it
    of each side beyond which the background goes on.

    A side where less than `area` px of the frame would be left beyond is taken in, so that no small hole lies outside.
    """
    (height, width), (x, y) = masks.size, masks.offsets[item].tolist()
    x0, y0, x1, y1 = masks.boxes[item].astype(int).tolist()
    top = y0 - 1 if (y0 - 1) * width >= area else 0
    bottom = y1 + 1 if (height - y1 - 1) * width >= area else height
    left = x0 - 1 if (x0 - 1) * (bottom - top) >= area else 0
    right = x1 + 1 if (width - x1 - 1) * (bottom - top) >= area else width
    mask = np.zeros((bottom - top, right - left), np.bool_)
    mask[y0 - top : y1 - top, x0 - left : x1 - left] = masks.crops[item][y0 - y : y1 - y, x0 - x : x1 - x]
    sides = {(0, 0): top > 0 or left > 0, (-1, 0): bottom < height, (0, -1): right < width}
    return mask, (left, top), [corner for corner, goes_on in sides.items() if goes_on]


def _without(
    mask: Array, area: int, kind: Literal["holes", "islands"], large: Sequence[tuple[int, int]] = ()
) -> tuple[Array, bool]:
    """The mask (H,W) without small holes or islands, and whether it had any.

    What is at a row and column of `large` counts as large, whatever is seen of it.
    """
    try:
        import cv2
    except ImportError:
        raise RuntimeUnavailableError(
            'min_region_area needs OpenCV, which is not installed; pip install "edgevtx[opencv]", or leave it 0'
        ) from None
    work = (mask ^ (kind == "holes")).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(work, connectivity=8)
    for corner in large:
        stats[regions[corner], cv2.CC_STAT_AREA] = area
    sizes = stats[1:, cv2.CC_STAT_AREA]
    small = 1 + np.flatnonzero(sizes < area)
    if not len(small):
        return mask, False
    if kind == "holes":
        return mask | np.isin(regions, small), True
    kept = np.setdiff1d(np.arange(1, count), small)
    kept = kept if len(kept) else np.array([1 + int(sizes.argmax())])
    return np.isin(regions, kept), True
