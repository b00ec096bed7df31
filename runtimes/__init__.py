"""Open an engine and run it; build one from a bundle's graph. Needs neither torch nor onnx.

Each backend is a module, or an object of one, that keeps `base.Backend`; it is imported when it is asked for, and its
vendor's package when it is used.
"""

from __future__ import annotations

import importlib
from typing import cast

from edgevtx.errors import InputError
from edgevtx.runtimes.base import Backend, Probe

if __name__ == "runtimes":
    raise ImportError("`runtimes` is `edgevtx.runtimes`: import it under that name, or its classes exist twice")

# name -> module, or module:object where one file serves several; a new runtime is one file here and one row
BACKENDS = {
    "openvino": "edgevtx.runtimes.ov",
    "onnxruntime": "edgevtx.runtimes.ort",
    "tensorrt": "edgevtx.runtimes.trt:TENSORRT",
    "tensorrt-rtx": "edgevtx.runtimes.trt:TENSORRT_RTX",
    "null": "edgevtx.runtimes.null",
}


def get_backend(name: str) -> Backend:
    """The backend of that name; raises `InputError` for a name that is none."""
    if name not in BACKENDS:
        raise InputError(f"runtime must be one of {', '.join(BACKENDS)}, but got {name!r}")
    module, _, attribute = BACKENDS[name].partition(":")
    found = importlib.import_module(module)
    return cast(Backend, getattr(found, attribute) if attribute else found)


def probe(name: str) -> Probe:
    """Whether the runtime is usable on this machine, and if not, why and what to do; never raises for a known one."""
    return get_backend(name).probe()


def probe_all() -> tuple[Probe, ...]:
    """Every backend's probe, in the order of the registry."""
    return tuple(probe(name) for name in BACKENDS)
