"""What is done with CUDA: a GPU's context, streams, events, memory, kernels, graphs; every error by its call.

pycuda does it, but for what it lacks, which `libcuda` has. The context is the GPU's primary one, which every library of
the process shares (TensorRT, ONNX Runtime, torch). Whatever belongs to it is made, used and freed within
`Device.current()`. A fork has none of it: what it inherits belongs to its parent, and is never freed there (see
`keep_in_forks`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgevtx.errors import DeviceError, InputError, RuntimeUnavailableError
from edgevtx.runtimes import host, libcuda, turns
from edgevtx.runtimes.base import Array, DeviceArray, device_facts

ALIGNMENT = 256
"""Bytes: what TensorRT asks of the address of an input or output."""

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, which other libraries use
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads allocate meanwhile ends no capture
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_POINTER = ctypes.c_void_p


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it; `memory` is in bytes.

    `sm` is its architecture ("sm87"), `integrated` says that it shares the host's memory (Jetson). Every Orin has one
    name, from the AGX with 16 multiprocessors to the smallest Nano with 4.
    """

    ordinal: int
    name: str
    sm: str
    integrated: bool
    memory: int
    multiprocessors: int

    @property
    def model(self) -> str:
        """What has to be the same for another machine's GPU to be of this kind."""
        return f"{self.name} with {self.multiprocessors} multiprocessors"

    def __str__(self) -> str:
        return f"{self.name} ({self.sm})"


def find_gpus(target: str) -> tuple[Gpu, ...]:
    """The GPUs of this machine, at least one; no context is made.

    Raises `RuntimeUnavailableError` where the driver, pycuda or a GPU is missing; `target` is who asks for it.
    """
    driver = _start(target)
    return tuple(_describe(driver, ordinal) for ordinal in range(_call("cuDeviceGetCount", driver.Device.count)))


def adopt(value: Any) -> Any:
    """A `DeviceArray` for what offers `__cuda_array_interface__` (torch, CuPy, Numba), anything else as it is.

    Raises `InputError` where it is not C-contiguous, or does not give its address.
    Protocol: numba.readthedocs.io, "CUDA Array Interface", version 3.
    """
    facts = device_facts(value)
    if facts is None:
        return value
    shape, dtype, strides = tuple(facts["shape"]), np.dtype(facts["typestr"]), facts.get("strides")
    dense = tuple(prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))
    if strides is not None and any(
        size > 1 and found != wanted for size, found, wanted in zip(shape, strides, dense, strict=True)
    ):
        raise InputError(
            f"an array on the GPU must be C-contiguous, but one of shape {shape} has strides {tuple(strides)} where "
            f"{dense} bytes are wanted; make it contiguous first"
        )
    # before version 3 nothing says which stream writes it
    stream = facts.get("stream") if facts.get("version", 0) >= 3 else DeviceArray.ANY_STREAM
    return DeviceArray(int(facts["data"][0] or 0), shape, dtype, stream, owner=value)


