"""Class maps of the frame against torch's resizes, roi and rotation, thresholds, and windows put together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgevtx.decode import decode
from edgevtx.errors import InputError, VerificationError
from edgevtx.geometry import plan
from edgevtx.rules import Exact, Letterbox, Preprocess, SegmentDecode, ShortestEdge, Windows
from edgevtx.windows import average_windows, cut_windows, middle_window, run_in_turns, window_corners

LABELS = ("background", "smoke", "flame")


def manifest(size, rule, windows=None, labels=LABELS):
    preprocess = Preprocess(
        size=size, interpolation="bilinear", scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), windows=windows
    )
    return SimpleNamespace(decode=rule, labels=labels, preprocess=preprocess)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def resized(maps, *sizes):
    """(C,h,w) through torch's bilinear resizes, one after another."""
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(maps)[None]
    for size in sizes:
        tensor = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)
    return tensor[0].numpy()


@pytest.mark.parametrize("upsample", [1, 2, 4])
@pytest.mark.parametrize("frame", [(100, 150), (480, 333), (31, 17)], ids=str)
def test_the_class_of_a_pixel_is_that_of_torchs_resized_logits(upsample, frame):
    logits = noise(1, 3, 12, 16)
    given = manifest(Exact(height=96, width=128), SegmentDecode(upsample=upsample))
    found = decode({"logits": logits}, [plan(frame, given.preprocess)], given)[0]
    expected = resized(logits[0], (12 * upsample, 16 * upsample), (96, 128), frame).argmax(0)
    assert found.class_map.dtype == np.int32
    assert (found.class_map == expected).mean() > 0.9995
    assert len(np.unique(expected)) == 3
    assert found.scores is None


def test_one_class_gives_torchs_probabilities_and_its_pixels_above_the_threshold():
    logits, frame = 3 * noise(1, 1, 12, 16), (100, 150)
    given = manifest(Exact(height=96, width=128), SegmentDecode(activation="sigmoid", threshold=0.6, upsample=2))
    geometry = plan(frame, given.preprocess)
    found = decode({"logits": logits}, [geometry], given)[0]
    expected = 1 / (1 + np.exp(-resized(logits[0], (24, 32), (96, 128), frame)[0]))
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    np.testing.assert_array_equal(found.class_map, found.scores > 0.6)
    lower = decode({"logits": logits}, [geometry], given, threshold=0.2)[0]
    np.testing.assert_array_equal(lower.class_map, found.scores > 0.2)


