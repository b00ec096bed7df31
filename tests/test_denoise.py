"""Denoising before the network: against the papers' equations written out, and what it does to photographs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgevtx
from edgevtx.bundle import write_bundle
from edgevtx.denoise import KINDS, denoise, parse_denoise, steering
from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.manifest import Manifest, decode, encode
from edgevtx.preprocess import prepare
from edgevtx.rules import Bilateral, Denoise, Exact, Lark, Letterbox, NonLocalMeans, Preprocess, ShortestEdge, SizeRule
from edgevtx.runtimes.base import Array

ALL = (Bilateral(), NonLocalMeans(), Lark())
each = pytest.mark.parametrize("how", ALL, ids=list(KINDS))


def rule(how: Denoise | None, size: SizeRule, crop: tuple[int, int] | None = None) -> Preprocess:
    return Preprocess(
        size=size, interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1), crop=crop, denoise=how
    )


@pytest.fixture(scope="module")
def photo() -> Array:
    """A photograph (240,320,3) uint8 BGR."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.coffee()[80:320, 120:440, ::-1])


def noise(clean: Array, sigma: float) -> Array:
    random = np.random.default_rng(0)
    return np.rint(clean + random.normal(0, sigma, clean.shape)).clip(0, 255).astype(np.uint8)


def psnr(clean: Array, found: Array) -> float:
    return float(10 * np.log10(255**2 / np.mean((clean.astype(np.float64) - found) ** 2)))


# -- LARK, as the paper has it ---------------------------------------------------------------------------------


def slopes(luma: Array) -> Array:
    """(H,W,2) x and y slopes by weighted least squares: a quadratic about every pixel, Gaussian weights of h = 1."""
    padded = np.pad(luma, 2, mode="symmetric")
    offsets = [(x, y) for y in range(-2, 3) for x in range(-2, 3)]
    basis = np.array([[1, x, y, x * x, x * y, y * y] for x, y in offsets], np.float64)
    weights = np.diag([np.exp(-(x * x + y * y) / 2) for x, y in offsets])
    fit = np.linalg.inv(basis.T @ weights @ basis) @ basis.T @ weights
    found = np.zeros((*luma.shape, 2))
    for row, column in np.ndindex(*luma.shape):
        samples = np.array([padded[row + 2 + y, column + 2 + x] for x, y in offsets])
        found[row, column] = (fit @ samples)[1:3]
    return found


def steering_matrix(gradients: Array, row: int, column: int, radius: int) -> Array:
    """C of one pixel by the singular value decomposition of its neighbours' gradients: (2,2)."""
    rows = slice(max(0, row - radius), row + radius + 1)
    stacked = gradients[rows, max(0, column - radius) : column + radius + 1].reshape(-1, 2)
    _, (first, second), (across, along) = np.linalg.svd(stacked, full_matrices=False)
    elongation = (first + 1.0) / (second + 1.0)
    scaling = np.sqrt((first * second + 0.01) / len(stacked))
    turned = np.stack([across, along], 1)
    return np.asarray(scaling * turned @ np.diag([elongation, 1 / elongation]) @ turned.T)


