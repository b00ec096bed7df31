"""The comparison must pass what is the same answer, and fail each planted fault."""

from __future__ import annotations

import numpy as np
import pytest

from edgevtx.compare import compare, find_empty
from edgevtx.compare.boxes import assign, box_iou
from edgevtx.compare.tolerance import SENSITIVE, TOLERANCES, error_of, sensitivity
from edgevtx.manifest import Check
from edgevtx.rules import ClassifyDecode, DetectDecode, EmbedDecode, PyramidDecode

DETECT = DetectDecode(top_k=40, threshold=0.3)
CLASSIFY = ClassifyDecode(top_k=5)
EMBED = EmbedDecode(patch_size=14)


def detections(seed=0, count=40):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.7, (2, count, 2))
    return {
        "boxes": np.concatenate([corner, corner + rng.uniform(0.05, 0.3, corner.shape)], axis=2).astype(np.float32),
        "scores": np.sort(rng.uniform(0.02, 0.98, (2, count)).astype(np.float32))[:, ::-1].copy(),
        "class_ids": rng.integers(0, 5, (2, count)),
    }


def classes(seed=0):
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.01, 0.9, (3, 5)).astype(np.float32))[:, ::-1].copy()
    return {"scores": scores, "class_ids": np.stack([rng.permutation(20)[:5] for _ in range(3)])}


def features(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "cls": rng.normal(size=(2, 16)).astype(np.float32),
        "patches": rng.normal(size=(2, 3, 4, 16)).astype(np.float32),
    }


KINDS = {"detect": (detections, DETECT), "classify": (classes, CLASSIFY), "embed": (features, EMBED)}


def failed(reference, found, decode, precision="fp32"):
    return [check.name for check in compare(reference, found, decode, precision) if not check.passed]


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equal_outputs_pass_and_say_how_many_were_compared(kind, precision):
    make, decode = KINDS[kind]
    checks = compare(make(), make(), decode, precision)
    assert all(check.passed for check in checks)
    assert all(check.compared > 0 for check in checks)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_error_within_the_tolerance_passes_and_ten_times_it_fails(kind):
    make, decode = KINDS[kind]
    reference = make()
    for factor, passes in ((0.5, True), (10.0, False)):
        found = {
            name: array + np.float32(factor * 1e-4 * array.std()) if array.dtype.kind == "f" else array
            for name, array in make().items()
        }
        assert (not failed(reference, found, decode)) == passes


def test_a_missing_output_fails_before_any_value():
    found = detections()
    del found["scores"]
    assert failed(detections(), found, DETECT) == ["names and shapes"]


def test_an_output_of_another_shape_fails_before_any_value():
    found = {name: array[:, :-1] for name, array in detections().items()}
    assert failed(detections(), found, DETECT) == ["names and shapes"]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_nan_fails(kind, precision):
    make, decode = KINDS[kind]
    found = make()
    name = "boxes" if kind == "detect" else next(iter(found))
    found[name].reshape(-1)[0] = np.nan
    assert failed(make(), found, decode, precision)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_nan_and_infinity_in_both_fail(kind, precision, value):
    make, decode = KINDS[kind]
    for name, array in make().items():
        if array.dtype.kind == "f":
            both = {**make(), name: np.full_like(array, value)}
            assert failed(both, both, decode, precision) == ["finite values"]


def test_queries_in_another_order_are_the_same_set():
    order = np.random.default_rng(1).permutation(40)
    found = {name: array[:, order] for name, array in detections().items()}
    assert not failed(detections(), found, DETECT)


FAULTS = {
    "moved": lambda found: found["boxes"].__setitem__((0, slice(0, 3)), found["boxes"][0, :3] + 0.2),
    "other class": lambda found: found["class_ids"].__setitem__((0, slice(0, 3)), 9),
    "lost": lambda found: found["scores"].__setitem__((0, slice(0, 3)), 0.0),
    "axes swapped": lambda found: found["boxes"].__setitem__(..., found["boxes"][..., [1, 0, 3, 2]]),
}


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_few_detections_fails(fault, precision):
    found = detections()
    fault(found)
    assert failed(detections(), found, DETECT, precision)


def test_a_swap_at_the_end_of_the_selection_is_a_tie_and_is_counted():
    """The last kept row gave way to another candidate whose score is as good as equal."""
    reference, found = detections(), detections()
    noise = np.float32(2e-5)
    found["scores"] = found["scores"] + noise
    found["boxes"][0, -1] = [0.1, 0.1, 0.9, 0.9]
    found["class_ids"][0, -1] = 77
    rows = next(c for c in compare(reference, found, DETECT, "fp32") if c.name == "values: rows without a partner")
    assert rows.passed
    assert rows.ties == 1


def test_a_lost_row_that_is_no_tie_fails():
    reference, found = detections(), detections()
    found["boxes"][0, 20] = [0.1, 0.1, 0.9, 0.9]
    found["class_ids"][0, 20] = 77
    assert "values: rows without a partner" in failed(reference, found, DETECT)


def test_too_many_ties_fail():
    reference, found = detections(), detections()
    reference["scores"][:] = 0.2
    found["scores"][:] = 0.2
    found["boxes"][0, :6] += 0.5
    assert "values: rows without a partner" in failed(reference, found, DETECT)


def test_equal_classes_may_swap_places_and_others_may_not():
    reference = classes()
    reference["scores"][0, 1] = reference["scores"][0, 0] - np.float32(1e-7)
    found = {name: array.copy() for name, array in reference.items()}
    found["class_ids"][0, [0, 1]] = found["class_ids"][0, [1, 0]]
    assert not failed(reference, found, CLASSIFY)
    found["class_ids"][1, [0, 1]] = found["class_ids"][1, [1, 0]]
    assert failed(reference, found, CLASSIFY)


