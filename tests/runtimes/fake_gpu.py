"""A pycuda, a driver library and a TensorRT that record what is asked of them, put in the place of the real ones.

That and no more: they show that our calls come in the right order with the right arguments. They show nothing of a GPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from edgevtx.runtimes import libcuda, trt_log
from edgevtx.runtimes.base import TensorSpec
from edgevtx.runtimes.plan import PLAN, PlanRecord, ShapeRange, encode_record, record_path
from tests.runtimes import over_pycuda
from tests.runtimes.fake_machine import SM, Machine, make_driver, make_library
from tests.runtimes.fake_trt import make_tensorrt


def install(patch: Any, **options: Any) -> Machine:
    """Put the fakes in the place of the real ones; `patch` is pytest's monkeypatch, or has its `setitem`, `setattr`."""
    machine = Machine(**options)
    if over_pycuda.FOLDER in os.environ:
        library = libcuda.Library(over_pycuda.start(machine))
    else:
        driver = make_driver(machine)
        package: Any = ModuleType("pycuda")
        package.driver = driver
        patch.setitem(sys.modules, "pycuda", package)
        patch.setitem(sys.modules, "pycuda.driver", driver)
        library = libcuda.Library(make_library(machine))
    for name, version in (("tensorrt", "10.3.0"), ("tensorrt_rtx", "1.7.1")):
        patch.setitem(sys.modules, name, make_tensorrt(machine, name, version))
    patch.setattr(libcuda, "load", lambda: library)
    patch.setattr(trt_log, "_loggers", {})
    return machine


def write_plan(folder: Path, record: PlanRecord | None = None, **facts: Any) -> Path:
    """A plan with its record, and nothing of a graph: returns where the graph would be."""
    record = record or make_record()
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "inputs": {spec.name: spec.dtype for spec in record.inputs},
        "outputs": [spec.name for spec in record.outputs],
        **facts,
    }
    (folder / PLAN).write_text(json.dumps(content))
    record_path(folder / PLAN).write_bytes(encode_record(record))
    return folder.parent / "graph.tensorrt.onnx"


def make_record(*, target: str = "tensorrt", profiles: Any = None, **changes: Any) -> PlanRecord:
    """A record of a plan: `pixels` (N,H,4,3) uint8 and `valid_size` (N,2) int32 in, `scores` (N,) float32 out.

    Its profiles are one for small and one for large pictures.
    """
    if profiles is None:
        profiles = (spans(1, 4, 8), spans(6, 12, 16))
    facts: dict[str, Any] = {
        "name": "fake", "graph": "graph.tensorrt.onnx", "graph_sha256": "", "target": target, "gpu": SM,
        "target_version": "10.3.0" if target == "tensorrt" else "1.7.1", "precision": "fp16", "precision_share": {},
        "inputs": (TensorSpec("pixels", (None, None, 4, 3), "uint8"), TensorSpec("valid_size", (None, 2), "int32")),
        "outputs": (TensorSpec("scores", (None,), "float32"),), "profiles": profiles,
        "size": 0, "sha256": "", "compile_seconds": 1.0,
    }  # fmt: skip
    return PlanRecord(**{**facts, **changes})


def spans(least: int, usual: int, most: int) -> dict[str, ShapeRange]:
    """A profile of heights."""
    return {
        "pixels": ShapeRange((1, least, 4, 3), (1, usual, 4, 3), (2, most, 4, 3)),
        "valid_size": ShapeRange((1, 2), (1, 2), (2, 2)),
    }


def pointer_of(machine: Machine, array: Any, *, offset: int = 0) -> SimpleNamespace:
    """An array in the fake GPU's memory, offered as torch and CuPy offer theirs."""
    padded = np.zeros(array.nbytes + offset, np.uint8)
    padded[offset:] = array.reshape(-1).view(np.uint8)
    address = machine.allocate(padded) + offset
    facts = {"shape": array.shape, "typestr": array.dtype.str, "data": (address, False), "version": 3, "stream": None}
    return SimpleNamespace(__cuda_array_interface__=facts)


# -- what the fake engine computes -----------------------------------------------------------------------------


def feeds(height: int = 4, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Inputs with values of their own."""
    random = np.random.default_rng(seed)
    return {
        "pixels": random.integers(0, 256, (batch, height, 4, 3), dtype=np.uint8),
        "valid_size": random.integers(0, 9, (batch, 2), dtype=np.int32),
    }


def answer(inputs: dict[str, Any]) -> Any:
    """What the fake engine gives for inputs."""
    return sum(value.reshape(len(value), -1).sum(1, dtype=np.float32) for value in inputs.values())


def is_right(runtime: Any, inputs: dict[str, Any]) -> bool:
    return bool((runtime.run(inputs)["scores"] == answer(inputs)).all())


def crashes(machine: Machine) -> list[str]:
    return [call for call in machine.calls if call.startswith("CRASH")]
