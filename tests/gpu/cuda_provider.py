"""ONNX Runtime on its CUDA provider as a backend of its own, for the conformance test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgevtx.runtimes import ort
from edgevtx.runtimes.base import BuildReport, Engine, EngineOptions, Probe

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
PRECISIONS = ort.PRECISIONS


def probe() -> Probe:
    """ONNX Runtime's, unavailable where this provider is not built in."""
    found = ort.probe()
    if found.available and PROVIDERS[0] not in found.devices:
        return replace(found, available=False, reason=f"this ONNX Runtime has {', '.join(found.devices)} alone")
    return found


def fingerprint(options: EngineOptions) -> dict[str, str]:
    """See `edgevtx.runtimes.base.Backend`."""
    return ort.fingerprint(replace(options, providers=PROVIDERS))


def place(options: EngineOptions) -> dict[str, str]:
    """See `edgevtx.runtimes.base.Backend`."""
    return ort.place(options)


def build(graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
    """See `edgevtx.runtimes.base.Backend`."""
    return ort.build(graph, folder, replace(options, providers=PROVIDERS))


def open(graph: Path, folder: Path, options: EngineOptions) -> Engine:  # noqa: A001 -- the protocol's name
    """See `edgevtx.runtimes.base.Backend`."""
    return ort.open(graph, folder, replace(options, providers=PROVIDERS))
