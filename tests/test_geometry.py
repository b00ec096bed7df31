"""Geometry: size rules against transformers, and every mapping against its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevtx.errors import InputError
from edgevtx.geometry import ROTATIONS, Geometry, plan, resized_size
from edgevtx.rules import Exact, Letterbox, LongestEdge, Preprocess, ShortestEdge, SizeRule

RULES: list[SizeRule] = [
    Exact(height=224, width=320),
    ShortestEdge(shortest=256),
    ShortestEdge(shortest=800, longest=1333),
    LongestEdge(longest=1024),
    Letterbox(height=416, width=640),
    Letterbox(height=640, width=640, centered=False),
    ShortestEdge(shortest=512, longest=2048, rounding="nearest"),
]
SIZES = st.integers(1, 5000)


def preprocess(size: SizeRule, crop: tuple[int, int] | None = None) -> Preprocess:
    return Preprocess(size=size, interpolation="bilinear", scale=1 / 255, mean=(0, 0, 0), std=(1, 1, 1), crop=crop)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any rule, crop, roi and rotation, on frames up to 4K that are not absurdly narrow."""
    height, width = draw(st.integers(60, 2160)), draw(st.integers(60, 4096))
    x0, y0 = draw(st.integers(0, width - 50)), draw(st.integers(0, height - 50))
    roi = (x0, y0, draw(st.integers(x0 + 50, width)), draw(st.integers(y0 + 50, height)))
    crop = draw(st.sampled_from([None, (224, 224), (300, 187)]))
    rule = draw(st.sampled_from(RULES))
    return plan((height, width), preprocess(rule, crop), roi=roi, rotation=draw(st.sampled_from(ROTATIONS)))


# -- size rules --------------------------------------------------------------------------------------------------


@given(height=SIZES, width=SIZES, shortest=st.integers(16, 1200))
@settings(max_examples=400, deadline=None)
def test_shortest_edge_rounds_as_transformers(height: int, width: int, shortest: int) -> None:
    pytest.importorskip("transformers")
    from transformers.image_transforms import get_resize_output_image_size

    want = get_resize_output_image_size(
        np.empty((height, width, 3), np.uint8), shortest, default_to_square=False, input_data_format="channels_last"
    )
    assert resized_size((height, width), ShortestEdge(shortest=shortest)) == want


@given(height=SIZES, width=SIZES, shortest=st.integers(16, 1200), ratio=st.floats(1, 3))
@settings(max_examples=600, deadline=None)
def test_shortest_and_longest_edge_round_as_transformers(height: int, width: int, shortest: int, ratio: float) -> None:
    pytest.importorskip("transformers")
    from transformers.image_transforms import get_size_with_aspect_ratio

    longest = int(shortest * ratio)
    want = get_size_with_aspect_ratio((height, width), shortest, longest)
    assert resized_size((height, width), ShortestEdge(shortest=shortest, longest=longest)) == want


@given(short=st.integers(300, 1200), long=st.integers(300, 4000), turned=st.booleans())
@settings(max_examples=400, deadline=None)
def test_detr_sizes_of_photographs(short: int, long: int, turned: bool) -> None:
    pytest.importorskip("transformers")
    from transformers.image_transforms import get_size_with_aspect_ratio

    size = (long, short) if turned else (short, long)
    assert resized_size(size, RULES[2]) == get_size_with_aspect_ratio(size, 800, 1333)


@given(height=SIZES, width=SIZES, shortest=st.integers(16, 1200), ratio=st.floats(1, 4))
@settings(max_examples=600, deadline=None)
def test_edges_rounded_to_the_nearest_are_mmcvs(height: int, width: int, shortest: int, ratio: float) -> None:
    """`mmcv.rescale_size` of a scale of (longest, shortest): one factor for both edges, each rounded half up."""
    longest = int(shortest * ratio)
    factor = min(longest / max(height, width), shortest / min(height, width))
    want = tuple(int(side * float(factor) + 0.5) for side in (height, width))
    assert resized_size((height, width), ShortestEdge(shortest=shortest, longest=longest, rounding="nearest")) == want


def test_shortest_edge_alone_rounds_to_the_nearest_where_asked() -> None:
    assert resized_size((375, 500), ShortestEdge(shortest=512, rounding="nearest")) == (512, 683)
    assert resized_size((375, 500), ShortestEdge(shortest=512)) == (512, 682)


