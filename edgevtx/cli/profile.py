"""`edgevtx profile`: how long each step takes on this machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common
from edgevtx.errors import InputError, OutputError

if TYPE_CHECKING:
    from edgevtx.profile import Profile

RING = 12  # distinct synthetic frames, held in memory


@click.command(short_help="Measure every stage from frame to result.")
@common.bundle_argument
@click.argument("source", metavar="[SOURCE]", required=False)
@click.option(
    "--frames", metavar="N", type=click.IntRange(1), default=100, show_default=True, help="Frames to measure."
)
@click.option(
    "--warmup", metavar="N", type=click.IntRange(1), default=10, show_default=True, help="Frames before those."
)
@click.option(
    "--size",
    metavar="WIDTHxHEIGHT",
    callback=common.parse_size,
    default="1920x1080",
    show_default=True,
    help="Of synthetic frames.",
)
@click.option("--out", metavar="FILE", help="Also write the JSON here (an existing file is replaced).")
@common.engine_options
@common.json_option
def command(
    bundle: str,
    source: str | None,
    frames: int,
    warmup: int,
    size: tuple[int, int],
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure every stage from frame to result, one frame at a time, cold start apart. No measurement is left out.

    \b
    Example:
      edgevtx profile fire.vtx
      edgevtx profile fire.vtx clip.mp4 --frames 500 --json

    Without SOURCE, rendered frames are used. An image or folder is repeated; a video, camera, URL or pipeline of
    GStreamer ("gst:...") is read, and reading is a stage of its own.
    """
    from edgevtx.clip import ClipPredictor
    from edgevtx.predictor import load
    from edgevtx.profile import profile

    if out is not None:
        _refuse_unwritable(Path(out))
    with common.stages("prepare frames") as progress, _frames(source, size, warmup + frames) as (given, name, read):
        progress("load the model")
        with load(bundle, progress=progress, **common.engine_arguments(options)) as model:
            if isinstance(model, ClipPredictor):
                given = _in_clips(given, model.clip.frames, name)
            progress(f"measure {frames} frames")
            found = profile(model, given, count=frames, warmup=warmup, source=name, read=read)
    text = json.dumps(found.to_dict(), indent=2)
    if out is not None:
        try:
            Path(out).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {out}: {(error.strerror or '').lower()}; choose another --out") from None
    if as_json:
        click.echo(text)
    else:
        _print(found)


def _in_clips(frames: Iterator[Any], count: int, source: str) -> Iterator[list[Any]]:
    """Lists of `count` frames, which a model of clips takes as one; a shorter rest is left out.

    Raises `InputError` where there is not even one.
    """
    clip = list(itertools.islice(frames, count))
    if len(clip) < count:
        raise InputError(f"{source} gave {len(clip)} frames, and the model takes clips of {count}; give a longer video")
    while len(clip) == count:
        yield clip
        clip = list(itertools.islice(frames, count))


def _refuse_unwritable(path: Path) -> None:
    """Raise `OutputError` before anything is measured for a file that could not be written afterwards."""
    problem = ""
    if path.is_dir():
        problem = "it is a folder"
    elif path.exists():
        problem = "" if os.access(path, os.W_OK) else "permission denied"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        problem = f"permission denied in {path.parent}"
    if problem:
        raise OutputError(f"cannot write {path}: {problem}; choose another --out")


@contextlib.contextmanager
def _frames(source: str | None, size: tuple[int, int], count: int) -> Iterator[tuple[Iterator[Any], str, bool]]:
    """Frames, what they are, and whether reading them is part of the measurement."""
    from edgevtx.profile import synthetic_frames
    from edgevtx.stream.sources import open_source

    if source is None:
        height, width = size
        yield itertools.cycle(synthetic_frames(size, min(count, RING))), f"synthetic {width}x{height}", False
        return
    with open_source(source) as opened:
        images = (frame.image for frame in opened)
        if opened.stills:
            yield itertools.cycle(list(itertools.islice(images, RING))), opened.name, False
        else:
            yield images, opened.name, True


def _print(found: Profile) -> None:
    model, cold = found.model, found.cold_start
    compiled = "from the cache" if model["cache_hit"] else f"{common.seconds(cold['compile_seconds'])} compiling"
    out = common.console()
    out.print(
        common.facts_table(
            {
                "engine": f"{model['runtime']} {model['runtime_version']} on {model['device']}",
                "precision": f"{model['precision']}; executed as {common.shares(model['precision_share'])}",
                "machine": f"{found.machine['processor']}, {found.machine['cores']} cores",
                "frames": found.source,
                "cold start": f"load {common.seconds(cold['load_seconds'])} ({compiled}), "
                f"first inference {common.seconds(cold['first_inference_seconds'])}",
            }
        )
    )
    out.print()
    out.print(found.table())
    out.print(f"{found.footnote()} (`edgevtx run` overlaps the stages)", soft_wrap=True)
