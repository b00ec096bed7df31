"""The protocol that every runtime keeps, and the values that travel between a bundle and a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class DeviceArray:
    """An array in a GPU's memory, C-contiguous: its address, shape and dtype, and the stream that still writes it.

    `stream` is the driver's handle, None where nothing writes it any more, `ANY_STREAM` where that is unknown. `owner`
    has the memory, which is not freed as long as this is there.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None = None
    owner: Any = field(default=None, compare=False, repr=False)
    ANY_STREAM: ClassVar[int] = 0  # no handle: the protocol of device arrays forbids it

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Frames:
    """Frames that a GPU resizes into an input (N,h,w,3) uint8 BGR, with `input_size` (h,w).

    Each is (H,W,3), or (H,W) or (H,W,1) grey, uint8, of the host or of the GPU. It goes where its geometry, of rotation
    0, says, resized with `interpolation` as Pillow does; what it leaves free is `fill`. `rgb`: its channels come in
    that order. A frame must stay as it is until the input has been used.
    """

    frames: tuple[Array | DeviceArray, ...]
    geometries: tuple[Geometry, ...]
    input_size: tuple[int, int]
    interpolation: str
    fill: int = 0
    rgb: bool = False
    ndim: ClassVar[int] = 4
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.frames), *self.input_size, 3

    @property
    def size(self) -> int:
        return prod(self.shape)

    def __len__(self) -> int:
        return len(self.frames)


Feed = Array | DeviceArray | Frames
"""What a runtime that knows devices takes for an input."""


