"""The execution context that the backends share: checks, lifetime and context manager around the vendor's call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np

from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes.base import Array, Arrays, Engine, Runtime, TensorSpec, check_feeds

Execute = Callable[[Arrays], Arrays]


class Context:
    """A `Runtime` over `execute`, the vendor's call: contiguous inputs by name in, arrays of the caller's own out."""

    def __init__(
        self, target: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], execute: Execute
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._target, self._execute = target, execute

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Every output by name for every input by name; see `base.Runtime` for the errors."""
        execute = self._execute
        check_feeds(self.inputs, feeds)
        return execute({spec.name: np.asarray(feeds[spec.name], order="C") for spec in self.inputs})

    def close(self) -> None:
        """Let go of the engine. Closing twice is allowed."""
        self._execute = self._closed

    def _closed(self, feeds: Arrays) -> Arrays:
        raise RuntimeUnavailableError(f"this {self._target} runtime was closed; open the bundle again to run it")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def engine(target: str, version: str, device: str, new_runtime: Callable[[], Runtime]) -> Engine:
    """An `Engine` whose `close` lets go of what `new_runtime` holds.

    Runtimes that were opened before keep working until they are closed themselves.
    """
    opened = [new_runtime]

    def another() -> Runtime:
        if not opened:
            raise RuntimeUnavailableError(f"this {target} engine was closed; open the bundle again")
        return opened[0]()

    return Engine(target=target, target_version=version, device=device, new_runtime=another, close=opened.clear)
