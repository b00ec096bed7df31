"""The shapes that a plan takes where the graph leaves them open."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgevtx.cli.compile import command
from edgevtx.geometry import resized_size
from edgevtx.rules import LongestEdge, ShortestEdge, SizeRule
from edgevtx.runtimes.base import PlanOptions, TensorSpec
from edgevtx.runtimes.plan import Profile, ShapeRange
from edgevtx.runtimes.trt_profiles import OpenInput, choose_profile, explain_lack, profiles
from tests.runtimes.fake_gpu import make_record

FRAMES = OpenInput("pixels", (1, None, None, 3), ("", "height", "width", ""))
BATCHES = OpenInput("pixels", (None, None, None, 3), ("batch", "height", "width", ""))
DETR = ShortestEdge(shortest=800, longest=1333)
NOTHING = PlanOptions()


def one(item: OpenInput, example: tuple[int, ...] | None, rule: SizeRule | None) -> ShapeRange:
    """The range of the only profile of an input, where nothing is asked for."""
    examples = {} if example is None else {item.name: np.zeros(example, np.uint8)}
    (found,) = profiles([item], examples, rule, NOTHING)
    return found[item.name]


def test_static_inputs_need_none() -> None:
    assert profiles([OpenInput("pixels", (1, 32, 48, 3), ("",) * 4)], {}, DETR, PlanOptions(4, ((9, 9),))) == ()


def test_the_size_follows_from_the_rule_and_the_usual_one_from_the_golden_sample() -> None:
    found = one(FRAMES, (1, 750, 1333, 3), DETR)
    assert found == ShapeRange((1, 555, 555, 3), (1, 750, 1333, 3), (1, 1333, 1333, 3))


@pytest.mark.parametrize("rule", [DETR, ShortestEdge(shortest=224), LongestEdge(longest=640)])
@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (480, 640), (1000, 1000), (720, 1680), (999, 437)])
def test_every_frame_up_to_an_ultra_wide_one_fits(rule: SizeRule, frame: tuple[int, int]) -> None:
    found = one(FRAMES, None, rule)
    for least, side, most in zip(found.min[1:3], resized_size(frame, rule), found.max[1:3], strict=True):
        assert least <= side <= most


def test_counts_are_what_a_predictor_gives_at_once() -> None:
    points = OpenInput("points", (None, None, 2), ("prompts", "points", ""))
    assert one(points, (4, 3, 2), None) == ShapeRange((1, 0, 2), (4, 3, 2), (64, 32, 2))
    frames = OpenInput("pixels", (None, 32, 48, 3), ("batch", "", "", ""))
    assert one(frames, (1, 32, 48, 3), None).max == (8, 32, 48, 3)


def test_the_golden_sample_is_always_within() -> None:
    frames = OpenInput("pixels", (None, None, 48, 3), ("batch", "height", "", ""))
    found = one(frames, (12, 300, 48, 3), DETR)
    assert found == ShapeRange((1, 300, 48, 3), (12, 300, 48, 3), (12, 1333, 48, 3))


def test_a_dimension_that_nobody_knows_gets_room_around_the_usual_one() -> None:
    unknown = OpenInput("x", (None, None), ("n", "k"))
    assert one(unknown, (2, 20), None) == ShapeRange((1, 5), (2, 20), (8, 80))
    assert one(unknown, None, None) == ShapeRange((1, 16), (1, 64), (8, 256))


@pytest.mark.parametrize("rule", [DETR, ShortestEdge(shortest=224), LongestEdge(longest=640)])
@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (480, 641), (1000, 2399), (720, 1680), (999, 437)])
def test_a_size_in_the_network_is_that_of_such_a_frame(rule: SizeRule, frame: tuple[int, int]) -> None:
    """So the command that a refused run names may give the size of its input as that of the frame."""
    size = resized_size(frame, rule)
    assert resized_size(size, rule) == size


# -- what is asked for -----------------------------------------------------------------------------------------


ENDS = "--frame 1066x800 --frame 1333x555 --frame 555x1333"  # of a plan that was asked for no frames


def asked(example: tuple[int, ...], **options: object) -> tuple[Profile, ...]:
    return profiles([BATCHES], {"pixels": np.zeros(example)}, DETR, PlanOptions(**options))  # type: ignore[arg-type]


def test_kernels_are_chosen_for_the_batch_that_is_asked_for() -> None:
    (found,) = asked((1, 800, 1066, 3), batch=16)
    assert (found["pixels"].min[0], found["pixels"].opt[0], found["pixels"].max[0]) == (1, 16, 16)


def test_sizes_that_are_far_apart_have_profiles_of_their_own() -> None:
    cameras = ((1080, 1920), (2160, 3840), (500, 4000))  # the first two have one size in the network
    found = asked((3, 800, 999, 3), frames=cameras, batch=2)  # which the golden sample's is near
    assert [item["pixels"] for item in found] == [
        ShapeRange((1, 750, 999, 3), (2, 750, 1333, 3), (3, 800, 1333, 3)),
        ShapeRange((1, 167, 1333, 3), (2, 167, 1333, 3), (3, 167, 1333, 3)),
    ]
    for shape in [(1, *resized_size(frame, DETR), 3) for frame in cameras] + [(3, 800, 999, 3)]:
        assert choose_profile(found, {"pixels": shape}) is not None
    assert choose_profile(found, {"pixels": (1, *resized_size((1000, 2400), DETR), 3)}) is None


def test_a_golden_sample_that_is_far_from_the_frames_has_a_profile_of_its_own() -> None:
    first, second = asked((1, 300, 400, 3), frames=((1080, 1920),))
    assert first["pixels"] == ShapeRange((1, 750, 1333, 3), (1, 750, 1333, 3), (8, 750, 1333, 3))
    assert second["pixels"] == ShapeRange((1, 300, 400, 3), (1, 300, 400, 3), (8, 300, 400, 3))


def test_upright_and_lying_frames_share_a_profile_that_takes_a_batch_of_both() -> None:
    (found,) = asked((1, 750, 1333, 3), frames=((1080, 1920), (1920, 1080)))
    assert found["pixels"] == ShapeRange((1, 750, 750, 3), (1, 750, 1333, 3), (8, 1333, 1333, 3))


def test_where_one_side_is_fixed_the_golden_sample_is_within_too() -> None:
    frames = OpenInput("pixels", (1, None, 48, 3), ("", "height", "", ""))
    found = profiles([frames], {"pixels": np.zeros((1, 790, 48, 3))}, DETR, PlanOptions(frames=((1080, 1920),)))
    assert [item["pixels"].max for item in found] == [(1, 790, 48, 3)]


def test_a_network_without_frames_has_one_profile_whatever_their_sizes() -> None:
    points = OpenInput("points", (None, None, 2), ("prompts", "points", ""))
    found = profiles([points], {"points": np.zeros((4, 3, 2))}, DETR, PlanOptions(frames=((480, 640), (1080, 1920))))
    assert [item["points"].max for item in found] == [(64, 32, 2)]


def test_what_is_asked_reads_as_the_command_s_options() -> None:
    assert not PlanOptions() and str(PlanOptions()) == ""
    assert str(PlanOptions(4, ((1080, 1920),), 64)) == "--batch 4 --frame 1920x1080 --workspace-mb 64"


@pytest.mark.parametrize(
    ("before", "shape", "words"),
    [
        ({}, (9, 600, 600, 3), "fp16 --batch 9"),  # which alone is beyond the range
        ({}, (1, 400, 1333, 3), f"fp16 {ENDS} --frame 1333x400"),
        ({"frames": ((480, 640),), "batch": 2}, (2, 400, 1333, 3), "fp16 --batch 2 --frame 640x480 --frame 1333x400"),
        ({"frames": ((480, 640),), "batch": 2}, (3, 800, 1066, 3), "fp16 --batch 3 --frame 640x480"),
        ({"workspace_mb": 64}, (9, 400, 1333, 3), f"fp16 --batch 9 {ENDS} --frame 1333x400 --workspace-mb 64"),
    ],
)
def test_what_no_profile_takes_is_told_with_the_ranges_and_the_command(
    before: dict[str, Any], shape: tuple[int, ...], words: str
) -> None:
    options = PlanOptions(**before)
    found = profiles([BATCHES], {"pixels": np.zeros((1, 800, 1066, 3))}, DETR, options)
    inputs = (TensorSpec("pixels", (None, None, None, 3), "uint8"),)
    record = make_record(inputs=inputs, profiles=found, asked=options)
    assert choose_profile(found, {"pixels": shape}) is None
    text = explain_lack(record, {"pixels": shape})
    assert text.startswith(f"it was compiled for pixels {found[0]['pixels'].min} to {found[0]['pixels'].max}")
    assert text.endswith(f"edgevtx compile BUNDLE --target tensorrt --precision {words}")
    wider = profiles([BATCHES], {"pixels": np.zeros((1, 800, 1066, 3))}, DETR, _options(words))
    assert choose_profile(wider, {"pixels": shape}) is not None  # what is advised helps


@pytest.mark.parametrize("golden", [(480, 640), (1080, 1920), (1600, 900), (500, 500), (300, 1000)])
@pytest.mark.parametrize(
    "rule",
    [
        DETR, ShortestEdge(shortest=224), LongestEdge(longest=640),
        ShortestEdge(shortest=512, longest=2048, rounding="nearest"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strange", [(300, 1500), (1500, 300)])
def test_what_is_advised_takes_what_the_plan_took(rule: SizeRule, golden: Any, strange: Any) -> None:
    example = {"pixels": np.zeros((1, *resized_size(golden, rule), 3))}
    before, shape = profiles([BATCHES], example, rule, NOTHING), (1, *resized_size(strange, rule), 3)
    assert choose_profile(before, {"pixels": shape}) is None
    inputs = (TensorSpec("pixels", (None, None, None, 3), "uint8"),)
    text = explain_lack(make_record(inputs=inputs, profiles=before), {"pixels": shape})
    after = profiles([BATCHES], example, rule, _options(text.partition("--precision ")[2]))
    assert choose_profile(after, {"pixels": shape}) is not None
    for height, width in itertools.product(range(400, 1000, 50), repeat=2):
        usual = {"pixels": (8, *resized_size((height, width), rule), 3)}
        assert choose_profile(before, usual) is not None and choose_profile(after, usual) is not None


def _options(words: str) -> PlanOptions:
    """Options of the command as `edgevtx compile` reads them."""
    with command.make_context("compile", ["fire.vtx", *words.split()[1:]]) as context:
        return PlanOptions(context.params["batch"], context.params["frames"], context.params["workspace_mb"])


def test_of_prompts_the_ranges_alone_are_told() -> None:
    text = explain_lack(make_record(part="decoder"), {"pixels": (1, 99, 4, 3), "valid_size": (1, 2)})
    assert text.startswith("it was compiled for") and "edgevtx compile" not in text
