"""One test for all runtimes: whatever the protocol in `runtimes/base.py` promises, every backend keeps."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.runtimes import BACKENDS, get_backend, probe, probe_all
from edgevtx.runtimes.base import Engine, EngineOptions, Runtime, TensorSpec

COMPUTING = [name for name in BACKENDS if name != "null"]


def _needs(name: str) -> None:
    found = probe(name)
    if not found.available:
        pytest.skip(found.reason)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    _needs(request.param)
    return str(request.param)


@pytest.fixture
def graph(tiny_graph: Callable[..., Any]) -> Any:
    return tiny_graph()


@pytest.fixture
def open_engine(backend: str, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """open_engine(graph, **options) -> the engine that is built of a graph's file, in tmp_path / "engine"."""
    module, folder = get_backend(backend), tmp_path / "engine"
    with contextlib.ExitStack() as opened:

        def make(graph: Path, **options: Any) -> Engine:
            folder.mkdir()
            module.build(graph, folder, EngineOptions(**options))
            return opened.enter_context(contextlib.closing(module.open(graph, folder, EngineOptions(**options))))

        yield make


@pytest.fixture
def runtime(open_engine: Callable[..., Engine], graph: Any) -> Iterator[Runtime]:
    with open_engine(graph.path).new_runtime() as opened:
        yield opened


def test_specs_name_shape_and_dtype(runtime: Runtime) -> None:
    assert runtime.inputs == (TensorSpec("pixels", (1, 32, 48, 3), "uint8"),)
    assert runtime.outputs == (
        TensorSpec("scores", (1, 96, 5), "float32"),
        TensorSpec("class_ids", (1, 96), "int64"),
    )


