"""Features: values, and the cosine of every vector."""

from __future__ import annotations

import numpy as np

from edgevtx.compare.tolerance import Tolerance, compare_values, round_error
from edgevtx.manifest import Check
from edgevtx.rules import EmbedDecode, KnnDecode, PyramidDecode
from edgevtx.runtimes.base import Array, Arrays


def compare_features(
    reference: Arrays, outputs: Arrays, rule: EmbedDecode | KnnDecode | PyramidDecode, tolerance: Tolerance
) -> list[Check]:
    checks = compare_values(reference, outputs, rule, tolerance)
    for name in reference:
        if name == "attention":  # probabilities, and no vectors
            continue
        want = reference[name].reshape(-1, reference[name].shape[-1])
        cosine = smallest_cosine(want, outputs[name].reshape(want.shape))
        checks.append(
            Check(
                name=f"task: cosine of {name}",
                level="task",
                passed=cosine >= tolerance.cosine,
                compared=len(want),
                error=round_error(1 - cosine),
                tolerance=round_error(1 - tolerance.cosine),
            )
        )
    return checks


def smallest_cosine(first: Array, second: Array) -> float:
    """The smallest cosine between the rows of two arrays (R,D)."""
    return float(cosines(first, second).min(initial=1.0))


def cosines(first: Array, second: Array) -> Array:
    """The cosines (R,) float64 between the rows of two arrays (R,D); a row of zeros has none, and counts as 0."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: Array = (first * second).sum(axis=1) / np.maximum(norms, 1e-12)
    return found
