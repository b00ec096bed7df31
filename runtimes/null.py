"""Computes nothing: answers every call with the golden sample's outputs, or zeros of the manifest's shapes.

For tests, and for measuring everything but the engine. It takes any bundle's graph, and reads only the
`golden.npz` and `manifest.json` beside it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgevtx.errors import CompileError
from edgevtx.runtimes import context, host, sample
from edgevtx.runtimes.base import Array, Arrays, BuildReport, Engine, EngineOptions, Probe, Runtime, TensorSpec

TARGET = "null"
VERSION = "1"
PRECISIONS = ("fp32", "bf16", "fp16")
SPECS, OUTPUT = "null.json", "output.{}.npy"


def probe() -> Probe:
    """Always available."""
    return Probe(name=TARGET, available=True, version=VERSION, devices=("CPU",))


def fingerprint(options: EngineOptions) -> dict[str, str]:
    """See `base.Backend`."""
    return {"null": VERSION}


def place(options: EngineOptions) -> dict[str, str]:
    """See `base.Backend`: the fingerprint says it all."""
    return {}


def build(graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
    """Keep the interface and the golden outputs. Raises `CompileError` where neither file says what they are."""
    started = time.perf_counter()
    inputs, outputs = _interface(graph)
    answers = sample.golden(graph, "output")
    fitting = all(spec.name in answers and spec.accepts(answers[spec.name]) for spec in outputs)
    if not fitting:
        answers = {spec.name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in outputs}
    for index, spec in enumerate(outputs):
        np.save(folder / OUTPUT.format(index), answers[spec.name], allow_pickle=False)
    specs = {"inputs": [vars(spec) for spec in inputs], "outputs": [vars(spec) for spec in outputs]}
    (folder / SPECS).write_text(json.dumps(specs))
    seconds = time.perf_counter() - started
    return BuildReport(TARGET, VERSION, "CPU", precision_share={}, compile_seconds=seconds)


def open(graph: Path, folder: Path, options: EngineOptions) -> Engine:  # noqa: A001 -- the protocol's name
    """Open what `build` wrote; see `base.Backend`."""
    try:
        stored = json.loads((folder / SPECS).read_text())
        inputs, outputs = _specs(stored["inputs"]), _specs(stored["outputs"])
        files = [folder / OUTPUT.format(index) for index in range(len(outputs))]
        answers = [np.load(file, allow_pickle=False) for file in files]
    except (OSError, ValueError) as error:
        raise CompileError(f"cannot open the null engine in {folder}: {host.first_line(error)}") from error

    def execute(feeds: Arrays) -> Arrays:
        batch = _batch(inputs, feeds)
        return {spec.name: _answer(answer, spec, batch) for spec, answer in zip(outputs, answers, strict=True)}

    def new_runtime() -> Runtime:
        return context.Context(TARGET, inputs, outputs, execute)

    return context.engine(TARGET, VERSION, "CPU", new_runtime)


def _interface(graph: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    manifest = graph.parent / "manifest.json"
    if manifest.is_file():
        stored = json.loads(manifest.read_text())
        return _specs(stored["inputs"]), _specs(stored["outputs"])
    golden = [sample.golden(graph, kind) for kind in ("input", "output")]
    if not all(golden):
        raise CompileError(
            f"the null runtime takes its outputs from {sample.GOLDEN} or manifest.json beside the graph, but "
            f"{graph.parent} has neither; give it a bundle"
        )
    inputs, outputs = (
        tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in arrays.items()) for arrays in golden
    )
    return inputs, outputs


def _specs(stored: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], tuple(item["shape"]), item["dtype"]) for item in stored)


def _batch(inputs: tuple[TensorSpec, ...], feeds: Arrays) -> int | None:
    """The size of the batch, where it is dynamic."""
    sizes = [feeds[spec.name].shape[0] for spec in inputs if spec.shape and spec.shape[0] is None]
    return sizes[0] if sizes else None


def _answer(array: Array, spec: TensorSpec, batch: int | None) -> Array:
    repeats = batch is not None and spec.shape and spec.shape[0] is None
    answer: Array = np.repeat(array[:1], batch or 1, axis=0) if repeats else array.copy()
    return answer
