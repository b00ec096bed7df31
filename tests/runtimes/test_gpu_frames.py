"""Frames in a GPU's memory at the level of users, on a GPU that only records what is asked of it (`fake_gpu`).

These tests hold the order and the arguments of our calls. They show nothing of a GPU: see tests/gpu.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgevtx
from edgevtx import cache
from edgevtx.errors import InputError
from edgevtx.rules import Exact, Preprocess
from edgevtx.runtimes import resample, trt_run
from tests.runtimes.fake_gpu import Machine, crashes, pointer_of

ON_GPU: Any = {"runtime": "tensorrt", "device": "GPU", "precision": "bf16", "allow_unverified": True}


@pytest.fixture
def made(whole: Callable[..., Any]) -> Any:
    """A bundle, its golden pixels and what its engine answers."""
    found = whole("tensorrt")
    graph = found.parts.graph
    return SimpleNamespace(path=found.path, pixels=graph.pixels, wanted=graph.reference(graph.pixels))


@pytest.fixture
def model(made: Any) -> Iterator[Any]:
    with edgevtx.load(made.path, **ON_GPU) as opened:
        yield opened


@pytest.fixture
def resizing(made: Any) -> Iterator[Any]:
    with edgevtx.load(made.path, resize="gpu", **ON_GPU) as opened:
        yield opened


def answer(model: Any, frame: Any, **options: Any) -> Any:
    """The scores; the tiny network has no task that could be decoded."""
    return model.infer(model.prepare(frame, **options))["scores"]


def test_a_frame_of_the_network_s_size_goes_in_as_it_is(machine: Machine, made: Any, model: Any) -> None:
    given = pointer_of(machine, made.pixels[0])
    machine.calls.clear()
    prepared = model.prepare(given)
    assert not machine.calls  # another thread may prepare
    np.testing.assert_array_equal(model.infer(prepared)["scores"], made.wanted["scores"])
    assert f"set_tensor_address pixels {given.__cuda_array_interface__['data'][0]}" in machine.calls
    assert not [call for call in machine.calls if "HtoD" in call or "DtoD" in call]
    assert prepared.geometries[0].frame_size == (32, 48)
    machine.calls.clear()
    answer(model, made.pixels[0])  # and the staging buffer is bound again
    assert "cuMemcpyHtoDAsync 4608" in machine.calls and not crashes(machine)


class OnGpu(SimpleNamespace):
    """A tensor, to which there can be weak references."""


def test_a_frame_of_another_gpu_is_refused(machine: Machine, made: Any, model: Any, resizing: Any) -> None:
    given = pointer_of(machine, made.pixels[0])
    machine.elsewhere[given.__cuda_array_interface__["data"][0]] = 1
    for opened, color in ((model, "bgr"), (resizing, "bgr"), (resizing, "rgb")):
        with pytest.raises(InputError, match=r"memory of GPU\.1, and the engine runs on GPU\.0; copy it there, or"):
            answer(opened, given, color=color)
        np.testing.assert_array_equal(answer(opened, made.pixels[0]), made.wanted["scores"])


def test_a_frame_lives_until_it_has_been_answered(machine: Machine, made: Any, model: Any, resizing: Any) -> None:
    for opened in (model, resizing):
        given = OnGpu(**vars(pointer_of(machine, made.pixels[0])))
        kept = weakref.ref(given)
        prepared = opened.prepare(given)
        del given
        gc.collect()
        assert kept() is not None  # the allocator would give its memory to the next tensor
        opened.infer(prepared)
        del prepared
        gc.collect()
        assert kept() is None


@pytest.mark.parametrize(
    ("shape", "options"),
    [((64, 96, 3), {}), ((32, 48), {}), ((32, 48, 3), {"color": "rgb"}), ((32, 48, 3), {"roi": (0, 0, 48, 16)})],
)
def test_another_frame_wants_the_gpu_to_resize(
    machine: Machine, model: Any, resizing: Any, shape: Any, options: Any
) -> None:
    given = pointer_of(machine, np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match=r"as it is where it is \(32, 48, 3\) uint8 BGR.*resize='gpu', or copy"):
        model(given, **options)
    answer(resizing, given, **options)
    assert resizing.prepare(given, **options).geometries[0].frame_size == shape[:2]


def test_frames_of_host_and_gpu_are_resized_before_the_engine_on_its_stream(
    machine: Machine, made: Any, resizing: Any
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for given, copied in ((frame, True), (pointer_of(machine, frame), False)):
        answer(resizing, given)
        machine.calls.clear()
        np.testing.assert_array_equal(answer(resizing, given), made.wanted["scores"])
        kept = ("cuMemcpyHtoD", "cuLaunchKernel", "cuGraphLaunch", "execute_async_v3", "cuStreamSynchronize")
        done = [call for call in machine.calls if call.startswith(kept)]
        upload = int(done[0].split()[1])
        assert (upload > frame.nbytes) == copied  # without the frame it is the tables of weights alone
        names = [call.split()[0] for call in done[1:]]
        assert names[:2] == ["cuLaunchKernel"] * 2 and names[-1] == "cuStreamSynchronize"
        assert machine.count("cuStreamSynchronize") == 1


def test_the_engine_reads_the_resized_pixels(machine: Machine, resizing: Any) -> None:
    for seed in range(trt_run.WARM_UP + 3):  # some of them in a graph
        frame = np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8)
        wanted = resample.resize(frame, (32, 48), "bilinear")
        for given in (frame, pointer_of(machine, frame)):
            for color, order in (("bgr", 1), ("rgb", -1)):
                answer(resizing, given, color=color)
                bound = [call for call in machine.calls if call.startswith("set_tensor_address pixels")]
                read = machine.at(int(bound[-1].split()[-1]), wanted.nbytes)
                np.testing.assert_array_equal(read.reshape(wanted.shape), wanted[..., ::order])
    assert machine.count("cuGraphLaunch") > 0


def test_what_was_resized_is_run_as_a_graph(machine: Machine, made: Any, resizing: Any) -> None:
    for _ in range(trt_run.WARM_UP + 2):
        answer(resizing, np.zeros((60, 90, 3), np.uint8))
    machine.calls.clear()
    answer(resizing, np.zeros((60, 90, 3), np.uint8))
    assert machine.count("cuGraphLaunch") == 1 and machine.count("execute_async_v3") == 0


def test_clones_resize_too_and_all_is_taken_down(machine: Machine, made: Any, resizing: Any) -> None:
    other = resizing.clone()
    np.testing.assert_array_equal(answer(other, np.zeros((60, 90, 3), np.uint8)), made.wanted["scores"])
    assert machine.left()["module"] == 2
    for closed in (resizing, other):
        closed.close()
    assert machine.left() == {} and machine.retained == 0 and not crashes(machine)
    names = machine.names()
    assert names.index("cuModuleUnload") < names.index("cuDevicePrimaryCtxRelease")


def test_an_engine_on_the_processor_says_to_copy(machine: Machine, made: Any) -> None:
    given = pointer_of(machine, made.pixels[0])
    with edgevtx.load(made.path, runtime="null", allow_unverified=True) as model:
        with pytest.raises(InputError, match=r"in a GPU's memory, so copy it to the host: frame\.cpu\(\)\.numpy\(\)"):
            model(given)
        with pytest.raises(InputError, match="in a GPU's memory"):
            model.batch([given, made.pixels[0]])


def test_a_runtime_that_cannot_resize_is_refused_before_it_compiles(machine: Machine, made: Any) -> None:
    with pytest.raises(InputError, match=r"resize='gpu' was asked for, but null on CPU takes frames of the host"):
        edgevtx.load(made.path, runtime="null", allow_unverified=True, resize="gpu")
    assert "engines" not in [item.kind for item in cache.entries()]


def test_a_bundle_whose_frames_are_the_host_s_is_refused_before_it_is_compiled(
    machine: Machine, whole: Callable[..., Any]
) -> None:
    rule = Preprocess(
        size=Exact(height=32, width=48), interpolation="nearest", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    made = whole("tensorrt", preprocess=rule)
    with pytest.raises(InputError, match="resizes with 'nearest', which is not done on the GPU"):
        edgevtx.load(made.path, resize="gpu", **ON_GPU)
    with pytest.raises(InputError, match='resize must be "host" or "gpu"'):
        edgevtx.load(made.path, resize="cuda", **ON_GPU)
    assert not made.asked


@pytest.mark.parametrize("changes", [{"interpolation": "nearest"}, {"resize": "opencv-plain"}])
def test_a_frame_that_needs_no_resizing_is_taken_however_the_bundle_resizes(
    machine: Machine, whole: Callable[..., Any], changes: Any
) -> None:
    facts = {"size": Exact(height=32, width=48), "interpolation": "bilinear", **changes}
    made = whole("tensorrt", preprocess=Preprocess(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1), **facts))
    pixels = made.parts.graph.pixels
    with edgevtx.load(made.path, **ON_GPU) as model:
        found = answer(model, pointer_of(machine, pixels[0]))
        np.testing.assert_array_equal(found, made.parts.graph.reference(pixels)["scores"])


def test_a_gpu_that_cannot_compile_the_kernel_leaves_nothing(machine: Machine, made: Any) -> None:
    machine.failing.add("cuModuleLoadDataEx")
    with pytest.raises(edgevtx.EdgevtxError, match="cuModuleLoadDataEx failed"):
        edgevtx.load(made.path, resize="gpu", **ON_GPU)
    assert machine.left() == {} and machine.retained == 0
