"""The comparison with the reference must fail each fault that it exists for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.export.parity import compare_results
from edgevtx.results import Classification, Detections, Features


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


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("make", [detections, classes, features])
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
