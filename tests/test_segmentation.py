"""`SemanticSegmentation`: validated, told, drawn and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgevtx.compare import compare, content, find_empty
from edgevtx.draw import _INK, PALETTE
from edgevtx.errors import InputError
from edgevtx.masks import MaskSet
from edgevtx.results import SemanticSegmentation
from edgevtx.rules import SegmentDecode

LABELS = ("background", "smoke", "flame")


def squares(height: int = 40, width: int = 60) -> SemanticSegmentation:
    """A quarter of smoke, an eighth of flame."""
    class_map = np.zeros((height, width), np.int32)
    class_map[: height // 2, : width // 2] = 1
    class_map[height // 2 :, : width // 4] = 2
    return SemanticSegmentation(class_map, LABELS)


# -- the result ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_map": np.zeros((4, 4), np.int64)}, r"class_map must be \(H, W\) int32, but got \(4, 4\) int64"),
        ({"class_map": np.zeros((4, 4, 1), np.int32)}, "class_map must be"),
        ({"class_map": np.full((4, 4), 3, np.int32)}, "class_map must hold -1 to 2, but holds 3 to 3"),
        ({"class_map": np.full((4, 4), -2, np.int32)}, "must hold -1 to 2, but holds -2 to -2"),
        ({"scores": np.zeros((4, 4), np.float32)}, r"scores must be \(40, 60\) float32, but got \(4, 4\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(squares(), **changes)


def test_areas_and_shares_are_of_what_was_looked_at() -> None:
    found = squares()
    assert found.areas.tolist() == [1500, 600, 300]
    assert found.present() == [(0, 0.625), (1, 0.25), (2, 0.125)]
    assert found.summary() == "background 62.5%  smoke 25.0%  flame 12.5%"
    class_map = found.class_map.copy()
    class_map[:, 30:] = -1
    half = replace(found, class_map=class_map)
    assert half.areas.tolist() == [300, 600, 300]
    assert half.present()[0] == (1, 0.5)


def test_a_summary_names_a_few_classes() -> None:
    class_map = np.repeat(np.arange(8, dtype=np.int32), np.arange(8, 0, -1))[None]
    found = SemanticSegmentation(class_map, tuple("abcdefgh"))
    assert found.summary() == "a 22.2%  b 19.4%  c 16.7%  d 13.9%  e 11.1%  and 3 more"


def test_json_holds_each_class_that_occurs_as_run_lengths() -> None:
    found = squares()
    facts = json.loads(json.dumps(found.to_dict()))["segmentation"]
    assert facts["size"] == [40, 60]
    assert [row["label"] for row in facts["classes"]] == ["background", "smoke", "flame"]
    for row in facts["classes"]:
        assert row["area"] == found.areas[row["class_id"]]
        mask = MaskSet.from_rle([row["rle"]]).dense()[0]
        np.testing.assert_array_equal(mask, found.class_map == row["class_id"])
    scored = replace(found, scores=np.linspace(0, 0.5, 2400, dtype=np.float32).reshape(40, 60)).to_dict()
    assert scored["segmentation"]["max_score"] == 0.5
    assert scored["segmentation"]["mean_score"] == 0.25


def test_an_empty_one_says_so() -> None:
    empty = SemanticSegmentation.empty()
    assert empty.class_map.shape == (0, 0)
    assert empty.summary() == "nothing was looked at"
    assert empty.to_dict() == {"segmentation": {"size": [0, 0], "classes": []}}
    frame = np.full((30, 40, 3), 90, np.uint8)
    np.testing.assert_array_equal(SemanticSegmentation.empty((30, 40)).draw(frame), frame)


# -- the picture -----------------------------------------------------------------------------------------------


def test_classes_are_coloured_outlined_and_listed_and_the_background_is_left() -> None:
    frame = np.full((400, 600, 3), 100, np.uint8)
    found = squares(400, 600)
    drawn = found.draw(frame)
    assert (frame == 100).all(), "drawing must not touch the frame that it is given"
    assert (drawn[250:, 300:] == 100).all()  # background, away from outlines
    for class_id, (row, column) in {1: (150, 200), 2: (300, 70)}.items():
        veiled = np.rint(_INK * np.array(PALETTE[class_id]) + (1 - _INK) * 100)
        np.testing.assert_allclose(drawn[row, column], veiled, atol=1)
    assert (drawn[200, 160:290] == 255).all()  # between smoke and background
    assert (drawn[100, 300] == 255).all()
    assert len(np.unique(drawn[:12, :60].reshape(-1, 3), axis=0)) > 3  # the legend's words


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 9), (1080, 1920)], ids=str)
def test_any_frame_can_be_drawn_on(size: tuple[int, int]) -> None:
    found = SemanticSegmentation(np.full(size, 2, np.int32), LABELS)
    assert found.draw(np.zeros((*size, 3), np.uint8)).shape == (*size, 3)
    assert found.draw(np.zeros(size, np.uint8)).shape == (*size, 3)


def test_another_frame_is_refused() -> None:
    with pytest.raises(InputError, match=r"are of a frame of \(40, 60\), but got one of \(60, 40\)"):
        squares().draw(np.zeros((60, 40, 3), np.uint8))


# -- the comparison --------------------------------------------------------------------------------------------

MANY, ONE = SegmentDecode(), SegmentDecode(activation="sigmoid", threshold=0.3)


def logits(channels: int = 4, seed: int = 0) -> dict[str, Any]:
    return {"logits": np.random.default_rng(seed).normal(size=(2, channels, 20, 30)).astype(np.float32)}


def failed(reference: Any, found: Any, rule: SegmentDecode, precision: str = "fp32") -> list[str]:
    return [check.name for check in compare(reference, found, rule, precision) if not check.passed]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("rule", "channels"), [(MANY, 4), (ONE, 1)], ids=["many", "one"])
def test_noise_within_the_tolerance_passes(rule: SegmentDecode, channels: int, precision: str) -> None:
    reference = logits(channels)
    noise = np.random.default_rng(1).normal(size=reference["logits"].shape)
    found = {"logits": (reference["logits"] + noise * {"fp32": 1e-5, "bf16": 3e-3}[precision]).astype(np.float32)}
    assert not failed(reference, found, rule, precision)
    checks = compare(reference, found, rule, precision)
    assert find_empty(checks, precision) is None
    assert 0 < checks[-1].compared == content(reference, rule) < 2 * 20 * 30


def test_a_tie_may_change_its_class_and_a_clear_pixel_may_not() -> None:
    reference, tied, changed = logits(), logits(), logits()
    reference["logits"][0, :2, 0, 0] = tied["logits"][0, :2, 0, 0] = 5.0
    tied["logits"][0, 1, 0, 0] += 1e-4
    assert not failed(reference, tied, MANY)
    assert compare(reference, tied, MANY, "fp32")[-1].ties == 1
    changed["logits"][0, :, 3, 3] = changed["logits"][0, ::-1, 3, 3].copy()
    assert failed(logits(), changed, MANY) == ["values: logits"]  # its own error makes one pixel a tie...
    # ... but a fault in many is none
    shifted = {"logits": np.roll(logits()["logits"], 1, axis=1)}
    assert "task: class of each pixel" in failed(logits(), shifted, MANY)
    assert "task: class of each pixel" in failed(logits(1), {"logits": -logits(1)["logits"]}, ONE)


def test_every_planted_fault_is_found_at_both_precisions() -> None:
    reference = logits()
    for fault in (np.flip(reference["logits"], 3), reference["logits"] * 1.5 + 0.4, np.zeros_like(reference["logits"])):
        for precision in ("fp32", "bf16"):
            assert failed(reference, {"logits": np.ascontiguousarray(fault)}, MANY, precision)


def test_the_golden_sample_is_one_with_several_classes() -> None:
    plain = {"logits": np.tile(np.array([9, 0, 0, 0], np.float32)[None, :, None, None], (1, 1, 20, 30))}
    mixed = {"logits": plain["logits"].copy()}
    mixed["logits"][0, 2, :5] = 20
    assert content(plain, MANY) == 0
    assert content(mixed, MANY) == 5 * 30
    assert content({"logits": np.full((1, 1, 4, 4), 3, np.float32)}, ONE) == 0


def test_parity_counts_pixels_and_the_largest_gap_of_scores() -> None:
    pytest.importorskip("torch")
    from edgevtx.export.parity import compare_results

    found = squares(100, 100)
    few, many = found.class_map.copy(), found.class_map.copy()
    few[:1, :10] = 2  # 0.1%
    many[:1, :11] = 2
    assert compare_results(found, replace(found, class_map=few)).passed
    assert not compare_results(found, replace(found, class_map=many)).passed
    assert compare_results(found, replace(found, class_map=many), exact=False).passed
    scores = np.zeros((100, 100), np.float32)
    close, far = scores.copy(), scores.copy()
    close[0, 0], far[0, 0] = 9e-4, 2e-3
    scored = replace(found, scores=scores)
    assert compare_results(scored, replace(found, scores=close)).passed
    assert not compare_results(scored, replace(found, scores=far)).passed
    assert not compare_results(found, squares(100, 50)).passed
