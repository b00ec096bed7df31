"""The conformance test of all runtimes, on this GPU: TensorRT, TensorRT-RTX, and ONNX Runtime's CUDA provider.

The cases are those of tests/runtimes/test_conformance.py, unchanged.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from edgevtx.runtimes import BACKENDS, probe
from tests.runtimes import test_conformance as conformance

ON_GPU = {
    "tensorrt": BACKENDS["tensorrt"],
    "tensorrt-rtx": BACKENDS["tensorrt-rtx"],
    "onnxruntime-cuda": "tests.gpu.cuda_provider",
}

RUNNING = {"backend", "open_engine", "runtime"}  # what asks for a runtime; a case without one asks for no GPU


def _is_taken(name: str, value: Any) -> bool:
    """Fixtures, but for the one below, and the cases that run something."""
    if name.startswith("test_"):
        return bool(RUNNING & set(inspect.signature(value).parameters))
    return name != "backend" and isinstance(value, type(conformance.graph))


globals().update({name: value for name, value in vars(conformance).items() if _is_taken(name, value)})


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
