"""`edgevtx run`: a bundle on an image, a folder, a video, a camera or a stream."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common
from edgevtx.cli.prompts import apply_prompts, check_prompts, prompt_options

if TYPE_CHECKING:
    from edgevtx.predictor import ModelInfo, Predictor
    from edgevtx.stream.pipeline import Record, Summary
    from edgevtx.stream.sinks import Sink
    from edgevtx.stream.sources import Source

LIVE_VIDEO_FPS = 15.0  # of an annotated video of a live source whose own rate is unknown


@click.command(short_help="Run a bundle on images, videos, cameras, streams.")
@common.bundle_argument
@click.argument("source", metavar="SOURCE")
@click.option("--out", metavar="DIR", help="Write results.jsonl and annotated pictures or video here.")
@click.option("--jsonl-only", is_flag=True, help="With --out: no pictures, no video.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote into --out.")
@click.option("--threshold", metavar="X", type=click.FloatRange(0, 1), help="Lowest score of a detection.")
@click.option("--top-k", metavar="N", type=click.IntRange(1), help="At most so many items a frame.")
@click.option(
    "--roi", metavar="X0,Y0,X1,Y1", callback=common.parse_box, help="Look only at this part of each frame, in px."
)
@click.option(
    "--rotation",
    type=click.Choice(["0", "90", "180", "270"]),
    default="0",
    help="Degrees clockwise that make the frames upright.",
)
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Stop after so many frames.")
@click.option(
    "--stride",
    metavar="N",
    type=click.IntRange(1),
    help="Of a model of clips: its frames from one answer to the next; default: the bundle's.",
)
@click.option(
    "--resize",
    type=click.Choice(["host", "gpu"]),
    default="host",
    show_default=True,
    help="Who resizes frames; gpu: TensorRT's.",
)
@prompt_options
@common.engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines, one object a frame.")
def command(
    bundle: str, source: str, out: str | None, jsonl_only: bool, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Run a bundle on SOURCE: an image, a folder of images, a video file, a camera ("0"), a URL ("rtsp://...") or a
    pipeline of GStreamer ("gst:nvarguscamerasrc ! ... ! appsink").

    \b
    Example:
      edgevtx run fire.vtx photo.jpg
      edgevtx run fire.vtx clip.mp4 --out results
      edgevtx run fire.vtx 0 --json | jq .result
      edgevtx run sam.vtx photo.jpg --points "320,240;100,80,0" --out results
      edgevtx run sam.vtx photo.jpg --points-per-side 16 --crop-layers 1 --out results

    Without --out, results are printed. Ctrl-C ends the run with complete files. A file of a folder that cannot be
    used is skipped, and named at the end.
    """
    from edgevtx.bundle import Bundle
    from edgevtx.predictor import load
    from edgevtx.stream.pipeline import run
    from edgevtx.stream.sources import open_source

    check_prompts(Bundle.open(bundle).manifest, options)
    folder = None if out is None else Path(out)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_source(source))
        targets = {} if folder is None else plan_outputs(folder, opened, jsonl_only, overwrite)
        with common.stages("load the model") as progress:
            arguments = {**common.engine_arguments(options), "resize": options["resize"]}
            model = stack.enter_context(load(bundle, progress=progress, **arguments))
        click.echo(engine_words(model.info), err=True)
        set_stride(model, options["stride"])
        apply_prompts(model, options)
        sinks = open_sinks(targets, opened, overwrite)
        if as_json:
            sinks.append(_json_sink())
        show = folder is None and not as_json
        stop = stack.enter_context(stop_on_signal())
        known = min((n for n in (opened.count, options["limit"]) if n is not None), default=None)
        with live_rate(known, quiet=show and sys.stdout.isatty()) as count:

            def on_record(record: Record) -> None:
                count()
                if show:
                    _print(record)

            summary = run(
                opened,
                model,
                sinks,
                threshold=options["threshold"],
                top_k=options["top_k"],
                roi=options["roi"],
                rotation=int(options["rotation"]),
                limit=options["limit"],
                stop=stop,
                on_record=on_record,
            )
    report(summary, [path for path in targets.values() if path.exists()])
    if summary.stopped:
        raise KeyboardInterrupt


def set_stride(model: Predictor, stride: int | None) -> None:
    """How often a model of clips answers; `InputError` where another model is given a stride."""
    from edgevtx.clip import ClipPredictor
    from edgevtx.errors import InputError

    if stride is None:
        return
    if not isinstance(model, ClipPredictor):
        raise InputError(f"{model.info.name} answers every frame by itself; leave --stride out")
    model.stride = stride


