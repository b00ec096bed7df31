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


OUTSIDE = "outside the frame of 200x90 px"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"points": [[-1, 5]]}, rf"the point at x -1, y 5 lies {OUTSIDE}; give x in 0\.\.200 and y in 0\.\.90, in px"),
        ({"points": [[[5, 5]], [[5, 91]]]}, f"the point at x 5, y 91 lies {OUTSIDE}; give x"),
        (
            {"boxes": [[0, 0, 9, 9], [210, 10, 250.5, 50]]},
            rf"the box \(210, 10, 250.5, 50\) lies wholly {OUTSIDE}; leave it out, or give x0, y0, x1, y1 in px of the "
            r"frame, some of it in x 0\.\.200 and y 0\.\.90",
        ),
        ({"boxes": [10, -20, 50, 0]}, "wholly outside"),  # it touches the edge, and nothing of the frame is in it
        ({"boxes": [200, 10, 250, 50]}, "wholly outside"),
    ],
    ids=str,
)
def test_prompts_outside_the_frame(given, words):
    with pytest.raises(InputError, match=words):
        check_inside(read_prompts(**given, rule=RULE), GEOMETRY)


@pytest.mark.parametrize(
    "given",
    [
        {"points": [[0, 0], [200, 90]]},
        {"boxes": [10, 10, 201.3, 50]},
        {"boxes": [[-30, -5, 1, 1], [199, 89, 300, 100], [-5, -5, 205, 95]]},
    ],
    ids=str,
)
def test_prompts_at_and_across_the_edge_of_the_frame(given):
    check_inside(read_prompts(**given, rule=RULE), GEOMETRY)


def test_prompts_outside_the_part_that_is_looked_at():
    part = plan((90, 200), PREPROCESS, roi=(20, 20, 90, 80))
    for given in ({"points": [[5, 5]]}, {"boxes": [5, 5, 20, 80]}):
        with pytest.raises(InputError, match=r"outside the roi .* x (in )?20\.\.90 and y (in )?20\.\.80"):
            check_inside(read_prompts(**given, rule=RULE), part)
    check_inside(read_prompts(boxes=[5, 5, 21, 80], rule=RULE), part)


def test_a_box_across_the_edge_is_not_cut_there():
    (batch,) = encode_prompts(read_prompts(boxes=[-20, -10, 250, 100], rule=RULE), GEOMETRY, RULE)
    # 200 px of the frame are 128 of the input, 90 are 58
    np.testing.assert_allclose(batch.inputs["points"][0], [[-12.8, -6.44], [160, 64.44]], atol=0.01)


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
