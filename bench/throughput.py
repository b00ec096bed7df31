"""Frames per second of `edgevtx run` against the engine alone: RT-DETR-R18 in fp32 on a 1080p video.

Demand: at least 0.93 of the engine in a bare loop in the same run, although both share the cores: video decoding,
resize, engine, decoding of the outputs and JSON Lines; all overlapped, but for resize and engine, which take turns.
Prediction: 0.95. Video decoding and resize cost about 15 ms of one core a frame; the engine leaves some of two cores
idle between its parallel sections, the rest is taken from it: at 220 ms a frame at most 15 / (2 * 220) = 3.4%. That was
wrong where the resize ran beside the engine (0.88): each parallel section waits for its slowest thread.

Blocks of frames alternate between the two, so that the machine's drift cancels; a block of the pipeline includes its
own filling and draining. The bare loop calls the predictor's engine with inputs made beforehand.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import FOLDER, Report, photographs, ratio, threshold_for
from models import bundle

from edgevtx.stream.sources import Source, open_source

STAGES = ("read", "preprocess", "engine", "decode", "write")


def make_clip(frames: int, size: tuple[int, int] = (1080, 1920)) -> Path:
    """A video of `frames` frames of `size` (height, width): a camera panning over photographs, with cuts."""
    import cv2

    height, width = size
    photos = photographs((height * 5 // 4, width * 5 // 4))
    path = FOLDER / f"clip-{width}x{height}-{frames}.mp4"
    if path.is_file():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (width, height))
    for index in range(frames):
        photo = photos[index * len(photos) // frames]
        turn = 2 * np.pi * index / 100
        top = int((photo.shape[0] - height) * (0.5 + 0.5 * np.sin(turn)))
        left = int((photo.shape[1] - width) * (0.5 + 0.5 * np.cos(turn)))
        writer.write(np.ascontiguousarray(photo[top : top + height, left : left + width]))
    writer.release()
    return path


class Endless(Source):
    """A file source that starts again at its end, and that several runs read on from, one after the other."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._frames = self._loop()

    def _loop(self) -> Iterator[Any]:
        while True:
            with open_source(self.path) as source:
                yield from source

    def __iter__(self) -> Iterator[Any]:
        return self._frames

    def close(self) -> None:
        self._frames.close()


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds of all threads, what `work` returned)."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


@click.command()
@click.option("--blocks", default=6, show_default=True, help="Pairs of blocks.")
@click.option("--frames", default=24, show_default=True, help="Frames a block.")
@click.option("--warmup", default=1, show_default=True, help="Pairs of blocks that are not counted.")
@click.option("--results", default=30, show_default=True, help="About so many detections a frame.")
@click.option("--model", default="rtdetr_r18_640", show_default=True, help="A name of bench/models.py.")
@click.option("--runtime", default="openvino", show_default=True)
@click.option("--clip", type=click.Path(exists=True, path_type=Path), help="A video of your own, 1080p.")
@click.option("--resize", type=click.Choice(["pillow", "opencv"]), default="pillow", show_default=True)
def main(
    blocks: int, frames: int, warmup: int, results: int, model: str, runtime: str, clip: Path | None, resize: str
) -> None:
    """Measure the pipeline's throughput against the engine's."""
    import edgevtx
    from edgevtx.stream.pipeline import run
    from edgevtx.stream.sinks import JsonLines

    clip = clip or make_clip(240)
    source = Endless(clip)
    predictor = edgevtx.load(bundle(model, resize=resize), runtime=runtime, precision="fp32", allow_unverified=True)
    inputs = itertools.cycle([predictor.prepare(frame) for frame in photographs()])
    threshold = threshold_for(predictor, photographs(), results)
    lines = FOLDER / "throughput.jsonl"

    def pipeline() -> Any:
        return run(source, predictor, [JsonLines(lines, overwrite=True)], threshold=threshold, limit=frames)

    def bare() -> None:
        for _ in range(frames):
            predictor.infer(next(inputs))

    walls: dict[str, list[float]] = {"pipeline": [], "bare": []}
    cpus: dict[str, list[float]] = {"pipeline": [], "bare": []}
    stages: list[dict[str, float]] = []
    for index in range(-warmup, blocks):
        pair = {"pipeline": pipeline, "bare": bare}
        for name in pair if index % 2 else reversed(pair):
            wall, cpu, summary = timed(pair[name])
            if index >= 0:
                walls[name].append(1e3 * wall / frames)
                cpus[name].append(1e3 * cpu / frames)
                if summary is not None:
                    stages.append(summary.stage_ms)
    source.close()
    written = len(lines.read_text().splitlines())
    if written != frames:
        raise SystemExit(f"the pipeline wrote {written} lines for {frames} frames")

    settings = {"blocks": blocks, "frames a block": frames, "warm-up blocks": warmup, "clip": clip.name}
    settings |= {"results a frame": f"about {results}", "runtime": runtime, "precision": "fp32", "resize": resize}
    name = "throughput" if (runtime, resize, model) == ("openvino", "pillow", "rtdetr_r18_640") else ""
    report = Report(name or f"throughput_{model}_{runtime}_{resize}", f"Throughput of the pipeline: {model}", settings)
    table = report.table("A frame, medians of blocks", "", "ms", "frames/s", "CPU ms")
    for name, times in walls.items():
        table.add(name, np.median(times), 1e3 / float(np.median(times)), np.median(cpus[name]))
    found = ratio(walls["bare"], walls["pipeline"])
    steps = report.table("Stages of the pipeline, mean ms a frame, overlapped", *STAGES)
    steps.add(*(float(np.median([block[stage] for block in stages])) for stage in STAGES))
    report.demand("frames/s of the pipeline over the bare engine", ">= 0.93", found)
    report.notes.append(f"ratio with its 95% interval over the pairs of blocks: {found}")
    extra = float(np.median(np.array(cpus["pipeline"]) - np.array(cpus["bare"])))
    report.notes.append(f"the pipeline takes {extra:.1f} ms of CPU a frame more than the bare loop")
    report.raw = {"ms a frame": walls, "cpu ms a frame": cpus, "stages": stages}
    report.finish()


if __name__ == "__main__":
    main()
