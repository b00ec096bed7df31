"""Enlarging maps to the frame: equal to torch's interpolation, for every placement of the frame in the input."""

from __future__ import annotations

import numpy as np
import pytest

from edgevtx.decode.resample import Axis, Resampling
from edgevtx.decode.upsample import argmax_maps, threshold_maps
from edgevtx.errors import InputError
from edgevtx.geometry import Geometry, plan
from edgevtx.rules import Exact, Letterbox, LongestEdge, Preprocess, ShortestEdge


def smooth(count: int, height: int, width: int, seed: int = 0, passes: int = 3) -> np.ndarray:
    """Random maps (count, height, width) float32 with hills of a few pixels."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(count, height, width))
    for axis in (1, 2):
        for _ in range(passes):
            maps = (maps + np.roll(maps, 1, axis) + np.roll(maps, -1, axis)) / 3
    return (maps * 8).astype(np.float32)


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[None]
    return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)[0].numpy()


def preprocess(size: object, **options: object) -> Preprocess:
    return Preprocess(size=size, interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1), **options)  # type: ignore[arg-type]


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    """All pixels but those which float32 rounding puts on the other side: one in ten thousand here."""
    assert found.shape == wanted.shape
    assert (found != wanted).mean() < 1e-4


SIZES = [((20, 33), (211, 340)), ((50, 64), (47, 200)), ((30, 30), (30, 30)), ((40, 50), (13, 17)), ((1, 1), (5, 9))]
SIZES += [((1, 40), (20, 333)), ((25, 1), (250, 3)), ((64, 64), (1, 1))]


@pytest.mark.parametrize(("source", "frame"), SIZES)
def test_masks_of_a_plain_resize_equal_torch(source: tuple[int, int], frame: tuple[int, int]) -> None:
    maps = smooth(5, *source)
    maps[1] = -1
    maps[2] = 1
    for threshold in (0.0, 0.7):
        found = threshold_maps(maps, Resampling.resize(source, frame), threshold)
        assert_same(found.dense(), resize(maps, frame) > threshold)


@pytest.mark.parametrize(("source", "frame"), SIZES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_argmax_of_a_plain_resize_equals_torch(source: tuple[int, int], frame: tuple[int, int], count: int) -> None:
    maps = smooth(count, *source)
    found = argmax_maps(maps, Resampling.resize(source, frame))
    assert found.dtype == np.int32
    assert_same(found, resize(maps, frame).argmax(0))


@pytest.mark.parametrize("frame", [(480, 640), (333, 500), (900, 301), (40, 50)])
def test_two_resizes_with_a_cut_equal_torch(frame: tuple[int, int]) -> None:
    """SAM's reference: to the padded input, cut to what shows the frame, to the frame."""
    geometry = plan(frame, preprocess(LongestEdge(longest=256)))
    maps = smooth(4, 64, 64)
    height, width = geometry.valid_size
    wanted = resize(resize(maps, (256, 256))[:, :height, :width], frame)
    resampling = Resampling.of(geometry, (64, 64), via_input=True)
    assert_same(threshold_maps(maps, resampling, 0.0).dense(), wanted > 0)
    assert_same(argmax_maps(maps, resampling), wanted.argmax(0))


PLACES = {
    "exact": preprocess(Exact(height=96, width=160)),
    "shortest edge": preprocess(ShortestEdge(shortest=120)),
    "centre crop": preprocess(ShortestEdge(shortest=120), crop=(96, 96)),
    "letterbox": preprocess(Letterbox(height=128, width=128)),
}


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("roi", [None, (13, 7, 190, 131)])
@pytest.mark.parametrize("place", PLACES)
def test_every_geometry_equals_masks_to_frame(place: str, roi: object, rotation: int) -> None:
    geometry = plan((150, 211), PLACES[place], roi=roi, rotation=rotation)  # type: ignore[arg-type]
    maps = smooth(3, 24, 31)
    dense = geometry.masks_to_frame(maps, fill=-np.inf)
    resampling = Resampling.of(geometry, (24, 31))
    assert_same(threshold_maps(maps, resampling, 0.2).dense(), dense > 0.2)
    wanted = np.where(np.isfinite(dense[0]), dense.argmax(0), -1)
    assert_same(argmax_maps(maps, resampling), wanted)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("place", PLACES)
def test_two_resizes_work_in_every_geometry(place: str, rotation: int) -> None:
    geometry = plan((150, 211), PLACES[place], roi=(13, 7, 190, 131), rotation=rotation)
    maps = smooth(3, 24, 31)
    x0, y0, x1, y1 = geometry.valid_box
    shown = resize(maps, geometry.input_size)[:, y0:y1, x0:x1]
    # what remains after the cut is an input of its own, without padding
    top, left = geometry.offset
    cut = Geometry((150, 211), (13, 7, 190, 131), rotation, geometry.resized, (top - y0, left - x0), (y1 - y0, x1 - x0))
    wanted = cut.masks_to_frame(shown, fill=-np.inf)
    found = threshold_maps(maps, Resampling.of(geometry, (24, 31), via_input=True), 0.2)
    assert_same(found.dense(), wanted > 0.2)


def test_pixels_that_nothing_shows_belong_to_no_mask() -> None:
    geometry = plan((100, 300), PLACES["centre crop"])
    resampling = Resampling.of(geometry, (8, 8))
    maps = np.full((2, 8, 8), 5, np.float32)
    masks, labels = threshold_maps(maps, resampling, 0.0), argmax_maps(maps, resampling)
    assert not masks.dense()[:, :, :90].any() and masks.dense()[:, 50, 150].all()
    assert (labels[:, :90] == -1).all() and labels[50, 150] == 0


def test_maps_that_show_nothing_of_the_frame_give_empty_masks() -> None:
    """As where a crop keeps a strip that lies between the lines of the frame."""
    nothing = Resampling(Axis.linear(5, 6, 1e-3, -3), Axis.resize(5, 9), (6, 9))
    maps = np.ones((2, 5, 5), np.float32)
    masks = threshold_maps(maps, nothing, 0.0)
    assert len(masks) == 2 and not masks.dense().any() and masks.areas.tolist() == [0, 0]
    assert (argmax_maps(maps, nothing) == -1).all()
    assert len(threshold_maps(maps[:0], Resampling.resize((5, 5), (6, 9)), 0.0)) == 0


def test_axes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="cannot follow"):
        Axis.resize(10, 20).after(Axis.resize(5, 9))
    for maps in (np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, 5)), np.zeros((5, 5), np.float32)):
        with pytest.raises(InputError, match=r"maps must be \(N, 5, 5\) float32"):
            threshold_maps(maps, Resampling.resize((5, 5), (9, 9)), 0.0)
    with pytest.raises(InputError, match="at least one map"):
        argmax_maps(np.zeros((0, 5, 5), np.float32), Resampling.resize((5, 5), (9, 9)))
