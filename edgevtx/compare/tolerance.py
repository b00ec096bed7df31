"""What a precision may cost, and how far two tensors are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgevtx.manifest import Check
from edgevtx.runtimes.base import Array, Arrays

TIE = 10.0
"""A selection whose score lies within this many times the tensor error of the last one kept is a tie in fp32. Values
are judged as well, so that a large error cannot excuse itself as a tie."""

PEAK = 10.0
"""How much more than the mean one element may be off; see `error_of`."""

NOISE = 3.0
"""Two float32 computations may differ by this many times the reference's own rounding noise: each of them has as much,
and that of an engine's kernels may be somewhat more."""

NOISIEST = 10.0
"""... but by no more than this many times the tolerance, so that noise excuses no fault."""

SENSITIVE = 100.0
"""Outputs that should differ must do so by this many times the tolerance, or they could not have shown a fault."""


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost.

    `values`: largest `error_of` a tensor, in standard deviations of the reference's. `rows`: whether every one of the
    K best must be there, and not only the task's answer; a lower precision selects other rows where little is found.
    `iou`, `agreement`: a share `agreement` of the boxes must be matched at `iou` with the same class, and the same
    share of images must keep its top class. `cosine`: smallest cosine of feature vectors. `tie`: see `TIE`; `ties`:
    largest share of ties. `noise`: the reference's own, by output, in standard deviations, where it was measured.
    """

    values: float
    rows: bool
    iou: float
    agreement: float
    cosine: float
    tie: float
    ties: float = 0.05
    noise: Mapping[str, float] = field(default_factory=dict)

    def limit(self, name: str) -> float:
        """The largest error of an output: `values`, or `NOISE` times its noise, at most `NOISIEST` times fp32's."""
        most = NOISIEST * TOLERANCES["fp32"].values
        return max(self.values, min(NOISE * self.noise.get(name, 0.0), most))


TOLERANCES = {
    "fp32": Tolerance(values=1e-4, rows=True, iou=0.99, agreement=1.0, cosine=0.9999, tie=TIE),
    # two scores can change places only if both are off by half of what lies between them
    "fp16": Tolerance(values=0.02, rows=False, iou=0.95, agreement=0.99, cosine=0.999, tie=2.0),
    "bf16": Tolerance(values=0.1, rows=False, iou=0.95, agreement=0.99, cosine=0.99, tie=2.0),
    # rounding to 8 bits costs each tensor 1 to 4% of its deviation, and the errors of some fifty products add up in
    # squares; it may cost no more classes and boxes than bf16 may, but boxes and features may be farther off
    "int8": Tolerance(values=0.2, rows=False, iou=0.9, agreement=0.99, cosine=0.98, tie=2.0),
}


def sensitivity(first: Arrays, second: Arrays) -> float:
    """How far apart the outputs of two inputs are: the smallest over the float tensors of `error_of`."""
    floats = [name for name, array in first.items() if array.dtype.kind == "f"]
    return min(
        error_of(first[name], second[name]) if first[name].shape == second[name].shape else np.inf for name in floats
    )


def error_of(reference: Array, found: Array) -> float:
    """Root mean square difference in standard deviations of the reference; infinite where `found` is not finite.

    One element alone may be off by `PEAK` times as much: the error is a tenth of the largest difference where that is
    more. The mean tells arithmetic's noise from a fault, the peak catches a fault in few elements.
    """
    if reference.size == 0:
        return 0.0
    difference = np.abs(found.astype(np.float64) - reference)
    if not np.isfinite(difference).all():
        return float("inf")
    error = max(float(np.sqrt(np.mean(difference**2))), float(difference.max()) / PEAK)
    return error / (float(reference.std()) or 1.0)


def values_check(name: str, reference: Array, found: Array, tolerance: Tolerance, ties: int = 0) -> Check:
    error, limit = error_of(reference, found), tolerance.limit(name)
    return Check(
        name=f"values: {name}",
        level="values",
        passed=error <= limit,
        compared=int(reference.size),
        error=round_error(error) if np.isfinite(error) else None,
        tolerance=round_error(limit),
        ties=ties,
    )


def round_error(value: float) -> float:
    """Two significant digits: what a report can use, and what repeats from run to run."""
    return float(f"{value:.1e}")


def compare_values(reference: Arrays, outputs: Arrays, rule: object, tolerance: Tolerance) -> list[Check]:
    """Every tensor's values, and nothing else: for graphs whose outputs are another graph's inputs."""
    return [values_check(name, reference[name], outputs[name], tolerance) for name in reference]