def steering_regression(image: Array, how: Lark) -> Array:
    """The estimate of every pixel, one after the other: (H,W,3) uint8."""
    planes = image.astype(np.float64)
    height, width = planes.shape[:2]
    for _ in range(how.iterations):
        gradients = slopes(planes @ [0.114, 0.587, 0.299])
        matrices = {at: steering_matrix(gradients, *at, how.analysis // 2) for at in np.ndindex(height, width)}
        estimate = np.zeros_like(planes)
        for row, column in np.ndindex(height, width):
            total, weights, radius = np.zeros(3), 0.0, how.window // 2
            for y in range(max(0, row - radius), min(height, row + radius + 1)):
                for x in range(max(0, column - radius), min(width, column + radius + 1)):
                    offset, matrix = np.array([x - column, y - row]), matrices[y, x]
                    weight = np.sqrt(np.linalg.det(matrix))
                    weight *= np.exp(-(offset @ matrix @ offset) / (2 * how.smoothing**2))
                    total, weights = total + weight * planes[y, x], weights + weight
            estimate[row, column] = total / weights
        planes = estimate
    return np.rint(planes).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "how",
    [Lark(), Lark(smoothing=1.0, window=3, analysis=7), Lark(smoothing=2.5, window=7, analysis=3, iterations=2)],
    ids=["default", "narrow", "twice"],
)
def test_lark_is_the_papers_steering_kernel_regression(how: Lark, photo: Array) -> None:
    crop = noise(photo[100:124, 60:91], 12)
    found, expected = denoise(crop, how).astype(int), steering_regression(crop, how).astype(int)
    assert np.abs(found - expected).max() <= 1  # where a half was rounded the other way
    assert (found != expected).mean() < 0.01


def test_the_kernel_lies_along_an_edge_and_is_round_where_nothing_is() -> None:
    image = np.zeros((21, 21), np.float32)
    image[:, 10:] = 200
    _, xx, xy, yy = steering(image, 2)
    assert xx[10, 10] > 100 * yy[10, 10]  # decays fast across a vertical edge, slowly along it
    assert abs(xy[10, 10]) < 1e-3 * xx[10, 10]
    assert xx[10, 2] == pytest.approx(yy[10, 2]) and xy[10, 2] == 0
    assert xx[10, 2] < 0.05  # wide in the flat part


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (40, 5)])
@each
def test_images_of_every_size_are_taken_and_flat_ones_stay(how: Denoise, size: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    flat = np.full((*size, 3), (10, 120, 240), np.uint8)
    before = flat.copy()
    found = denoise(flat, how)
    assert found.shape == flat.shape and found.dtype == np.uint8
    # OpenCV's goes through another colour space, which rounds
    assert np.abs(found.astype(int) - flat).max() <= (3 if isinstance(how, NonLocalMeans) else 0)
    np.testing.assert_array_equal(flat, before)


# -- what it is for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "gain"), [(Bilateral(), 4.0), (NonLocalMeans(), 2.0), (Lark(), 4.0)], ids=list(KINDS))
def test_a_noisy_photograph_comes_nearer_to_the_clean_one(how: Denoise, gain: float, photo: Array) -> None:
    pytest.importorskip("cv2")
    noisy = noise(photo, 12)
    assert psnr(photo, denoise(noisy, how)) > psnr(photo, noisy) + gain


@each
def test_an_edge_stays_where_a_plain_mean_smears_it(how: Denoise) -> None:
    pytest.importorskip("cv2")
    clean = np.full((40, 60, 3), 60, np.uint8)
    clean[:, 30:] = 180
    found = denoise(noise(clean, 8), how).astype(np.float64)
    step = found[:, 30].mean() - found[:, 29].mean()
    assert step > 90  # of 120; the mean of 5 x 5 px leaves 24
    assert found[5:35, 5:20].std() < 5  # of 8


def test_opencvs_parameters_reach_opencv(photo: Array) -> None:
    cv2 = pytest.importorskip("cv2")
    noisy = noise(photo, 12)
    found = denoise(noisy, Bilateral(diameter=9, sigma_color=55, sigma_space=3))
    np.testing.assert_array_equal(found, cv2.bilateralFilter(noisy, 9, 55, 3))
    found = denoise(noisy[:40, :50], NonLocalMeans(strength=4, strength_color=9, patch=3, search=9))
    np.testing.assert_array_equal(found, cv2.fastNlMeansDenoisingColored(noisy[:40, :50], None, 4, 9, 3, 9))


# -- where it is done ------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("size", "crop"),
    [
        (Exact(height=60, width=90), None),
        (Letterbox(height=64, width=64), None),
        (ShortestEdge(shortest=64), (56, 56)),
    ],
    ids=["exact", "letterbox", "crop"],
)
def test_the_resized_image_is_denoised_before_crop_and_padding(
    how: Denoise, size: SizeRule, crop: tuple[int, int] | None, photo: Array
) -> None:
    pytest.importorskip("cv2")
    frame = noise(photo, 12)
    plain, geometry = prepare(frame, rule(None, size))
    times: dict[str, float] = {}
    found, where = prepare(frame, rule(how, size, crop), times=times)
    x0, y0, x1, y1 = geometry.valid_box
    expected = plain.copy()
    expected[y0:y1, x0:x1] = denoise(plain[y0:y1, x0:x1], how)  # the fill of a letterbox is no part of it
    top, left = (-where.offset[0], -where.offset[1]) if crop else (0, 0)
    height, width = found.shape[:2]
    np.testing.assert_array_equal(found, expected[top : top + height, left : left + width])
    assert list(times) == ["denoise"] and times["denoise"] > 0


