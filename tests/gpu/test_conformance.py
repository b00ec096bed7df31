"""The conformance test of all runtimes, on this GPU: TensorRT, TensorRT-RTX, and ONNX Runtime's CUDA provider.

The cases are those of tests/runtimes/test_conformance.py, unchanged.
"""

from __future__ import annotations

import inspect

import pytest

from edgevtx.runtimes import BACKENDS, probe
from tests.runtimes import test_conformance as conformance
from tests.runtimes.test_conformance import graph, runtime

__all__ = ["graph", "runtime"]  # fixtures of the cases

ON_GPU = {
    "tensorrt": BACKENDS["tensorrt"],
    "tensorrt-rtx": BACKENDS["tensorrt-rtx"],
    "onnxruntime-cuda": "tests.gpu.cuda_provider",
}

globals().update(
    {
        name: case
        for name, case in vars(conformance).items()
        if name.startswith("test_") and {"backend", "runtime"} & set(inspect.signature(case).parameters)
    }
)


@pytest.fixture(params=ON_GPU)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A runtime that is usable on this GPU."""
    monkeypatch.setitem(BACKENDS, request.param, ON_GPU[request.param])
    monkeypatch.setattr(conformance, "COMPUTING", list(ON_GPU))
    found = probe(request.param)
    if not found.available:
        pytest.skip(f"{request.param}: {found.reason}")
    return str(request.param)


def test_there_are_cases() -> None:
    assert sum(name.startswith("test_") for name in globals()) > 10