@given(height=SIZES, width=SIZES, longest=st.integers(16, 1500))
@settings(max_examples=400, deadline=None)
def test_longest_edge_rounds_as_sam(height: int, width: int, longest: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    want = SamImageProcessorPil._get_preprocess_shape(None, (height, width), longest)
    assert resized_size((height, width), LongestEdge(longest=longest)) == want


@given(height=st.integers(30, 5000), width=st.integers(30, 5000))
@settings(deadline=None)
def test_letterbox_fits_and_keeps_the_aspect_ratio(height: int, width: int) -> None:
    new_height, new_width = resized_size((height, width), Letterbox(height=416, width=640))
    scale = min(416 / height, 640 / width)
    assert new_height <= 416 and new_width <= 640
    assert abs(new_height - height * scale) <= 1 and abs(new_width - width * scale) <= 1


@given(
    size=st.tuples(st.integers(200, 400), st.integers(200, 400)),
    crop=st.tuples(st.integers(100, 400), st.integers(100, 400)),
)
@settings(max_examples=200, deadline=None)
def test_crop_lies_where_transformers_crops(size: tuple[int, int], crop: tuple[int, int]) -> None:
    pytest.importorskip("transformers")
    from transformers.image_transforms import center_crop

    geometry = plan(size, preprocess(Exact(height=size[0], width=size[1]), crop))
    rows, cols = np.mgrid[: size[0], : size[1]] + 1  # pixel numbers from 1: 0 is padding
    want = center_crop(np.stack([rows, cols, rows], -1), crop, input_data_format="channels_last")
    x0, y0, x1, y1 = geometry.valid_box
    top, left = geometry.offset
    assert geometry.input_size == want.shape[:2]
    found = np.zeros_like(want)
    found[y0:y1, x0:x1] = np.stack([rows, cols, rows], -1)[y0 - top : y1 - top, x0 - left : x1 - left]
    np.testing.assert_array_equal(found, want)


def test_letterbox_rounds_as_yolov5_does_where_it_is_told() -> None:
    nearest, floor = (Letterbox(height=640, width=640, rounding=how) for how in ("nearest", "floor"))
    for size in ((451, 300), (1080, 1920), (333, 500), (77, 1001)):
        ratio = min(640 / size[0], 640 / size[1])
        assert resized_size(size, nearest) == (round(size[0] * ratio), round(size[1] * ratio))
        assert resized_size(size, floor) == (int(size[0] * ratio), int(size[1] * ratio))
    assert resized_size((451, 300), nearest) == (640, 426) and resized_size((451, 300), floor) == (640, 425)


def test_letterbox_offsets() -> None:
    assert plan((1080, 1920), preprocess(RULES[4])).offset == (28, 0)
    assert plan((1080, 1920), preprocess(RULES[5])).offset == (0, 0)
    assert plan((1080, 1920), preprocess(RULES[5])).valid_size == (360, 640)


# -- points and boxes --------------------------------------------------------------------------------------------


@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_points_and_boxes_return(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = np.array(geometry.frame_size[::-1])
    points = (rng.random((20, 2)) * corner).astype(np.float32)
    back = geometry.points_to_frame(geometry.points_to_input(points))
    assert back.dtype == np.float32
    assert np.abs(back - points).max() < 1e-3
    boxes = np.concatenate([np.minimum(points[:10], points[10:]), np.maximum(points[:10], points[10:])], 1)
    inside = geometry.boxes_to_input(boxes)
    assert (inside[:, 2:] >= inside[:, :2]).all()
    assert np.abs(geometry.boxes_to_frame(inside) - boxes).max() < 1e-3
    exact = geometry.points_to_frame(geometry.points_to_input(points.astype(np.float64)))
    assert exact.dtype == np.float64 and np.abs(exact - points).max() < 1e-9


@given(geometry=geometries())
@settings(deadline=None)
def test_the_roi_becomes_the_resized_image(geometry: Geometry) -> None:
    (top, left), (height, width) = geometry.offset, geometry.resized
    box = geometry.boxes_to_input(np.array([geometry.roi], np.float64))
    np.testing.assert_allclose(box, [[left, top, left + width, top + height]], atol=1e-9)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_points_follow_the_pixels_that_rotate(rotation: int) -> None:
    frame = np.zeros((40, 70), np.uint8)
    frame[12, 33] = 1
    roi = (20, 5, 60, 35)
    upright = np.rot90(frame[5:35, 20:60], -(rotation // 90))
    geometry = plan(
        frame.shape, preprocess(Exact(height=upright.shape[0], width=upright.shape[1])), roi=roi, rotation=rotation
    )
    ((y, x),) = np.argwhere(upright)
    np.testing.assert_allclose(geometry.points_to_input(np.array([[33.5, 12.5]])), [[x + 0.5, y + 0.5]])


@given(height=st.integers(60, 2160), width=st.integers(60, 4096), seed=st.integers(0, 99))
@settings(deadline=None)
def test_normalised_boxes_equal_the_reference(height: int, width: int, seed: int) -> None:
    """Boxes in 0..1 of the valid input reach the frame as box * frame size, as DETR's post-processing does."""
    boxes = np.sort(np.random.default_rng(seed).random((50, 2, 2)), 1).reshape(-1, 4)
    for rule in RULES[:3]:
        geometry = plan((height, width), preprocess(rule))
        valid = geometry.valid_size
        found = geometry.boxes_to_frame(boxes * [valid[1], valid[0], valid[1], valid[0]])
        np.testing.assert_allclose(found, boxes * [width, height, width, height], atol=1e-3)


def test_no_boxes_stay_no_boxes() -> None:
    geometry = plan((100, 200), preprocess(RULES[0]))
    assert geometry.boxes_to_frame(np.zeros((0, 4), np.float32)).shape == (0, 4)
    assert geometry.points_to_input(np.zeros((0, 2), np.float32)).shape == (0, 2)


# -- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_masks_return(rule: SizeRule, rotation: int) -> None:
    roi = (30, 20, 330, 250)
    geometry = plan((300, 400), preprocess(rule), roi=roi, rotation=rotation)
    mask = np.zeros((2, 300, 400), bool)
    mask[0, 60:180, 100:300] = True
    mask[1, 20:250, 30:100] = True
    back = geometry.masks_to_frame(geometry.masks_to_input(mask))
    assert back.dtype == bool and back.shape == mask.shape
    overlap = (back & mask).sum((1, 2)) / (back | mask).sum((1, 2))
    assert overlap.min() > 0.97


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_mask_and_its_box_agree(rotation: int) -> None:
    """The box of a mapped mask is the mapped box: masks and boxes share one geometry."""
    geometry = plan((300, 400), preprocess(RULES[4]), roi=(30, 20, 330, 250), rotation=rotation)
    mask = np.zeros((1, 300, 400), np.float32)
    mask[0, 60:180, 100:290] = 1
    (rows, cols) = np.nonzero(geometry.masks_to_input(mask)[0] > 0.5)
    box = np.array([[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]])
    assert np.abs(geometry.boxes_to_input(np.array([[100.0, 60.0, 290.0, 180.0]])) - box).max() <= 1


@pytest.mark.parametrize("grid", [(7, 9), (37, 37), (250, 301)])
def test_maps_are_interpolated_as_torch_does(grid: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    geometry = plan((180, 320), preprocess(RULES[0]))
    maps = np.random.default_rng(0).standard_normal((3, *grid)).astype(np.float32)
    want = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], (180, 320), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(geometry.masks_to_frame(maps), want, atol=2e-4)  # torch's coordinates are float32


def test_what_the_input_does_not_show_is_filled() -> None:
    geometry = plan((100, 300), preprocess(ShortestEdge(shortest=50), (50, 50)), roi=(0, 0, 200, 100))
    frame = geometry.masks_to_frame(np.ones((1, 5, 5), np.float32), fill=-1)[0]
    np.testing.assert_array_equal(np.unique(frame[:, 50:150]), [1])
    np.testing.assert_array_equal(np.unique(frame[:, :50]), [-1])
    np.testing.assert_array_equal(np.unique(frame[:, 150:]), [-1])


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"roi": (0, 0, 0, 10)}, "inside the frame of 200x100"),
        ({"roi": (10, 10, 5, 20)}, "x0 < x1"),
        ({"roi": (150, 0, 201, 10)}, "inside the frame"),
        ({"roi": (-1, 0, 10, 10)}, "inside the frame"),
        ({"roi": (0, 0, 10)}, "four whole numbers"),
        ({"roi": (0.5, 0, 10, 10)}, "four whole numbers"),
        ({"rotation": 45}, "0, 90, 180 or 270"),
        ({"roi": (0, 0, 200, 1)}, None),
    ],
)
def test_regions_and_rotations_are_checked(options: dict[str, object], said: str | None) -> None:
    if said is None:
        plan((100, 200), preprocess(RULES[0]), **options)  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=said):
        plan((100, 200), preprocess(RULES[0]), **options)  # type: ignore[arg-type]


def test_a_frame_too_narrow_for_its_rule_is_refused() -> None:
    with pytest.raises(InputError, match="less narrow"):
        plan((1, 4000), preprocess(RULES[2]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda g: g.boxes_to_frame(np.zeros((3, 5))), r"boxes must be \(N, 4\), but got \(3, 5\)"),
        (lambda g: g.points_to_input(np.zeros(2)), r"points must be \(N, 2\), but got \(2,\)"),
        (lambda g: g.masks_to_frame(np.zeros((5, 5))), r"masks must be \(N, h, w\)"),
        (lambda g: g.masks_to_frame(np.zeros((1, 5, 5), np.uint8)), "bool or float, but got .* uint8"),
        (lambda g: g.masks_to_input(np.zeros((1, 5, 5))), "masks of this frame must be"),
    ],
)
def test_wrong_shapes_are_named(call, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        call(plan((100, 200), preprocess(RULES[0])))
