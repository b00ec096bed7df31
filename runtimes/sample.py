"""Inputs that an engine can be tried with: the golden sample beside its graph, or zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevtx.runtimes.base import Array, Arrays, TensorSpec

GOLDEN = "golden.npz"

# what a dynamic dimension becomes without a golden sample; a batch becomes 1
DYNAMIC_SIZE = 256


def golden(graph: Path, kind: str, part: str = "") -> Arrays:
    """The golden sample's arrays of a kind ("input" or "output") by name; empty without one beside the graph.

    `part` is the network of the bundle, "" the one that takes frames.
    """
    path = graph.parent / GOLDEN
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        prefix = f"{part}.{kind}." if part else f"{kind}."
        return {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}


def inputs(graph: Path, specs: tuple[TensorSpec, ...]) -> Arrays:
    """An array for every input: the golden sample where it fits, otherwise zeros."""
    found = golden(graph, "input")
    if all(spec.name in found and spec.accepts(found[spec.name]) for spec in specs):
        return {spec.name: found[spec.name] for spec in specs}
    return {spec.name: _blank(spec) for spec in specs}


def _blank(spec: TensorSpec) -> Array:
    shape = [(DYNAMIC_SIZE if axis else 1) if size is None else size for axis, size in enumerate(spec.shape)]
    # `valid_size` counts pixels of at most the frame's; zero of them would leave nothing to compute on
    value = DYNAMIC_SIZE if spec.dtype == "int32" else 0
    return np.full(shape, value, spec.dtype)
