"""What is refused, what fails and what TensorRT-RTX does otherwise, against fakes that only record (`fake_gpu`).

These tests hold the order and the arguments of our calls. They show nothing of a GPU: see tests/gpu.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgevtx
from edgevtx import selftest
from edgevtx.adopt import adopt_plan
from edgevtx.bundle import Bundle
from edgevtx.cli.compile import command as compile_command
from edgevtx.errors import CompileError, DeviceError, InputError, RuntimeUnavailableError
from edgevtx.runtimes import cuda, libcuda, trt, trt_loaded, trt_log
from edgevtx.runtimes.base import Engine, EngineOptions, PlanOptions
from edgevtx.runtimes.plan import PLAN, encode_record, read_plan, record_path
from edgevtx.runtimes.trt import TENSORRT, TENSORRT_RTX, TensorRt
from tests.runtimes import fake_gpu, over_pycuda
from tests.runtimes.fake_gpu import Machine, crashes, feeds, is_right, make_record, write_plan
from tests.runtimes.fake_machine import LAUNCH_FAILED

OPTIONS = EngineOptions(precision="fp16", device="GPU")


# -- errors ----------------------------------------------------------------------------------------------------

OPENING = (
    "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuStreamCreate", "cuMemHostAlloc", "cuMemAlloc",
    "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize", "cuDeviceGet", "cuDeviceGetName",
    "cuDeviceComputeCapability", "cuDeviceGetAttribute", "cuDeviceTotalMem", "Runtime", "create_execution_context",
    "execute_async_v3", "set_tensor_address",
)  # fmt: skip
RUNNING = (
    "cuCtxPushCurrent", "cuMemHostAlloc", "cuMemAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize",
    "execute_async_v3", "set_tensor_address", "set_optimization_profile_async",
)  # fmt: skip


@pytest.mark.parametrize("call", OPENING)
def test_a_call_that_fails_while_opening_is_named_and_leaves_nothing(
    machine: Machine, open_plan: Callable[..., Engine], call: str
) -> None:
    machine.failing.add(call)
    with pytest.raises(DeviceError, match=rf"{call}.* failed"):
        open_plan()
    machine.failing.clear()
    gc.collect()
    if call != "cuCtxPushCurrent":  # without which nothing can be freed
        assert machine.left() == {} and machine.retained == 0
    assert machine.stack == []


@pytest.mark.parametrize("call", RUNNING)
def test_a_call_that_fails_while_running_is_named_and_the_next_run_is_right(
    machine: Machine, open_plan: Callable[..., Engine], call: str
) -> None:
    runtime = open_plan().new_runtime()
    machine.failing.add(call)
    with pytest.raises(DeviceError, match=rf"{call}.* failed"):
        runtime.run(feeds(height=16, batch=2))
    machine.failing.clear()
    assert is_right(runtime, feeds(height=16, batch=2))
    assert machine.stack == [] and not crashes(machine)


def test_a_driver_s_error_says_its_name_and_what_to_do(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    machine.failing.add("cuMemAlloc")
    with pytest.raises(DeviceError, match=r"CUDA's cuMemAlloc failed: out of memory; free memory of the GPU"):
        runtime.run(feeds(height=8))
    machine.failing, machine.result = {"cuGraphLaunch"}, LAUNCH_FAILED
    with pytest.raises(DeviceError, match=r"CUDA's cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED; .*start it anew"):
        for _ in range(4):
            runtime.run(feeds())


def test_what_tensorrt_says_is_in_the_error(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan().new_runtime()
    machine.failing.add("execute_async_v3")
    with pytest.raises(
        DeviceError, match=r"tensorrt's execute_async_v3 failed on Fake Orin \(sm87\): \[fake\] .* refused"
    ):
        runtime.run(feeds())
    machine.failing = {"infer_shapes"}
    with pytest.raises(InputError, match=r"cannot run this engine on pixels \(1, 7, 4, 3\).*infer_shapes is refused"):
        runtime.run(feeds(height=7))


def test_threads_that_open_at_once_have_one_logger(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorRT keeps the first that it is given, and not alive: another's would be freed behind its back
    both, had, found = threading.Barrier(2), threading.Event(), list[object]()

    def make_logger(*arguments: object) -> object:
        if both.wait(10):  # one of them is late
            had.wait(10)
        return object()

    def work() -> None:
        found.append(trt_log.logger(package))
        had.set()

    monkeypatch.setattr(trt_log, "make_logger", make_logger)
    package = sys.modules["tensorrt"]
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(map(id, found))) == 1


@pytest.mark.parametrize("call", ["cuMemFree", "cuMemFreeHost", "cuGraphExecDestroy", "cuDevicePrimaryCtxRelease"])
def test_what_fails_while_closing_is_told_and_the_rest_is_freed(
    machine: Machine,
    open_plan: Callable[..., Engine],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    call: str,
) -> None:
    engine = open_plan()
    runtime = engine.new_runtime()
    for _ in range(4):
        runtime.run(feeds())
    machine.failing.add(call)
    runtime.close()
    engine.close()
    if call.startswith("cuGraph"):
        assert f"{call} failed" in caplog.text
    elif over_pycuda.FOLDER in os.environ:  # of what pycuda frees, pycuda tells, and raises nothing
        assert f"PyCUDA WARNING: a clean-up operation failed (dead context maybe?)\n{call} " in capfd.readouterr().err
    assert {"delete_context", "delete_engine", "delete_runtime", "cuStreamDestroy"} <= set(machine.names())


# -- plans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_version": "10.13.0"}, "compiled by tensorrt 10.13.0, and 10.3.0 is installed"),
        ({"gpu": "sm89"}, "compiled for sm89, and the GPU here is sm87"),
        ({"target": "tensorrt-rtx"}, "is for tensorrt-rtx"),
    ],
)
def test_a_foreign_plan_is_refused_before_it_is_opened(
    machine: Machine, open_plan: Callable[..., Engine], changes: dict[str, str], message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        open_plan(record=make_record(**changes))
    assert machine.count("deserialize_cuda_engine") == 0 and machine.retained == 0


@pytest.mark.parametrize("content", [b"", b"no plan at all"], ids=["empty", "foreign"])
def test_a_damaged_plan_is_a_compile_error(machine: Machine, tmp_path: Path, content: bytes) -> None:
    graph = write_plan(tmp_path / "engine")
    (tmp_path / "engine" / PLAN).write_bytes(content)
    with pytest.raises(CompileError, match=r"engine.plan.*compile the bundle again"):
        TENSORRT.open(graph, tmp_path / "engine", OPTIONS)
    assert machine.left() == {} and machine.retained == 0


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"outputs": ["scores", "boxes"]}, "has the outputs boxes, scores, but its record says scores"),
        ({"on_host": ["valid_size"]}, "reads valid_size on the host"),
    ],
)
def test_a_plan_that_is_not_its_record_s_is_refused(
    machine: Machine, open_plan: Callable[..., Engine], facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        open_plan(**facts)
    assert machine.left() == {} and machine.retained == 0 and not crashes(machine)


def test_an_output_whose_shape_depends_on_values_is_refused(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    with pytest.raises(DeviceError, match="the shape of scores depends on values"):
        open_plan(of_values=["scores"])
    assert machine.left() == {} and machine.retained == 0


# -- TensorRT-RTX ----------------------------------------------------------------------------------------------


def test_rtx_keeps_its_kernels_beside_the_plan(
    machine: Machine, open_plan: Callable[..., Engine], tmp_path: Path
) -> None:
    stored = tmp_path / "engine" / trt_loaded.RUNTIME_CACHE
    engine = open_plan(TENSORRT_RTX)
    assert stored.read_bytes() == b"kernels"  # as soon as it is open: what it compiles late is compiled while loading
    assert machine.count("cache.deserialize") == 0
    engine.close()
    open_plan(TENSORRT_RTX).close()
    assert "cache.deserialize kernels" in machine.calls
    assert machine.left() == {} and not crashes(machine)


def test_rtx_runs_each_profile_once_when_it_is_opened(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    runtime = open_plan(TENSORRT_RTX).new_runtime()
    switched = [call for call in machine.calls if call.startswith("set_optimization_profile_async")]
    assert switched == ["set_optimization_profile_async 1", "set_optimization_profile_async 0"]
    assert machine.count("execute_async_v3") == 2
    assert is_right(runtime, feeds(height=16, batch=2)) and is_right(runtime, feeds())


def test_rtx_compiles_anew_what_its_cache_does_not_fit(
    machine: Machine, open_plan: Callable[..., Engine], tmp_path: Path
) -> None:
    stored = tmp_path / "engine" / trt_loaded.RUNTIME_CACHE
    stored.parent.mkdir()
    stored.write_bytes(b"of another driver")
    machine.failing.add("cache.deserialize")
    assert is_right(open_plan(TENSORRT_RTX).new_runtime(), feeds())
    assert stored.read_bytes() == b"kernels"


def test_rtx_runs_where_its_kernels_cannot_be_kept(
    machine: Machine, open_plan: Callable[..., Engine], tmp_path: Path
) -> None:
    (tmp_path / "engine" / trt_loaded.RUNTIME_CACHE).mkdir(parents=True)  # no file can take its place
    runtime = open_plan(TENSORRT_RTX).new_runtime()
    assert is_right(runtime, feeds())


@pytest.mark.parametrize(("graphs", "strategy"), [(True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")])
def test_rtx_captures_graphs_by_itself(
    machine: Machine, open_plan: Callable[..., Engine], graphs: bool, strategy: str
) -> None:
    runtime = open_plan(TensorRt("tensorrt-rtx", "tensorrt_rtx", graphs=graphs)).new_runtime()
    for seed in range(5):
        assert is_right(runtime, feeds(seed=seed))
    assert f"create_execution_context {strategy}" in machine.calls
    assert machine.count("cuStreamBeginCapture_v2") == 0


# -- this machine ----------------------------------------------------------------------------------------------


def test_a_probe_names_the_gpus(machine: Machine) -> None:
    found = TENSORRT.probe()
    assert (found.available, found.version, found.devices) == (True, "10.3.0", ("Fake Orin (sm87)",))
    assert machine.retained == 0  # looking makes no context


def test_a_probe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_gpu.install(monkeypatch, gpus=())
    assert "the driver finds none" in TENSORRT.probe().reason
    machine.failing.add("cuInit")
    found = TENSORRT.probe()
    assert "CUDA does not start here" in found.reason
    assert (found.available, found.version) == (False, "10.3.0")  # its compiler may be there
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    found = TENSORRT.probe()
    assert "pycuda" in found.reason and found.install == 'pip install "edgevtx[cuda]"'
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = TENSORRT.probe()
    assert found.reason == "the package tensorrt is not installed"
    assert (found.version, found.install) == ("", 'pip install "edgevtx[tensorrt]"')


def test_a_gpu_that_the_package_does_not_compile_for_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    assert TENSORRT_RTX.probe().available
    monkeypatch.setattr("edgevtx.runtimes.trt.architectures", lambda trt: ("sm86", "sm120"))
    found = TENSORRT_RTX.probe()
    assert not found.available and found.version
    assert "compiles for sm86, sm120, and here is" in found.reason


def test_a_folder_of_that_name_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = TENSORRT.probe()
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert not found.available and "tensorrt is a folder" in found.reason


def test_a_machine_without_the_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "LIBRARY", "libnone.so.1")
    libcuda.load.cache_clear()
    with pytest.raises(RuntimeUnavailableError, match=r"NVIDIA's driver is not usable here \(libnone.so.1"):
        cuda.find_gpus("tensorrt")


def test_a_fingerprint_says_what_the_engine_depends_on(machine: Machine) -> None:
    facts = TENSORRT.fingerprint(OPTIONS)
    assert facts == TENSORRT.fingerprint(EngineOptions(precision="fp16", threads=1))
    assert facts["tensorrt"] == "10.3.0" and facts["gpu"] == "sm87"
    assert facts["device name"] == "Fake Orin with 8 multiprocessors"
    elsewhere = TENSORRT_RTX.fingerprint(EngineOptions(precision="fp16", gpu="sm89"))
    assert elsewhere == {"tensorrt-rtx": "1.7.1", "gpu": "sm89", "precision": "fp16"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp4"}, "fp4 was asked for"),
        ({"gpu": "sm89"}, "compiles on its own device alone, and that is Fake Orin"),
        ({"device": "GPU.1"}, "this machine has 1 GPUs"),
    ],
)
def test_what_is_not_to_be_had_is_refused(machine: Machine, options: dict[str, str], message: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=message):
        TENSORRT.fingerprint(EngineOptions(**{"precision": "fp16", **options}))  # type: ignore[arg-type]


def test_another_gpu_than_the_one_that_compiles_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_gpu.install(monkeypatch, gpus=("Fake Orin", "Fake Thor"))
    with pytest.raises(RuntimeUnavailableError, match=r"GPU\.1 is Fake Thor.*CUDA_VISIBLE_DEVICES=1"):
        TENSORRT.build(tmp_path / "graph.onnx", tmp_path, EngineOptions(precision="fp16", device="GPU.1"))


def test_a_device_that_is_none_is_an_input_error(machine: Machine) -> None:
    with pytest.raises(InputError, match=r"GPU.NUMBER.*but got 'NPU'"):
        TENSORRT.fingerprint(EngineOptions(precision="fp16", device="NPU"))


# -- the whole way ---------------------------------------------------------------------------------------------


def test_a_bundle_is_compiled_opened_proven_and_answers(
    machine: Machine, whole: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = whole("tensorrt")
    pixels = made.parts.graph.pixels
    for hit in (False, True):
        with edgevtx.load(made.path, **made.load) as model:
            assert (model.info.cache_hit, model.info.runtime_version) == (hit, "10.3.0")
            assert model.info.verdict == "passed-here"  # the golden sample has passed
            found = model.clone().infer(model.prepare(pixels[0]))
            np.testing.assert_array_equal(found["scores"], made.parts.graph.reference(pixels)["scores"])
    assert [item.gpu for item in made.asked] == ["sm87"]
    assert "is compiled for tensorrt on sm87 in bf16" in caplog.text
    gc.collect()
    assert machine.left() == {} and machine.retained == 0 and not crashes(machine)


def test_a_plan_of_rtx_is_proven_again_on_another_gpu_or_driver_of_its_architecture(
    machine: Machine, whole: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, proven = whole("tensorrt-rtx"), list[str]()
    real = selftest.replay

    def replay(*arguments: Any) -> Any:
        proven.append(f"{machine.gpus[0]}, {trt.host.nvidia_driver()}")
        return real(*arguments)

    monkeypatch.setattr(selftest, "replay", replay)

    def load() -> list[str]:
        proven.clear()
        with edgevtx.load(made.path, **made.load) as model:
            assert model.info.verdict == "passed-here"
        return list(proven)

    monkeypatch.setattr(trt.host, "nvidia_driver", lambda: "driver 1")
    assert load() == ["Fake Orin, driver 1"]
    assert load() == []
    monkeypatch.setattr(trt.host, "nvidia_driver", lambda: "driver 2")
    assert load() == ["Fake Orin, driver 2"]
    assert load() == []
    machine.gpus = ("Another",)
    assert load() == ["Another, driver 2"]
    assert len(made.asked) == 1  # one plan serves all of them


# of TensorRT 10, from the first to the last that it says of one call
SAID = {
    "CUDA's words": (
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "IRuntime::deserializeCudaEngine: Error Code 1: Internal Error (Engine deserialization failed.)",
    ),
    "TensorRT's words": (
        "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory (Requested size was 104857600 bytes.)",
        "[runtime.cpp::deserializeCudaEngine::49] Error Code 4: Internal Error (Engine deserialization failed.)",
    ),
    "a plan's fault": ("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)",),
}


@pytest.mark.parametrize("case", SAID)
def test_only_a_plan_s_own_fault_has_it_compiled_again(machine: Machine, whole: Callable[..., Any], case: str) -> None:
    made = whole("tensorrt")
    with edgevtx.load(made.path, **made.load):
        pass
    machine.failing, machine.saying = {"deserialize_cuda_engine"}, {"deserialize_cuda_engine": SAID[case]}
    sound = case != "a plan's fault"
    message = (
        r"deserialize_cuda_engine failed on Fake Orin \(sm87\): .*of ?memory.*; free memory of the GPU, or use"
        if sound
        else "cannot open its plan .*Magic tag does not match"
    )
    with pytest.raises(DeviceError if sound else CompileError, match=f"(?i){message}"):
        edgevtx.load(made.path, **made.load)
    assert len(made.asked) == (1 if sound else 2)
    machine.failing = set()
    with edgevtx.load(made.path, **made.load) as model:
        assert model.info.cache_hit
    assert len(made.asked) == (1 if sound else 2)


def test_an_error_of_before_is_not_taken_for_this_call_s(machine: Machine, whole: Callable[..., Any]) -> None:
    made = whole("tensorrt-rtx")
    with edgevtx.load(made.path, **made.load):
        pass
    machine.failing, machine.saying = {"cache.deserialize"}, {"cache.deserialize": ("Cuda Runtime (out of memory)",)}
    with edgevtx.load(made.path, **made.load):  # which compiles its kernels anew, and asks nobody what was wrong
        machine.failing = {"deserialize_cuda_engine"}
        with pytest.raises(CompileError, match="deserialize_cuda_engine is refused"):
            edgevtx.load(made.path, **made.load)


def ship(made: Any, target: str) -> tuple[Bundle, Path]:
    """The bundle, and its plan as the GPU that is here now makes it, outside of the cache."""
    bundle, folder, graph = Bundle.open(made.path), made.path.parent / "made", f"graph.{target}.onnx"
    plan = made.path.parent / "shipped" / "tiny.plan"
    for made_here in (folder, plan.parent):
        made_here.mkdir()
    TensorRt(target, target.replace("-", "_")).build(bundle.root / graph, folder, EngineOptions("bf16", device="GPU"))
    data = (folder / PLAN).read_bytes()
    plan.write_bytes(data)
    facts: dict[str, Any] = {"name": bundle.manifest.name, "bundle": bundle.digest, "precision": "bf16", "graph": graph}
    facts["graph_sha256"] = next(item.sha256 for item in bundle.manifest.files if item.path == graph)
    facts |= {"asked": PlanOptions(batch=2), "size": len(data), "sha256": sha256(data).hexdigest()}
    record = msgspec.structs.replace(read_plan(folder / PLAN), **facts)
    record_path(plan).write_bytes(encode_record(record))
    made.asked.clear()
    return bundle, plan


def test_a_plan_from_elsewhere_is_adopted_and_proven(machine: Machine, whole: Callable[..., Any]) -> None:
    made = whole("tensorrt")
    bundle, plan = ship(made, "tensorrt")
    adopted = adopt_plan(bundle, plan, "tensorrt", EngineOptions(device="GPU"))
    assert adopted.record.asked == PlanOptions(batch=2)
    with edgevtx.load(made.path, **made.load) as model:
        assert (model.info.cache_hit, model.info.verdict) == (True, "passed-here")
    assert made.asked == []


def test_adopting_compiles_nothing_where_the_plan_does_not_open(machine: Machine, whole: Callable[..., Any]) -> None:
    made = whole("tensorrt")
    _, plan = ship(made, "tensorrt")
    machine.failing.add("deserialize_cuda_engine")
    command = ("--adopt", str(plan), "--device", "GPU", "--allow-unverified")
    with pytest.raises(CompileError, match="cannot open its plan"):
        compile_command.main([str(made.path), *command], standalone_mode=False)
    assert made.asked == []


@pytest.mark.parametrize("multiprocessors", [16, 8])
def test_a_plan_of_another_board_of_the_same_name_is_not_adopted(
    machine: Machine, whole: Callable[..., Any], multiprocessors: int
) -> None:
    made = whole("tensorrt")
    machine.multiprocessors = 16  # of an AGX Orin
    bundle, plan = ship(made, "tensorrt")
    machine.multiprocessors = multiprocessors
    with contextlib.ExitStack() as expected:
        if multiprocessors == 8:
            message = "on Fake Orin with 16 multiprocessors, and here is Fake Orin with 8 .*compile the bundle here"
            expected.enter_context(pytest.raises(CompileError, match=message))
        adopt_plan(bundle, plan, "tensorrt", EngineOptions(device="GPU"))


def test_a_plan_of_rtx_is_adopted_on_any_gpu_of_its_architecture(machine: Machine, whole: Callable[..., Any]) -> None:
    made = whole("tensorrt-rtx")
    bundle, plan = ship(made, "tensorrt-rtx")
    machine.gpus, machine.multiprocessors = ("Another",), 16
    adopt_plan(bundle, plan, "tensorrt-rtx", EngineOptions(device="GPU"))
