"""How a plan is run, against a driver and a TensorRT that only record what is asked of them (`fake_gpu`).

These tests hold the order and the arguments of our calls. They show nothing of a GPU: see tests/gpu.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.runtimes import cuda, trt_run
from edgevtx.runtimes.base import Engine, TensorSpec
from edgevtx.runtimes.trt import TENSORRT, TENSORRT_RTX, TensorRt
from edgevtx.runtimes.trt_profiles import choose_profile
from tests.runtimes import fake_gpu
from tests.runtimes.fake_gpu import Machine, answer, crashes, feeds, is_right, make_record, spans

# -- buffers and shapes ----------------------------------------------------------------------------------------


def test_bytes_travel_once_each_way_and_pixels_as_uint8(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    machine.calls.clear()
    assert is_right(runtime, feeds())
    assert [call for call in machine.calls if "Memcpy" in call] == [
        "cuMemcpyHtoDAsync 48", "cuMemcpyHtoDAsync 8", "cuMemcpyDtoHAsync 4",
    ]  # fmt: skip
    assert machine.count("cuStreamSynchronize") == 1


def test_buffers_are_allocated_once(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    machine.calls.clear()
    for seed in range(8):
        assert is_right(runtime, feeds(seed=seed))
    for name in ("cuMemAlloc", "cuMemHostAlloc", "set_tensor_address", "set_input_shape"):
        assert machine.count(name) == 0


def test_a_larger_shape_grows_its_buffers_and_a_smaller_one_keeps_them(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    runtime = open_plan().new_runtime()
    machine.calls.clear()
    assert is_right(runtime, feeds(height=8, batch=2))
    assert machine.count("cuMemAlloc") == machine.count("cuMemFree") == 3
    machine.calls.clear()
    assert is_right(runtime, feeds(height=3))
    assert is_right(runtime, feeds(height=8, batch=2))
    assert machine.count("cuMemAlloc") == machine.count("cuMemFree") == 0
    assert not crashes(machine)


def test_buffers_grow_no_further_than_the_profiles(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    for height, batch in itertools.product(range(1, 20), (1, 2, 3)):
        if height <= 16 and batch <= 2:
            assert is_right(runtime, feeds(height=height, batch=batch))
            continue
        with pytest.raises(InputError, match="cannot run this engine on"):
            runtime.run(feeds(height=height, batch=batch))
    assert sum(array.nbytes for array in machine.memory.values()) == 2 * 16 * 4 * 3 + 2 * 2 * 4 + 2 * 4


def test_outputs_belong_to_the_caller(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    first, other = feeds(), feeds(seed=1)
    kept = runtime.run(first)["scores"]
    assert is_right(runtime, other)
    assert (kept == answer(first)).all() and (answer(first) != answer(other)).all()


def test_any_layout_of_an_input_is_taken(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    assert is_right(runtime, {**inputs, "pixels": np.asfortranarray(inputs["pixels"])})


@pytest.mark.parametrize(
    ("heights", "active", "wanted"),
    [(4, 0, 0), (8, 0, 0), (16, 0, 1), (6, 0, 0), (6, 1, 1), (9, 0, 1), (17, 0, None), (0, 0, None)],
)
def test_a_profile_is_chosen_that_takes_the_shapes(heights: int, active: int, wanted: int | None) -> None:
    profiles = (spans(1, 4, 8), spans(6, 12, 16))
    assert choose_profile(profiles, {"pixels": (1, heights, 4, 3), "valid_size": (1, 2)}, active) == wanted


def test_a_plan_without_profiles_is_static(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    assert choose_profile((), {"pixels": (1, 4, 4, 3)}) == 0
    runtime = open_plan(record=make_record(profiles=())).new_runtime()
    assert is_right(runtime, feeds(height=256))


def test_the_profile_is_switched_where_the_active_one_does_not_fit(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    runtime = open_plan().new_runtime()
    machine.calls.clear()
    for height in (16, 7, 4):
        assert is_right(runtime, feeds(height=height))
    switched = [call for call in machine.calls if call.startswith("set_optimization_profile_async")]
    assert switched == ["set_optimization_profile_async 1", "set_optimization_profile_async 0"]
    # nothing says that a context keeps its addresses, though the buffers are those of before
    again = machine.calls[machine.calls.index(switched[-1]) :]
    assert [call.split()[1] for call in again if call.startswith("set_tensor_address")] == [
        "pixels", "valid_size", "scores",
    ]  # fmt: skip


def test_a_shape_of_no_profile_is_an_input_error_and_the_next_run_is_right(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    runtime = open_plan().new_runtime()
    message = (
        r"cannot run this engine on pixels \(1, 17, 4, 3\).*\(1, 1, 4, 3\) to \(2, 8, 4, 3\).*or pixels .*16, 4, 3.*"
        "made with: edgevtx compile BUNDLE --target tensorrt --precision fp16 --frame 4x4 .*--frame 4x17; give"
    )
    with pytest.raises(InputError, match=message):
        runtime.run(feeds(height=17))
    assert is_right(runtime, feeds())


def test_an_empty_input_has_an_address(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    points = TensorSpec("valid_size", (1, None), "int32")  # which a prompt can do without
    record = make_record(inputs=(make_record().inputs[0], points), profiles=())
    runtime = open_plan(record=record).new_runtime()
    assert is_right(runtime, {**feeds(), "valid_size": np.zeros((1, 0), np.int32)})
    assert not crashes(machine)


# -- graphs ----------------------------------------------------------------------------------------------------


def test_runs_become_a_graph_after_warm_up(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()  # which has run it once
    machine.calls.clear()
    for seed in range(6):
        assert is_right(runtime, feeds(seed=seed))
    assert machine.count("cuGraphLaunch") == 6 - (trt_run.WARM_UP - 1)
    assert machine.count("cuStreamBeginCapture_v2") == machine.count("cuGraphInstantiateWithFlags") == 1
    assert machine.count("execute_async_v3") == trt_run.WARM_UP - 1 + 1  # and once into the graph
    assert machine.left()["graph"] == 1 and not machine.left().get("template")


def test_another_shape_drops_the_graph(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    for height in (4, 4, 4, 8, 8, 8, 4):
        assert is_right(runtime, feeds(height=height, seed=height))
    assert machine.count("cuGraphInstantiateWithFlags") == 2 == machine.count("cuGraphExecDestroy")
    assert "graph" not in machine.left()


@pytest.mark.parametrize(
    "call", ["capture", "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    machine: Machine, open_plan: Callable[..., Engine], caplog: pytest.LogCaptureFixture, call: str
) -> None:
    caplog.set_level(logging.INFO)
    runtime = open_plan().new_runtime()
    machine.failing.add(call)
    for seed in range(5):
        assert is_right(runtime, feeds(seed=seed))
    assert machine.count("cuStreamBeginCapture_v2") == 1  # not tried again
    assert "graph" not in machine.left() and not machine.left().get("template")
    assert "runs without a CUDA graph" in caplog.text
    machine.failing.clear()
    runtime.close()
    assert not crashes(machine)


def test_no_garbage_is_collected_by_who_captures(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    engine = open_plan()
    runtime, gone = engine.new_runtime(), list[Any]([engine.new_runtime()])
    gone[0].run(feeds())
    gone.append(gone)  # a cycle, which the collector alone takes down
    del gone
    before, made = gc.get_threshold(), list[Any]()

    def allocate() -> None:
        gc.set_threshold(1, 1, 1)
        made.extend([] for _ in range(5000))
        gc.set_threshold(*before)

    machine.while_capturing = allocate
    machine.calls.clear()
    try:
        for seed in range(4):
            assert is_right(runtime, feeds(seed=seed))
    finally:
        gc.set_threshold(*before)
    assert len(made) == 5000 and machine.count("cuGraphInstantiateWithFlags") == 1
    assert gc.isenabled()
    gc.collect()
    assert "delete_context" in machine.names()


def test_graphs_can_be_left_out(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan(TensorRt("tensorrt", "tensorrt", graphs=False)).new_runtime()
    for seed in range(5):
        assert is_right(runtime, feeds(seed=seed))
    assert machine.count("cuStreamBeginCapture_v2") == 0


# -- arrays of the GPU -----------------------------------------------------------------------------------------


def test_an_array_on_the_gpu_is_taken_as_it_is(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    given = fake_gpu.pointer_of(machine, inputs["pixels"])
    machine.calls.clear()
    found = runtime.run({**inputs, "pixels": given})["scores"]
    assert (found == answer(inputs)).all()
    address = given.__cuda_array_interface__["data"][0]
    assert f"set_tensor_address pixels {address}" in machine.calls
    assert [call for call in machine.calls if "HtoD" in call] == ["cuMemcpyHtoDAsync 8"]  # the other input
    for seed in range(4):  # and the staging buffer is bound again
        assert is_right(runtime, feeds(seed=seed))


def test_no_graph_outlives_a_change_of_what_the_context_reads(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    for seed in range(3):
        assert is_right(runtime, feeds(seed=seed))
    assert machine.count("cuGraphInstantiateWithFlags") == 1 and "graph" in machine.left()
    given = {**inputs, "pixels": fake_gpu.pointer_of(machine, inputs["pixels"])}
    assert (runtime.run(given)["scores"] == answer(inputs)).all()
    assert "graph" not in machine.left()  # TensorRT allows no launch of it once the context was changed
    for seed in range(3):
        assert is_right(runtime, feeds(seed=seed))
    assert machine.count("cuGraphInstantiateWithFlags") == 2
    for seed in range(6):  # in turns it is never warm
        assert is_right(runtime, feeds(seed=seed))
        assert (runtime.run(given)["scores"] == answer(inputs)).all()
    assert machine.count("cuGraphInstantiateWithFlags") == 2


def test_a_run_that_fails_waits_for_what_it_began(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    begun = fake_gpu.pointer_of(machine, inputs["pixels"], offset=12)  # not aligned, so it is copied
    elsewhere = fake_gpu.pointer_of(machine, inputs["valid_size"])
    machine.elsewhere[elsewhere.__cuda_array_interface__["data"][0]] = 1
    machine.calls.clear()
    with pytest.raises(InputError, match=r"GPU\.1"):
        runtime.run({"pixels": begun, "valid_size": elsewhere})
    names = machine.names()
    assert "cuStreamSynchronize" in names[names.index("cuMemcpyDtoDAsync") :]
    assert not any(stream.work for stream in machine.streams.values())


def test_arrays_of_many_addresses_are_read_each_in_its_place(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    runtime = open_plan().new_runtime()
    for seed in range(2 * trt_run.WARM_UP + 2):
        inputs = feeds(seed=seed)
        given = {name: fake_gpu.pointer_of(machine, array) for name, array in inputs.items()}
        assert (runtime.run(given)["scores"] == answer(inputs)).all()
    assert machine.count("cuStreamBeginCapture_v2") == 0  # a graph would read one address for good


def test_an_array_that_is_not_aligned_is_copied_on_the_gpu(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    given = fake_gpu.pointer_of(machine, inputs["pixels"], offset=12)
    machine.calls.clear()
    for _ in range(4):
        assert (runtime.run({**inputs, "pixels": given})["scores"] == answer(inputs)).all()
    assert machine.count("cuMemcpyDtoDAsync") == 4
    assert machine.count("cuGraphLaunch") == 3  # it lies where it always does, so a graph can read it
    for seed in range(3):  # another graph, which copies the pixels too
        assert is_right(runtime, feeds(seed=seed))
    assert machine.count("cuGraphInstantiateWithFlags") == 2


@pytest.mark.parametrize(
    ("version", "stream", "waits"),
    [
        (3, None, None),
        (3, 1, "cuStreamSynchronize 1"),
        (3, 77, "cuStreamSynchronize 77"),
        (2, None, "cuCtxSynchronize"),
    ],
    ids=["ready", "default stream", "a stream", "unknown"],
)
def test_the_stream_that_writes_an_array_is_waited_for(
    machine: Machine, open_plan: Callable[..., Engine], version: int, stream: int | None, waits: str | None
) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    given = fake_gpu.pointer_of(machine, inputs["pixels"])
    given.__cuda_array_interface__ |= {"version": version, "stream": stream}
    machine.calls.clear()
    runtime.run({**inputs, "pixels": given})
    found = [call for call in machine.calls if "Synchronize" in call and call != "cuStreamSynchronize"]
    assert found == ([] if waits is None else [waits])
    if waits:
        assert machine.calls.index(waits) < machine.names().index("execute_async_v3")


@pytest.mark.parametrize("backend", [TENSORRT, TENSORRT_RTX], ids=lambda backend: backend.target)
def test_a_context_is_not_waited_for_while_another_thread_captures(
    machine: Machine, open_plan: Callable[..., Engine], caplog: pytest.LogCaptureFixture, backend: TensorRt
) -> None:
    caplog.set_level(logging.INFO)
    engine, inputs = open_plan(backend), feeds(seed=9)
    capturing, waiting = engine.new_runtime(), engine.new_runtime()
    given = fake_gpu.pointer_of(machine, inputs["pixels"])
    given.__cuda_array_interface__["version"] = 2  # as torch's, which does not say what stream writes it
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(waiting.run({**inputs, "pixels": given})["scores"]))

    def meanwhile() -> None:
        machine.while_capturing = lambda: None
        thread.start()
        thread.join(0.3)  # it would be done by then

    machine.while_capturing = meanwhile
    for seed in range(trt_run.WARM_UP + 2):
        assert is_right(capturing, feeds(seed=seed))
    thread.join(10)
    assert machine.count("cuCtxSynchronize") == 1 and (found[0] == answer(inputs)).all()
    assert "runs without a CUDA graph" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (1, 2, 3, 4)}, "must be C-contiguous"),
        ({"typestr": "<f4"}, "must be pixels uint8.*but got .*float32"),
        ({"shape": (4, 4, 3)}, "must be pixels"),
        ({"shape": (1, 17, 4, 3)}, "cannot run this engine on"),
    ],
)
def test_a_wrong_array_on_the_gpu_is_an_input_error(
    machine: Machine, open_plan: Callable[..., Engine], change: dict[str, Any], message: str
) -> None:
    runtime, inputs = open_plan().new_runtime(), feeds()
    given = fake_gpu.pointer_of(machine, inputs["pixels"])
    given.__cuda_array_interface__ |= change
    with pytest.raises(InputError, match=message):
        runtime.run({**inputs, "pixels": given})


class OfTorch:
    """A tensor on the GPU that requires grad, which refuses its address in torch's words."""

    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad. If gradients aren't ...")


def test_a_tensor_that_requires_grad_is_told_to_be_detached(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    with pytest.raises(InputError, match=r"requires grad\).*give tensor\.detach\(\)"):
        runtime.run({**feeds(), "pixels": OfTorch()})


def test_strides_of_a_contiguous_array_are_taken() -> None:
    facts = {"shape": (1, 5, 3), "typestr": "<f4", "data": (512, True), "version": 3, "strides": (7, 12, 4)}
    found = cuda.adopt(SimpleNamespace(__cuda_array_interface__=facts))  # of an axis of 1 the stride is anything
    assert (found.shape, found.nbytes, found.stream) == ((1, 5, 3), 60, None)


def test_shared_memory_is_used_without_a_copy(shared: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    for seed in range(5):
        assert is_right(runtime, feeds(seed=seed, height=4 + seed // 3))
    assert not [name for name in shared.names() if "Memcpy" in name or name == "cuMemAlloc"]
    assert {call for call in shared.calls if call.startswith("cuMemHostAlloc")} >= {"cuMemHostAlloc 48 2"}
    runtime.close()
    assert not crashes(shared)
