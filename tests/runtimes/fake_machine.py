"""A pycuda and a driver library that record what is asked of them, and refuse what the real ones refuse.

Memory is bytes of this process, work on a stream is a list of functions that runs when the stream is waited for.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.runtimes import fake_ptx

SM = "sm87"
OUT_OF_MEMORY, LAUNCH_FAILED, NOT_PERMITTED, INVALIDATED = 2, 719, 900, 901
RESULTS = {  # of CUresult in cuda.h: its name, and the driver's words
    OUT_OF_MEMORY: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    LAUNCH_FAILED: ("CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"),
    NOT_PERMITTED: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
    INVALIDATED: ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error"),
}


class Error(Exception):
    """pycuda's base of all errors."""


class Machine:
    """The recorded calls, what is alive, and what is to fail.

    `failing` has names of calls that fail from now on, with `result`; `saying` what TensorRT says of one that does.
    `alive` counts what was made and not freed, by kind. `while_capturing` is called in the midst of each capture.
    """

    def __init__(self, *, integrated: bool = False, gpus: tuple[str, ...] = ("Fake Orin",)) -> None:
        self.integrated, self.gpus, self.multiprocessors = integrated, gpus, 8
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.result = OUT_OF_MEMORY
        self.saying: dict[str, tuple[str, ...]] = {}
        self.while_capturing: Callable[[], None] = lambda: None
        self.alive: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.elsewhere: dict[int, int] = {}  # addresses of another GPU -> its number
        self.streams: dict[int, FakeStream] = {}
        self.stacks = threading.local()
        self.retained = 0
        self.clock = 0  # each piece of work takes 1 ms, an event none
        self._next = 1 << 20
        self._lock = threading.RLock()

    # -- bookkeeping

    def did(self, name: str, detail: Any = "") -> None:
        """Record a call of the driver; one that is to fail raises as pycuda does."""
        self.calls.append(f"{name} {detail}".strip())
        if name in self.failing:
            raise Error(f"{name} failed: {RESULTS[self.result][1]}")

    def freed(self, name: str) -> None:
        """Record a call that frees; where it fails, pycuda writes a warning, and goes on."""
        try:
            self.did(name)
        except Error as error:
            sys.stderr.write(f"PyCUDA WARNING: a clean-up operation failed (dead context maybe?)\n{error}\n")

    def names(self) -> list[str]:
        """The recorded calls without their details."""
        return [call.split()[0] for call in self.calls]

    def count(self, name: str) -> int:
        return self.names().count(name)

    def made(self, kind: str, change: int = 1) -> None:
        with self._lock:
            self.alive[kind] = self.alive.get(kind, 0) + change

    def left(self) -> dict[str, int]:
        """What is alive."""
        return {kind: number for kind, number in self.alive.items() if number}

    @property
    def stack(self) -> list[Any]:
        """This thread's contexts, as pycuda keeps them."""
        if not hasattr(self.stacks, "value"):
            self.stacks.value = []
        return self.stacks.value  # type: ignore[no-any-return]

    def need_context(self, what: str) -> None:
        if not self.stack or not self.retained:
            self.calls.append(f"CRASH {what} without a context")
            raise Error(f"{what} failed: invalid device context")

    def may_not_capture(self, what: str) -> None:
        """Memory is neither taken nor freed by the thread that captures a stream."""
        for stream in self.streams.values():
            if stream.capturing == threading.get_ident():
                stream.broken = True
                self.calls.append(f"CRASH {what} while this thread captures")
                raise Error(f"{what} failed: {RESULTS[NOT_PERMITTED][1]}")

    def allocate(self, array: Any) -> int:
        with self._lock:
            address, self._next = self._next, self._next + (max(array.nbytes, 1) + 511) // 256 * 256
            self.memory[address] = array
        return address

    def at(self, address: int, size: int) -> Any:
        """The bytes at an address, as a view."""
        for start, array in list(self.memory.items()):
            if start <= address and address + size <= start + array.nbytes:
                return array[address - start : address - start + size]
        self.calls.append(f"CRASH access to {address}, {size} bytes")
        raise Error("illegal address")

    def submit(self, handle: int, work: Callable[[], None]) -> None:
        """Put work on a stream, or in the graph that is captured from it."""
        self.streams[handle].work.append(work)


class FakeStream:
    def __init__(self, machine: Machine) -> None:
        self.work: list[Callable[[], None]] = []
        self.capturing = 0  # the thread that does
        self.broken = False
        self.machine = machine

    def begin(self) -> None:
        self.capturing, self.broken = threading.get_ident(), False

    def end(self) -> bool:
        """Whether what was captured is whole."""
        self.capturing = 0
        return not self.broken

    def drain(self) -> None:
        while self.work:
            self.machine.clock += 1
            self.work.pop(0)()


# -- pycuda ----------------------------------------------------------------------------------------------------