def test_a_wrong_top_class_fails_at_every_precision():
    found = classes()
    found["class_ids"][0, 0] = 19 if 19 not in found["class_ids"][0] else 18
    assert failed(classes(), found, CLASSIFY, "bf16")


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_two_classes_exchanged_in_every_image_fail_however_far_the_scores_are_off(precision):
    reference = {"scores": np.tile(np.float32([0.97, 0.03]), (8, 1)), "class_ids": np.tile([0, 1], (8, 1))}
    found = {"scores": reference["scores"].copy(), "class_ids": np.tile([1, 0], (8, 1))}
    assert failed(reference, found, CLASSIFY, precision)


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_scores_must_come_best_first(precision):
    order = [0, 2, 1, 3, 4]
    reference = classes()
    found = {name: array[:, order] for name, array in classes().items()}
    assert failed(reference, found, CLASSIFY, precision) == ["task: classes"]


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_boxes_of_an_engine_that_finds_nothing_fail_however_low_the_scores(precision):
    reference = detections()
    reference["scores"] = np.linspace(0.345, 0.305, 80, dtype=np.float32).reshape(2, 40)
    found = {name: np.zeros_like(array) for name, array in reference.items()}
    assert "task: boxes above 0.3" in failed(reference, found, DETECT, precision)


@pytest.mark.parametrize("name", ["boxes", "scores"])
@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_nan_fails_where_the_reference_finds_nothing_too(precision, name):
    reference = detections()
    reference["scores"] = reference["scores"] * np.float32(0.2)
    found = {**reference, name: np.full_like(reference[name], np.nan)}
    assert failed(reference, found, DETECT, precision) == ["finite values"]


def test_a_task_without_anything_to_compare_proves_nothing_where_only_the_task_is_judged():
    reference = detections()
    reference["scores"] = reference["scores"] * np.float32(0.2)
    for precision, empty in (("fp32", None), ("bf16", "task: boxes above 0.3")):
        found = find_empty(compare(reference, reference, DETECT, precision), precision)
        assert (found.name if found else None) == empty


def test_a_check_is_spared_for_its_level_and_not_for_its_name():
    empty = {"name": "task: boxes", "passed": True, "compared": 0, "error": 0.0, "tolerance": 0.0}
    for level in ("form", "values", "reference"):
        check = Check(level=level, **empty)
        assert find_empty([check], "fp32") is find_empty([check], "bf16") is check
    renamed = Check(level="task", **{**empty, "name": "whatever"})
    assert find_empty([renamed], "fp32") is None
    assert find_empty([renamed], "bf16") is renamed


@pytest.mark.parametrize("kind", ["detect", "classify", "embed"])
def test_every_check_has_its_level(kind):
    reference, decode = KINDS[kind]
    levels = [check.level for check in compare(reference(), reference(), decode, "fp32")]
    assert levels == sorted(levels, key=["form", "values", "task"].index)
    assert set(levels) == {"form", "values", "task"}


def test_many_ties_among_classes_fail():
    reference = {"scores": np.full((3, 5), 0.2, np.float32), "class_ids": np.tile(np.arange(5), (3, 1))}
    found = {"scores": reference["scores"], "class_ids": reference["class_ids"] + 2}
    assert failed(reference, found, CLASSIFY) == ["task: classes"]


def test_rotated_features_fail_at_every_precision():
    found = features()
    found["patches"] = found["patches"][..., ::-1].copy()
    assert "task: cosine of patches" in failed(features(), found, EMBED, "bf16")


def test_every_map_of_a_pyramid_is_compared():
    random = np.random.default_rng(0)
    maps = {"fine": random.standard_normal((2, 6, 8, 16)), "coarse": random.standard_normal((2, 3, 4, 32))}
    rule = PyramidDecode(maps=("fine", "coarse"), strides=(8, 16))
    assert not failed(maps, maps, rule)
    for name in maps:
        found = {**maps, name: maps[name][..., ::-1].copy()}
        assert f"task: cosine of {name}" in failed(maps, found, rule, "bf16")


def test_error_is_in_standard_deviations_of_the_reference():
    reference = np.array([0.0, 2.0])
    assert error_of(reference, reference + 0.5) == pytest.approx(0.5)
    assert error_of(np.zeros(3), np.full(3, 0.25)) == pytest.approx(0.25)
    assert error_of(reference, np.array([0.0, np.inf])) == np.inf


def test_one_wrong_element_among_many_is_not_averaged_away():
    reference = np.random.default_rng(0).normal(size=1_000_000)
    found = reference.copy()
    found[123] += 5 * reference.std()
    assert error_of(reference, found) == pytest.approx(0.5)


def test_sensitivity_is_that_of_the_deafest_output():
    first, second = features(0), features(1)
    assert sensitivity(first, second) > SENSITIVE * 1e-4
    second["cls"] = first["cls"] + np.float32(1e-5)
    assert sensitivity(first, second) < SENSITIVE * 1e-4


def test_box_iou_of_known_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]], np.float32)
    want = [[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(box_iou(boxes, boxes), want, atol=1e-12)


def test_assignment_is_one_to_one_and_respects_what_is_forbidden():
    cost = np.array([[1.0, 2.0], [0.5, np.inf], [9.0, np.inf]])
    assert assign(cost).tolist() == [1, 0, -1]
