"""The comparison with the reference must fail each fault that it exists for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.export.parity import compare_results
from edgevtx.masks import MaskSet
from edgevtx.results import (
    Classification,
    Detections,
    Features,
    Masks,
    PanopticSegmentation,
    Segment,
    SemanticSegmentation,
)


def detections(count=60, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(40, 200, corner.shape)], axis=1).astype(np.float32)
    scores = rng.uniform(0.1, 0.99, count).astype(np.float32)
    ids = rng.integers(0, 3, count)
    return Detections(boxes, scores, ids, tuple(map(str, ids)))


def classes():
    ids = np.array([4, 2, 9], np.int64)
    return Classification(ids, np.array([0.6, 0.3, 0.05], np.float32), tuple("427"))


def features():
    rng = np.random.default_rng(0)
    return Features(rng.normal(size=8).astype(np.float32), rng.normal(size=(3, 4, 8)).astype(np.float32))


def discs(radius=30, shift=0):
    """(3,200,300) bool."""
    y, x = np.mgrid[:200, :300]
    return np.stack([np.hypot(y - 90, x - at - shift) < radius for at in (60, 150, 240)])


def masks(dense=None):
    dense = discs() if dense is None else dense
    logits = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    return Masks(MaskSet.from_dense(dense), np.float32([[0.9, 0.7, 0.5]]), logits)


def segmentation(class_map=None):
    class_map = discs().any(0).astype(np.int32) if class_map is None else class_map
    return SemanticSegmentation(class_map, ("background", "thing"), class_map.clip(0).astype(np.float32) / 2)


def panoptic(dense=None, segment_map=None):
    dense = discs() if dense is None else dense
    segment_map = dense.any(0).astype(np.int32) if segment_map is None else segment_map
    found = replace(detections(3), masks=MaskSet.from_dense(dense), scores=np.float32([0.9, 0.8, 0.7]))
    return PanopticSegmentation(segment_map, (Segment(1, 0, "0", 0.9, int(segment_map.sum())),), lambda: found)


EVERY = [detections, classes, features, masks, segmentation, panoptic]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("make", EVERY)
def test_the_same_answer_passes(make, exact):
    check = compare_results(make(), make(), exact=exact)
    assert check.passed
    assert check.compared > 2


def test_detections_are_compared_whatever_their_order():
    assert compare_results(detections(), detections()[np.random.default_rng(1).permutation(60)]).passed


@pytest.mark.parametrize(
    ("change", "passes", "passes_loosely"),
    [
        (lambda d: replace(d, boxes=d.boxes + np.float32(0.4)), True, True),
        (lambda d: replace(d, boxes=d.boxes + np.float32(0.6)), False, True),
        (lambda d: replace(d, boxes=d.boxes + np.float32(30)), False, False),
        (lambda d: replace(d, scores=d.scores + np.float32(0.002)), False, True),
        (lambda d: replace(d, class_ids=(d.class_ids + 1) % 3), False, False),
        (lambda d: d[5:], False, False),
    ],
    ids=["0.4 px", "0.6 px", "30 px", "scores", "classes", "lost"],
)
def test_a_change_of_the_detections(change, passes, passes_loosely):
    reference = detections()
    assert compare_results(reference, change(reference)).passed == passes
    assert compare_results(reference, change(reference), exact=False).passed == passes_loosely


def test_the_best_are_compared_where_none_is_confident():
    reference = replace(detections(), scores=detections().scores * np.float32(0.2))
    check = compare_results(reference, reference)
    assert check.passed and check.compared == 40
    assert not compare_results(reference, replace(reference, boxes=reference.boxes + np.float32(0.6))).passed


def test_a_wrong_top_class_fails():
    wrong = replace(classes(), class_ids=np.array([2, 4, 9], np.int64))
    assert not compare_results(classes(), wrong).passed
    assert not compare_results(classes(), wrong, exact=False).passed


def test_only_classes_that_both_have_are_counted():
    other = replace(classes(), class_ids=np.array([4, 2, 7], np.int64), scores=np.float32([0.6, 0.3, 0.0502]))
    assert compare_results(classes(), other).compared == 2
    one = Classification(np.array([4]), np.float32([0.6]), ("4",))
    assert compare_results(one, one).compared == 1


def test_vectors_are_counted_where_they_differ_from_the_others():
    patches = np.ones((3, 4, 8), np.float32)
    patches[1, 2] = features().patches[1, 2]
    reference = Features(features().cls, patches)
    assert compare_results(reference, reference).compared == 3  # it, the one after it, and the image's
    same = replace(reference, patches=np.ones_like(patches))
    assert compare_results(same, same).compared == 0  # the image's vector does not speak for the places


def test_of_thousands_of_classes_none_of_which_stands_out_the_order_is_judged():
    scores = np.float32([0.015, 0.012, 0.01])
    reference = Classification(np.array([4, 2, 9]), scores, ("4", "2", "9"))
    for exact in (True, False):
        assert compare_results(reference, reference, exact=exact).compared == 3
    swapped = replace(reference, class_ids=np.array([9, 2, 4], np.int64))
    assert not compare_results(reference, swapped, exact=False).passed
    alike = replace(reference, scores=np.float32([0.01, 0.01, 0.009999]))
    assert compare_results(alike, alike).compared == 0


def test_features_of_another_image_fail():
    wrong = replace(features(), patches=features().patches[::-1].copy())
    assert not compare_results(features(), wrong, exact=False).passed


def test_a_shifted_attention_map_fails():
    maps = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    reference = replace(features(), attention=maps)
    assert compare_results(reference, replace(reference)).passed
    assert not compare_results(reference, replace(reference, attention=np.roll(maps, 1, axis=2))).passed


def test_results_of_different_tasks_cannot_be_compared():
    with pytest.raises(InputError, match="cannot compare"):
        compare_results(classes(), features())


# -- masks and maps --------------------------------------------------------------------------------------------

NOTHING, EVERYTHING = np.zeros((3, 200, 300), bool), np.ones((3, 200, 300), bool)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "empty",
    [
        masks(NOTHING),
        masks(EVERYTHING),
        segmentation(np.zeros((200, 300), np.int32)),
        segmentation(np.where(discs().any(0), -1, 1).astype(np.int32)),
        panoptic(NOTHING, discs().any(0).astype(np.int32)),
        replace(panoptic(segment_map=np.zeros((200, 300), np.int32)), segments=()),
        panoptic(segment_map=np.ones((200, 300), np.int32)),
        replace(classes(), scores=np.float32([0.3334, 0.3333, 0.3333])),
        Features(None, np.ones((3, 4, 8), np.float32), np.ones((2, 3, 4), np.float32)),
    ],
    ids=[
        "no mask",
        "all masks",
        "one class",
        "one class where looked at",
        "no masks of boxes",
        "an empty map",
        "a map of one segment",
        "equal scores",
        "one vector everywhere",
    ],
)
def test_what_is_empty_or_the_same_everywhere_is_not_compared(empty, exact):
    check = compare_results(empty, empty, exact=exact)
    assert check.passed and check.compared == 0


@pytest.mark.parametrize("make", [masks, panoptic])
def test_masks_are_judged_by_the_pixels_that_they_cover(make):
    small = np.zeros((3, 200, 300), bool)
    small[:, 50:57, 50:57] = True  # less than a thousandth of the frame
    assert compare_results(make(small), make(small)).passed
    assert not compare_results(make(small), make(np.roll(small, 9, axis=2))).passed
    assert not compare_results(make(discs()), make(discs(shift=1))).passed
    assert not compare_results(make(discs()), make(discs(shift=9)), exact=False).passed


def test_one_class_instead_of_two_fails():
    one = segmentation(np.zeros((200, 300), np.int32))
    for pair in ((segmentation(), one), (one, segmentation())):
        assert not compare_results(*pair, exact=False).passed


# -- what is not finite ----------------------------------------------------------------------------------------

FLOATS = {
    detections: ("boxes", "scores"),
    classes: ("scores",),
    features: ("cls", "patches"),
    masks: ("iou",),
    segmentation: ("scores",),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("make", "name"), [(make, name) for make, names in FLOATS.items() for name in names])
def test_nan_fails_on_either_side_and_on_both(make, name, exact):
    good = make()
    array = getattr(good, name).copy()
    array.reshape(-1)[-1] = np.nan
    bad = replace(good, **{name: array})
    for pair in ((good, bad), (bad, good), (bad, bad)):
        check = compare_results(*pair, exact=exact)
        assert not check.passed and check.error is None and "NaN" in check.note


def test_a_segments_score_that_is_nan_fails():
    bad = replace(panoptic(), segments=(Segment(1, 0, "0", float("nan"), 5),))
    assert not compare_results(bad, bad).passed
