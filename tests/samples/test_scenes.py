"""The scene renderer: seeded, any size, boxes that fit, clips that hold together."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from samples.forest_fire.data import augment
from samples.forest_fire.scenes import (
    FLAME,
    LABELS,
    SMOKE,
    UNKNOWN,
    Scene,
    paste_onto,
    render_clip,
    render_dense,
    render_scene,
)

SIZES = [(384, 384), (120, 200), (431, 173), (64, 64), (720, 1280)]


def check(scene: Scene, size: tuple[int, int]) -> None:
    assert scene.frame.shape == (*size, 3) and scene.frame.dtype == np.uint8
    assert scene.boxes.shape == (len(scene.class_ids), 4) and scene.boxes.dtype == np.float32
    assert scene.class_ids.dtype == np.int64 and set(scene.class_ids.tolist()) <= {SMOKE, FLAME}
    left, top, right, bottom = scene.boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[1]).all() and (bottom <= size[0]).all()
    assert (right - left >= 5).all() and (bottom - top >= 5).all()


def photograph() -> np.ndarray:
    ramp = np.linspace(0, 255, 300, dtype=np.float32)
    return np.stack([np.tile(ramp, (240, 1)), np.full((240, 300), 90), np.tile(ramp[::-1], (240, 1))], -1).astype(
        np.uint8
    )


def test_labels() -> None:
    assert LABELS == ("smoke", "flame") and LABELS[SMOKE] == "smoke" and LABELS[FLAME] == "flame"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("render", [render_scene, render_dense])
def test_any_size(render: object, size: tuple[int, int]) -> None:
    for seed in range(3):
        check(render(seed, size), size)  # type: ignore[operator]


def test_the_seed_is_everything() -> None:
    first, again, other = render_scene(7), render_scene(7), render_scene(8)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.frame != other.frame).mean() > 0.5


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    render_scene(1, (96, 96))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_both_classes_and_empty_scenes_occur() -> None:
    scenes = [render_scene(seed, (160, 160)) for seed in range(60)]
    ids = np.concatenate([scene.class_ids for scene in scenes])
    assert (ids == SMOKE).sum() > 20 and (ids == FLAME).sum() > 20
    assert any(len(scene.boxes) == 0 for scene in scenes)


def test_fires_can_be_asked_for() -> None:
    for seed in range(5):
        assert len(render_scene(seed, (128, 128), fires=(0, 0)).boxes) == 0
    assert sum(len(render_scene(s, (256, 256), fires=(6, 6)).boxes) for s in range(5)) > 25


def test_a_box_holds_what_was_painted() -> None:
    """Outside its boxes, pasting leaves a photograph as it was, but for glow and wisps too faint to label."""
    photo = photograph()
    scene = paste_onto(photo, 5, 12)
    inside = np.zeros(photo.shape[:2], bool)
    for left, top, right, bottom in scene.boxes.astype(int):
        inside[top:bottom, left:right] = True
        assert np.abs(scene.frame[top:bottom, left:right].astype(int) - photo[top:bottom, left:right]).max() > 25
    change = np.abs(scene.frame.astype(int) - photo).max(-1)
    assert change[~inside].mean() < 0.15 * change[inside].mean()


@pytest.mark.parametrize("count", [1, 25])
def test_paste_onto(count: int) -> None:
    photo = photograph()
    untouched = photo.copy()
    scene, again = paste_onto(photo, 11, count), paste_onto(photo, 11, count)
    check(scene, photo.shape[:2])
    np.testing.assert_array_equal(photo, untouched)
    np.testing.assert_array_equal(scene.frame, again.frame)
    assert 0.8 * count <= len(scene.boxes) <= count
    if count > 1:
        assert set(scene.class_ids.tolist()) == {SMOKE, FLAME}


def test_decoys_are_painted_and_not_labelled() -> None:
    photo = photograph()
    scene = paste_onto(photo, 2, 0, decoys=5)
    assert len(scene.boxes) == 0 and (scene.frame != photo).mean() > 0.01


@pytest.mark.parametrize("seed", [1, 2])
def test_clip_coherence(seed: int) -> None:
    size = (144, 256)
    clip = list(render_clip(seed, 24, size))
    assert len(clip) == 24
    for scene in clip:
        check(scene, size)
    steps = [np.abs(a.frame.astype(int) - b.frame).mean() for a, b in pairwise(clip)]
    unrelated = np.abs(render_scene(1, size).frame.astype(int) - render_scene(2, size).frame).mean()
    assert max(steps) < 0.4 * unrelated
    assert len(clip[0].boxes) == 0 and len(clip[-1].boxes) > 0
    again = next(iter(render_clip(seed, 24, size)))
    np.testing.assert_array_equal(again.frame, clip[0].frame)


def test_rendering_needs_no_torch() -> None:
    code = "import sys, samples.forest_fire.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("render", [render_scene, render_dense])
def test_segments_lie_in_their_boxes_and_fill_them(render: object) -> None:
    filled = []
    for seed in range(6):
        scene = render(seed, (180, 240))  # type: ignore[operator]
        assert scene.segments.shape == (180, 240) and scene.segments.dtype == np.uint8
        assert set(np.unique(scene.segments)) <= set(range(len(scene.boxes) + 1))
        for index, (x0, y0, x1, y1) in enumerate(scene.boxes.astype(int)):
            rows, columns = np.nonzero(scene.segments == index + 1)
            if len(rows):  # what came later may hide it
                inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
                assert inside.mean() > 0.9  # but for stray wisps
                filled.append(len(rows) / ((x1 - x0) * (y1 - y0)))
        classes = scene.class_map()
        for class_id in (SMOKE, FLAME):
            rows_of = 1 + np.flatnonzero(scene.class_ids == class_id)
            np.testing.assert_array_equal(classes == class_id + 1, np.isin(scene.segments, rows_of))
    assert np.median(filled) > 0.2


def test_the_segments_of_a_clip_follow_its_camera() -> None:
    for scene in list(render_clip(14, 8, (180, 240)))[4:]:
        assert scene.segments.shape == scene.frame.shape[:2]
        for index, (x0, _, x1, _) in enumerate(scene.boxes):
            columns = np.flatnonzero((scene.segments == index + 1).any(0))
            assert not len(columns) or (columns.mean() > x0 and columns.mean() < x1)


def test_augmentation_keeps_segments_under_their_objects_and_marks_what_lost_its_box() -> None:
    scene = render_dense(3, (192, 256))
    unknown = 0
    for seed in range(12):
        cut = augment(scene, (96, 128), np.random.default_rng(seed))
        assert cut.segments.shape == (96, 128)
        kept = np.unique(cut.segments[cut.segments != UNKNOWN])
        assert kept.max() <= len(cut.boxes)
        unknown += int((cut.segments == UNKNOWN).sum())
        np.testing.assert_array_equal(cut.class_map() == UNKNOWN, cut.segments == UNKNOWN)
        for index, (x0, y0, x1, y1) in enumerate(cut.boxes):
            rows, columns = np.nonzero(cut.segments == index + 1)
            if len(rows) > 30:
                assert x0 - 2 <= columns.mean() <= x1 + 2 and y0 - 2 <= rows.mean() <= y1 + 2
    assert unknown > 0
