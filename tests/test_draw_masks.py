"""Drawing masks and segments: what must show, where, and what must stay untouched."""

from __future__ import annotations

import numpy as np
import pytest

from edgevtx import draw
from edgevtx.errors import InputError
from edgevtx.masks import MaskSet
from edgevtx.results import Detections, PanopticSegmentation, Segment

SIZES = [(1, 1), (9, 16), (64, 48), (480, 640), (1080, 1920)]


def segmentation(segment_map: np.ndarray, *classes: int) -> PanopticSegmentation:
    segments = tuple(
        Segment(i + 1, kind, f"thing {kind}", 0.9, int((segment_map == i + 1).sum())) for i, kind in enumerate(classes)
    )
    return PanopticSegmentation(segment_map, segments, Detections.empty)


@pytest.mark.parametrize("size", SIZES)
def test_segments_on_any_frame(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 128, np.uint8)
    quarters = np.zeros(size, np.int32)
    quarters[: size[0] // 2, : size[1] // 2] = 1
    quarters[size[0] // 2 :, size[1] // 2 :] = 2
    drawn = segmentation(quarters, 3, 0).draw(frame)
    assert drawn.shape == frame.shape and (frame == 128).all()
    assert (drawn[quarters > 0] != 128).any(1).all()


def test_pixels_away_from_segments_stay_as_they_are() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    segment_map = np.zeros((200, 300), np.int32)
    segment_map[50:150, 100:220] = 1
    drawn = segmentation(segment_map, 0).draw(frame)
    far = np.ones((200, 300), bool)
    far[48:152, 98:222] = False
    np.testing.assert_array_equal(drawn[far], frame[far])


def test_neighbours_of_one_class_differ_in_colour() -> None:
    frame = np.zeros((100, 200, 3), np.uint8)
    segment_map = np.ones((100, 200), np.int32)
    segment_map[:, 100:] = 2
    drawn = segmentation(segment_map, 4, 4).draw(frame)
    assert (drawn[5, 5] != drawn[5, 195]).any()


def test_a_label_lies_where_its_segment_is_widest_and_only_where_it_has_room() -> None:
    segment_map = np.zeros((480, 640), np.int32)
    segment_map[200:216, :] = 1  # a long stripe ...
    segment_map[120:320, 400:600] = 1  # ... with a square in it
    segment_map[0:8, 0:8] = 2
    places = draw._places(segment_map, (1, 2))
    x, y, room = places[1]
    assert abs(x - 500) <= 16 and abs(y - 220) <= 16 and room > 80
    assert places[2][2] < 8
    plain = segmentation(segment_map, 0, 1)
    drawn = plain.draw(np.zeros((480, 640, 3), np.uint8))
    label = draw._label("thing 0", draw._font_size(drawn), draw._bytes(draw._shade(draw.PALETTE[0], 1)))
    top, left = y - label.shape[0] // 2, x - label.shape[1] // 2
    np.testing.assert_array_equal(drawn[top : top + label.shape[0], left : left + label.shape[1]], label)


def test_masks_of_detections_are_tinted() -> None:
    frame = np.full((100, 120, 3), 100, np.uint8)
    mask = np.zeros((1, 100, 120), bool)
    mask[0, 60:80, 40:70] = True
    found = Detections(
        np.array([[10, 10, 20, 20]], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        ("smoke",),
        MaskSet.from_dense(mask),
    )
    drawn = found.draw(frame)
    assert (drawn[mask[0]] == drawn[70, 50]).all() and (drawn[70, 50] != 100).any()
    assert (drawn[85:, :] == 100).all()


def test_a_frame_of_another_size_is_refused() -> None:
    frame = np.zeros((10, 20, 3), np.uint8)
    with pytest.raises(InputError, match=r"are of a frame of \(20, 10\), but got one of \(10, 20\)"):
        PanopticSegmentation.empty((20, 10)).draw(frame)
    empty = Detections.empty()
    with pytest.raises(InputError, match="draw on the frame that the model was given"):
        Detections(empty.boxes, empty.scores, empty.class_ids, (), MaskSet.empty((5, 5))).draw(frame)
