"""What `gpu.py` measures on the device itself: the rates of its memory and matrix units, a run's parts by events."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import Times, milliseconds

from edgevtx.runtimes.cuda import Device, Memory, Stream
from edgevtx.runtimes.trt_loaded import Loaded
from edgevtx.runtimes.trt_run import Execution


@dataclass
class Rates:
    """What this GPU does: bytes a second over its memory, and multiply-adds a second of fp16 matrices, where known."""

    bytes: float
    products: float = math.inf

    def __str__(self) -> str:
        known = "" if math.isinf(self.products) else f", {self.products / 1e12:.0f} T multiply-adds/s fp16"
        return f"{self.bytes / 1e9:.0f} GB/s{known}"

    def allow(self, size: int, work: int) -> float:
        """The least milliseconds for so many bytes and multiply-adds."""
        return 1e3 * max(size / self.bytes, work / self.products)


COPIED = 256 << 20  # bytes, more than any cache has


def copy_rate(device: Device) -> float:
    """Bytes a second that a copy reads and writes within the GPU's memory, by events: the best of ten."""
    with device.current(), contextlib.ExitStack() as opened:
        stream = opened.enter_context(contextlib.closing(Stream(device)))
        places = []
        for _ in range(2):
            places.append(Memory(device, COPIED))
            opened.callback(places[-1].free)
        source, target = (memory.pointer for memory in places)
        times = []
        for _ in range(10):
            start = stream.mark()
            device.driver.memcpy_dtod_async(target, source, COPIED, stream.raw)
            end = stream.mark()
            stream.synchronize()
            times.append(end.time_since(start))
    return 2 * COPIED / (min(times) / 1e3)


def product_rate(torch: Any) -> float:
    """Multiply-adds a second of matrices in fp16: the best of ten."""
    matrix = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")

    def multiply() -> None:
        _ = matrix @ matrix
        torch.cuda.synchronize()

    return 8192**3 / min(milliseconds(multiply) / 1e3 for _ in range(10))


def measure_rates(torch: Any) -> Rates:
    """Both rates of the first GPU; `torch` is None where there is none."""
    device = Device(0, "tensorrt")
    try:
        copied = copy_rate(device)
    finally:
        device.release()
    return Rates(copied) if torch is None else Rates(copied, product_rate(torch))


class Timed(Execution):
    """An execution context that notes what each run took on the device: `taken`, (copies, engine) in ms by events."""

    def __init__(self, loaded: Loaded) -> None:
        self.taken: list[tuple[float, float]] = []
        self._marks: list[Any] = []
        super().__init__(loaded)

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        found = super().run(feeds)
        with self._loaded.device.current():
            begin, ready, done, end = self._marks
            self.taken.append((ready.time_since(begin) + end.time_since(done), done.time_since(ready)))
            self._marks = []  # freed while the GPU is there
        return found

    def _enqueue(self, staged: Sequence[str], mark: Callable[[], None] = lambda: None) -> None:
        def note() -> None:
            mark()
            self._marks.append(self._stream.mark())

        self._marks = []
        note()
        super()._enqueue(staged, note)
        note()

    def rows(self, rounds: int) -> dict[str, Times]:
        """The times of the last runs, by what they are of."""
        copies, engine = np.array(self.taken[-rounds:]).T
        return {"engine alone": engine, "copies alone": copies}
