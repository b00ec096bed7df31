"""The shapes that a plan takes where the graph leaves them open."""

from __future__ import annotations

import numpy as np
import pytest

from edgevtx.geometry import resized_size
from edgevtx.rules import LongestEdge, ShortestEdge, SizeRule
from edgevtx.runtimes.plan import ShapeRange
from edgevtx.runtimes.trt_profiles import OpenInput, profile

FRAMES = OpenInput("pixels", (1, None, None, 3), ("", "height", "width", ""))
DETR = ShortestEdge(shortest=800, longest=1333)


def test_static_inputs_need_none() -> None:
    assert profile([OpenInput("pixels", (1, 32, 48, 3), ("",) * 4)], {}, DETR) == {}


def test_the_size_follows_from_the_rule_and_the_usual_one_from_the_golden_sample() -> None:
    found = profile([FRAMES], {"pixels": np.zeros((1, 750, 1333, 3), np.uint8)}, DETR)
    assert found == {"pixels": ShapeRange((1, 555, 555, 3), (1, 750, 1333, 3), (1, 1333, 1333, 3))}


@pytest.mark.parametrize("rule", [DETR, ShortestEdge(shortest=224), LongestEdge(longest=640)])
@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (480, 640), (1000, 1000), (720, 1680), (999, 437)])
def test_every_frame_up_to_an_ultra_wide_one_fits(rule: SizeRule, frame: tuple[int, int]) -> None:
    found = profile([FRAMES], {}, rule)["pixels"]
    for least, side, most in zip(found.min[1:3], resized_size(frame, rule), found.max[1:3], strict=True):
        assert least <= side <= most


def test_counts_are_what_a_predictor_gives_at_once() -> None:
    points = OpenInput("points", (None, None, 2), ("prompts", "points", ""))
    found = profile([points], {"points": np.zeros((4, 3, 2), np.float32)}, None)["points"]
    assert found == ShapeRange((1, 0, 2), (4, 3, 2), (64, 32, 2))
    frames = OpenInput("pixels", (None, 32, 48, 3), ("batch", "", "", ""))
    assert profile([frames], {"pixels": np.zeros((1, 32, 48, 3))}, None)["pixels"].max == (8, 32, 48, 3)


def test_the_usual_shape_is_always_within() -> None:
    frames = OpenInput("pixels", (None, None, 48, 3), ("batch", "height", "", ""))
    found = profile([frames], {"pixels": np.zeros((12, 300, 48, 3))}, DETR)["pixels"]
    assert (found.min, found.opt, found.max) == ((1, 300, 48, 3), (12, 300, 48, 3), (12, 1333, 48, 3))


def test_a_dimension_that_nobody_knows_gets_room_around_the_usual_one() -> None:
    unknown = OpenInput("x", (None, None), ("n", "k"))
    assert profile([unknown], {"x": np.zeros((2, 20))}, None)["x"] == ShapeRange((1, 5), (2, 20), (8, 80))
    assert profile([unknown], {}, None)["x"] == ShapeRange((1, 16), (1, 64), (8, 256))
