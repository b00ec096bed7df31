"""The trained tiny panoptic DETR on photographs with fires painted in: masks and segments with something to compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevtx.decode.panoptic import decode_panoptic
from edgevtx.export import detr_panoptic
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.noise import rounding_noise
from edgevtx.export.parity import CONFIDENT, compare_results
from edgevtx.export.recipe import BuildOptions
from edgevtx.export.samples import load_photos
from edgevtx.export.verify import make_samples, run_module
from edgevtx.masks import MaskSet
from edgevtx.prepared import collate
from edgevtx.preprocess import prepare
from samples.forest_fire.scenes import paste_onto

CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "tiny_detr_panoptic"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
THRESHOLDS = (0.5, 0.7)
LEAST_IOU = 0.2


@pytest.fixture(scope="module")
def traceable():
    return detr_panoptic.build(Checkpoint.open(CHECKPOINT), BuildOptions())


def burning(name):
    from skimage import data

    return paste_onto(np.ascontiguousarray(getattr(data, name)()[..., ::-1]), seed=1, count=30)


def answer(traceable, frame, threshold):
    image, geometry = prepare(frame, traceable.preprocess)
    outputs = run_module(traceable, collate([image], traceable.inputs))
    row = {name: array[0] for name, array in outputs.items()}
    return decode_panoptic(row, geometry, traceable.decode, traceable.labels, threshold=threshold)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_map_segments_and_masks_on_a_photograph_are_the_references(traceable, name, threshold):
    frame = burning(name).frame
    reference, found = traceable.reference(frame, threshold), answer(traceable, frame, threshold)
    assert (reference.detections.scores > CONFIDENT).sum() >= 10, "too little to compare"
    assert len(reference.segments) >= 3
    check = compare_results(reference, found)
    assert check.passed, check.note
    equal = reference.segment_map == found.segment_map
    assert equal.mean() > 0.999
    masks, wanted = found.detections.masks.dense(), reference.detections.masks.dense()
    assert masks.any(axis=(1, 2)).sum() >= 10
    assert (masks == wanted).mean() > 0.999


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from edgevtx.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("panoptic") / "panoptic.vtx"
    report = export("detr_panoptic", Checkpoint.open(CHECKPOINT), out, ExportOptions())
    assert [item.status for item in report.manifest.verdicts] == ["passed-here"] * 2
    return report.bundle


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_engines_give_the_references_map_segments_and_masks(runtime, bundle, traceable):
    """Of a photograph, and of a frame of 16:9 with a fire in each third."""
    import edgevtx

    pytest.importorskip(runtime)
    with edgevtx.load(bundle, runtime=runtime, precision="fp32") as model:
        for frame in (burning("rocket").frame, wide_frame()):
            wanted, found = traceable.reference(frame, 0.5), model(frame, threshold=0.5)
            assert len(wanted.segments) >= 3 and len(wanted.detections) >= 10, "too little to compare"
            check = compare_results(wanted, found)
            assert check.passed, check.note
            kinds = [[(one.class_id, one.label) for one in result.segments] for result in (wanted, found)]
            assert kinds[0] == kinds[1]
            assert (wanted.segment_map == found.segment_map).mean() > 0.999
            masks = found.detections.masks.dense()
            assert (masks == wanted.detections.masks.dense()).mean((1, 2)).min() > 0.999


def wide_frame():
    """(540,960,3): photographs with fires painted in, side by side."""
    import cv2

    pictures = [cv2.resize(burning(name).frame, (320, 540)) for name in ("rocket", "coffee", "chelsea")]
    return np.ascontiguousarray(np.concatenate(pictures, 1))


def test_masks_lie_on_the_smoke_and_the_flames(traceable):
    """By the renderer's own account of what it painted: far better than a mask of the same size elsewhere."""
    overlaps, elsewhere = [], []
    for name in PHOTOGRAPHS:
        scene = burning(name)
        found = answer(traceable, scene.frame, 0.5).detections
        dense = scene.segments[None] == np.arange(1, 1 + len(scene.boxes))[:, None, None]
        true = MaskSet.from_dense(dense)
        moved = MaskSet.from_dense(np.roll(dense, [side // 2 for side in dense.shape[1:]], axis=(1, 2)))
        same = scene.class_ids[:, None] == found.class_ids[None]
        overlaps.append((true.iou(found.masks) * same).max(1))
        elsewhere.append((moved.iou(found.masks) * same).max(1))
    best = np.concatenate(overlaps)
    assert np.median(best) > LEAST_IOU, best
    assert np.median(best) > 2 * np.median(np.concatenate(elsewhere))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_swapped_colour_order_is_noticed(traceable, name):
    frame = burning(name).frame
    swapped = answer(traceable, np.ascontiguousarray(frame[..., ::-1]), 0.5)
    assert not compare_results(traceable.reference(frame, 0.5), swapped).passed


def test_rounding_alone_moves_its_masks_by_more_than_the_tolerance_allows(traceable):
    """One query has to choose between two places that are as good as equal: float32 is off there, in any runtime."""
    samples = list(make_samples(traceable, load_photos(None)))
    exchanges = [exchange for sample in samples for exchange in sample.exchanges("")]
    assert list(rounding_noise(traceable, exchanges, traceable.decode)) == ["masks"]
