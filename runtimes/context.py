"""The execution context that the backends share: checks, lifetime and context manager around the vendor's call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes.base import Array, Arrays, DeviceArray, Engine, Frames, Runtime, TensorSpec, check_feeds

# what is taken is arrays, and by a runtime that adopts arrays of a device `DeviceArray`s and `Frames`
Execute = Callable[[dict[str, Any]], Arrays]


class Context:
    """A `Runtime` over `execute`, the vendor's call: contiguous inputs by name in, arrays of the caller's own out.

    `adopt`, of a runtime that takes arrays of a device, turns them into `DeviceArray`s and leaves all else.
    `release` frees what the context holds: called once, when it is closed, collected, or the interpreter ends.
    """

    def __init__(
        self,
        target: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        execute: Execute,
        *,
        adopt: Callable[[Any], Any] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._target, self._execute, self._adopt = target, execute, adopt
        self._release = weakref.finalize(self, release) if release else None

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Every output by name for every input by name; see `base.Runtime` for the errors."""
        execute = self._execute
        if self._adopt is None:
            check_feeds(self.inputs, feeds)
            return execute({spec.name: np.asarray(feeds[spec.name], order="C") for spec in self.inputs})
        adopted = {name: self._adopt(value) for name, value in feeds.items()}
        check_feeds(self.inputs, adopted, (np.ndarray, DeviceArray, Frames))
        return execute(adopted)

    def close(self) -> None:
        """Let go of the engine. Closing twice is allowed."""
        self._execute = self._closed
        if self._release is not None:
            self._release()

    def _closed(self, feeds: dict[str, Any]) -> Arrays:
        raise RuntimeUnavailableError(f"this {self._target} runtime was closed; open the bundle again to run it")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def engine(
    target: str,
    version: str,
    device: str,
    new_runtime: Callable[[], Runtime],
    release: Callable[[], None] | None = None,
    **facts: Any,
) -> Engine:
    """An `Engine` with these `facts`, whose `close` lets go of what `new_runtime` holds, and calls `release` as a
    `Context` does.

    Runtimes that were opened before keep working until they are closed themselves.
    """
    opened = [new_runtime]

    def another() -> Runtime:
        if not opened:
            raise RuntimeUnavailableError(f"this {target} engine was closed; open the bundle again")
        return opened[0]()

    # not of the engine: `open(...).new_runtime()` lets go of it before the call
    finalizer = weakref.finalize(another, release) if release else None

    def close() -> None:
        opened.clear()
        if finalizer is not None:
            finalizer()

    return Engine(target=target, target_version=version, device=device, new_runtime=another, close=close, **facts)
