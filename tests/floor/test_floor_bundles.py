"""Bundles that another environment exported load and agree here, on every runtime that is installed.

`make test-jetpack-like` exports them with the newest tools and runs this on the oldest supported ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import edgevtx
from edgevtx.compare import compare
from edgevtx.runtimes import probe

FOLDER = os.environ.get("EDGEVTX_TEST_BUNDLES", "")
BUNDLES = sorted(Path(FOLDER).glob("*.vtx")) if FOLDER else []
RUNTIMES = os.environ.get("EDGEVTX_TEST_RUNTIMES", "openvino,onnxruntime").split(",")  # what the environment is for

pytestmark = pytest.mark.skipif(
    not FOLDER, reason="EDGEVTX_TEST_BUNDLES names no folder; `make test-jetpack-like` makes one and sets it"
)


def samples_of(bundle: Path) -> dict[str, tuple[dict, dict]]:
    """name -> (inputs, reference outputs), as scripts/export_tiny_bundles.py wrote them."""
    found: dict[str, tuple[dict, dict]] = {}
    with np.load(bundle.with_suffix(".samples.npz"), allow_pickle=False) as arrays:
        for key in arrays.files:
            name, side, tensor = key.split("/")
            found.setdefault(name, ({}, {}))[side == "output"][tensor] = arrays[key]
    return found


def test_there_are_bundles_to_test():
    assert len(BUNDLES) >= 8


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.stem)
def test_a_bundle_loads_and_agrees_with_the_reference(bundle, runtime):
    found = probe(runtime)
    assert found.available, f"this environment exists to run {runtime}: {found.reason}"
    with edgevtx.load(bundle, runtime=runtime) as model:
        samples = samples_of(bundle)
        assert len(samples) >= 2
        with model.engine.new_runtime() as context:
            for name, (inputs, outputs) in samples.items():
                checks = compare(outputs, context.run(inputs), model.manifest.decode, "fp32")
                assert not [(name, check) for check in checks if not check.passed]
