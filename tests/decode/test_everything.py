"""Segmenting everything, piece by piece, against transformers' own mask generation."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

from edgevtx.decode.everything import (
    Everything,
    crop_boxes,
    last_pixels,
    point_grid,
    remove_small_regions,
    suppress,
    touches_crop,
)
from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.masks import MaskSet


@pytest.fixture
def processor():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return transformers.SamImageProcessorPil()


@pytest.mark.parametrize("size", [(427, 640), (640, 427), (301, 301)])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_and_their_grids_are_the_references(processor, size, layers):
    image = np.zeros((*size, 3), np.uint8)
    boxes, points, _, _ = processor.generate_crop_boxes(
        image, 1024, crop_n_layers=layers, points_per_crop=8, crop_n_points_downscale_factor=1
    )
    ours = crop_boxes((0, 0, size[1], size[0]), layers)
    assert [list(box) for box, _ in ours] == boxes.int().tolist()
    for (box, _), wanted in zip(ours, points[0].permute(1, 0, 2).numpy(), strict=True):
        x0, y0, x1, y1 = box
        scale = 1024 / max(x1 - x0, y1 - y0)
        new = [int((x1 - x0) * scale + 0.5) / (x1 - x0), int((y1 - y0) * scale + 0.5) / (y1 - y0)]
        np.testing.assert_allclose((point_grid(8, box) - (x0, y0)) * new, wanted, atol=1e-4)


def test_crops_of_a_part_of_a_frame_are_those_of_that_part_alone():
    alone = crop_boxes((0, 0, 300, 200), 2)
    part = crop_boxes((70, 30, 370, 230), 2)
    assert [(x0 + 70, y0 + 30, x1 + 70, y1 + 30) for (x0, y0, x1, y1), _ in alone] == [box for box, _ in part]
    masks = np.array([[70, 30, 100, 60], [150, 100, 224, 160]], np.float64)  # at the part's edge, at a crop's
    (crop,) = [box for box, layer in part if layer == 1 and box[:2] == (70, 30)]
    masks[1, 2] = crop[2]
    assert touches_crop(masks, crop, (70, 30, 370, 230)).tolist() == [False, True]


@pytest.mark.parametrize(("side", "layers"), [(20, 3), (90, 4), (1, 2), (333, 4)])
def test_no_crop_of_a_small_frame_is_empty_and_together_they_show_all_of_it(side, layers):
    shown = np.zeros((layers + 1, side, side), np.bool_)
    for (x0, y0, x1, y1), layer in crop_boxes((7, 5, 7 + side, 5 + side), layers):
        assert 7 <= x0 < x1 <= 7 + side and 5 <= y0 < y1 <= 5 + side
        shown[layer, y0 - 5 : y1 - 5, x0 - 7 : x1 - 7] = True
    assert shown.all()


def blobs(count, size, seed=0):
    """Smooth random logits, whose masks are of all sizes and places."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centres, radii = random.uniform(0, 1, (count, 2)) * size, random.uniform(0.03, 0.25, count) * min(size)
    return np.stack(
        [12 * (1 - np.hypot(y - cy, x - cx) / r) for (cy, cx), r in zip(centres, radii, strict=True)]
    ).astype(np.float32)


@pytest.mark.parametrize("crop", [(0, 0, 160, 120), (20, 15, 160, 110)])
def test_what_is_kept_of_a_crops_masks_is_what_the_reference_keeps(processor, crop):
    import torch

    size = (120, 160)
    x0, y0, x1, y1 = crop
    logits = blobs(90, (y1 - y0, x1 - x0))
    scores = np.random.default_rng(1).uniform(0.8, 1, 90).astype(np.float32)
    runs, kept_scores, boxes = processor.filter_masks(
        torch.from_numpy(logits)[None], torch.from_numpy(scores)[None], size, list(crop), stability_score_thresh=0.5
    )
    areas = [(logits > value).sum((1, 2)) for value in (1, -1)]
    stable = (scores > 0.88) & (areas[0] / np.maximum(areas[1], 1) > 0.5)
    whole = np.zeros((stable.sum(), *size), np.bool_)
    whole[:, y0:y1, x0:x1] = logits[stable] > 0
    masks = MaskSet.from_dense(whole)
    free = ~touches_crop(last_pixels(masks), crop, (0, 0, size[1], size[0]))
    assert 0 < free.sum() <= stable.sum()
    np.testing.assert_array_equal(last_pixels(masks[free]), boxes.numpy())
    np.testing.assert_array_equal(scores[stable][free], kept_scores.numpy())
    for ours, theirs in zip(masks[free].dense(), runs, strict=True):
        flat = np.repeat(np.arange(len(theirs["counts"])) % 2 == 1, theirs["counts"])
        np.testing.assert_array_equal(ours, flat.reshape(size[1], size[0]).T)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.7])