class Device:
    """A GPU, its primary context held until `release`."""

    def __init__(self, ordinal: int, target: str) -> None:
        """Raises `RuntimeUnavailableError` as `find_gpus` does, and where there is no such GPU."""
        gpus = find_gpus(target)
        if not 0 <= ordinal < len(gpus):
            raise RuntimeUnavailableError(
                f"GPU {ordinal} was asked for, but this machine has {len(gpus)}: {', '.join(map(str, gpus))}; choose "
                f"one of GPU.0 to GPU.{len(gpus) - 1}"
            )
        self.gpu = gpus[ordinal]
        self.driver, self.functions = _driver(target), libcuda.load()
        self._context = _call("cuDevicePrimaryCtxRetain", self.driver.Device(ordinal).retain_primary_context)
        keep_in_forks(self)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Have this thread work in the GPU's context; may be nested."""
        _call("cuCtxPushCurrent", self._context.push)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent", self.driver.Context.pop)

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory: free, and all."""
        free, total = _call("cuMemGetInfo", self.driver.mem_get_info)
        return int(free), int(total)

    def check(self, array: DeviceArray) -> None:
        """Raise `InputError` for an array in another GPU's memory; of what the driver does not know nothing is said."""
        here, found = self.gpu.ordinal, ctypes.c_int(self.gpu.ordinal)
        with contextlib.suppress(DeviceError):
            self.functions.call("cuPointerGetAttribute", ctypes.byref(found), _DEVICE_ORDINAL, array.pointer)
        if found.value != here:
            raise InputError(
                f"an array is in the memory of GPU.{found.value}, and the engine runs on GPU.{here}; copy it there, or "
                f"open the bundle with device='GPU.{found.value}'"
            )

    def wait_for(self, stream: int | None) -> None:
        """Wait until an array that comes with this stream is written; see `DeviceArray`."""
        if stream == DeviceArray.ANY_STREAM:
            with turns.waiting():
                _call("cuCtxSynchronize", self.driver.Context.synchronize)
        elif stream is not None:
            self.functions.call("cuStreamSynchronize", stream)

    def release(self) -> None:
        """Let go of the primary context; twice is allowed. Everything made in it must be freed before."""
        context, self._context = self._context, None
        if context is None:
            return
        # pycuda releases only what this thread has pushed, and then leaves it on the driver's own stack of contexts,
        # where the next library would find it dead: so it is pushed, and taken from that stack, first
        _call("cuCtxPushCurrent", context.push)
        self.functions.call("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))
        _call("cuDevicePrimaryCtxRelease", context.detach)


class Stream:
    """A stream of the device that is current. Free it with `close` while that device is current."""

    def __init__(self, device: Device) -> None:
        self._driver, self._library = device.driver, device.functions
        self.raw = _call("cuStreamCreate", self._driver.Stream, _NON_BLOCKING)
        self.handle = int(self.raw.handle)
        keep_in_forks(self)

    def synchronize(self) -> None:
        """Wait for all work on it."""
        _call("cuStreamSynchronize", self.raw.synchronize)

    def mark(self) -> Any:
        """An event after the work so far: pycuda's, whose `time_since` gives ms once both are past."""
        event = _call("cuEventCreate", self._driver.Event)
        return _call("cuEventRecord", event.record, self.raw)

    def capture(self, work: Callable[[], None]) -> Graph:
        """The operations that `work` puts on this stream, as a graph; they are not executed.

        Raises what `work` raises and `DeviceError` where one of them cannot be captured; the stream is as before then.
        """
        call, template, executable = self._library.call, _POINTER(), _POINTER()
        # who captures may not free memory meanwhile, as the collector would have it do for an engine that was forgotten
        with turns.capturing(), turns.uncollected():
            call("cuStreamBeginCapture_v2", self.handle, _THREAD_LOCAL)
            try:
                work()
            except BaseException:
                # the stream takes no ordinary work until its capture has ended
                with contextlib.suppress(DeviceError):
                    call("cuStreamEndCapture", self.handle, ctypes.byref(template))
                if template:
                    call("cuGraphDestroy", template)
                raise
            call("cuStreamEndCapture", self.handle, ctypes.byref(template))
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(executable), template, 0)
        finally:
            call("cuGraphDestroy", template)
        return Graph(self._library, executable)

    def close(self) -> None:
        """Free it; twice is allowed."""
        self.raw, self.handle = None, 0  # pycuda frees it with its last name