def test_extreme_logits_neither_overflow_nor_warn():
    logits = np.array([[[[-500.0, 500.0]]]], np.float32)
    given = manifest(Exact(height=8, width=8), SegmentDecode(activation="sigmoid"), labels=("background", "fire"))
    with np.errstate(all="raise", over="ignore", under="ignore"):
        found = decode({"logits": logits}, [plan((8, 8), given.preprocess)], given)[0]
    assert set(found.class_map[:, 0]) == {0}
    assert set(found.class_map[:, -1]) == {1}


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_roi_and_a_rotation_are_undone(rotation, activation):
    given = manifest(Exact(height=40, width=40), SegmentDecode(activation=activation))
    logits = noise(1, 1 if activation == "sigmoid" else 3, 10, 10)
    geometry = plan((60, 80), given.preprocess, roi=(10, 20, 60, 50), rotation=rotation)
    found = decode({"logits": logits}, [geometry], given)[0]
    plain = decode({"logits": logits}, [plan(geometry.upright_size, given.preprocess)], given)[0]
    np.testing.assert_array_equal(found.class_map[20:50, 10:60], np.rot90(plain.class_map, rotation // 90))
    outside = np.ones((60, 80), np.bool_)
    outside[20:50, 10:60] = False
    assert (found.class_map[outside] == -1).all()
    if activation == "sigmoid":
        assert (found.scores[outside] == 0).all()


def test_a_letterbox_is_cut_off_before_the_frame_is_made():
    """As the reference does: what the border shows has no influence on the frame's edge."""
    logits = noise(1, 3, 16, 16)
    given = manifest(Letterbox(height=64, width=64, fill=0), SegmentDecode())
    found = decode({"logits": logits}, [plan((100, 200), given.preprocess)], given)[0]
    shown = resized(logits[0], (64, 64))[:, 16:48]
    assert (found.class_map == resized(shown, (100, 200)).argmax(0)).mean() > 0.9995


def test_what_cannot_be_asked_or_used_is_refused():
    given = manifest(Exact(height=8, width=8), SegmentDecode())
    geometry = plan((8, 8), given.preprocess)
    with pytest.raises(InputError, match="gives each pixel its best class, whatever its score; leave threshold out"):
        decode({"logits": noise(1, 3, 8, 8)}, [geometry], given, threshold=0.5)
    with pytest.raises(InputError, match="take no top_k"):
        decode({"logits": noise(1, 3, 8, 8)}, [geometry], given, top_k=2)
    with pytest.raises(VerificationError, match="NaN or infinity in 'logits'"):
        decode({"logits": np.full((1, 3, 8, 8), np.nan, np.float32)}, [geometry], given)


# -- windows ---------------------------------------------------------------------------------------------------


def test_windows_cover_the_image_and_the_last_ones_are_moved_back():
    windows = Windows(size=(4, 6), stride=(3, 5))
    assert window_corners((4, 6), windows) == [(0, 0)]
    assert window_corners((8, 12), windows) == [(y, x) for y in (0, 3, 4) for x in (0, 5, 6)]
    assert window_corners((7, 11), windows) == [(y, x) for y in (0, 3) for x in (0, 5)]
    image = np.arange(8 * 12 * 3).reshape(8, 12, 3)
    views = cut_windows(image, windows)
    for (top, left), view in zip(window_corners((8, 12), windows), views, strict=True):
        np.testing.assert_array_equal(view, image[top : top + 4, left : left + 6])
    np.testing.assert_array_equal(middle_window(image, windows), views[4])
    assert cut_windows(image, None)[0] is image


def test_a_colour_beyond_eight_bits_is_refused():
    with pytest.raises(InputError, match="fill must be 0 to 255"):
        Windows(size=(4, 6), stride=(3, 5), fill=(0, 0, 256))


@pytest.mark.parametrize("size", [(3, 12), (9, 5), (2, 2)], ids=str)
def test_an_image_smaller_than_a_window_is_padded_to_it_and_the_border_dropped(size):
    windows = Windows(size=(4, 6), stride=(3, 5), fill=(10, 20, 30))
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)
    whole = np.empty((max(size[0], 4), max(size[1], 6), 3), np.uint8)
    whole[:] = (10, 20, 30)
    whole[: size[0], : size[1]] = image
    corners = window_corners(size, windows)
    assert corners == window_corners(whole.shape[:2], windows)
    for (top, left), view in zip(corners, cut_windows(image, windows), strict=True):
        np.testing.assert_array_equal(view, whole[top : top + 4, left : left + 6])
    # maps that say of each pixel where it lies in the padded image come back as they were
    place = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0), indexing="ij")).astype(np.float32)
    maps = (place[:, top : top + 4, left : left + 6] for top, left in corners)
    np.testing.assert_array_equal(average_windows(maps, size, windows), place[:, : size[0], : size[1]])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_windows_of_several_frames_are_averaged_frame_by_frame(activation):
    windows = Windows(size=(32, 32), stride=(24, 20))
    given = manifest(ShortestEdge(shortest=40), SegmentDecode(activation=activation, upsample=2), windows)
    frames = [(80, 120), (150, 80)]
    geometries = [plan(frame, given.preprocess) for frame in frames]
    counts = [len(window_corners(geometry.input_size, windows)) for geometry in geometries]
    channels = 3 if activation == "softmax" else 1
    logits = noise(sum(counts), channels, 8, 8)
    found = decode({"logits": logits}, geometries, given)
    rows = iter(logits)
    for frame, geometry, result in zip(frames, geometries, found, strict=True):
        total, count = np.zeros((channels, *geometry.input_size)), np.zeros(geometry.input_size)
        for top, left in window_corners(geometry.input_size, windows):
            place = (..., slice(top, top + 32), slice(left, left + 32))
            total[place] += resized(next(rows), (16, 16), (32, 32))
            count[place] += 1
        expected = resized((total / count).astype(np.float32), frame)
        if activation == "softmax":
            assert (result.class_map == expected.argmax(0)).mean() > 0.9995
        else:
            np.testing.assert_allclose(result.scores, 1 / (1 + np.exp(-expected[0])), atol=1e-5)
    nothing = logits.copy()
    nothing[-1] = np.inf  # any window's, not only the first rows
    with pytest.raises(VerificationError, match="NaN or infinity"):
        decode({"logits": nothing}, geometries, given)


@pytest.mark.parametrize(
    ("batch", "most", "turns"),
    [
        (None, None, [5]),
        (1, None, [1] * 5),
        (2, None, [2, 2, 2]),
        (3, None, [3, 3]),
        (7, None, [7]),
        (None, 2, [2, 2, 1]),
        (None, 5, [5]),
        (None, 8, [5]),
    ],
)
def test_rows_are_run_in_turns_that_an_engine_takes(batch, most, turns):
    taken, buffer = [], np.empty((10, 2), np.float32)

    def run(inputs):
        taken.append(len(inputs["pixels"]))
        out = buffer[: taken[-1]]  # reused, as a runtime's buffers may be
        out[:] = inputs["pixels"].mean((1, 2, 3))[:, None] * [1, 10]
        return {"logits": out}

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    found = run_in_turns(run, {"pixels": pixels}, batch, most)["logits"]
    np.testing.assert_allclose(found, pixels.mean((1, 2, 3))[:, None] * np.array([1, 10]), rtol=1e-6)
    assert taken == turns
