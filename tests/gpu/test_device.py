"""The device layer alone, with a kernel of its own: memory, streams, events, graphs, errors, shutdown.

It needs the driver and pycuda, and no TensorRT: these tests run on any GPU from sm75 on.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import DeviceError
from edgevtx.runtimes.base import DeviceArray
from edgevtx.runtimes.cuda import ALIGNMENT, Buffer, Device, Memory, Stream, adopt, find_gpus

ROOT = Path(__file__).parents[2]

# y = 2 x + 1 over n floats, as text that the driver compiles: no nvcc is needed
KERNEL = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry scale(.param .u64 x, .param .u64 y, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<3>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.u32 %rd5, %r5, 4;
    add.s64 %rd6, %rd3, %rd5;
    add.s64 %rd7, %rd4, %rd5;
    ld.global.f32 %f1, [%rd6];
    fma.rn.f32 %f2, %f1, 0f40000000, 0f3F800000;
    st.global.f32 [%rd7], %f2;
DONE:
    ret;
}
"""
COUNT = 1 << 16
SIZE = 4 * COUNT


class Scale:
    """The kernel between two buffers on a stream of its own. Use it while its device is current."""

    def __init__(self, device: Device) -> None:
        self.stream, self.device = Stream(device), device
        self.x, self.y = Buffer(device, SIZE), Buffer(device, SIZE)
        self._module = device.driver.module_from_buffer(KERNEL + b"\0")
        self._kernel = self._module.get_function("scale")

    def launch(self, source: int | None = None) -> None:
        pointers = (np.uint64(source or self.x.pointer), np.uint64(self.y.pointer))
        self._kernel(*pointers, np.uint32(COUNT), block=(256, 1, 1), grid=(COUNT // 256, 1), stream=self.stream.raw)

    def enqueue(self) -> None:
        self.x.upload(SIZE, self.stream)
        self.launch()
        self.y.download(SIZE, self.stream)

    def fill(self, seed: int) -> Any:
        values = np.random.default_rng(seed).normal(size=COUNT).astype(np.float32)
        np.copyto(self.x.host.view(np.float32), values)
        return values

    def answers(self, values: Any) -> bool:
        self.stream.synchronize()
        return bool(np.allclose(self.y.host.view(np.float32), 2 * values + 1, rtol=1e-6))

    def close(self) -> None:
        self._kernel = self._module = None
        self.x.free()
        self.y.free()
        self.stream.close()


@pytest.fixture
def scale(device: Device) -> Any:
    made = Scale(device)
    yield made
    made.close()


def test_a_gpu_describes_itself(device: Device) -> None:
    assert device.gpu in find_gpus("tensorrt")
    assert device.gpu.name and device.gpu.sm.startswith("sm") and device.gpu.memory > 1 << 30
    free, total = device.memory()
    assert 0 < free <= total


def test_bytes_go_there_and_back(scale: Scale) -> None:
    for seed in range(3):
        values = scale.fill(seed)
        scale.enqueue()
        assert scale.answers(values)


def test_addresses_are_aligned_for_tensorrt(device: Device) -> None:
    buffers = [Buffer(device, size) for size in (1, 3, 4097)]
    assert all(buffer.pointer % ALIGNMENT == 0 for buffer in buffers)
    for buffer in buffers:
        buffer.free()


def test_events_measure_time(scale: Scale) -> None:
    scale.fill(0)
    start = scale.stream.mark()
    for _ in range(100):
        scale.enqueue()
    end = scale.stream.mark()
    scale.stream.synchronize()
    assert 0 < end.time_since(start) < 10_000


def test_a_graph_repeats_what_was_captured_with_new_values(scale: Scale) -> None:
    scale.fill(0)
    scale.enqueue()
    scale.stream.synchronize()
    scale.y.host[:] = 0
    graph = scale.stream.capture(scale.enqueue)
    scale.stream.synchronize()
    assert not scale.y.host.any()  # capturing executes nothing
    for seed in range(50):
        values = scale.fill(seed)
        graph.launch(scale.stream)
        assert scale.answers(values)
    graph.close()


def test_a_failed_capture_leaves_the_stream_usable(scale: Scale) -> None:
    def work() -> None:
        scale.enqueue()
        scale.stream.synchronize()  # nothing that waits can be captured

    with pytest.raises(DeviceError, match="cuStreamSynchronize"):
        scale.stream.capture(work)
    values = scale.fill(1)
    scale.enqueue()
    assert scale.answers(values)
    graph = scale.stream.capture(scale.enqueue)
    graph.launch(scale.stream)
    assert scale.answers(values)
    graph.close()


def test_another_thread_s_allocation_ends_no_capture(scale: Scale) -> None:
    device = scale.device

    def allocate() -> None:
        with device.current():
            Buffer(device, 1 << 20).free()

    def work() -> None:
        scale.x.upload(SIZE, scale.stream)
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        scale.launch()
        scale.y.download(SIZE, scale.stream)

    values = scale.fill(0)
    graph = scale.stream.capture(work)
    graph.launch(scale.stream)
    assert scale.answers(values)
    graph.close()


def test_another_thread_s_wait_for_the_context_ends_no_capture(scale: Scale) -> None:
    device, wrong = scale.device, list[DeviceError]()

    def wait() -> None:
        try:
            with device.current():
                device.wait_for(DeviceArray.ANY_STREAM)
        except DeviceError as error:
            wrong.append(error)

    thread = threading.Thread(target=wait)

    def work() -> None:
        scale.x.upload(SIZE, scale.stream)
        thread.start()
        thread.join(0.5)  # it would be done by then
        scale.launch()
        scale.y.download(SIZE, scale.stream)

    values = scale.fill(0)
    graph = scale.stream.capture(work)
    thread.join()
    graph.launch(scale.stream)
    assert scale.answers(values) and not wrong
    graph.close()


def test_threads_have_streams_of_their_own(device: Device) -> None:
    wrong: list[int] = []

    def work(index: int) -> None:
        with device.current():
            scale = Scale(device)
            for seed in range(200):
                values = scale.fill(1000 * index + seed)
                scale.enqueue()
                if not scale.answers(values):
                    wrong.append(index)
            scale.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_one_thread_made_another_frees(device: Device) -> None:
    made: list[Scale] = []

    def work() -> None:
        with device.current():
            made.append(Scale(device))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    values = made[0].fill(0)
    made[0].enqueue()
    assert made[0].answers(values)
    free, _ = device.memory()
    made[0].close()
    assert device.memory()[0] >= free


def test_memory_of_the_host_is_read_in_place(device: Device, scale: Scale) -> None:
    # what a Jetson does with every buffer; other GPUs read it over the bus
    mapped = device.driver.pagelocked_empty((COUNT,), np.float32, mem_flags=device.driver.host_alloc_flags.DEVICEMAP)
    mapped[:] = np.arange(COUNT)
    scale.launch(int(mapped.base.get_device_pointer()))
    scale.y.download(SIZE, scale.stream)
    assert scale.answers(np.arange(COUNT, dtype=np.float32))
    mapped.base.free()


def test_buffers_of_a_jetson_are_read_and_written_in_place(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    # host and GPU share one memory there; elsewhere the same calls have the GPU reach over the bus
    monkeypatch.setattr(device, "gpu", dataclasses.replace(device.gpu, integrated=True))
    scale = Scale(device)
    for seed in range(3):
        values = scale.fill(seed)
        scale.enqueue()  # without a copy
        assert scale.answers(values)
    graph = scale.stream.capture(scale.enqueue)
    values = scale.fill(4)
    graph.launch(scale.stream)
    assert scale.answers(values)
    graph.close()
    scale.close()


def test_an_array_of_another_stream_is_waited_for(scale: Scale) -> None:
    values = scale.fill(3)
    facts = {"shape": (COUNT,), "typestr": "<f4", "data": (scale.x.pointer, False), "version": 3}
    given = adopt(SimpleNamespace(__cuda_array_interface__={**facts, "stream": scale.stream.handle}))
    assert isinstance(given, DeviceArray) and given.nbytes == SIZE
    other = Scale(scale.device)
    scale.x.upload(SIZE, scale.stream)
    scale.device.wait_for(given.stream)
    other.y.take(given.pointer, given.nbytes, other.stream)
    other.y.download(SIZE, other.stream)
    other.stream.synchronize()
    assert (other.y.host.view(np.float32) == values).all()
    other.close()


def test_too_much_memory_is_a_typed_error(device: Device, scale: Scale) -> None:
    with pytest.raises(DeviceError, match=r"CUDA's cuMem\w*Alloc failed: .*; free memory of the GPU"):
        Buffer(device, 1 << 50)
    values = scale.fill(0)
    scale.enqueue()
    assert scale.answers(values)


def test_memory_of_the_gpu_alone_is_written_and_freed(device: Device, scale: Scale) -> None:
    free, _ = device.memory()
    memory = Memory(device, 64 << 20)
    assert memory.pointer % ALIGNMENT == 0 and device.memory()[0] < free
    values = scale.fill(2)
    device.driver.memcpy_htod_async(memory.pointer, scale.x.host, scale.stream.raw)
    scale.launch(memory.pointer)
    scale.y.download(SIZE, scale.stream)
    assert scale.answers(values)
    memory.free()
    assert device.memory()[0] >= free


def test_thousands_of_buffers_leave_nothing(device: Device, resident: Callable[[], int]) -> None:
    for _ in range(100):
        Buffer(device, 1 << 20).free()
    free, before = device.memory()[0], resident()
    for _ in range(5000):
        Buffer(device, 1 << 20).free()
    assert device.memory()[0] >= free - (8 << 20)
    assert resident() - before < 32 << 20


def test_the_primary_context_is_let_go_of_and_taken_again() -> None:
    for _ in range(5):
        try:
            device = Device(0, "tensorrt")
        except Exception as error:
            pytest.skip(str(error))
        with device.current():
            scale = Scale(device)
            values = scale.fill(0)
            scale.enqueue()
            assert scale.answers(values)
            scale.close()
        device.release()
        device.release()


SCRIPT = """
from edgevtx.runtimes.cuda import Buffer, Device, Stream
device = Device(0, "tensorrt")
with device.current():
    stream, buffer = Stream(device), Buffer(device, 1 << 20)
    buffer.upload(1 << 20, stream)
    graph = stream.capture(lambda: buffer.upload(1 << 20, stream))
"""


@pytest.mark.parametrize("more", ["", "with device.current():\n    buffer.free(); stream.close()\ndevice.release()\n"])
def test_an_interpreter_s_exit_does_not_crash(device: Device, more: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", SCRIPT + more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
