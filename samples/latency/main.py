"""How fast is a bundle on this machine? Every runtime and precision that it was verified for, in one command.

python samples/latency/main.py fire.vtx
python samples/latency/main.py fire.vtx --size 1920x1080 --frames 300 --json latency.json
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import cycle
from pathlib import Path

from rich.console import Console

import edgevtx
from edgevtx.bundle import Bundle
from edgevtx.profile import Profile, profile, synthetic_frames


def measure(bundle: str, size: tuple[int, int], count: int) -> list[Profile]:
    """Profile each engine of the bundle that can run here on `count` frames of `size` (height, width)."""
    frames = synthetic_frames(size, 8)
    found = []
    for verdict in Bundle.open(bundle).manifest.verdicts:
        try:
            with edgevtx.load(bundle, runtime=verdict.target, precision=verdict.precision) as model:
                found.append(profile(model, cycle(frames), count=count, source="synthetic"))
        except edgevtx.EdgevtxError as error:
            print(f"{verdict.target} {verdict.precision} was left out: {error}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile every engine of a bundle on this machine.")
    parser.add_argument("bundle")
    parser.add_argument("--size", default="1920x1080", help="WIDTHxHEIGHT of the frames")
    parser.add_argument("--frames", type=int, default=100, help="frames to measure, after 10 to warm up")
    parser.add_argument("--json", type=Path, help="write all figures here, too")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    try:
        found = measure(options.bundle, (height, width), options.frames)
    except edgevtx.EdgevtxError as error:
        sys.exit(f"latency: {error}")

    console = Console()
    for item in found:
        runtime, version, precision = (item.model[key] for key in ("runtime", "runtime_version", "precision"))
        console.print(f"\n{runtime} {version} at {precision}: [bold]{item.fps:.1f} frames per second[/bold]")
        console.print(item.table())
    if options.json:
        options.json.write_text(json.dumps([item.to_dict() for item in found], indent=2))


if __name__ == "__main__":
    main()