def plan_outputs(folder: Path, source: Source, jsonl_only: bool, overwrite: bool) -> dict[str, Path]:
    """What will be written, refused now rather than after the model was compiled."""
    from edgevtx.errors import OutputError
    from edgevtx.stream.sinks import claim, make_folder

    make_folder(folder)
    targets = {"jsonl": folder / "results.jsonl"}
    if not jsonl_only:
        kind = "images" if source.stills else "video"
        targets[kind] = folder / ("annotated.mp4" if kind == "video" else "annotated")
    for kind, path in targets.items():
        if kind != "images":
            claim(path, overwrite)
        elif path.is_dir() and any(path.iterdir()) and not overwrite:
            raise OutputError(f"{path} holds files; choose another --out, or overwrite with --overwrite")
    return targets


def open_sinks(targets: dict[str, Path], source: Source, overwrite: bool) -> list[Sink]:
    """The sinks of the planned outputs."""
    from edgevtx.stream.sinks import AnnotatedImages, AnnotatedVideo, JsonLines

    sinks: list[Sink] = []
    if "jsonl" in targets:
        sinks.append(JsonLines(targets["jsonl"], overwrite=overwrite))
    if "images" in targets:
        sinks.append(AnnotatedImages(targets["images"], overwrite=overwrite))
    if "video" in targets:
        fps = source.fps or LIVE_VIDEO_FPS
        sinks.append(AnnotatedVideo(targets["video"], fps=fps, realtime=source.live, overwrite=overwrite))
    return sinks


def _json_sink() -> Sink:
    from edgevtx.stream.sinks import JsonLines

    return JsonLines(None)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def live_rate(total: int | None, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A bar with the frames done, of `total` where known, and the frames per second; call it once a frame.

    On a terminal only.
    """
    target = common.console(stderr=True)
    if quiet or not target.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    known = [] if total is None else [BarColumn(), TimeRemainingColumn()]
    text = "{task.completed} frames  {task.fields[fps]:.1f} frames/s"
    rate = _Rate()
    with Progress(TextColumn(text), *known, console=target, transient=True) as progress:
        task = progress.add_task("", total=total, fps=0.0)

        def count() -> None:
            progress.update(task, advance=1, fps=rate.tick())

        yield count


class _Rate:
    """Frames per second over the last two seconds."""

    def __init__(self) -> None:
        from collections import deque

        self._times: deque[float] = deque()

    def tick(self) -> float:
        import time

        now = time.monotonic()
        self._times.append(now)
        while now - self._times[0] > 2 and len(self._times) > 2:
            self._times.popleft()
        span = now - self._times[0]
        return (len(self._times) - 1) / span if span else 0.0


def engine_words(info: ModelInfo) -> str:
    """What a model runs on, on one line."""
    others = "".join(f", {part} in {precision}" for part, precision in info.part_precisions.items())
    return f"{info.name}: {info.runtime} {info.runtime_version} on {info.device}, {info.precision}{others}"


def _print(record: Record) -> None:
    frame = record.frame
    place = frame.source if frame.position is None else f"{frame.position:8.2f} s"
    click.echo(f"{place}  {record.result.summary()}")


def report(summary: Summary, written: list[Path]) -> None:
    """The end of a run, on standard error."""
    out = common.console(stderr=True)
    dropped = f", {summary.dropped} older ones dropped" if summary.dropped else ""
    frames = "1 frame" if summary.frames == 1 else f"{summary.frames} frames"
    out.print(f"{frames} in {common.seconds(summary.seconds)}: {summary.fps:.1f} frames/s{dropped}", soft_wrap=True)
    if summary.frames:
        times = ", ".join(f"{stage} {value:.1f}" for stage, value in summary.stage_ms.items())
        out.print(f"mean ms a frame, overlapped: {times}", soft_wrap=True)
    if summary.skipped:
        files = "1 file" if len(summary.skipped) == 1 else f"{len(summary.skipped)} files"
        out.print(f"skipped {files} that could not be used:", soft_wrap=True)
    for skipped in summary.skipped:
        out.print(f"  {skipped}", soft_wrap=True, markup=False)
    for note in summary.notes:
        out.print(f"note: {note}", soft_wrap=True, markup=False)
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True, markup=False)
