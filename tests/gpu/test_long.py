"""Shapes and threads at random, and memory after thousands of runs, on a plan of dynamic shapes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.runtimes import get_backend
from edgevtx.runtimes.base import Engine, EngineOptions
from edgevtx.runtimes.cuda import Device
from edgevtx.runtimes.plan import PLAN, read_plan

RUNS = 10_000

pytestmark = pytest.mark.usefixtures("captured")


@pytest.fixture
def graph(tiny_graph: Callable[..., Any]) -> Any:
    return tiny_graph(dynamic=True)


@pytest.fixture
def folder(target: str, graph: Any, tmp_path: Path) -> Path:
    """The folder of a plan."""
    made = tmp_path / "engine"
    made.mkdir()
    get_backend(target).build(graph.path, made, EngineOptions(device="GPU"))
    return made


@pytest.fixture
def engine(target: str, graph: Any, folder: Path) -> Iterator[Engine]:
    opened = get_backend(target).open(graph.path, folder, EngineOptions(device="GPU"))
    yield opened
    opened.close()


def pictures(folder: Path, seed: int) -> Iterator[Any]:
    """Endless pictures of random sizes within the profile, a few of each size in a row, as of cameras."""
    span = read_plan(folder / PLAN).profiles[0]["pixels"]
    random = np.random.default_rng(seed)
    while True:
        batch, height, width = (
            int(random.integers(low, high + 1)) for low, high in zip(span.min[:3], span.max[:3], strict=True)
        )
        shape = (batch, height // 4 * 4 or 4, width // 4 * 4 or 4, 3)  # the graph's patches
        if any(not low <= size <= high for low, size, high in zip(span.min, shape, span.max, strict=True)):
            continue
        for _ in range(int(random.integers(1, 6))):
            yield random.integers(0, 256, shape, dtype=np.uint8)


def agrees(runtime: Any, graph: Any, pixels: Any) -> bool:
    found, wanted = runtime.run({"pixels": pixels})["scores"], graph.reference(pixels)["scores"]
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=1e-4, atol=2e-3))


def test_random_shapes(engine: Engine, graph: Any, folder: Path) -> None:
    with engine.new_runtime() as runtime:
        for index, pixels in zip(range(500), pictures(folder, 0), strict=False):
            assert agrees(runtime, graph, pixels), pixels.shape
            if index % 50 == 0:
                with pytest.raises(InputError, match="cannot run this engine"):
                    runtime.run({"pixels": np.zeros((1, 4096, 4096, 3), np.uint8)})


def test_random_shapes_in_threads_that_come_and_go(engine: Engine, graph: Any, folder: Path) -> None:
    wrong: list[Any] = []

    def work(seed: int) -> None:
        source = pictures(folder, seed)
        for _ in range(5):
            with engine.new_runtime() as runtime:
                wrong.extend(p.shape for _, p in zip(range(40), source, strict=False) if not agrees(runtime, graph, p))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_after_many_runs(engine: Engine, folder: Path, device: Device, resident: Callable[[], int]) -> None:
    source = pictures(folder, 1)
    few = [next(source) for _ in range(40)]
    with engine.new_runtime() as runtime:
        for pixels in few * 10:
            runtime.run({"pixels": pixels})
        gc.collect()
        free, before = device.memory()[0], resident()
        for index in range(RUNS):
            runtime.run({"pixels": few[index // 4 % len(few)]})
        assert device.memory()[0] >= free - (8 << 20)
        assert resident() - before < 32 << 20


def test_memory_after_opening_and_closing(
    target: str, graph: Any, folder: Path, device: Device, resident: Callable[[], int]
) -> None:
    def once() -> None:
        engine = get_backend(target).open(graph.path, folder, EngineOptions(device="GPU"))
        runtime = engine.new_runtime()
        for _ in range(4):
            runtime.run({"pixels": graph.pixels})
        runtime.close()
        engine.close()

    for _ in range(5):
        once()
    gc.collect()
    free, before = device.memory()[0], resident()
    for _ in range(50):
        once()
    gc.collect()
    assert device.memory()[0] >= free - (16 << 20)
    assert resident() - before < 64 << 20


def test_a_tensor_of_torch_is_taken_as_it_is(engine: Engine, graph: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    pixels: Any = torch.from_numpy(graph.pixels).cuda()
    with engine.new_runtime() as runtime:
        found = runtime.run({"pixels": pixels})["scores"]
    np.testing.assert_allclose(found, graph.reference(graph.pixels)["scores"], rtol=1e-4, atol=2e-3)
    assert (pixels.cpu().numpy() == graph.pixels).all()  # and torch goes on after the engine
