"""Running a TensorRT plan: an engine in a GPU's memory, and the execution contexts that are its users.

Taken down in this order, whoever comes last: execution contexts, engine, runtime, device memory, streams, the GPU's
context. Another order is what crashes at an interpreter's exit. TensorRT frees an object with its last name, so none is
ever a local variable: the frames that an exception keeps would hold it beyond its turn.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgevtx import disk
from edgevtx.errors import CompileError, DeviceError, InputError, RuntimeUnavailableError
from edgevtx.runtimes import host, trt_inspect, trt_log, turns
from edgevtx.runtimes.base import Arrays, DeviceArray, Feed, Frames, TensorSpec
from edgevtx.runtimes.cuda import ALIGNMENT, Buffer, Device, Graph, Stream, keep_in_forks
from edgevtx.runtimes.plan import PlanRecord
from edgevtx.runtimes.resample import Resizer
from edgevtx.runtimes.trt_profiles import choose_profile, explain_lack

log = logging.getLogger(__name__)

RUNTIME_CACHE = "runtime.cache"
"""Beside a plan of TensorRT-RTX: the kernels that it has compiled for this very GPU, when the plan was first opened."""

WARM_UP = 2
"""Runs of one shape before they become a graph: the first loads kernels and settles what TensorRT has put off."""

Shape = tuple[int, ...]
Step = Callable[[], None]


def _nothing() -> None: ...


class Loaded:
    """A plan in a GPU's memory. Whoever uses it has `join`ed, and `leave`s; the last to leave takes it down.

    `owner` is its first user: whoever opened it.
    """

    def __init__(self, trt: Any, target: str, device: Device, plan: Path, record: PlanRecord, graphs: bool) -> None:
        """Takes over `device`, also where it fails.

        Raises `CompileError` for a plan that TensorRT does not open, and `DeviceError` where the GPU lacks memory.
        """
        self.target, self.device, self.record = target, device, record
        self._trt, self._pid, self._lock = trt, os.getpid(), threading.RLock()
        self._users: set[object] = set()
        self._gone = False
        self._engine: Any = None
        self._runtime: Any = None
        self._settings: Any = None  # both of TensorRT-RTX
        self._cache: Any = None
        self._plan, self._cache_path, self._cached = plan, plan.parent / RUNTIME_CACHE, b""
        # TensorRT-RTX captures by itself, within its call: its kernels change while it runs
        by_itself = hasattr(trt, "CudaGraphStrategy")
        self.captures = graphs and not by_itself
        self.executing: Callable[[], AbstractContextManager[None]] = (
            turns.capturing if graphs and by_itself else contextlib.nullcontext
        )
        owner = object()
        keep_in_forks(self)
        self.join(owner)
        try:
            with device.current():
                trt_log.last_error()  # what was said before this is of no call of it
                self._start(trt)
                self._deserialize(plan)
                self._check_tensors(plan)
                if hasattr(trt, "IRuntimeCache"):
                    self._configure(graphs)
        except BaseException:
            self.leave(owner)
            raise
        self.owner = owner

    @property
    def inherited(self) -> bool:
        """Whether this is a fork: its parent has the GPU, and what is on it."""
        return os.getpid() != self._pid

    def new_context(self) -> Any:
        """Another execution context of TensorRT's, on the first profile; None where it fails."""
        trt_log.last_error()  # of an earlier call
        if self._settings is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._settings)

    def failed(self, call: str, said: str = "") -> DeviceError:
        """The error for a call of TensorRT's that did not succeed, with what TensorRT said of it."""
        said = said or trt_log.last_error() or "it gave no reason"
        advice = host.advise(
            said, "free memory of the GPU or compile the bundle again, and start the process anew if it goes on"
        )
        return DeviceError(f"{self.target}'s {call} failed on {self.device.gpu}: {said}; {advice}")

    def keep_cache(self) -> None:
        """Write TensorRT-RTX's runtime cache beside the plan, where it has grown; a folder that is gone forgets it."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize() or b"")
        if data and data != self._cached and self._cache_path.parent.is_dir():
            try:
                disk.write_atomic(self._cache_path, data)
                self._cached = data
            except OSError as error:
                log.info("the runtime cache is not kept in %s: %s", self._cache_path.parent, disk.explain(error))

    def inspect(self) -> trt_inspect.Executed | None:
        """What the engine executes, where its inspector tells; TensorRT-RTX chooses that when it first runs."""
        form = self._trt.LayerInformationFormat.JSON
        place = f"{self.device.gpu.model}, {host.nvidia_driver()}"

        def ask() -> str:
            return str(self._engine.create_engine_inspector().get_engine_information(form))

        return trt_inspect.inspect(ask, self._plan, self.record.sha256, place)

    def check_process(self) -> None:
        """Raise `RuntimeUnavailableError` in a fork."""
        if self.inherited:
            raise RuntimeUnavailableError(
                f"this {self.target} engine was opened before the process forked, and a fork cannot use its parent's "
                'GPU; open the bundle in each process, and start processes with the method "spawn"'
            )

    def join(self, user: object) -> None:
        """Use it from now on; `RuntimeUnavailableError` where its last user has left, and in a fork."""
        self.check_process()
        with self._lock:
            if self._gone:
                raise RuntimeUnavailableError(f"this {self.target} engine was closed; open the bundle again")
            self._users.add(user)

    def leave(self, user: object, drop: Step = _nothing, free: Step = _nothing) -> None:
        """Use it no more: `drop` lets go of the user's execution context, `free` of its memory and stream.

        Twice is allowed. What fails on the way is told to the log: nobody can mend a GPU that is being left.
        """
        if self.inherited:
            return
        with self._lock:  # all of it, or another's engine could go before this one's context
            if user not in self._users:
                return
            self._users.discard(user)  # first: the garbage collector may end another user within the steps below
            last = self._gone = not self._users
            with _told("leaving the GPU"), self.device.current():
                for step in (drop, self._unload if last else _nothing, free):
                    with _told("leaving the GPU"):
                        step()
            if last:
                with _told("releasing the GPU's context"):
                    self.device.release()

    def _unload(self) -> None:
        with _told("keeping the runtime cache"):
            self.keep_cache()
        # TensorRT's objects go with their last name
        self._settings = self._cache = None
        self._engine = None
        self._runtime = None

    def _start(self, trt: Any) -> None:
        try:
            self._runtime = trt.Runtime(trt_log.logger(trt))
        except TypeError as error:  # so the bindings say that they were given none
            raise self.failed("Runtime", trt_log.last_error() or host.first_line(error)) from None

    def _deserialize(self, plan: Path) -> None:
        try:
            with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._engine = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:  # of an empty file nothing can be mapped
            raise CompileError(f"cannot read the plan {plan}: {error}; compile the bundle again") from None
        if self._engine is None:
            said = trt_log.last_error() or "it gave no reason"
            if host.lacks_memory(said):  # the plan is sound, and compiling it again would take more
                raise self.failed("deserialize_cuda_engine", said)
            raise CompileError(f"{self.target} cannot open its plan {plan}: {said}; compile the bundle again")

    def _check_tensors(self, plan: Path) -> None:
        """Raise `CompileError` unless plan and record have the same inputs and outputs, all in the GPU's memory."""
        modes, places = self._trt.TensorIOMode, self._trt.TensorLocation
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        for mode, specs in ((modes.INPUT, self.record.inputs), (modes.OUTPUT, self.record.outputs)):
            found = {name for name in names if self._engine.get_tensor_mode(name) == mode}
            if found != {spec.name for spec in specs}:
                raise CompileError(
                    f"the plan {plan} has the {mode.name.lower()}s {', '.join(sorted(found))}, but its record says "
                    f"{', '.join(map(str, specs))}; compile the bundle again"
                )
        if on_host := [name for name in names if self._engine.get_tensor_location(name) != places.DEVICE]:
            raise CompileError(
                f"the plan {plan} reads {', '.join(on_host)} on the host, to compute shapes of it, which is not "
                "supported; export the bundle again"
            )

    def _configure(self, graphs: bool) -> None:
        """TensorRT-RTX: kernels that were compiled before are read back, and graphs are captured by itself."""
        self._settings = self._engine.create_runtime_config()
        self._cache = self._settings.create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cached = self._cache_path.read_bytes()
            if not self._cache.deserialize(self._cached):
                log.info("%s is of another GPU, driver or version: kernels are compiled anew", self._cache_path)
        self._settings.set_runtime_cache(self._cache)
        strategies = getattr(self._trt, "CudaGraphStrategy", None)
        if strategies is not None:
            self._settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED


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
                shapes = tuple(tuple(feeds[spec.name].shape) for spec in self._record.inputs)
                if shapes != self._shapes:
                    self._reshape(shapes)
                names = (spec.name for spec in self._record.inputs)
                self._launch(tuple(name for name in names if self._bind(name, feeds[name])))
                self._stream.synchronize()
                return {spec.name: self._views[spec.name].copy() for spec in self._record.outputs}

    def close(self) -> None:
        """Free all of it; twice is allowed."""
        if self._loaded.inherited:
            return
        with self._lock:
            self._loaded.leave(self, self._drop, self._free)

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
        if self._addresses.get(name) != pointer:
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

    def _enqueue(self, staged: Sequence[str], mark: Step = _nothing) -> None:
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
        with _told("freeing a graph"):
            self._drop_graph()
        self._context = None

    def _free(self) -> None:
        self._views.clear()
        while self._buffers:
            with _told("freeing a buffer"):
                self._buffers.popitem()[1].free()
        if self._resizer is not None:
            with _told("freeing the resizer"):
                self._resizer.close()
            self._resizer = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell an error of the device to the log instead of raising it."""
    try:
        yield
    except DeviceError as error:
        log.warning("%s: %s", what, error)