def make_driver(machine: Machine) -> ModuleType:
    """`pycuda.driver`."""
    did = machine.did

    class Context:
        def __init__(self) -> None:
            self.valid = True

        def push(self) -> None:
            did("cuCtxPushCurrent")
            machine.stack.append(self)

        @staticmethod
        def pop() -> None:
            did("cuCtxPopCurrent")
            if not machine.stack:
                raise Error("m_stack::pop failed: invalid device context - cannot pop context from empty stack")
            machine.stack.pop()

        @staticmethod
        def synchronize() -> None:
            did("cuCtxSynchronize")
            if captured := [stream for stream in machine.streams.values() if stream.capturing]:
                for stream in captured:
                    stream.broken = True
                raise Error(f"cuCtxSynchronize failed: {RESULTS[NOT_PERMITTED][1]}")

        def detach(self) -> None:
            # pycuda releases what this thread has pushed, and nothing otherwise
            if machine.stack[-1:] != [self]:
                machine.calls.append("CRASH context leaked")
                return
            machine.freed("cuDevicePrimaryCtxRelease")
            machine.stack.pop()
            machine.retained -= 1

    class Device:
        def __init__(self, ordinal: int) -> None:
            did("cuDeviceGet")
            self._name = machine.gpus[ordinal]

        @staticmethod
        def count() -> int:
            did("cuDeviceGetCount")
            return len(machine.gpus)

        def name(self) -> str:
            did("cuDeviceGetName")
            return self._name

        def compute_capability(self) -> tuple[int, int]:
            did("cuDeviceComputeCapability")
            return int(SM[2]), int(SM[3])

        def get_attribute(self, attribute: str) -> int:
            did("cuDeviceGetAttribute")
            return {"integrated": int(machine.integrated), "multiprocessors": machine.multiprocessors}[attribute]

        def total_memory(self) -> int:
            did("cuDeviceTotalMem")
            return 8 << 30

        def retain_primary_context(self) -> Context:
            did("cuDevicePrimaryCtxRetain")
            machine.retained += 1
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            machine.need_context("cuStreamCreate")
            did("cuStreamCreate", flags)
            machine.made("stream")
            self._fake = FakeStream(machine)
            self.handle = id(self)
            machine.streams[self.handle] = self._fake

        def synchronize(self) -> None:
            machine.need_context("cuStreamSynchronize")
            did("cuStreamSynchronize")
            self._fake.drain()

        def __del__(self) -> None:
            if "handle" in vars(self):
                machine.need_context("cuStreamDestroy")
                machine.freed("cuStreamDestroy")
                machine.made("stream", -1)
                del machine.streams[self.handle]

    class Event:
        def __init__(self) -> None:
            machine.need_context("cuEventCreate")
            did("cuEventCreate")
            self._passed: int | None = None

        def record(self, stream: Any) -> Event:
            did("cuEventRecord")
            machine.submit(stream.handle, self._note)
            return self

        def _note(self) -> None:
            machine.clock -= 1
            self._passed = machine.clock

        def time_since(self, earlier: Event) -> float:
            if self._passed is None or earlier._passed is None:
                raise Error("cuEventElapsedTime failed: not ready")
            return float(self._passed - earlier._passed)

    class Locked:
        def __init__(self, size: int, flags: int) -> None:
            machine.need_context("cuMemHostAlloc")
            machine.may_not_capture("cuMemHostAlloc")
            did("cuMemHostAlloc", f"{size} {flags}")
            machine.made("locked")
            self._bytes = np.zeros(size, np.uint8)
            self.__array_interface__ = self._bytes.__array_interface__

        def get_device_pointer(self) -> int:
            did("cuMemHostGetDevicePointer")
            self._address = machine.allocate(self._bytes)
            return self._address

        def free(self) -> None:
            machine.need_context("cuMemFreeHost")
            machine.may_not_capture("cuMemFreeHost")
            machine.freed("cuMemFreeHost")
            machine.made("locked", -1)
            machine.memory.pop(getattr(self, "_address", -1), None)

    class Memory:
        def __init__(self, size: int) -> None:
            machine.need_context("cuMemAlloc")
            machine.may_not_capture("cuMemAlloc")
            did("cuMemAlloc", size)
            machine.made("memory")
            self._address = machine.allocate(np.zeros(size, np.uint8))

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            machine.need_context("cuMemFree")
            machine.may_not_capture("cuMemFree")
            machine.freed("cuMemFree")
            machine.made("memory", -1)
            del machine.memory[self._address]

    def upload(dest: int, src: Any, stream: Any) -> None:
        did("cuMemcpyHtoDAsync", len(src))
        machine.submit(stream.handle, lambda: np.copyto(machine.at(dest, len(src)), src))

    def download(dest: Any, src: int, stream: Any) -> None:
        did("cuMemcpyDtoHAsync", len(dest))
        machine.submit(stream.handle, lambda: np.copyto(dest, machine.at(src, len(dest))))

    def between(dest: int, src: int, size: int, stream: Any) -> None:
        did("cuMemcpyDtoDAsync", size)
        machine.submit(stream.handle, lambda: np.copyto(machine.at(dest, size), machine.at(src, size)))

    def fill(dest: int, value: int, size: int, stream: Any) -> None:
        did("cuMemsetD8Async", size)
        machine.submit(stream.handle, lambda: machine.at(dest, size).fill(value))

    class Module:
        def __init__(self, data: bytes) -> None:
            machine.need_context("cuModuleLoadDataEx")
            did("cuModuleLoadDataEx")
            machine.made("module")
            assert data.endswith(b"\0")
            self._text = fake_ptx.Text(data[:-1].decode())

        def get_function(self, name: str) -> Any:
            did("cuModuleGetFunction", name)
            assert name == self._text.name
            return functools.partial(self._launch, self._text)

        def _launch(self, text: Any, *arguments: Any, block: Any, grid: Any, stream: Any) -> None:
            did("cuLaunchKernel", f"{grid[0]} of {block[0]}")
            machine.submit(stream.handle, lambda: text.run(arguments, grid[0], block[0], machine.at))

        def __del__(self) -> None:
            if "_text" in vars(self):
                machine.need_context("cuModuleUnload")
                machine.freed("cuModuleUnload")
                machine.made("module", -1)

    def locked(shape: tuple[int], dtype: Any, order: str, flags: int) -> Any:
        return np.asarray(Locked(shape[0], flags))

    module: Any = ModuleType("pycuda.driver")
    module.Error, module.Context, module.Device, module.Stream = Error, Context, Device, Stream
    module.Event = Event
    module.init = lambda: did("cuInit")
    module.pagelocked_empty, module.mem_alloc = locked, Memory
    module.memcpy_htod_async, module.memcpy_dtoh_async, module.memcpy_dtod_async = upload, download, between
    module.memset_d8_async, module.module_from_buffer = fill, Module
    module.mem_get_info = lambda: (1 << 30, 8 << 30)
    module.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    module.device_attribute = SimpleNamespace(INTEGRATED="integrated", MULTIPROCESSOR_COUNT="multiprocessors")
    return module  # type: ignore[no-any-return]


