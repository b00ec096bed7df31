"""The real pycuda over a driver library that is made here: `libcuda.so.1` of a few lines, whose functions are Python's.

So what pycuda itself asks for and does is tested (its names and arguments, its stack of contexts, who frees what and
where), over the memory and streams of `fake_machine`; of a GPU this shows nothing. `scripts/test_pycuda.sh` makes the
folder, and has `start` called as Python starts.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtimes import fake_ptx
from tests.runtimes.fake_machine import (
    INVALIDATED,
    NOT_PERMITTED,
    OUT_OF_MEMORY,
    RESULTS,
    SM,
    Error,
    FakeStream,
    Machine,
)

FOLDER = "EDGEVTX_TEST_PYCUDA"
"""The variable of the environment that has the folder of `libcuda.so.1`."""

# every argument of the driver's functions is a number or a pointer; none has more than cuLaunchKernel
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_size_t] * 11)
_HEAD = """
typedef unsigned long A;
typedef int (*F)(A, A, A, A, A, A, A, A, A, A, A);
#define FUNCTION(name) F in_##name; \\
    int name(A a, A b, A c, A d, A e, A f, A g, A h, A i, A j, A k) \\
    { return in_##name ? in_##name(a, b, c, d, e, f, g, h, i, j, k) : ended ? 0 : 801; }
int ended;
"""
# of CUresult in cuda.h
_NO_SUCH_DEVICE, _INVALID_CONTEXT, _NOT_FOUND, _NOT_READY, _UNKNOWN = 101, 201, 500, 600, 999


def make(folder: Path, names: list[str]) -> None:
    """Compile `libcuda.so.1` with these functions, which fail until `start` has them done."""
    text = _HEAD + "\n".join(f"FUNCTION({name})" for name in names)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-Wl,-soname,libcuda.so.1", "-o"]
    subprocess.run([*command, str(folder / "libcuda.so.1")], input=text, text=True, check=True)


def _put(address: int, value: int, kind: Any = ctypes.c_size_t) -> None:
    kind.from_address(address).value = value


class Driver:
    """The functions of the library; those of a context act on the machine that the context is of."""

    def __init__(self) -> None:
        self.machine = Machine()
        self._owners: dict[int, Machine] = {}
        self._made: dict[int, Any] = {}  # what a handle stands for
        self._devices: list[tuple[Machine, int]] = []  # what a CUdevice is the index of, so each knows its machine
        self._stacks = threading.local()
        self._next = 1 << 40

    def handle(self, made: Any, machine: Machine) -> int:
        self._next += 16
        self._owners[self._next], self._made[self._next] = machine, made
        return self._next

    @property
    def stack(self) -> list[int]:
        """The driver's own stack of contexts, of this thread."""
        if not hasattr(self._stacks, "value"):
            self._stacks.value = []
        return self._stacks.value  # type: ignore[no-any-return]

    @property
    def here(self) -> Machine:
        """The machine of the context that is current."""
        return self._owners[self.stack[-1]] if self.stack else self.machine

    def needed(self, name: str, detail: Any = "") -> Machine:
        """The machine for a call that needs a context, and has been recorded."""
        machine = self.here
        machine.need_context(name)
        machine.did(name, detail)
        return machine

    # -- devices and contexts

    def cuInit(self, flags: int) -> None:
        self.machine.did("cuInit")

    def cuDriverGetVersion(self, version: int) -> None:
        _put(version, 12090, ctypes.c_int)

    def cuDeviceGetCount(self, count: int) -> None:
        self.machine.did("cuDeviceGetCount")
        _put(count, len(self.machine.gpus), ctypes.c_int)

    def cuDeviceGet(self, device: int, ordinal: int) -> int:
        self.machine.did("cuDeviceGet")
        _put(device, len(self._devices), ctypes.c_int)
        self._devices.append((self.machine, ordinal))
        return 0 if ordinal < len(self.machine.gpus) else _NO_SUCH_DEVICE

    def device(self, handle: int, name: str) -> tuple[Machine, int]:
        """The machine and the ordinal of a device, for a call that has been recorded."""
        machine, ordinal = self._devices[ctypes.c_int(handle).value]
        machine.did(name)
        return machine, ordinal

    def cuDeviceGetName(self, text: int, size: int, device: int) -> None:
        machine, ordinal = self.device(device, "cuDeviceGetName")
        ctypes.memmove(text, machine.gpus[ordinal].encode() + b"\0", len(machine.gpus[ordinal]) + 1)

    def cuDeviceComputeCapability(self, major: int, minor: int, device: int) -> None:
        self.device(device, "cuDeviceComputeCapability")
        _put(major, int(SM[2]), ctypes.c_int)
        _put(minor, int(SM[3]), ctypes.c_int)

    def cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> None:
        machine, _ = self.device(device, "cuDeviceGetAttribute")
        known = {16: machine.multiprocessors, 18: int(machine.integrated)}  # of CUdevice_attribute in cuda.h
        _put(value, known[ctypes.c_int(attribute).value], ctypes.c_int)

    def cuDeviceTotalMem_v2(self, size: int, device: int) -> None:
        self.device(device, "cuDeviceTotalMem")
        _put(size, 8 << 30)

    def cuDevicePrimaryCtxRetain(self, context: int, device: int) -> None:
        machine, _ = self.device(device, "cuDevicePrimaryCtxRetain")
        machine.retained += 1
        found = [handle for handle, made in self._made.items() if made is machine]
        _put(context, found[0] if found else self.handle(machine, machine))

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> None:
        machine, _ = self._devices[ctypes.c_int(device).value]
        machine.retained -= 1
        if machine.retained == 0 and machine.stack:
            machine.calls.append("CRASH a context is on a stack, and dead")
        machine.did("cuDevicePrimaryCtxRelease")

    def cuCtxPushCurrent_v2(self, context: int) -> None:
        self._owners[context].did("cuCtxPushCurrent")
        self.stack.append(context)
        self._owners[context].stack.append(context)

    def cuCtxPopCurrent_v2(self, context: int) -> int:
        if not self.stack:
            return _INVALID_CONTEXT
        machine = self.here
        machine.did("cuCtxPopCurrent")
        _put(context, self.stack.pop())
        machine.stack.pop()
        return 0

    def cuCtxDetach(self, context: int) -> int:
        """What pycuda calls for a context that nobody let go of: it is taken from the stack, and no longer used."""
        if self.stack[-1:] != [context]:
            return _INVALID_CONTEXT
        self._owners[self.stack.pop()].stack.pop()
        return 0

    def cuCtxSynchronize(self) -> int:
        machine = self.needed("cuCtxSynchronize")
        if captured := [stream for stream in machine.streams.values() if stream.capturing]:
            for stream in captured:
                stream.broken = True
            return NOT_PERMITTED
        for stream in list(machine.streams.values()):
            stream.drain()
        return 0

    # -- memory

    def cuMemGetInfo_v2(self, free: int, total: int) -> None:
        machine = self.needed("cuMemGetInfo")
        taken = sum(array.nbytes for array in machine.memory.values())
        _put(free, (4 << 30) - taken)
        _put(total, 8 << 30)

    def cuMemAlloc_v2(self, pointer: int, size: int) -> int:
        machine = self.needed("cuMemAlloc", size)
        machine.may_not_capture("cuMemAlloc")
        if size > 8 << 30:
            return OUT_OF_MEMORY
        machine.made("memory")
        _put(pointer, machine.allocate(np.zeros(size, np.uint8)))
        return 0

    def cuMemFree_v2(self, pointer: int) -> None:
        machine = self.needed("cuMemFree")
        machine.may_not_capture("cuMemFree")
        machine.made("memory", -1)
        del machine.memory[pointer]

    def cuMemHostAlloc(self, pointer: int, size: int, flags: int) -> int:
        machine = self.needed("cuMemHostAlloc", f"{size} {flags}")
        machine.may_not_capture("cuMemHostAlloc")
        if size > 8 << 30:
            return OUT_OF_MEMORY
        machine.made("locked")
        array = np.zeros(max(size, 1), np.uint8)
        self._made[array.ctypes.data] = array
        _put(pointer, array.ctypes.data)
        return 0

    def cuMemFreeHost(self, pointer: int) -> None:
        machine = self.needed("cuMemFreeHost")
        machine.may_not_capture("cuMemFreeHost")
        machine.made("locked", -1)
        array = self._made.pop(pointer)
        machine.memory = {start: held for start, held in machine.memory.items() if held is not array}

    def cuMemHostGetDevicePointer_v2(self, device: int, pointer: int, flags: int) -> None:
        machine = self.needed("cuMemHostGetDevicePointer")
        _put(device, machine.allocate(self._made[pointer]))

    def cuMemcpyHtoDAsync_v2(self, dest: int, source: int, size: int, stream: int) -> None:
        machine = self.needed("cuMemcpyHtoDAsync", size)
        machine.submit(stream, lambda: np.copyto(machine.at(dest, size), _host(source, size)))

    def cuMemcpyDtoHAsync_v2(self, dest: int, source: int, size: int, stream: int) -> None:
        machine = self.needed("cuMemcpyDtoHAsync", size)
        machine.submit(stream, lambda: np.copyto(_host(dest, size), machine.at(source, size)))

    def cuMemcpyDtoDAsync_v2(self, dest: int, source: int, size: int, stream: int) -> None:
        machine = self.needed("cuMemcpyDtoDAsync", size)
        machine.submit(stream, lambda: np.copyto(machine.at(dest, size), machine.at(source, size)))

    def cuMemsetD8Async(self, dest: int, value: int, size: int, stream: int) -> None:
        machine = self.needed("cuMemsetD8Async", size)
        machine.submit(stream, lambda: machine.at(dest, size).fill(value & 0xFF))

    def cuPointerGetAttribute(self, value: int, attribute: int, address: int) -> None:
        machine = self.here
        machine.did("cuPointerGetAttribute")
        assert attribute == 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL in cuda.h
        if address in machine.elsewhere:
            _put(value, machine.elsewhere[address], ctypes.c_int)

    # -- streams, events, graphs

    def cuStreamCreate(self, stream: int, flags: int) -> None:
        machine = self.needed("cuStreamCreate", flags)
        machine.made("stream")
        handle = self.handle("stream", machine)
        machine.streams[handle] = FakeStream(machine)
        _put(stream, handle)

    def cuStreamDestroy_v2(self, stream: int) -> None:
        machine = self._owners[stream]
        machine.need_context("cuStreamDestroy")
        machine.did("cuStreamDestroy")
        machine.made("stream", -1)
        del machine.streams[stream]

    def cuStreamSynchronize(self, stream: int) -> int:
        machine = self.here
        machine.did("cuStreamSynchronize", "" if stream in machine.streams else stream)
        if found := machine.streams.get(stream):
            if found.capturing:
                found.broken = True
                return NOT_PERMITTED
            found.drain()
        return 0

    def cuEventCreate(self, event: int, flags: int) -> None:
        machine = self.needed("cuEventCreate")
        _put(event, self.handle([None], machine))

    def cuEventRecord(self, event: int, stream: int) -> None:
        machine = self.needed("cuEventRecord")

        def note() -> None:
            machine.clock -= 1
            self._made[event][0] = machine.clock

        machine.submit(stream, note)

    def cuEventElapsedTime(self, value: int, first: int, last: int) -> int:
        (earlier,), (later,) = self._made[first], self._made[last]
        if earlier is None or later is None:
            return _NOT_READY
        ctypes.c_float.from_address(value).value = later - earlier
        return 0

    def cuEventDestroy_v2(self, event: int) -> None:
        self._owners[event].need_context("cuEventDestroy")
        del self._made[event]

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        self.needed("cuStreamBeginCapture_v2")
        found = self.here.streams[stream]
        found.drain()
        found.begin()

    def cuStreamEndCapture(self, stream: int, graph: int) -> int:
        machine = self.here
        found = machine.streams[stream]
        work = list(found.work)
        found.work.clear()
        whole = found.end()  # it ends, whether or not there is a graph then
        self.needed("cuStreamEndCapture")
        if not whole:
            return INVALIDATED
        machine.made("template")
        _put(graph, self.handle(work, machine))
        return 0

    def cuGraphInstantiateWithFlags(self, executable: int, graph: int, flags: int) -> None:
        machine = self.needed("cuGraphInstantiateWithFlags")
        machine.made("graph")
        _put(executable, self.handle(self._made[graph], machine))

    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        machine = self.needed("cuGraphLaunch")
        machine.streams[stream].work.extend(self._made[executable])

    def cuGraphDestroy(self, graph: int) -> None:
        self.needed("cuGraphDestroy").made("template", -1)
        del self._made[graph]

    def cuGraphExecDestroy(self, executable: int) -> None:
        self.needed("cuGraphExecDestroy").made("graph", -1)
        del self._made[executable]

    # -- kernels

    def cuModuleLoadDataEx(self, module: int, text: int, *options: int) -> None:
        machine = self.needed("cuModuleLoadDataEx")
        machine.made("module")
        _put(module, self.handle(fake_ptx.Text(ctypes.string_at(text).decode()), machine))

    def cuModuleGetFunction(self, function: int, module: int, name: int) -> int:
        text, machine = self._made[module], self.needed("cuModuleGetFunction", ctypes.string_at(name).decode())
        _put(function, self.handle(text, machine))
        return 0 if ctypes.string_at(name).decode() == text.name else _NOT_FOUND

    def cuModuleUnload(self, module: int) -> None:
        self.needed("cuModuleUnload").made("module", -1)
        del self._made[module]

    def cuFuncSetBlockShape(self, function: int, *shape: int) -> None:
        """What pycuda still calls before each launch, to no effect."""

    def cuLaunchKernel(self, function: int, *rest: int) -> None:
        (blocks, rows, planes, threads, *more), stream, extra = rest[:6], rest[7], rest[9]
        blocks, threads = int(ctypes.c_uint(blocks).value), int(ctypes.c_uint(threads).value)
        assert [int(ctypes.c_uint(each).value) for each in (rows, planes, *more)] == [1, 1, 1, 1]
        machine = self.needed("cuLaunchKernel", f"{blocks} of {threads}")
        text = self._made[function]
        words = (ctypes.c_size_t * 5).from_address(extra)
        assert (words[0], words[2], words[4]) == (1, 2, 0)  # CU_LAUNCH_PARAM_BUFFER_POINTER, .._SIZE, .._END
        data = ctypes.string_at(words[1], ctypes.c_size_t.from_address(words[3]).value)
        arguments = _arguments(text.parameters, data)
        machine.submit(stream, lambda: text.run(arguments, blocks, threads, machine.at))

    # -- errors

    def cuGetErrorName(self, code: int, text: int) -> None:
        _put(text, _text(RESULTS.get(code, (f"CUDA_ERROR_{code}", ""))[0]))

    def cuGetErrorString(self, code: int, text: int) -> None:
        _put(text, _text(RESULTS.get(code, ("", f"error {code}"))[1]))


def _host(pointer: int, size: int) -> Any:
    """The host's bytes at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))


@functools.cache
def _kept(words: str) -> Any:
    return ctypes.create_string_buffer(words.encode())


def _text(words: str) -> int:
    return ctypes.addressof(_kept(words))


def _arguments(parameters: list[tuple[str, str]], data: bytes) -> list[Any]:
    """A kernel's arguments out of the buffer that pycuda packs, each aligned to its own size."""
    kinds, found, place = {"u32": np.uint32, "u64": np.int64}, [], 0
    for kind, _ in parameters:
        size = kinds[kind]().itemsize
        place = -(-place // size) * size
        found.append(np.frombuffer(data, kinds[kind], 1, place)[0])
        place += size
    assert place == len(data), "the kernel's parameters take another number of bytes"
    return found


def _served(driver: Driver, name: str) -> Callable[..., int]:
    function = getattr(driver, name)
    count = function.__code__.co_argcount - 1 if not function.__code__.co_flags & 4 else 11

    def call(*arguments: int) -> int:
        try:
            return function(*arguments[:count]) or 0
        except Error:
            return driver.here.result
        except Exception as error:  # ctypes would print it, and go on with success
            driver.here.calls.append(f"CRASH {name}: {type(error).__name__}: {error}")
            return _UNKNOWN

    return call


_driver = Driver()


def start(machine: Machine) -> Any:
    """Have pycuda, and whoever else asks for the library, work on this machine from now on; returns the library."""
    _driver.machine = machine
    return _load()


@functools.cache
def _load() -> Any:
    loaded = ctypes.CDLL(str(Path(os.environ[FOLDER]) / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)  # for pycuda
    functions = {name: _FUNCTION(_served(_driver, name)) for name in vars(Driver) if name.startswith("cu")}
    for name, function in functions.items():
        ctypes.c_void_p.in_dll(loaded, f"in_{name}").value = ctypes.cast(function, ctypes.c_void_p).value

    def stop() -> None:  # from then on nothing of Python's may be called: all succeeds, and does nothing
        ctypes.c_int.in_dll(loaded, "ended").value = 1
        for name in functions:
            ctypes.c_void_p.in_dll(loaded, f"in_{name}").value = None

    atexit.register(stop)
    return loaded


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2:])