def test_suppression_keeps_what_no_better_box_covers(overlap):
    random = np.random.default_rng(0)
    corners = random.uniform(0, 100, (60, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 60, (60, 2))], 1)
    scores = random.permutation(60) / 60
    kept = suppress(boxes, scores, overlap)

    def iou(a, b):
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        shared = np.prod(np.clip(high - low, 0, None))
        return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)

    expected: list[int] = []
    for index in np.argsort(-scores):
        if all(iou(boxes[index], boxes[other]) <= overlap for other in expected):
            expected.append(index)
    assert kept.tolist() == expected
    assert len(kept) < 60
    assert len(suppress(np.zeros((0, 4)), np.zeros(0), overlap)) == 0


def test_small_holes_are_filled_and_small_islands_removed():
    pytest.importorskip("cv2")
    mask = np.zeros((40, 60), np.bool_)
    mask[5:30, 5:30] = True
    whole = mask.copy()
    mask[10:12, 10:12] = False
    mask[35:37, 50:53] = True
    dot = np.zeros_like(mask)
    dot[3, 3] = True
    given = MaskSet.from_dense(np.stack([mask, whole, dot]))
    found, same = remove_small_regions(given, 10)
    np.testing.assert_array_equal(found.dense(), np.stack([whole, whole, dot]))  # the largest island stays
    assert same.tolist() == [False, True, False]
    assert remove_small_regions(given, 0)[0] is given


def cleaned(mask, area):
    """Small holes and islands gone, on the whole frame: regions touch over their corners, as in SAM's own code."""
    label = pytest.importorskip("skimage.measure").label
    changed = False
    for holes in (True, False):
        regions = label(mask ^ holes, connectivity=2)
        sizes = np.bincount(regions.ravel())[1:]
        small = 1 + np.flatnonzero(sizes < area)
        if not len(small):
            continue
        changed = True
        if holes:
            mask = mask | np.isin(regions, small)
        else:
            kept = np.setdiff1d(np.arange(1, len(sizes) + 1), small)
            mask = np.isin(regions, kept if len(kept) else 1 + sizes.argmax())
    return mask, not changed


@pytest.mark.parametrize("size", [(9, 14), (30, 21), (60, 80)])
@pytest.mark.parametrize("area", [1, 6, 25, 90])
def test_small_regions_are_those_of_the_whole_frame(size, area, monkeypatch):
    pytest.importorskip("cv2")
    rng = np.random.default_rng(area)
    masks = np.zeros((60, *size), np.bool_)
    for mask in masks[1:]:  # the first one is empty
        (top, left), (tall, wide) = rng.integers(-4, size), rng.integers(2, np.add(size, 8))
        box = mask[max(top, 0) : max(top + tall, 0), max(left, 0) : max(left + wide, 0)]
        box[...] = rng.random(box.shape) < rng.choice([0.3, 0.7, 0.95, 1.0])
    tight = MaskSet.from_dense(masks)
    loose = MaskSet(size, tuple(masks), np.zeros((60, 2), np.int64))
    monkeypatch.setattr(MaskSet, "from_dense", None)
    wanted = [cleaned(mask, area) for mask in masks]
    for given in (tight, loose):
        found, same = remove_small_regions(given, area)
        for one, kept, (mask, untouched) in zip(found.dense(), same, wanted, strict=True):
            assert kept == untouched
            if one.sum() == mask.sum() < area:
                continue  # of islands that are all small the largest stays, and of equally large ones any
            np.testing.assert_array_equal(one, mask)


def test_small_regions_of_small_masks_need_no_memory_for_the_frame(monkeypatch):
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    crops = tuple(rng.random((30, 40)) < 0.8 for _ in range(200))
    masks = MaskSet((2160, 3840), crops, rng.integers(5, 2000, (200, 2)))
    tracemalloc.start()
    found, _ = remove_small_regions(masks, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 and len(found) == 200  # one of them dense is 8.3 MB


@pytest.mark.parametrize(
    "wrong",
    [
        {"points_per_side": 0},
        {"crop_layers": -1},
        {"points_per_side": True},
        {"points_per_side": 4.5},
        {"iou_threshold": 2.0},
        {"iou_threshold": float("nan")},
        {"stability_threshold": "0.9"},
        {"overlap": None},
        {"min_region_area": -1},
        {"min_region_area": float("nan")},
        {"batch": 0},
        {"points_per_side": 2, "crop_layers": 3, "crop_downscale": 2},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(InputError, match=r"must|leave none"):
        Everything(**wrong)


def test_small_regions_without_opencv_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeUnavailableError, match=r"min_region_area needs OpenCV"):
        remove_small_regions(MaskSet.from_dense(np.ones((1, 4, 4), np.bool_)), 3)
