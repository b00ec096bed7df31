"""Running a TensorRT plan: the execution contexts that use an engine in a GPU's memory, which is `trt_loaded`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from edgevtx.errors import DeviceError, InputError, RuntimeUnavailableError
from edgevtx.runtimes import host, trt_log
from edgevtx.runtimes.base import Arrays, DeviceArray, Feed, Frames, TensorSpec
from edgevtx.runtimes.cuda import ALIGNMENT, Buffer, Graph, Stream, keep_in_forks
from edgevtx.runtimes.resample import Resizer
from edgevtx.runtimes.trt_loaded import Loaded, Step, nothing, told
from edgevtx.runtimes.trt_profiles import choose_profile, explain_lack

log = logging.getLogger(__name__)

WARM_UP = 2
"""Runs of one shape before they become a graph: the first loads kernels and settles what TensorRT has put off."""

Shape = tuple[int, ...]


class Execution:
    """One execution context: its stream, its buffers, its graph. Safe to use from any thread, one at a time."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded, self._record, self._lock = loaded, loaded.record, threading.Lock()
        self._buffers: dict[str, Buffer] = {}
        self._views: Arrays = {}
        self._addresses: dict[str, int] = {}
        self._shapes: tuple[Shape, ...] | None = None
        self._graph: Graph | None = None
        self._staged: tuple[str, ...] = ()  # the inputs that the graph copies
        self._runs, self._captures = 0, loaded.captures
        self._resizer: Resizer | None = None
        self._context: Any = None
        self._stream: Any = None
        keep_in_forks(self)
        loaded.join(self)
        try:
            with loaded.device.current():
                self._context = loaded.new_context()
                if self._context is None:
                    raise loaded.failed("create_execution_context")
                self._stream = Stream(loaded.device)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: dict[str, Feed]) -> Arrays:
        """Outputs by name, arrays of the caller's own; inputs are checked but for the ranges of the profiles.

        Raises `InputError` for shapes that no profile has, and `DeviceError` with the call that failed.
        """
        self._loaded.check_process()  # first: in a fork the lock may be held for good
        with self._lock:
            if self._stream is None:
                raise RuntimeUnavailableError(f"this {self._loaded.target} runtime was closed; open the bundle again")
            trt_log.last_error()  # what was said before this run is of no call of it
            with self._loaded.device.current():
                try:
                    self._run(feeds)
                except BaseException:
                    with told("ending a run"):  # what is on its way still reads what the caller and the next run have
                        self._stream.synchronize()
                    raise
                return {spec.name: self._views[spec.name].copy() for spec in self._record.outputs}

    def close(self) -> None:
        """Free all of it; twice is allowed."""
        if self._loaded.inherited:
            return
        with self._lock:
            self._loaded.leave(self, self._drop, self._free)

    def _run(self, feeds: dict[str, Feed]) -> None:
        shapes = tuple(tuple(feeds[spec.name].shape) for spec in self._record.inputs)
        if shapes != self._shapes:
            self._reshape(shapes)
        names = (spec.name for spec in self._record.inputs)
        self._launch(tuple(name for name in names if self._bind(name, feeds[name])))
        self._stream.synchronize()

    def _reshape(self, shapes: tuple[Shape, ...]) -> None:
        """Have the context and the buffers ready for inputs of these shapes."""
        named = dict(zip((spec.name for spec in self._record.inputs), shapes, strict=True))
        self._shapes, self._runs = None, 0
        self._drop_graph()
        active = self._context.active_optimization_profile
        profile = choose_profile(self._record.profiles, named, active)
        if profile is None:
            raise self._refused(named, explain_lack(self._record, named))
        if profile != active:
            if not self._context.set_optimization_profile_async(profile, self._stream.handle):
                raise self._loaded.failed("set_optimization_profile_async")
            self._stream.synchronize()
            self._addresses.clear()  # nothing says that a context keeps them
        for name, shape in named.items():
            if not self._context.set_input_shape(name, shape):
                raise self._refused(named, trt_log.last_error())
        wrong = ""
        try:
            lacking = self._context.infer_shapes()
        except RuntimeError as error:
            wrong = trt_log.last_error() or host.first_line(error)
        if wrong:  # not in the handler: the error's frames may hold the context
            raise self._refused(named, wrong)
        if lacking:
            raise self._loaded.failed(f"infer_shapes (it lacks {', '.join(lacking)})")
        for spec in (*self._record.inputs, *self._record.outputs):
            self._reserve(spec, named.get(spec.name) or tuple(self._context.get_tensor_shape(spec.name)))
        self._shapes = shapes

    def _reserve(self, spec: TensorSpec, shape: Shape) -> None:
        """Have a tensor's buffer hold this shape. It grows as far as the profiles go, and is kept until `close`."""
        if min(shape, default=0) < 0:
            raise self._loaded.failed(f"get_tensor_shape (the shape of {spec.name} depends on values)")
        dtype = np.dtype(spec.dtype)
        size = prod(shape) * dtype.itemsize
        buffer = self._buffers.get(spec.name)
        if buffer is None or buffer.size < size:
            self._views.pop(spec.name, None)
            if buffer is not None:
                del self._buffers[spec.name]
                buffer.free()
            # an address is asked of an empty tensor too
            buffer = self._buffers[spec.name] = Buffer(self._loaded.device, max(size, 1))
        self._views[spec.name] = buffer.host[:size].view(dtype).reshape(shape)
        self._address(spec.name, buffer.pointer)

    def _address(self, name: str, pointer: int) -> None:
        """Have the context read or write a tensor there; no graph outlives a change of what it was captured of."""
        if self._addresses.get(name) != pointer:
            self._drop_graph()
            self._runs = 0
            if not self._context.set_tensor_address(name, pointer):
                raise self._loaded.failed(f"set_tensor_address({name!r})")
            self._addresses[name] = pointer

    def _bind(self, name: str, feed: Feed) -> bool:
        """Have an input where TensorRT reads it; whether it is in the staging buffer and still to be copied."""
        buffer, pointer = self._buffers[name], self._buffers[name].pointer
        if isinstance(feed, Frames):
            if self._resizer is None:
                self._resizer = Resizer(self._loaded.device, self._stream)
            self._resizer.put(feed, buffer, self._stream)
        elif isinstance(feed, DeviceArray):
            self._loaded.device.check(feed)
            self._loaded.device.wait_for(feed.stream)
            if feed.nbytes and feed.pointer % ALIGNMENT == 0:
                pointer = feed.pointer
            elif feed.nbytes:
                buffer.take(feed.pointer, feed.nbytes, self._stream)
        else:
            np.copyto(self._views[name], feed)
        self._address(name, pointer)
        return isinstance(feed, np.ndarray)

    def _launch(self, staged: tuple[str, ...]) -> None:
        """Put one run on the stream: as a graph where all inputs are in their buffers and this shape is warm."""
        own = all(self._addresses[spec.name] == self._buffers[spec.name].pointer for spec in self._record.inputs)
        if not self._captures or not own:
            self._enqueue(staged)
            return
        if staged != self._staged:
            self._drop_graph()
            self._staged = staged
        if self._graph is None and self._runs >= WARM_UP:
            try:
                self._graph = self._stream.capture(partial(self._enqueue, staged))
            except DeviceError as error:
                self._captures = False
                log.info("this engine runs without a CUDA graph: %s", error)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue(staged)
            self._runs += 1

    def _enqueue(self, staged: Sequence[str], mark: Step = nothing) -> None:
        """Put copies and engine on the stream; `mark` is called before and after the engine."""
        for name in staged:
            self._buffers[name].upload(self._views[name].nbytes, self._stream)
        mark()
        with self._loaded.executing():
            executed = self._context.execute_async_v3(self._stream.handle)
        if not executed:
            raise self._loaded.failed("execute_async_v3")
        mark()
        for spec in self._record.outputs:
            self._buffers[spec.name].download(self._views[spec.name].nbytes, self._stream)

    def _refused(self, shapes: dict[str, Shape], why: str) -> InputError:
        asked = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        return InputError(
            f"{self._loaded.target} cannot run this engine on {asked}: {why}; give a frame nearer to square, such as "
            "a region of it, or fewer at once"
        )

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _drop(self) -> None:
        with told("freeing a graph"):
            self._drop_graph()
        self._context = None

    def _free(self) -> None:
        self._views.clear()
        while self._buffers:
            with told("freeing a buffer"):
                self._buffers.popitem()[1].free()
        if self._resizer is not None:
            with told("freeing the resizer"):
                self._resizer.close()
            self._resizer = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
