"""Preprocessing: equal to Pillow byte by byte, and to transformers' processors up to normalisation."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevtx import preprocess as module
from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.preprocess import pad_batch, prepare
from edgevtx.rules import Exact, Letterbox, LongestEdge, Preprocess, ShortestEdge

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def rule(size: Any, interpolation: Any = "bilinear", **options: Any) -> Preprocess:
    mean_std: Any = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    return Preprocess(size=size, interpolation=interpolation, scale=1 / 255, **mean_std, **options)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(frame: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """The reference: the frame as RGB through `Image.resize`, and back to BGR."""
    rgb = Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))
    return np.asarray(rgb.resize((width, height), Image.Resampling[interpolation.upper()]))[..., ::-1]


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bands, whatever the machine and however small the image."""
    monkeypatch.setattr(module, "_THREADED_PIXELS", 1)
    monkeypatch.setattr(module, "cores", lambda: 4)
    module._bands_are_exact.cache_clear()


# -- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
@settings(max_examples=100, deadline=None)
def test_equals_pillow(interpolation: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    frame = noise(*source)
    found, _ = prepare(frame, rule(Exact(height=target[0], width=target[1]), interpolation))
    np.testing.assert_array_equal(found, pillow(frame, *target, interpolation))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.usefixtures("bands")
def test_bands_on_threads_equal_pillow(interpolation: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heights with common divisors, which let the image be cut into `count` bands, and some without."""
    monkeypatch.setattr(module, "cores", lambda: count)
    rng = np.random.default_rng(count)
    for common in (1, 2, 3, 4, 7, 40):
        for _ in range(8):
            high, new_high = (int(value) * common for value in rng.integers(1, 400 // common + 2, 2))
            wide, new_wide = (int(value) for value in rng.integers(1, 400, 2))
            frame = noise(high, wide, high)
            found, _ = prepare(frame, rule(Exact(height=new_high, width=new_wide), interpolation))
            np.testing.assert_array_equal(
                found, pillow(frame, new_high, new_wide, interpolation), f"{high}x{wide} -> {new_high}x{new_wide}"
            )


@pytest.mark.parametrize("size", [(640, 640), (224, 224), (750, 1333), (518, 518), (576, 1024), (333, 77)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.usefixtures("bands")
def test_camera_frames_equal_pillow(size: tuple[int, int], interpolation: str) -> None:
    for frame in (noise(1080, 1920), noise(720, 1280), noise(1280, 720)):
        found, _ = prepare(frame, rule(Exact(height=size[0], width=size[1]), interpolation))
        np.testing.assert_array_equal(found, pillow(frame, *size, interpolation))


def test_common_cameras_are_cut_in_bands() -> None:
    for height, new_height in ((1080, 640), (1080, 224), (1080, 750), (720, 518), (2160, 800)):
        edges = module._band_edges(height, new_height, 2)
        assert len(edges) == 3 and edges[-1] == new_height
        assert edges[1] * height % new_height == 0
    assert module._band_edges(1079, 640, 4) == [0, 640]


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080)])
def test_full_hd_is_resized_in_bands(size: tuple[int, int]) -> None:
    """Not only allowed: whichever order this Pillow takes its passes in, common cameras use every core."""
    assert module._bands_are_exact(size, (640, 640), "bilinear", 2)


@pytest.mark.parametrize(
    "view",
    [
        lambda frame: frame[::-1],
        lambda frame: frame[:, ::-1],
        lambda frame: frame[10:-7, 5:-3],
        lambda frame: frame.transpose(1, 0, 2),
        lambda frame: np.asfortranarray(frame),
    ],
    ids=["flipped", "mirrored", "cut", "transposed", "fortran"],
)
@pytest.mark.usefixtures("bands")
def test_views_give_what_their_copy_gives(view: Any) -> None:
    frame = view(noise(120, 160))
    found, _ = prepare(frame, rule(Exact(height=60, width=80)))
    np.testing.assert_array_equal(found, pillow(frame.copy(), 60, 80))


def test_the_frame_is_left_alone_and_never_shared() -> None:
    frame = noise(64, 64)
    before = frame.copy()
    same, _ = prepare(frame, rule(Exact(height=64, width=64)), color="rgb")
    assert not np.shares_memory(same, frame)
    np.testing.assert_array_equal(same, frame[..., ::-1])
    same[:] = 0
    np.testing.assert_array_equal(frame, before)


# -- the reference processors ------------------------------------------------------------------------------------


def processors() -> list[tuple[str, Any, Preprocess]]:
    pytest.importorskip("transformers")
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return [
        ("vit", ViTImageProcessorPil(), rule(Exact(height=224, width=224))),
        (
            "dinov2",
            BitImageProcessorPil(size={"shortest_edge": 256}),
            rule(ShortestEdge(shortest=256), "bicubic", crop=(224, 224)),
        ),
        (
            "cut and padded",
            BitImageProcessorPil(size={"shortest_edge": 100}),
            rule(ShortestEdge(shortest=100), "bicubic", crop=(224, 224)),
        ),
        ("detr", DetrImageProcessorPil(), rule(ShortestEdge(shortest=800, longest=1333))),
        ("rtdetr", RTDetrImageProcessorPil(), rule(Exact(height=640, width=640))),
        ("sam", SamImageProcessorPil(), rule(LongestEdge(longest=1024))),
    ]


@pytest.mark.parametrize("row", range(6))
@pytest.mark.parametrize("shape", [(300, 451), (427, 640), (640, 211)])
def test_equals_the_reference_processor(row: int, shape: tuple[int, int]) -> None:
    name, processor, preprocess = processors()[row]
    frame = noise(*shape)
    want = processor(
        Image.fromarray(np.ascontiguousarray(frame[..., ::-1])),
        do_normalize=False,
        do_rescale=False,
        return_tensors="np",
    )["pixel_values"][0]
    found, geometry = prepare(frame, preprocess)
    np.testing.assert_array_equal(found[..., ::-1].transpose(2, 0, 1), want, name)
    assert geometry.input_size == found.shape[:2]


# -- region, rotation, colour, grey ------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_region_then_rotation_then_resize(rotation: int) -> None:
    frame = noise(90, 160)
    found, _ = prepare(frame, rule(Exact(height=50, width=44)), roi=(20, 10, 121, 75), rotation=rotation)
    upright = Image.fromarray(frame[10:75, 20:121]).rotate(-rotation, expand=True)
    np.testing.assert_array_equal(found, np.asarray(upright.resize((44, 50), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("size", [Exact(height=50, width=44), Letterbox(height=64, width=64)])
@pytest.mark.parametrize("crop", [None, (32, 90)])
def test_rgb_frames_give_the_same_input(size: Any, crop: Any) -> None:
    frame = noise(70, 90)
    preprocess = rule(size, crop=crop)
    want, _ = prepare(frame, preprocess)
    found, _ = prepare(frame[..., ::-1], preprocess, color="rgb")
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("resize", ["pillow", "opencv"])
def test_grey_is_repeated_over_the_channels(resize: str) -> None:
    pytest.importorskip("cv2")
    grey = noise(70, 90)[..., 0]
    preprocess = rule(Exact(height=50, width=44), resize=resize)
    want, _ = prepare(np.stack([grey] * 3, -1), preprocess)
    for frame in (grey, grey[..., None]):
        np.testing.assert_array_equal(prepare(frame, preprocess)[0], want)


def test_letterbox_is_filled_around_the_resized_frame() -> None:
    frame = noise(90, 160)
    found, geometry = prepare(frame, rule(Letterbox(height=64, width=64, fill=114)))
    np.testing.assert_array_equal(found[14:50], pillow(frame, 36, 64))
    assert (found[:14] == 114).all() and (found[50:] == 114).all()
    assert geometry.valid_box == (0, 14, 64, 50)


def test_longest_edge_is_padded_with_zeros() -> None:
    frame = noise(90, 160)
    found, geometry = prepare(frame, rule(LongestEdge(longest=64)))
    np.testing.assert_array_equal(found[:36], pillow(frame, 36, 64))
    assert (found[36:] == 0).all() and geometry.valid_size == (36, 64)


# -- out= and batches --------------------------------------------------------------------------------------------


def test_out_takes_the_result() -> None:
    frame, preprocess = noise(90, 160), rule(Letterbox(height=64, width=64))
    want, _ = prepare(frame, preprocess)
    batch = np.full((2, 64, 64, 3), 7, np.uint8)
    found, _ = prepare(frame, preprocess, out=batch[1])
    assert np.shares_memory(found, batch)
    np.testing.assert_array_equal(batch[1], want)
    assert (batch[0] == 7).all()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (np.zeros((64, 65, 3), np.uint8), r"out must be \(64, 64, 3\) uint8"),
        (np.zeros((64, 64, 3), np.float32), "float32"),
        ([1], "but got list"),
        (np.broadcast_to(np.uint8(0), (64, 64, 3)), "read-only"),
    ],
)
def test_out_is_checked(out: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(noise(9, 16), rule(Exact(height=64, width=64)), out=out)


def test_a_batch_is_padded_as_the_reference_pads() -> None:
    pytest.importorskip("transformers")
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    frames = [noise(60, 90), noise(80, 50), noise(64, 64)]
    preprocess = rule(ShortestEdge(shortest=40, longest=66))
    batch, sizes = pad_batch([prepare(frame, preprocess)[0] for frame in frames])
    processor = DetrImageProcessorPil(size={"shortest_edge": 40, "longest_edge": 66})
    want = processor(
        [Image.fromarray(frame[..., ::-1].copy()) for frame in frames],
        do_normalize=False,
        do_rescale=False,
        return_tensors="np",
    )
    np.testing.assert_array_equal(batch[..., ::-1].transpose(0, 3, 1, 2), want["pixel_values"])
    assert sizes.dtype == np.int32
    np.testing.assert_array_equal(sizes[:, 0], want["pixel_mask"].any(2).sum(1))
    np.testing.assert_array_equal(sizes[:, 1], want["pixel_mask"].any(1).sum(1))


@pytest.mark.parametrize("arrays", [[], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3), np.float32)]])
def test_a_bad_batch_is_refused(arrays: Any) -> None:
    with pytest.raises(InputError, match="batch"):
        pad_batch(arrays)


# -- OpenCV ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 640), (224, 224), (300, 400), (750, 1333)])
def test_opencv_is_nearer_to_pillow_than_its_plain_resize(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    skimage = pytest.importorskip("skimage.data")
    tile = np.tile(skimage.astronaut()[..., ::-1], (3, 4, 1))
    for frame in (tile[:1080, :1920].copy(), tile[:1079, :1919].copy()):
        want = pillow(frame, *size).astype(int)
        found, _ = prepare(frame, rule(Exact(height=size[0], width=size[1]), resize="opencv"))
        plain = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
        nearer = 1 if size == (750, 1333) else 0.7  # 750 x 1333 is too near 1080p to be halved
        assert np.abs(found - want).mean() <= nearer * np.abs(plain - want).mean()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(5, 3), (200, 100), (1, 1)])
def test_opencv_takes_every_interpolation_and_size(interpolation: str, size: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    flat = np.full((41, 67, 3), (10, 130, 250), np.uint8)
    found, _ = prepare(flat, rule(Exact(height=size[0], width=size[1]), interpolation, resize="opencv"))
    assert (found == (10, 130, 250)).all()


def test_missing_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeUnavailableError, match=r"edgevtx\[opencv\]"):
        prepare(noise(9, 16), rule(Exact(height=4, width=4), resize="opencv"))


# -- threads -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.usefixtures("bands")
def test_a_forked_child_resizes_too() -> None:
    frame, preprocess = noise(80, 80), rule(Exact(height=40, width=40))
    want, _ = prepare(frame, preprocess)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(prepare(frame, preprocess)[0], want) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("bands")
def test_an_error_in_a_band_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "fromarray", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        prepare(noise(80, 80), rule(Exact(height=40, width=40)))


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (None, "NoneType; the image could not be read"),
        ([[1, 2], [3, 4]], "but got list; convert it with numpy.asarray"),
        (np.zeros(5, np.uint8), r"but got \(5,\) uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), "one by one"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 0), np.uint8), "empty"),
        (np.zeros((8, 8, 4), np.uint8), "drop its alpha channel"),
        (np.zeros((3, 8, 8), np.uint8), "channels come first"),
        (np.zeros((8, 8, 2), np.uint8), "three channels"),
        (np.zeros((8, 8, 3), np.uint16), r"uint16; scale it to 8 bits.*>> 8"),
        (np.zeros((8, 8), np.uint16), "uint16"),
        (np.full((8, 8, 3), np.nan, np.float32), r"float32; scale it to 0\.\.255"),
        (np.zeros((8, 8, 3), bool), "bool; convert it"),
        (np.zeros((8, 8, 3), object), "object"),
    ],
)
def test_a_bad_frame_gets_one_sentence(frame: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        prepare(frame, rule(Exact(height=4, width=4)))
    assert "a frame must be (H, W, 3) uint8 BGR" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_colour_order_is_refused() -> None:
    with pytest.raises(InputError, match='"bgr" or "rgb"'):
        prepare(noise(8, 8), rule(Exact(height=4, width=4)), color="gbr")  # type: ignore[arg-type]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 60), (177, 301), (600, 900)])
def test_opencv_plain_is_one_call_of_opencvs_resize(interpolation: str, size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    frame = noise(270, 480)
    flag = {"nearest": cv2.INTER_NEAREST_EXACT, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[interpolation]
    expected = cv2.resize(frame, (size[1], size[0]), interpolation=flag)
    asked = rule(Exact(height=size[0], width=size[1]), interpolation, resize="opencv-plain")
    np.testing.assert_array_equal(prepare(frame, asked)[0], expected)
    np.testing.assert_array_equal(prepare(frame[..., ::-1], asked, color="rgb")[0], expected)


def test_opencv_plain_letterboxes_as_yolox_does() -> None:
    cv2 = pytest.importorskip("cv2")
    frame = noise(251, 477)
    expected = np.full((416, 416, 3), 114, np.uint8)
    ratio = min(416 / 251, 416 / 477)
    height, width = int(251 * ratio), int(477 * ratio)
    expected[:height, :width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    asked = rule(Letterbox(height=416, width=416, centered=False), resize="opencv-plain")
    np.testing.assert_array_equal(prepare(frame, asked)[0], expected)