class OnGpu(Protocol):
    """An array in a GPU's memory: torch's, CuPy's, Numba's."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]: ...


def device_facts(value: Any) -> dict[str, Any] | None:
    """What an array in a GPU's memory offers as `__cuda_array_interface__` (torch, CuPy, Numba); None of all else.

    Raises `InputError` where it does not give itself away, as a tensor of torch that requires grad.
    """
    if isinstance(value, np.ndarray):
        return None
    try:
        facts: dict[str, Any] | None = getattr(value, "__cuda_array_interface__", None)
    except RuntimeError as error:
        raise InputError(
            f"an array on the GPU does not give its address ({str(error).partition('.')[0]}); of a tensor of torch "
            "that requires grad give tensor.detach()"
        ) from None
    return facts


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output of a graph.

    `shape` has `None` where a dimension is dynamic; `dtype` is numpy's name ("uint8", "float32", "int64").
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def accepts(self, array: Feed) -> bool:
        """Whether `array` has this dtype, rank and every fixed dimension."""
        return (
            array.dtype == np.dtype(self.dtype)
            and array.ndim == len(self.shape)
            and all(want is None or want == got for want, got in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        shape = ",".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype}[{shape}]"


class Runtime(Protocol):
    """One execution context over an engine. Serves one thread at a time; synchronous.

    `run` takes every input by name and returns every output by name. The returned arrays belong to the caller
    unless the class says that it reuses its output buffers. It raises `InputError` for a missing, unknown or
    misshapen input. After `close` it raises `RuntimeUnavailableError`; closing twice is allowed.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, Array]) -> Arrays: ...

    def close(self) -> None: ...

    def __enter__(self) -> Runtime: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class PlanOptions:
    """What may be asked of a TensorRT plan; what is None or empty is left to the compiler.

    `batch` is the largest batch, which kernels are then chosen for. `frames` are the sizes (height, width) in px of
    the frames that the plan is to serve. `workspace_mb` is the most memory of the device, in MiB, that a layer may work
    in.
    """

    batch: int | None = None
    frames: tuple[tuple[int, int], ...] = ()
    workspace_mb: int | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` for what is no size."""
        sizes = (self.batch, self.workspace_mb, *(side for frame in self.frames for side in frame))
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"what is asked of a plan is at least 1, and not: {self}")

    def __bool__(self) -> bool:
        return any((self.batch, self.frames, self.workspace_mb))

    def __str__(self) -> str:
        """As the options of `edgevtx compile`."""
        words = [f"--batch {self.batch}"] if self.batch else []
        words += [f"--frame {width}x{height}" for height, width in self.frames]
        words += [f"--workspace-mb {self.workspace_mb}"] if self.workspace_mb else []
        return " ".join(words)


@dataclass(frozen=True)
class EngineOptions:
    """What a caller asks of an engine.

    `device` is the runtime's own name for it ("CPU", "GPU", "NPU", "AUTO"); `providers` is for ONNX Runtime
    alone and defaults to its CPU provider; `threads` None leaves the runtime's default. For TensorRT alone: `gpu` is
    the architecture to compile for ("sm89"), "" the device's own; `plan` is what is asked of the plan, and `memory_mb`
    the most memory of the host, in MiB, that compiling may take, None what is free but a reserve. `progress` is told
    what a compiler does; it is no part of what is asked.
    """

    precision: str = "fp32"
    device: str = "CPU"
    threads: int | None = None
    providers: tuple[str, ...] = ()
    gpu: str = ""
    plan: PlanOptions = field(default_factory=PlanOptions)
    memory_mb: int | None = None
    progress: Callable[[str], None] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class BuildReport:
    """What a compiler made, read back from the compiled engine and not from what was asked.

    `precision_share` says for each type ("f32", "bf16", "i8", ...) which share of the multiply-adds of all
    convolutions and matrix products the engine executes in it; the shares add up to 1. `warnings` are the compiler's.
    """

    target: str
    target_version: str
    device: str
    precision_share: dict[str, float]
    compile_seconds: float
    options: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """Whether a runtime is usable on this machine; `reason` says why not, `install` the command that helps."""

    name: str
    available: bool
    version: str = ""
    devices: tuple[str, ...] = ()
    reason: str = ""
    install: str = ""


@dataclass
class Engine:
    """A compiled engine in memory. `new_runtime()` makes another execution context over the same weights.

    With `on_gpu` its runtimes take `DeviceArray`s, what offers `__cuda_array_interface__`, and `Frames`.
    `executed_share` is as `BuildReport.precision_share`, read from the open engine where that tells it, else empty.
    With `two_forms` the golden sample's shapes are served by a form of their own, all others by a second one.
    `most_rows` is the largest batch of its first input, None where that takes any, or one alone that its shape says.
    """

    target: str
    target_version: str
    device: str
    new_runtime: Callable[[], Runtime]
    close: Callable[[], None] = lambda: None
    on_gpu: bool = False
    executed_share: dict[str, float] = field(default_factory=dict)
    two_forms: bool = False
    most_rows: int | None = None


class Backend(Protocol):
    """What a module of this package offers as functions and constants, or an object of one as methods.

    A backend imports its vendor's package inside these functions, never at import.
    """

    PRECISIONS: tuple[str, ...]

    def probe(self) -> Probe: ...

    def fingerprint(self, options: EngineOptions) -> dict[str, str]:
        """All that a built engine depends on beside the graph: versions, device, driver, CPU features, options."""

    def place(self, options: EngineOptions) -> dict[str, str]:
        """What an engine's proof depends on and its fingerprint does not have; empty where no device is here."""

    def build(self, graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
        """Compile `graph` (its weights file beside it) into files under the empty `folder`."""

    def open(self, graph: Path, folder: Path, options: EngineOptions) -> Engine:
        """Open what `build` wrote. `graph` is given for backends whose engine still reads the weights file."""


def check_feeds(
    specs: tuple[TensorSpec, ...], feeds: Mapping[str, Feed], kinds: tuple[type, ...] = (np.ndarray,)
) -> None:
    """Raise `InputError` unless `feeds` names exactly `specs`, each of one of `kinds` with its dtype and shape."""
    names = {spec.name for spec in specs}
    if missing := names - set(feeds):
        raise InputError(f"input {sorted(missing)} is missing; this engine takes {', '.join(map(str, specs))}")
    if unknown := set(feeds) - names:
        raise InputError(f"input {sorted(unknown)} is unknown; this engine takes {', '.join(map(str, specs))}")
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, kinds):
            raise InputError(f"input must be {spec} as a numpy array, but got {type(array).__name__}")
        if not spec.accepts(array):
            found = TensorSpec(spec.name, array.shape, str(array.dtype))
            raise InputError(f"input must be {spec}, but got {found}")
        # no row at all, or an image without pixels; a prompt can do without points
        if 0 in array.shape[:1] or (array.size == 0 and array.dtype == np.uint8):
            raise InputError(f"input {spec} must not be empty, but has shape {array.shape}")