# -- the driver's library --------------------------------------------------------------------------------------


def make_library(machine: Machine) -> Any:
    """libcuda.so.1, as ctypes gives it."""
    graphs: dict[int, list[Callable[[], None]]] = {}

    def value(handle: Any) -> int:
        return int(getattr(handle, "value", handle) or 0)

    def put(target: Any, work: list[Callable[[], None]]) -> None:
        graphs[len(graphs) + 1] = work
        target._obj.value = len(graphs)

    def begin(handle: Any, mode: int) -> None:
        machine.streams[value(handle)].drain()
        machine.streams[value(handle)].begin()

    def end(handle: Any, graph: Any) -> int:
        stream = machine.streams[value(handle)]
        work = list(stream.work)
        stream.work.clear()
        if not stream.end():
            return INVALIDATED
        put(graph, work)
        machine.made("template")
        return 0

    def instantiate(executable: Any, graph: Any, flags: int) -> None:
        put(executable, graphs[value(graph)])
        machine.made("graph")

    def launch(executable: Any, handle: Any) -> None:
        machine.streams[value(handle)].work.extend(graphs[value(executable)])

    def ordinal(target: Any, attribute: int, address: int) -> None:
        assert attribute == 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL in cuda.h
        target._obj.value = machine.elsewhere.get(address, target._obj.value)

    def error_name(code: int, text: Any) -> int:
        text._obj.value = RESULTS[code][0].encode()
        return 0

    done: dict[str, Callable[..., int | None]] = {
        "cuCtxPopCurrent_v2": lambda context: None,
        "cuPointerGetAttribute": ordinal,
        "cuStreamSynchronize": lambda handle: None,
        "cuStreamBeginCapture_v2": begin,
        "cuStreamEndCapture": end,
        "cuGraphInstantiateWithFlags": instantiate,
        "cuGraphLaunch": launch,
        "cuGraphDestroy": lambda graph: machine.made("template", -1),
        "cuGraphExecDestroy": lambda graph: machine.made("graph", -1),
    }

    def function(name: str, work: Callable[..., int | None]) -> Any:
        def call(*arguments: Any) -> int:
            try:
                machine.did(name, value(arguments[0]) if name == "cuStreamSynchronize" else "")
            except Error:
                if name == "cuStreamEndCapture":  # it ends, whether or not there is a graph then
                    machine.streams[value(arguments[0])].end()
                return machine.result
            return work(*arguments) or 0

        return call

    loaded = SimpleNamespace(**{name: function(name, work) for name, work in done.items()})
    loaded.cuGetErrorName = error_name
    return loaded
