"""What a call of the predictor costs beside the engine: RT-DETR-R18 at 640x640 from a 1080p frame.

Demand: everything but the engine call takes 8 ms at most in the median with the exact (Pillow-equal) resize, which is
the default, and 2 ms with `resize="opencv"`.
Prediction: 6 ms and 1.5 ms; nearly all of it the resize, decoding below 0.3 ms.

Each call gets another photograph. With the real engine between the calls the frame and our code have left the
processor's caches, as in use; the null runtime shows what is left with warm ones, and what our wrapper around the
vendor's call costs, which is added to the overhead that is held to the demand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from time import perf_counter
from typing import Any

import click
import cv2
import numpy as np
from common import Report, photographs, threshold_for
from models import bundle
from PIL import Image

LIMITS = {"pillow": "<= 8", "opencv": "<= 2"}
STAGES = ("preprocess", "engine", "decode")


BARE: dict[str, Callable[[np.ndarray], object]] = {
    "Pillow, one thread": lambda frame: np.asarray(
        Image.fromarray(frame).resize((640, 640), Image.Resampling.BILINEAR)
    ),
    "OpenCV linear, no antialiasing": lambda frame: cv2.resize(frame, (640, 640)),
}


class Case:
    """A predictor with its own endless row of photographs, and the times of its calls in ms."""

    def __init__(self, resize: str, runtime: str, model: str) -> None:
        import edgevtx

        self.resize, self.runtime = resize, runtime
        path = bundle(model, resize=resize)
        self.model = edgevtx.load(path, runtime=runtime, allow_unverified=True)
        self.frames = itertools.cycle(photographs())
        self.times: dict[str, list[float]] = {name: [] for name in ("whole", *STAGES)}
        self.found: list[int] = []

    def call(self, threshold: float, record: bool) -> None:
        frame = next(self.frames)
        start = perf_counter()
        result: Any = self.model(frame, threshold=threshold)
        whole = 1e3 * (perf_counter() - start)
        if record:
            self.times["whole"].append(whole)
            self.found.append(len(result))
            for name in STAGES:
                self.times[name].append(self.model.stages[name])

    def overhead(self) -> np.ndarray:
        return np.array(self.times["whole"]) - np.array(self.times["engine"])


@click.command()
@click.option("--rounds", default=60, show_default=True, help="Timed calls of each case, interleaved.")
@click.option("--warmup", default=5, show_default=True)
@click.option("--results", default=30, show_default=True, help="About so many detections a frame.")
@click.option("--model", default="rtdetr_r18_640", show_default=True, help="A name of bench/models.py.")
def main(rounds: int, warmup: int, results: int, model: str) -> None:
    """Measure everything but the engine call."""
    settings = {"rounds": rounds, "warm-up": warmup, "results a frame": f"about {results}"}
    report = Report("overhead", f"Beside the engine: {model} from a 1080p frame", settings)
    cases = [Case(resize, runtime, model) for resize in LIMITS for runtime in ("openvino", "null")]
    threshold = threshold_for(cases[0].model, photographs(), results)
    bare: dict[str, list[float]] = {name: [] for name in BARE}
    frames = itertools.cycle(photographs())
    for index in range(-warmup, rounds):
        for case in cases if index % 2 else reversed(cases):
            case.call(threshold, record=index >= 0)
        for name, resize in BARE.items():
            frame = next(frames)
            start = perf_counter()
            resize(frame)
            bare[name] += [1e3 * (perf_counter() - start)] if index >= 0 else []
    table = report.table(
        "Milliseconds a call, medians",
        *("resize", "runtime", "preprocess", "engine", "decode", "whole", "all but the engine", "p95", "results"),
    )
    for case in cases:
        medians = [float(np.median(case.times[name])) for name in (*STAGES, "whole")]
        over = case.overhead()
        shown = (float(np.median(over)), float(np.percentile(over, 95)), int(np.median(case.found)))
        table.add(case.resize, case.runtime, *medians, *shown)
    alone = report.table("The resize alone, by the library itself: how fast this machine was", "call", "ms, median")
    for name, times in bare.items():
        alone.add(name, float(np.median(times)))
    by_key = {(case.resize, case.runtime): case for case in cases}
    for resize, limit in LIMITS.items():
        wrapper = float(np.median(by_key[resize, "null"].times["engine"]))
        found = float(np.median(by_key[resize, "openvino"].overhead())) + wrapper
        report.demand(f"ms beside the engine, resize {resize}", limit, found)
    report.notes.append("the demand's figure is the median of whole - engine, plus the null runtime's engine stage")
    report.raw = {f"{case.resize} {case.runtime}": case.times for case in cases}
    report.raw["resize alone"] = bare
    report.finish()


if __name__ == "__main__":
    main()
