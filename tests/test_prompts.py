"""Prompts as users give them: read, checked, and as a mask decoder takes them."""

from __future__ import annotations

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.geometry import plan
from edgevtx.prompts import check_inside, encode_prompts, read_prompts
from edgevtx.rules import LongestEdge, Preprocess, PromptDecode, TextPrompts

RULE = PromptDecode(masks=4, mask_size=(64, 64))
WITH_TEXT = PromptDecode(masks=4, mask_size=(64, 64), text=TextPrompts(file="tokenizer.json", length=16))
PREPROCESS = Preprocess(
    size=LongestEdge(longest=128), interpolation="bilinear", scale=1 / 255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
GEOMETRY = plan((90, 200), PREPROCESS)


@pytest.mark.parametrize("given", [{"points": 5}, {"points": [[1, 2]], "point_labels": 1}])
def test_single_numbers_are_no_prompts(given):
    with pytest.raises(InputError, match="must be"):
        read_prompts(**given, rule=RULE)


@pytest.mark.parametrize(
    ("points", "counts"),
    [
        ([[10, 20]], [1]),
        (np.array([[10, 20], [30, 40]]), [2]),
        (np.zeros((3, 2, 2)), [2, 2, 2]),
        ([[[10, 20]], [[30, 40], [50, 60]]], [1, 2]),
        ([np.array([[10, 20]]), np.array([[30, 40], [50, 60]])], [1, 2]),
    ],
)
def test_points_of_one_prompt_or_of_several(points, counts):
    prompts = read_prompts(points=points, rule=RULE)
    assert [len(item) for item in prompts.points] == counts
    assert [item.tolist() for item in prompts.labels] == [[1] * count for count in counts]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "a prompt needs points, boxes, a mask or a text, but got none"),
        ({"points": []}, r"points must be \(K, 2\)"),
        ({"points": np.zeros((0, 2))}, "a prompt has no points"),
        ({"points": [[[1, 2]], []]}, r"points must be|no points"),
        ({"points": [[1, 2, 3]]}, r"points must be \(K, 2\)"),
        ({"points": [[np.nan, 2]]}, "NaN or infinite"),
        ({"points": "here"}, "no array of numbers"),
        ({"point_labels": [1]}, "point_labels were given without points"),
        ({"points": [[1, 2]], "point_labels": [1, 0]}, r"one a point, \[1\]"),
        ({"points": [[1, 2]], "point_labels": [2]}, r"1 \(on the object\) or 0 .*, but got 2; a box is given as boxes"),
        ({"boxes": [1, 2, 3]}, r"boxes must be \(4,\) xyxy"),
        ({"boxes": [5, 5, 2, 9]}, r"x0 < x1 and y0 < y1, but got \(5, 5, 2, 9\)"),
        ({"boxes": np.zeros((0, 4))}, r"boxes must be"),
        ({"mask": np.zeros((32, 32))}, r"mask must be \(64, 64\) float logits .* got \(32, 32\)"),
        ({"text": "smoke"}, "takes no texts, since its checkpoint was not trained"),
        ({"points": np.zeros((2, 1, 2)), "boxes": [[0, 0, 9, 9]]}, "2 by points, 1 by boxes"),
    ],
)
def test_prompts_that_cannot_be_used(given, words):
    with pytest.raises(InputError, match=words):
        read_prompts(**given, rule=RULE)


@pytest.mark.parametrize("text", ["", "  ", [], ["smoke", ""], 5])
def test_texts_without_words(text):
    with pytest.raises(InputError, match="text must be a text or a list of texts"):
        read_prompts(text=text, rule=WITH_TEXT)


@pytest.mark.parametrize("given", [{"points": [[-1, 5]]}, {"points": [[5, 91]]}, {"boxes": [10, 10, 201, 50]}])
def test_prompts_outside_the_frame(given):
    with pytest.raises(InputError, match=r"lies outside the frame of 200x90 px"):
        check_inside(read_prompts(**given, rule=RULE), GEOMETRY)
    check_inside(read_prompts(points=[[0, 0], [200, 90]], rule=RULE), GEOMETRY)
    with pytest.raises(InputError, match="outside the roi"):
        check_inside(read_prompts(points=[[5, 5]], rule=RULE), plan((90, 200), PREPROCESS, roi=(20, 20, 90, 80)))


def test_prompts_of_unequal_length_go_apart_and_keep_their_rows():
    prompts = read_prompts(points=[[[100, 45]], [[0, 0], [200, 90]], [[50, 45]]], rule=RULE)
    first, second = encode_prompts(prompts, GEOMETRY, RULE)
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 2], [1])
    # 200 px of the frame are 128 of the input; without a box a point that is none is added, as the reference does
    np.testing.assert_allclose(first.inputs["points"][:, 0], [[64, 29], [32, 29]], atol=0.3)
    assert first.inputs["point_labels"].tolist() == [[1, -1], [1, -1]]
    assert second.inputs["point_labels"].tolist() == [[1, 1, -1]]
    assert not first.inputs["has_mask"].any()


def test_a_box_is_two_points_and_needs_no_other():
    mask = np.ones((64, 64))
    (batch,) = encode_prompts(read_prompts(boxes=[0, 0, 100, 45], mask=mask, rule=RULE), GEOMETRY, RULE)
    assert batch.inputs["point_labels"].tolist() == [[2, 3]]
    assert batch.inputs["has_mask"].tolist() == [1.0]
    assert (batch.inputs["mask_prompt"] == 1).all()
    (both,) = encode_prompts(
        read_prompts([[5, 5]], [0], boxes=[0, 0, 100, 45], text="smoke", rule=WITH_TEXT), GEOMETRY, WITH_TEXT
    )
    assert both.inputs["point_labels"].tolist() == [[0, 2, 3, -2]]


def test_under_rotation_a_box_keeps_its_corners_in_order():
    geometry = plan((90, 200), PREPROCESS, rotation=90)
    (batch,) = encode_prompts(read_prompts(boxes=[0, 0, 100, 45], rule=RULE), geometry, RULE)
    (x0, y0), (x1, y1) = batch.inputs["points"][0]
    assert x0 < x1
    assert y0 < y1