@each
def test_frames_in_rgb_give_the_same_as_in_bgr(how: Denoise, photo: Array) -> None:
    pytest.importorskip("cv2")
    asked = rule(how, Exact(height=60, width=90))
    bgr, _ = prepare(photo, asked)
    rgb, _ = prepare(photo[..., ::-1], asked, color="rgb")
    np.testing.assert_array_equal(bgr, rgb)


def test_missing_opencv_names_the_extra_and_lark_needs_none(monkeypatch: pytest.MonkeyPatch, photo: Array) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for how in (Bilateral(), NonLocalMeans()):
        with pytest.raises(RuntimeUnavailableError, match=r'denoises with OpenCV.*pip install "edgevtx\[opencv\]"'):
            prepare(photo, rule(how, Exact(height=20, width=30)))
    prepare(photo, rule(Lark(), Exact(height=20, width=30)))


@pytest.mark.parametrize("how", [None, Lark()], ids=["plain", "lark"])
def test_its_time_is_a_stage_of_its_own(
    how: Denoise | None, tiny_parts: Callable[..., Any], photo: Array, tmp_path: Path
) -> None:
    parts = tiny_parts()
    preprocess = msgspec.structs.replace(parts.manifest.preprocess, denoise=how)
    manifest = msgspec.structs.replace(parts.manifest, preprocess=preprocess)
    path = write_bundle(parts.folder, manifest, tmp_path / "tiny.vtx")
    names = ["preprocess", "engine", "decode"] if how is None else ["preprocess", "denoise", "engine", "decode"]
    with edgevtx.load(path, runtime="null", allow_unverified=True) as model:
        model.infer(prepared := model.prepare(photo))
        assert list(model.stages) == names
        if how is not None:
            assert prepared.denoise_ms is not None
            assert prepared.denoise_ms > 0
            assert prepared.milliseconds > 0


# -- parameters ------------------------------------------------------------------------------------------------


def test_words_become_parameters() -> None:
    assert parse_denoise("lark") == Lark()
    assert parse_denoise("bilateral:diameter=9, sigma_color=50.5") == Bilateral(diameter=9, sigma_color=50.5)
    assert parse_denoise("nlmeans:search=11") == NonLocalMeans(search=11)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("median", "unknown denoising 'median'; choose one of: bilateral, nlmeans, lark"),
        ("lark:strength=3", "lark has no parameter 'strength'; it takes smoothing, window"),
        ("lark:window", "window of lark must be a whole number, but got ''"),
        ("lark:window=wide", "window of lark must be a whole number, but got 'wide'"),
        ("bilateral:sigma_color=x", "sigma_color of bilateral must be a number"),
        ("lark:window=4", "window of the denoising must be an odd number of px from 3 to 15, but got 4"),
        ("lark:analysis=99", "analysis .* from 3 to 15, but got 99"),
        ("lark:smoothing=0", "smoothing of the denoising must be above 0"),
        ("lark:smoothing=nan", "smoothing of the denoising must be above 0, but got nan"),
        ("lark:iterations=0", "iterations of the denoising must be 1 to 10"),
        ("bilateral:diameter=8", "diameter of the denoising must be an odd number"),
        ("nlmeans:strength=-1", "strength of the denoising must be above 0"),
    ],
)
def test_bad_parameters_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_denoise(text)


def test_a_manifest_keeps_them_and_refuses_bad_ones(tiny_parts: Callable[..., Any]) -> None:
    manifest = tiny_parts().manifest
    preprocess = msgspec.structs.replace(manifest.preprocess, denoise=Lark(window=7))
    data = encode(msgspec.structs.replace(manifest, preprocess=preprocess))
    assert decode(data).preprocess.denoise == Lark(window=7)
    facts = msgspec.json.decode(data)
    facts["preprocess"]["denoise"]["window"] = 6
    with pytest.raises(msgspec.ValidationError, match="odd number of px"):
        msgspec.convert(facts, Manifest)
