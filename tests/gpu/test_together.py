"""An engine of ours and one of ONNX Runtime's CUDA provider, open in one process: both use the primary context."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.runtimes import get_backend
from edgevtx.runtimes.base import Engine, EngineOptions
from tests.gpu import cuda_provider

pytestmark = pytest.mark.usefixtures("captured")

RUNS = 6  # past the warm-up of a graph


@pytest.fixture
def graph(tiny_graph: Callable[..., Any]) -> Any:
    return tiny_graph()


@pytest.fixture
def engines(target: str, graph: Any, tmp_path: Path) -> Iterator[dict[str, Engine]]:
    """Both, open at the same time, by name."""
    found = cuda_provider.probe()
    if not found.available:
        pytest.skip(f"onnxruntime-cuda: {found.reason}")
    backends: dict[str, Any] = {"ours": get_backend(target), "onnxruntime": cuda_provider}
    with contextlib.ExitStack() as opened:
        engines = {}
        for name, backend in backends.items():
            options, folder = EngineOptions(device="GPU" if name == "ours" else "CPU"), tmp_path / name
            folder.mkdir()
            backend.build(graph.path, folder, options)
            engines[name] = opened.enter_context(contextlib.closing(backend.open(graph.path, folder, options)))
        yield engines


def agrees(runtime: Any, graph: Any, seed: int) -> bool:
    pixels = np.random.default_rng(seed).integers(0, 256, graph.pixels.shape, np.uint8)
    found = runtime.run({"pixels": pixels})["scores"]
    return bool(np.allclose(found, graph.reference(pixels)["scores"], rtol=1e-4, atol=2e-3))


@pytest.mark.parametrize("first", ["ours", "onnxruntime"])
def test_they_run_in_turns_and_each_outlives_the_other(engines: dict[str, Engine], graph: Any, first: str) -> None:
    (left,) = {*engines} - {first}
    runtimes = {name: engine.new_runtime() for name, engine in engines.items()}
    for seed in range(RUNS):
        assert all(agrees(runtime, graph, seed) for runtime in runtimes.values())
    runtimes.pop(first).close()
    engines.pop(first).close()
    gc.collect()  # ONNX Runtime's session goes with its last name
    for seed in range(RUNS):
        assert agrees(runtimes[left], graph, seed)
    with engines[left].new_runtime() as another:
        assert agrees(another, graph, 0)
    runtimes.pop(left).close()
    engines.pop(left).close()


def test_they_run_at_once(engines: dict[str, Engine], graph: Any) -> None:
    wrong: list[str] = []

    def work(name: str) -> None:
        for start in range(0, 60, RUNS):  # a graph is captured each time
            with engines[name].new_runtime() as runtime:
                wrong.extend(name for seed in range(start, start + RUNS) if not agrees(runtime, graph, seed))

    threads = [threading.Thread(target=work, args=(name,)) for name in engines for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
