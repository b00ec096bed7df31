"""Comparing a mask decoder's outputs: a border that wanders is a fault, a pixel on the border is none."""

from __future__ import annotations

import numpy as np
import pytest

from edgevtx.compare import compare, content, find_empty
from edgevtx.rules import PromptMasksDecode

RULE = PromptMasksDecode()


def discs(radius=9.0, shift=0.0):
    y, x = np.mgrid[:64, :64]
    logits = np.stack([radius - np.hypot(y - 30 - shift, x - centre) for centre in (20, 40)])
    return {"low_res_logits": logits[:, None].astype(np.float32), "iou": np.array([[0.9], [0.8]], np.float32)}


def test_equal_masks_pass_and_count():
    checks = compare(discs(), discs(), RULE, "fp32")
    assert all(check.passed for check in checks)
    assert checks[-1].compared == 2 == content(discs(), RULE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_that_moved_fail(precision):
    checks = compare(discs(), discs(shift=4.0), RULE, precision)
    assert not all(check.passed for check in checks)


def test_the_noise_of_a_lower_precision_passes_there_alone():
    noisy = discs()
    noise = np.random.default_rng(0).normal(0, 0.02, noisy["low_res_logits"].shape)
    noisy["low_res_logits"] = (noisy["low_res_logits"] + noise * noisy["low_res_logits"].std()).astype(np.float32)
    assert all(check.passed for check in compare(discs(), noisy, RULE, "bf16"))
    assert not all(check.passed for check in compare(discs(), noisy, RULE, "fp32"))


def test_masks_of_nothing_prove_nothing():
    empty = discs(radius=-1.0)
    checks = compare(empty, empty, RULE, "fp32")
    found = find_empty(checks, "bf16")
    assert found is not None
    assert found.name == "task: masks that overlap"