def test_values_are_the_reference_s(runtime: Runtime, graph: Any) -> None:
    outputs, wanted = runtime.run({"pixels": graph.pixels}), graph.reference(graph.pixels)
    assert list(outputs) == ["scores", "class_ids"]
    assert np.ptp(wanted["scores"]) > 1  # zeros would not pass
    np.testing.assert_allclose(outputs["scores"], wanted["scores"], rtol=1e-4, atol=1e-3)
    assert (outputs["class_ids"] == wanted["class_ids"]).mean() > 0.97
    for spec in runtime.outputs:
        assert spec.accepts(outputs[spec.name])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "pixels.*is missing"),
        ({"pixels": np.zeros((1, 32, 48, 3), np.uint8), "more": np.zeros(1)}, "more.*is unknown"),
        ({"pixels": np.zeros((1, 32, 40, 3), np.uint8)}, r"must be pixels uint8\[1,32,48,3\].*1,32,40,3"),
        ({"pixels": np.zeros((32, 48, 3), np.uint8)}, "must be pixels"),
        ({"pixels": np.zeros((1, 32, 48, 3), np.float32)}, "float32"),
        ({"pixels": np.zeros((1, 32, 48, 3), np.int8)}, "int8"),
        ({"pixels": [[1, 2]]}, "numpy array, but got list"),
    ],
    ids=["missing", "unknown", "size", "rank", "dtype", "signed", "list"],
)
def test_wrong_feeds_are_input_errors(runtime: Runtime, feeds: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runtime.run(feeds)


def test_arrays_of_any_layout_are_taken(runtime: Runtime, graph: Any) -> None:
    wanted = runtime.run({"pixels": graph.pixels})["scores"]
    wide = np.zeros((1, 32, 96, 3), np.uint8)
    wide[:, :, ::2] = graph.pixels
    frozen = graph.pixels.copy()
    frozen.flags.writeable = False
    for pixels in (wide[:, :, ::2], np.asfortranarray(graph.pixels), frozen):
        np.testing.assert_array_equal(runtime.run({"pixels": pixels})["scores"], wanted)


def test_the_input_is_left_alone(runtime: Runtime, graph: Any) -> None:
    pixels = graph.pixels.copy()
    runtime.run({"pixels": pixels})
    np.testing.assert_array_equal(pixels, graph.pixels)


def test_outputs_belong_to_the_caller(runtime: Runtime, graph: Any) -> None:
    first = runtime.run({"pixels": graph.pixels})
    kept = {name: array.copy() for name, array in first.items()}
    second = runtime.run({"pixels": 255 - graph.pixels})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        assert not np.shares_memory(array, second[name])
        array[...] = 0  # writeable
    runtime.close()
    np.testing.assert_array_equal(second["scores"].shape, kept["scores"].shape)


def test_closing_twice_and_running_after(runtime: Runtime, graph: Any) -> None:
    runtime.close()
    runtime.close()
    with pytest.raises(RuntimeUnavailableError, match="was closed"):
        runtime.run({"pixels": graph.pixels})


def test_leaving_the_context_closes(open_engine: Callable[..., Engine], graph: Any) -> None:
    with open_engine(graph.path).new_runtime() as opened:
        opened.run({"pixels": graph.pixels})
    with pytest.raises(RuntimeUnavailableError, match="was closed"):
        opened.run({"pixels": graph.pixels})


def test_dynamic_shapes(backend: str, open_engine: Callable[..., Engine], tiny_graph: Callable[..., Any]) -> None:
    graph = tiny_graph(dynamic=True)
    with open_engine(graph.path).new_runtime() as opened:
        assert opened.inputs[0].shape == (None, None, None, 3)
        for shape in ((1, 32, 48, 3), (2, 40, 24, 3), (1, 32, 48, 3)):
            pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
            scores = opened.run({"pixels": pixels})["scores"]
            assert scores.shape[0] == shape[0]
            if backend in COMPUTING:
                np.testing.assert_allclose(scores, graph.reference(pixels)["scores"], rtol=1e-4, atol=1e-3)


def test_a_size_that_the_graph_cannot_take_is_an_input_error(
    backend: str, open_engine: Callable[..., Engine], tiny_graph: Callable[..., Any]
) -> None:
    with open_engine(tiny_graph(dynamic=True).path).new_runtime() as opened:
        with pytest.raises(InputError, match="must not be empty"):
            opened.run({"pixels": np.zeros((1, 0, 48, 3), np.uint8)})
        if backend in COMPUTING:
            with pytest.raises(InputError, match=r"cannot run this engine on pixels \(1, 2, 2, 3\)"):
                opened.run({"pixels": np.zeros((1, 2, 2, 3), np.uint8)})


def test_two_runtimes_of_one_engine_in_two_threads(open_engine: Callable[..., Engine], graph: Any) -> None:
    engine = open_engine(graph.path)
    inputs = [graph.pixels, 255 - graph.pixels]
    wanted = [engine.new_runtime().run({"pixels": pixels})["scores"] for pixels in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        with engine.new_runtime() as runtime:
            for _ in range(50):
                if not np.array_equal(runtime.run({"pixels": inputs[index]})["scores"], wanted[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_engine_s_runtime_outlives_it(open_engine: Callable[..., Engine], graph: Any, tmp_path: Path) -> None:
    engine = open_engine(graph.path)
    runtime = engine.new_runtime()
    wanted = runtime.run({"pixels": graph.pixels})["scores"]
    for file in (tmp_path / "engine").iterdir():  # the cache may evict it meanwhile
        file.unlink()
    engine.close()
    engine.close()
    np.testing.assert_array_equal(runtime.run({"pixels": graph.pixels})["scores"], wanted)
    with pytest.raises(RuntimeUnavailableError, match="engine was closed"):
        engine.new_runtime()


def test_a_fingerprint_says_what_the_engine_depends_on(backend: str) -> None:
    module = get_backend(backend)
    facts = module.fingerprint(EngineOptions())
    assert facts == module.fingerprint(EngineOptions(threads=1)) != {}
    assert probe(backend).version in " ".join(facts.values())


def test_a_precision_that_is_none_is_refused(backend: str, open_engine: Callable[..., Engine], graph: Any) -> None:
    if backend in COMPUTING:
        with pytest.raises(RuntimeUnavailableError, match="fp4 was asked for"):
            open_engine(graph.path, precision="fp4")


def test_an_unknown_runtime_is_an_input_error() -> None:
    with pytest.raises(InputError, match=re.escape(f"one of {', '.join(BACKENDS)}, but got 'tflite'")):
        get_backend("tflite")


def test_probes_are_in_the_order_of_the_registry() -> None:
    assert [found.name for found in probe_all()] == list(BACKENDS)