class Graph:
    """Operations of a stream that are launched as one."""

    def __init__(self, library: libcuda.Library, executable: Any) -> None:
        self._library, self._executable = library, executable

    def launch(self, stream: Stream) -> None:
        """Put all of it on a stream."""
        self._library.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Free it."""
        self._library.call("cuGraphExecDestroy", self._executable)


class Memory:
    """Bytes that stay on the GPU, at `pointer`."""

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self._own = _call("cuMemAlloc", device.driver.mem_alloc, size)
        self.pointer = int(self._own)
        keep_in_forks(self)

    def free(self) -> None:
        """Free it."""
        _call("cuMemFree", self._own.free)


class Buffer:
    """Bytes that travel between host and GPU: `host` (n,) uint8, page-locked, and `pointer`, where the GPU has them.

    Where the two share their memory both are the same bytes, and copying is nothing.
    """

    def __init__(self, device: Device, size: int) -> None:
        driver, self._driver, self.size = device.driver, device.driver, size
        shared = device.gpu.integrated
        flags = driver.host_alloc_flags.DEVICEMAP if shared else 0
        self.host: Array = _call("cuMemHostAlloc", driver.pagelocked_empty, (size,), np.uint8, "C", flags)
        self._locked = self.host.base
        self._own: Memory | None = None
        try:
            if shared:
                self.pointer = int(_call("cuMemHostGetDevicePointer", self._locked.get_device_pointer))
            else:
                self._own = Memory(device, size)
                self.pointer = self._own.pointer
        except DeviceError:
            self._locked.free()
            raise
        keep_in_forks(self)

    def upload(self, size: int, stream: Stream) -> None:
        """Copy the first `size` bytes to the GPU."""
        if size and self._own is not None:
            _call("cuMemcpyHtoDAsync", self._driver.memcpy_htod_async, self.pointer, self.host[:size], stream.raw)

    def download(self, size: int, stream: Stream) -> None:
        """Copy the first `size` bytes from the GPU."""
        if size and self._own is not None:
            _call("cuMemcpyDtoHAsync", self._driver.memcpy_dtoh_async, self.host[:size], self.pointer, stream.raw)

    def take(self, pointer: int, size: int, stream: Stream) -> None:
        """Copy bytes from elsewhere on the GPU."""
        _call("cuMemcpyDtoDAsync", self._driver.memcpy_dtod_async, self.pointer, pointer, size, stream.raw)

    def fill(self, value: int, size: int, stream: Stream) -> None:
        """Set the first `size` bytes that the GPU has to `value`."""
        _call("cuMemsetD8Async", self._driver.memset_d8_async, self.pointer, value, size, stream.raw)

    def free(self) -> None:
        """Free both. No array over `host` may be used after it."""
        if self._own is not None:
            self._own.free()
        _call("cuMemFreeHost", self._locked.free)


class Kernel:
    """A function of a text in PTX, which the driver compiles for its GPU: no compiler of CUDA's is needed."""

    THREADS = 256  # of a block

    def __init__(self, device: Device, text: str, name: str) -> None:
        self._module = _call("cuModuleLoadDataEx", device.driver.module_from_buffer, text.encode() + b"\0")
        self._function = _call("cuModuleGetFunction", self._module.get_function, name)
        keep_in_forks(self)

    def launch(self, threads: int, arguments: Sequence[np.number[Any]], stream: Stream) -> None:
        """Put `threads` of it, or up to a block more, on a stream; `arguments` are of the kernel's own types."""
        shape = {"block": (self.THREADS, 1, 1), "grid": (-(-threads // self.THREADS), 1)}
        _call("cuLaunchKernel", functools.partial(self._function, **shape, stream=stream.raw), *arguments)

    def close(self) -> None:
        """Free it; twice is allowed."""
        self._function = self._module = None  # pycuda unloads a module with its last name


# -- forks -----------------------------------------------------------------------------------------------------

_holders: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_in_forks(holder: object) -> None:
    """Have what an object's attributes hold never be freed in a fork: there, the driver would crash or hang over it."""
    _holders.add(holder)


def _abandon() -> None:
    for holder in _holders:
        for held in vars(holder).values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


# -- the driver ------------------------------------------------------------------------------------------------


def _driver(target: str) -> Any:
    return host.import_package("pycuda.driver", target=target, extra="cuda")


def _start(target: str) -> Any:
    libcuda.load()  # pycuda says less where the driver is missing
    driver = _driver(target)
    try:
        driver.init()
        found = driver.Device.count()
    except driver.Error as error:
        raise RuntimeUnavailableError(
            f"a GPU was asked for, but CUDA does not start here ({host.first_line(error)}); {host.gpu_step()}"
        ) from error
    if not found:
        raise RuntimeUnavailableError(f"a GPU was asked for, but the driver finds none; {host.gpu_step()}")
    return driver


def _describe(driver: Any, ordinal: int) -> Gpu:
    device = _call("cuDeviceGet", driver.Device, ordinal)
    major, minor = _call("cuDeviceComputeCapability", device.compute_capability)
    known = driver.device_attribute
    integrated, multiprocessors = (
        int(_call("cuDeviceGetAttribute", device.get_attribute, attribute))
        for attribute in (known.INTEGRATED, known.MULTIPROCESSOR_COUNT)
    )
    memory = _call("cuDeviceTotalMem", device.total_memory)
    name = str(_call("cuDeviceGetName", device.name))
    return Gpu(ordinal, name, f"sm{major}{minor}", bool(integrated), int(memory), multiprocessors)


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call pycuda; its error becomes a `DeviceError` that names the driver's function."""
    try:
        return function(*arguments)
    except Exception as error:
        if not isinstance(error, host.import_package("pycuda.driver", target="CUDA", extra="cuda").Error):
            raise
        failure = libcuda.failed(name, host.first_line(error))
        function, arguments = str, ()
    # outside of the handler, and with these names overwritten: what an error keeps (its frames, its context) would hold
    # a stream beyond its turn
    raise failure
