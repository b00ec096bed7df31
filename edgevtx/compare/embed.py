"""Features: values, and the cosine of every vector."""

from __future__ import annotations

import numpy as np

from edgevtx.compare.tolerance import Tolerance, compare_values, round_error
from edgevtx.manifest import Check, EmbedDecode, KnnDecode, PyramidDecode
from edgevtx.runtimes.base import Arrays


def compare_features(
    reference: Arrays, outputs: Arrays, rule: EmbedDecode | KnnDecode | PyramidDecode, tolerance: Tolerance
) -> list[Check]:
    checks = compare_values(reference, outputs, rule, tolerance)
    for name in reference:
        if name == "attention":  # probabilities, and no vectors
            continue
        want = reference[name].astype(np.float64).reshape(-1, reference[name].shape[-1])
        got = outputs[name].astype(np.float64).reshape(want.shape)
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
        cosine = float(((want * got).sum(axis=1) / np.maximum(norms, 1e-12)).min())
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
