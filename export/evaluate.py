"""A graph evaluated as it stands: by ONNX Runtime with every optimisation off, whatever its target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from edgevtx.runtimes.base import Arrays

Evaluate = Callable[[Arrays], Arrays]
"""Inputs by name -> outputs by name."""

INLINE_BELOW = 1024  # bytes


def open_plainly(path: Path) -> Evaluate:
    """Open a graph's file, its weights beside it. Nodes run in the order of the file, so that what measures a tensor
    follows the node that made it, and the tensor can go."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def open_model(model: ir.Model) -> Evaluate:
    """Open a graph in memory: it and its weights are written to a temporary folder for as long as opening takes."""
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(model, path, external_data="weights.bin", size_threshold_bytes=INLINE_BELOW)
        return open_plainly(path)  # what a session maps stays readable after its file is unlinked
