"""The trained tiny DETR on real photographs with fires painted in: an answer with something to compare.

Random weights hardly tell one colour order from another; this detector loses every flame when red and blue swap.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevtx.decode.detect import decode_detections
from edgevtx.export import detr
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.parity import CONFIDENT, compare_results
from edgevtx.export.recipe import BuildOptions
from edgevtx.export.verify import run_module
from edgevtx.prepared import collate
from edgevtx.preprocess import prepare
from samples.forest_fire.scenes import paste_onto

CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "tiny_detr"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def traceable():
    return detr.build(Checkpoint.open(CHECKPOINT), BuildOptions())


def burning(name):
    from skimage import data

    return paste_onto(np.ascontiguousarray(getattr(data, name)()[..., ::-1]), seed=1, count=30).frame


def answer(traceable, frame):
    image, geometry = prepare(frame, traceable.preprocess)
    outputs = run_module(traceable, collate([image], traceable.inputs))
    row = {name: array[0] for name, array in outputs.items()}
    return decode_detections(row, geometry, traceable.decode, traceable.labels, threshold=0.0)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_answer_on_a_photograph_is_the_references(traceable, name):
    frame = burning(name)
    reference, found = traceable.reference(frame), answer(traceable, frame)
    compared = int((reference.scores > CONFIDENT).sum())
    assert compared >= 20, f"only {compared} detections to compare"
    check = compare_results(reference, found)
    assert check.passed, check.note


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_swapped_colour_order_is_noticed(traceable, name):
    frame = burning(name)
    swapped = answer(traceable, np.ascontiguousarray(frame[..., ::-1]))
    assert not compare_results(traceable.reference(frame), swapped).passed
