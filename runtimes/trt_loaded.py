"""A TensorRT plan as an engine in a GPU's memory, and who takes it down, and when.

Whoever comes last takes it down in this order: execution contexts, engine, runtime, device memory, streams, the GPU's
context. Another order is what crashes at an interpreter's exit. TensorRT frees an object with its last name, so none is
ever a local variable: the frames that an exception keeps would hold it beyond its turn.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgevtx import disk
from edgevtx.errors import CompileError, DeviceError, RuntimeUnavailableError
from edgevtx.runtimes import host, trt_inspect, trt_log, turns
from edgevtx.runtimes.cuda import Device, keep_in_forks
from edgevtx.runtimes.plan import PlanRecord

log = logging.getLogger(__name__)

RUNTIME_CACHE = "runtime.cache"
"""Beside a plan of TensorRT-RTX: the kernels that it has compiled for this very GPU, when the plan was first opened."""

Step = Callable[[], None]


def nothing() -> None:
    """The step where there is none."""


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

    def leave(self, user: object, drop: Step = nothing, free: Step = nothing) -> None:
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
            with told("leaving the GPU"), self.device.current():
                for step in (drop, self._unload if last else nothing, free):
                    with told("leaving the GPU"):
                        step()
            if last:
                with told("releasing the GPU's context"):
                    self.device.release()

    def _unload(self) -> None:
        with told("keeping the runtime cache"):
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
                log.info("%s does not fit this GPU, driver or version: kernels are compiled anew", self._cache_path)
        self._settings.set_runtime_cache(self._cache)
        strategies = getattr(self._trt, "CudaGraphStrategy", None)
        if strategies is not None:
            self._settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Tell an error of the device to the log instead of raising it."""
    try:
        yield
    except DeviceError as error:
        log.warning("%s: %s", what, error)
