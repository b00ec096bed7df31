"""Measure every stage from a frame to its result, one frame after the other, and keep every measurement."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgevtx.errors import InputError
from edgevtx.profile.machine import describe, versions

if TYPE_CHECKING:
    from rich.table import Table

METHOD: Final = "inverted_cdf"
"""numpy's name for the percentile used: the smallest measured value that at least p% do not exceed."""

_TOTAL = "total"


@dataclass(frozen=True)
class StageTimes:
    """A stage's times over all measured frames, in milliseconds."""

    n: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, times: list[float]) -> StageTimes:
        """Summarise `times` (ms); none is left out."""
        p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99], method=METHOD))
        return cls(len(times), float(np.mean(times)), p50, p95, p99, float(np.max(times)))


@dataclass
class Profile:
    """What `profile` found. `cold_start` is seconds (compiling is 0 where the engine came from the cache, and part of
    loading where not), `stages` milliseconds; "total" is a frame from its reading
    (from memory: from its preprocessing) to its result. `fps` is measured frames per second without overlap."""

    stages: dict[str, StageTimes]
    cold_start: dict[str, float]
    fps: float
    warmup: int
    source: str
    frame_size: tuple[int, int]
    model: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=describe)
    versions: dict[str, str] = field(default_factory=versions)
    percentiles: str = METHOD

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)

    def footnote(self) -> str:
        """What the table was measured over."""
        count = self.stages[_TOTAL].n
        return f"{count} frames after {self.warmup} to warm up, none left out, one at a time: {self.fps:.1f} frames/s"

    def table(self) -> Table:
        """The stages as a rich table."""
        from rich.table import Table

        height, width = self.frame_size
        table = Table(
            title=f"{self.model['name']}, {width}x{height} px frames, milliseconds",
            title_justify="left",
        )
        table.add_column("stage")
        for name in ("p50", "p95", "p99", "max", "mean"):
            table.add_column(name, justify="right")
        for stage, times in self.stages.items():
            if stage == _TOTAL:
                table.add_section()
            row = (times.p50, times.p95, times.p99, times.max, times.mean)
            table.add_row(stage, *(f"{value:.2f}" for value in row))
        return table


def profile(
    predictor: Any,
    frames: Iterable[Any],
    *,
    count: int = 100,
    warmup: int = 10,
    source: str = "memory",
    read: bool = False,
) -> Profile:
    """Time `predictor` on `warmup` + `count` frames (H,W,3) uint8 BGR, fewer where `frames` ends before.

    A model of clips is given lists of frames instead, each counted as one.

    `read=True` counts the time that `frames` takes to give a frame as the stage "read". The first call is reported
    under `cold_start` and is one of the warm-up frames. Raises `InputError` if no frame is left to measure.
    """
    if count < 1 or warmup < 1:
        raise InputError(f"count and warmup must be 1 or more, but got {count} and {warmup}")
    rows: list[dict[str, float]] = []
    size = (0, 0)
    given = iter(frames)
    start = begin = time.perf_counter()
    for index in range(warmup + count):
        if index == warmup:
            start = time.perf_counter()
        begin = time.perf_counter()
        frame = next(given, None)
        if frame is None:
            break
        got = time.perf_counter()
        predictor(frame)
        done = time.perf_counter()
        stages = {"read": 1e3 * (got - begin)} if read else {}
        rows.append({**stages, **predictor.stages, _TOTAL: 1e3 * (done - (begin if read else got))})
        size = (frame[-1] if isinstance(frame, list) else frame).shape[:2]
    seconds = time.perf_counter() - start
    measured = rows[warmup:]
    if not measured:
        raise InputError(
            f"{source} gave {len(rows)} frames, and {warmup} warm up before one is measured; lower the warm-up"
        )
    return Profile(
        stages={stage: StageTimes.of([row[stage] for row in measured]) for stage in measured[0]},
        cold_start={
            "load_seconds": predictor.info.load_seconds,
            "compile_seconds": 0.0 if predictor.info.cache_hit else predictor.info.compile_seconds,
            "first_inference_seconds": rows[0][_TOTAL] / 1e3,
        },
        fps=len(measured) / seconds,
        warmup=warmup,
        source=source,
        frame_size=size,
        model=predictor.info.to_dict(),
    )
