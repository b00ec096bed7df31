"""Average precision and false alarms of a stored checkpoint on scenes that no training run has seen.

    python -m samples.forest_fire.evaluate samples/forest_fire/checkpoint --scenes 600 --json metrics.json

Uses the checkpoint's own image processor and post-processing, and pycocotools for the precision.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from .scenes import LABELS, Scene, render_dense, render_mixed, render_scene

HELD_OUT = 10_000_000  # training seeds lie below
SIZES: tuple[tuple[int, int], ...] = ((384, 384), (360, 640), (480, 640))
DENSE_SIZES: tuple[tuple[int, int], ...] = ((192, 256), (256, 192), (240, 320))
RENDERERS: dict[str, tuple[Callable[[int, tuple[int, int]], Scene], tuple[tuple[int, int], ...]]] = {
    "forest": (render_scene, SIZES),
    "dense": (render_dense, DENSE_SIZES),
    "mixed": (render_mixed, SIZES),
}


def held_out(kind: str, count: int) -> Iterator[Scene]:
    """``count`` scenes of a kind in RENDERERS, seeds from HELD_OUT on, sizes in turn."""
    render, sizes = RENDERERS[kind]
    for index in range(count):
        yield render(HELD_OUT + index, sizes[index % len(sizes)])


class Detector:
    """A stored detection checkpoint as its authors' library runs it, float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForObjectDetection.from_pretrained(folder).eval()
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, frame: np.ndarray, threshold: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame (H,W,3) uint8 BGR -> boxes (N,4) xyxy pixels, scores (N,), class ids (N,)."""
        rgb = np.ascontiguousarray(frame[..., ::-1])
        inputs = self.processor(images=rgb, return_tensors="pt")
        outputs = self.model(**inputs)
        found = self.processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[frame.shape[:2]]
        )[0]
        return found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy()


def _ground_truth(scenes: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, (boxes, class_ids) in enumerate(scenes):
        for box, label in zip(boxes.tolist(), class_ids.tolist(), strict=True):
            wide, tall = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": [box[0], box[1], wide, tall],
                    "area": wide * tall,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [{"id": i} for i in range(len(scenes))],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in enumerate(LABELS)],
        "info": {},
    }


def average_precision(scenes: list[tuple[np.ndarray, np.ndarray]], results: list[dict[str, Any]]) -> dict[str, float]:
    """AP and AP50, over all and per class. ``scenes`` are (boxes, class_ids), ``results`` COCO detections."""
    if not results:
        return {"AP": 0.0, "AP50": 0.0, **{f"AP50_{name}": 0.0 for name in LABELS}}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints and has no switch for it
        truth = COCO()
        truth.dataset = _ground_truth(scenes)
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
    # precision: IoU threshold x recall x class x area range x detections kept
    precision = judge.eval["precision"][:, :, :, 0, -1]
    return {
        "AP": float(precision.mean()),
        "AP50": float(precision[0].mean()),
        **{f"AP50_{name}": float(precision[0, :, i].mean()) for i, name in enumerate(LABELS)},
    }


def evaluate(folder: Path, scenes: Iterable[Scene]) -> dict[str, float]:
    """Average precision of the checkpoint in ``folder`` on ``scenes``."""
    detector = Detector(folder)
    truth: list[tuple[np.ndarray, np.ndarray]] = []
    results: list[dict[str, Any]] = []
    for image, scene in enumerate(scenes):
        truth.append((scene.boxes, scene.class_ids))
        for box, score, label in zip(*detector(scene.frame), strict=True):
            left, top, right, bottom = (float(v) for v in box)
            results.append(
                {
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(score),
                }
            )
    return average_precision(truth, results)


def false_alarms(folder: Path, count: int, threshold: float) -> dict[str, float]:
    """Scenes with distractors and no fire: how many of ``count`` raise a detection above ``threshold``."""
    detector = Detector(folder)
    alarms = [
        len(detector(render_scene(HELD_OUT * 2 + i, SIZES[i % len(SIZES)], (0, 0)).frame, threshold)[1])
        for i in range(count)
    ]
    return {
        "scenes": count,
        "threshold": threshold,
        "scenes_with_alarm": int(np.count_nonzero(alarms)),
        "detections": int(np.sum(alarms)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face directory")
    parser.add_argument("--kind", choices=sorted(RENDERERS), default="forest", help="which scenes (forest)")
    parser.add_argument("--scenes", type=int, default=600, help="held-out scenes (600)")
    parser.add_argument("--empty", type=int, default=200, help="held-out scenes without fire (200)")
    parser.add_argument("--threshold", type=float, default=0.5, help="score that counts as an alarm (0.5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "command": f"python -m samples.forest_fire.evaluate CHECKPOINT --kind {options.kind}"
        f" --scenes {options.scenes} --empty {options.empty} --threshold {options.threshold}",
        "seeds": [HELD_OUT, HELD_OUT + options.scenes - 1],
        "sizes": RENDERERS[options.kind][1],
        **evaluate(options.checkpoint, held_out(options.kind, options.scenes)),
        "false_alarms": false_alarms(options.checkpoint, options.empty, options.threshold),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
