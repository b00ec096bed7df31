"""Drawing: what must show, what must stay untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevtx import draw
from edgevtx.errors import InputError
from edgevtx.geometry import Geometry
from edgevtx.results import Classification, Detections, Features

SIZES = [(1, 1), (16, 9), (48, 64), (224, 224), (480, 640), (1080, 1920)]


def detections(*boxes: tuple[float, ...], label: str = "smoke") -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(count, 0.5, np.float32),
        np.zeros(count, np.int64),
        (label,) * count,
    )


def features(height: int = 6, width: int = 8, **options: Any) -> Features:
    vectors = np.random.default_rng(0).standard_normal((height, width, 16)).astype(np.float32)
    return Features(None, vectors, **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "box",
    [(0.1, 0.2, 0.8, 0.9), (-5, -5, 7, 7), (0.9, 0.9, 1.5, 1.5), (0.5, 0.5, 0.5, 0.5), (-1e30, 0, 1e30, 1)],
    ids=["inside", "around", "corner", "point", "huge"],
)
def test_any_box_on_any_frame(size: tuple[int, int], box: tuple[float, ...]) -> None:
    frame = np.full((*size, 3), 128, np.uint8)
    scaled = tuple(value * side for value, side in zip(box, (size[1], size[0]) * 2, strict=True))
    found = detections(scaled, label="a class with a long name").draw(frame)
    assert found.shape == frame.shape and found.dtype == np.uint8
    assert (frame == 128).all(), "drawing must not touch the frame that it is given"
    assert (found != 128).any() or size == (1, 1)


def test_the_inside_of_a_box_stays_visible() -> None:
    frame = np.full((480, 640, 3), 128, np.uint8)
    drawn = (detections((100, 100, 500, 400)).draw(frame) != 128).any(2)
    assert not drawn[105:395, 105:495].any()
    assert drawn[100:102, 100:500].all() and drawn[398:400, 100:500].all()
    assert drawn[100:400, 100:102].all() and drawn[100:400, 498:500].all()
    rows, cols = np.nonzero(drawn)
    assert cols.min() >= 98 and rows.max() <= 402 and rows.min() < 95  # the label stands above


@pytest.mark.parametrize("box", [(0, 0, 200, 60), (560, 2, 640, 60), (-50, -50, 90, 470)])
def test_labels_stay_inside_the_frame(box: tuple[float, ...]) -> None:
    frame = np.full((480, 640, 3), 128, np.uint8)
    label = draw._label("smoke 0.50", draw._font_size(frame), draw.PALETTE[0])
    found = detections(box).draw(frame)
    windows = np.lib.stride_tricks.sliding_window_view(found, label.shape)[:40, :, 0]
    assert (windows == label).all((2, 3, 4)).any(), "the whole label must be somewhere at the top"


def test_boxes_outside_the_frame_leave_it_alone() -> None:
    frame = np.full((48, 64, 3), 128, np.uint8)
    np.testing.assert_array_equal(detections((-20, 0, 0, 9), (64, 0, 90, 9), (0, 48, 5, 60)).draw(frame), frame)
    np.testing.assert_array_equal(Detections.empty().draw(frame), frame)


def test_the_best_detection_is_on_top() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    found = detections((20, 30, 80, 90), (20, 30, 80, 90))
    both = Detections(found.boxes, found.scores, np.array([1, 2]), found.labels)
    np.testing.assert_array_equal(both.draw(frame)[60, 20], draw.PALETTE[1])


def test_track_numbers_are_written() -> None:
    frame = np.zeros((200, 200, 3), np.uint8)
    found = detections((50, 50, 150, 150))
    tracked = Detections(found.boxes, found.scores, found.class_ids, found.labels, track_ids=np.array([7]))
    assert (tracked.draw(frame) != found.draw(frame)).any()


def test_grey_frames_become_colour() -> None:
    assert detections((2, 2, 20, 20)).draw(np.zeros((40, 40), np.uint8)).shape == (40, 40, 3)
    with pytest.raises(InputError, match="uint8"):
        detections((2, 2, 20, 20)).draw(np.zeros((40, 40, 3), np.float32))


def test_palette_colours_differ_in_brightness_or_hue() -> None:
    colours = np.array(draw.PALETTE, float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[~np.eye(len(colours), dtype=bool)]
    assert distances.min() > 60


@pytest.mark.parametrize("size", SIZES)
def test_classes_are_listed(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 128, np.uint8)
    classes = Classification(np.arange(9), np.full(9, 0.1, np.float32), tuple("abcdefghi"))
    assert (classes.draw(frame) != 128).any()
    np.testing.assert_array_equal(Classification.empty().draw(frame), frame)


# -- features ----------------------------------------------------------------------------------------------------


def test_principal_components_equal_a_singular_value_decomposition() -> None:
    vectors = features().patches
    found = draw.principal_components(vectors)
    flat = vectors.reshape(-1, 16) - vectors.reshape(-1, 16).mean(0)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    for i in range(3):
        inner = (found[..., i] > 0) & (found[..., i] < 1)  # what was not cut at the percentiles
        correlation = np.corrcoef(found[inner][:, i], (flat @ axes[i]).reshape(6, 8)[inner])[0, 1]
        assert abs(correlation) > 1 - 1e-5
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 5, 2), (4, 4, 1), (3, 3, 16)])
def test_few_patches_or_channels_still_make_a_picture(shape: tuple[int, ...]) -> None:
    for vectors in (np.ones(shape, np.float32), np.random.default_rng(0).random(shape, np.float32)):
        assert np.isfinite(draw.principal_components(vectors)).all()
        assert Features(None, vectors).draw(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40, 3)


def test_features_cover_what_the_network_saw() -> None:
    frame = np.full((60, 100, 3), 100, np.uint8)
    geometry = Geometry((60, 100), (0, 0, 100, 60), 0, (60, 100), (0, -20), (60, 60))  # a centred crop
    found = features(geometry=geometry).draw(frame)
    changed = (found != 100).any(2)
    assert not changed[:, :20].any() and not changed[:, 80:].any()
    assert changed[:, 20:80].mean() > 0.9
    with pytest.raises(InputError, match="frame that the model was given"):
        features(geometry=geometry).draw(frame[:50])
    np.testing.assert_array_equal(Features.empty().draw(frame), frame)


@pytest.mark.parametrize(("heads", "size"), [(3, (240, 320)), (12, (90, 400)), (6, (40, 30))])
def test_attention_lies_along_the_lower_edge_of_the_features(heads: int, size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 90, np.uint8)
    attention = np.zeros((heads, 6, 8), np.float32)
    attention[0, :, 4:] = 1  # the first head looks to the right
    plain, found = features().draw(frame), features(attention=attention).draw(frame)
    assert found.shape == plain.shape
    changed = np.flatnonzero((found != plain).any((1, 2)))
    assert 0 < size[0] - changed[0] <= max(size[0] // 4, 1)
    edge = size[0] - changed[0]
    picture = draw.attention_picture(attention, height=int(edge))
    np.testing.assert_array_equal(found[-edge:, : picture.shape[1]], picture[:, : size[1]])


def test_the_attention_picture_is_a_row_of_heads() -> None:
    attention = np.zeros((3, 6, 8), np.float32)
    attention[1, :, 4:] = 1
    picture = draw.attention_picture(attention, height=60)
    assert picture.shape == (60, 3 * 80 + 2, 3)
    np.testing.assert_array_equal(picture[30, 81 + 5], draw.heat(np.float32(0)))
    np.testing.assert_array_equal(picture[30, 81 + 75], draw.heat(np.float32(1)))
    with pytest.raises(InputError, match="heads, h, w"):
        draw.attention_picture(np.zeros((0, 6, 8), np.float32))


@pytest.mark.parametrize("size", [(1, 1), (16, 9), (480, 641)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_pyramid_is_drawn_as_tiles_on_any_frame(size: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(0)
    strides = (4, 8, 16, 32)[:count]
    maps = [rng.standard_normal((64 // stride, 96 // stride, 8)).astype(np.float32) for stride in strides]
    geometry = Geometry(size, (0, 0, size[1], size[0]), 0, (64, 96), (0, 0), (64, 96))
    frame = np.full((*size, 3), 128, np.uint8)
    picture = Features.pyramid(maps, strides, geometry).draw(frame)
    assert picture.shape == frame.shape and (frame == 128).all()


def test_each_tile_of_a_pyramid_shows_its_own_scale_of_the_whole_frame() -> None:
    # left half one vector, right half another: at every scale, so every tile is split in the middle
    maps = []
    for stride in (4, 8, 16, 32):
        one = np.zeros((64 // stride, 96 // stride, 8), np.float32)
        one[:, one.shape[1] // 2 :] = 1
        maps.append(one)
    geometry = Geometry((400, 600), (0, 0, 600, 400), 0, (64, 96), (0, 0), (64, 96))
    frame = np.full((400, 600, 3), 128, np.uint8)
    picture = Features.pyramid(maps, (4, 8, 16, 32), geometry).draw(frame).astype(int)
    for top in (0, 200):
        for left in (0, 300):
            tile = picture[top + 40 : top + 200, left : left + 300]  # below the label
            assert np.abs(tile[:, 40:60].mean((0, 1)) - tile[:, 240:260].mean((0, 1))).max() > 100
            assert tile[:, 40:60].std((0, 1)).max() < 30
