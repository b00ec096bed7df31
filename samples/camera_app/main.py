"""Watch a camera: the smallest honest program around a bundle.

    python samples/camera_app/main.py fire.vtx 0          # the first camera
    python samples/camera_app/main.py fire.vtx clip.mp4   # a recording, to try it out

It says once when something appears, and keeps a picture of that moment.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

import edgevtx
from edgevtx.images import write_image
from edgevtx.stream.pipeline import Record, run
from edgevtx.stream.sources import open_source

THRESHOLD = 0.5  # what scores less is not looked at
IN_A_ROW = 3  # frames that must agree before anyone is called, since a single frame is often wrong


class Watch:
    """Reacts once to what appears, and again only after it has gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.streak = 0
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: Record) -> None:
        found, frame = record.result, record.frame
        self.streak = self.streak + 1 if len(found) else 0
        if self.streak == IN_A_ROW:
            picture = self.folder / f"{frame.index:06d}.jpg"
            write_image(picture, found.draw(frame.image))
            names = ", ".join(f"{label} {score:.0%}" for label, score in zip(found.labels, found.scores, strict=True))
            print(f"frame {frame.index}: {names}, {record.age * 1000:.0f} ms after the camera saw it; {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch a camera, a stream or a video with a detection bundle.")
    parser.add_argument("bundle", help="a detection bundle, such as fire.vtx")
    parser.add_argument("source", help="a camera's index, a stream's URL, gst:PIPELINE, a video or an image")
    parser.add_argument("--out", type=Path, default=Path("seen"), help="folder for the pictures")
    options = parser.parse_args()

    stop = threading.Event()  # Ctrl-C or a service manager: finish the frames at hand, then leave
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with edgevtx.load(options.bundle) as model, open_source(options.source) as camera:
            if model.info.task != "detect":
                sys.exit(f"camera_app: {options.bundle} is no detector but does {model.info.task!r}")
            print(f"{model.info.name} on {model.info.runtime} watches {camera.name}; Ctrl-C ends it", flush=True)
            summary = run(camera, model, threshold=THRESHOLD, on_record=Watch(options.out), stop=stop)
    except edgevtx.EdgevtxError as error:
        sys.exit(f"camera_app: {error}")
    print(f"{summary.frames} frames, {summary.fps:.1f} a second, {summary.dropped} dropped")


if __name__ == "__main__":
    main()
