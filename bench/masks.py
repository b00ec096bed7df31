"""From engine outputs to masks of a 1080p frame: ours beside transformers' post-processing, in one run.

Panoptic: mask logits of 200 x 334, as DETR has them for a frame of 1080 x 1920, of 100 or 10 queries that are kept.
"shapes" are regions that share the frame among them, with soft ragged borders, as a trained model gives them;
"noise" are smooth random masks that overlap everywhere, the worst case: most pixels are disputed. SAM: three masks
of 256 x 256 logits, one inside another. Ours is everything that `model(frame)` or `model.predict` does after the
engine: the panoptic map and the segments, or the masks; "with all masks" adds each object's whole mask, which the
reference does not give, and "as JSON" is what `edgevtx run` writes of a frame, the run lengths of both.

Predictions, written before each step was built:

- Upsampling only along boundaries: a mask's boundary runs through about 3% of its cells, so 30 times less to compute;
  the rest is memory traffic, 2 MB a dense mask and 8 MB a label map. SAM 35 -> 5 ms; panoptic 100 5200 -> 150 ms.
  Found, in CPU time of one thread on a busy machine: SAM 4 to 8 ms; panoptic 100 below the prediction, 10 above it.
- Batches of cells of one width, pixels side by side in memory: fifty thousand small calls become five hundred, 2 to 3
  times as fast. Found: SAM 1.75 times in CPU time, 2.4 times where boundaries are long.
- Ranks instead of masked assignments among a cell's candidates: a third less. Found: a fifth less with 10 queries.
- Cells of one size, the last pixel of a short one computed twice and the few long ones at the edges cut: a batch a
  width was needed before, and rows of half the cells were repeats. Predicted a third off 10 queries and SAM. Found:
  with the next one 20 -> 13 ms, and 7.6 -> 5.2 ms, alone on the machine.
- A mask's bounds only where the mask is, an argmax by ranks: predicted a quarter off 100 queries. Found: 96 -> 67 ms.
- Two threads: predicted 1.6 times. Found: 67 -> 56 ms with 100 queries, nothing with 10 or with SAM, whose arrays are
  so small that the threads wait for the interpreter.
- Where each segment lies, in one pass over the map instead of one a segment: predicted for JSON with 100 kept, 100
  passes of 1.5 ms less. Found: 76 -> 7.6 ms for a hundred segments, of a JSON that takes 190 ms.
- Bounds before counting: the area test needs the exact area of a mask only where its cells leave it open, so nearly
  all counts are spared. Found: 8 of 99 areas were counted; the time it saves was not measured apart.

    python bench/masks.py [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import Report, interleave, quantiles, ratio
from numpy.typing import NDArray

FRAME = (1080, 1920)
CLASSES = 133
Floats = NDArray[np.float32]


def blurred(random: np.random.Generator, shape: tuple[int, int, int], width: int) -> Floats:
    """Noise of standard deviation one, smoothed three times over `width` pixels: (N,h,w) float32."""
    values = random.standard_normal((shape[0], shape[1] + 3 * width, shape[2] + 3 * width), np.float32)
    for axis, length in ((1, shape[1]), (2, shape[2])):
        for _ in range(3):
            total = np.cumsum(values, axis, dtype=np.float64)
            count = values.shape[axis] - width
            values = (np.take(total, range(width, width + count), axis) - np.take(total, range(count), axis)).astype(
                np.float32
            )
        values = np.take(values, range(length), axis)
    return values / values.std()


def shapes(count: int, size: tuple[int, int], seed: int) -> Floats:
    """Logits (count,h,w) of regions that share the picture among them; every third lies within another one."""
    random = np.random.default_rng(seed)
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
    warp = blurred(random, (2, *size), 9) * 4
    centres = random.random((count, 2)) * size
    far = np.stack([np.hypot(ys + warp[0] - y, xs + warp[1] - x) for y, x in centres])
    inner = np.arange(count) % 3 == 2
    far[inner] -= 3
    first, second = np.sort(far, axis=0)[:2]
    edge = np.where(far == first, second - first, first - far)
    logits: Floats = np.clip(edge * 1.5, -9, 9) + blurred(random, (count, *size), 3) * 0.4
    return logits.astype(np.float32)


def noise(count: int, size: tuple[int, int], seed: int) -> Floats:
    """Logits (count,h,w) that have nothing to do with one another."""
    return blurred(np.random.default_rng(seed), (count, *size), 9) * 4


def panoptic(count: int, kind: Callable[[int, tuple[int, int], int], Floats]) -> dict[str, Callable[[], Any]]:
    """Ours and transformers' for `count` kept queries of 100."""
    import torch
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    from edgevtx.decode import decode
    from edgevtx.geometry import plan
    from edgevtx.rules import PanopticDecode, Preprocess, ShortestEdge

    size = ShortestEdge(shortest=800, longest=1333)
    rules = Preprocess(size=size, interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1))
    geometry = plan(FRAME, rules)
    height, width = (-(-side // 4) for side in geometry.input_size)
    random = np.random.default_rng(count)
    masks = noise(100, (height, width), 1)
    kept = np.sort(random.choice(100, count, replace=False))
    masks[kept] = kind(count, (height, width), 2)
    logits = random.normal(0, 1, (100, CLASSES + 1)).astype(np.float32)
    logits[:, -1] = 12
    logits[kept, random.integers(0, CLASSES, count)] = 14 + random.random(count) * 3
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    outputs = {
        "boxes": np.sort(random.random((1, 100, 2, 2), np.float32), 2).reshape(1, 100, 4),
        "scores": probabilities[None, :, :-1].max(-1),
        "class_ids": probabilities[None, :, :-1].argmax(-1),
        "no_object": probabilities[None, :, -1],
        "masks": masks[None],
    }
    labels = tuple(map(str, range(CLASSES)))
    manifest: Any = SimpleNamespace(decode=PanopticDecode(top_k=100, threshold=0.5, stride=4), labels=labels)
    raw = SimpleNamespace(logits=torch.from_numpy(logits)[None], pred_masks=torch.from_numpy(masks)[None])
    processor = DetrImageProcessorPil()
    return {
        "ours": lambda: decode(outputs, [geometry], manifest)[0],
        "with all masks": lambda: decode(outputs, [geometry], manifest)[0].detections,
        "as JSON": lambda: decode(outputs, [geometry], manifest)[0].to_dict(),
        "transformers": lambda: processor.post_process_panoptic_segmentation(
            raw, label_ids_to_fuse=set(), target_sizes=[FRAME]
        )[0],
    }


def sam() -> dict[str, Callable[[], Any]]:
    """Ours and transformers' for the three masks of one prompt."""
    import torch
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    from edgevtx.decode.prompt import decode_prompts
    from edgevtx.geometry import plan
    from edgevtx.rules import LongestEdge, Preprocess, PromptDecode

    rules = Preprocess(size=LongestEdge(longest=1024), interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1))
    geometry = plan(FRAME, rules)
    ragged = blurred(np.random.default_rng(3), (1, 256, 256), 5)[0]
    ys, xs = np.mgrid[:256, :256].astype(np.float32)
    maps = np.stack([r - np.hypot(ys - 70, (xs - 120) * 0.8) + 3 * ragged for r in (25, 45, 65)]).astype(np.float32)
    processor = SamImageProcessorPil()
    raw = [torch.from_numpy(maps)[None]]
    rule = PromptDecode(masks=4, mask_size=(256, 256))
    outputs = {"low_res_logits": np.concatenate((maps[:1], maps))[None], "iou": np.zeros((1, 4), np.float32)}
    return {
        "ours": lambda: decode_prompts(outputs, geometry, rule, multimask=True).masks,
        "transformers": lambda: processor.post_process_masks(raw, [FRAME], [geometry.resized])[0],
    }


def agreement(work: dict[str, Callable[[], Any]]) -> tuple[float, bool]:
    """The share of equal pixels, and whether the segments are the same."""
    ours, theirs = work["ours"](), work["transformers"]()
    if not isinstance(theirs, dict):
        return float((ours.dense() == theirs[0].numpy()).mean()), True
    equal = (ours.segment_map == np.maximum(theirs["segmentation"].numpy(), 0)).mean()
    rows = [(one["id"], one["label_id"]) for one in theirs["segments_info"]]
    return float(equal), rows == [(one.id, one.class_id) for one in ours.segments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    cases: dict[str, tuple[dict[str, Callable[[], Any]], str | None]] = {
        "DETR panoptic, 100 kept, shapes": (panoptic(100, shapes), "<= 100"),
        "DETR panoptic, 100 kept, noise": (panoptic(100, noise), "<= 100"),
        "DETR panoptic, 10 kept, shapes": (panoptic(10, shapes), "<= 15"),
        "DETR panoptic, 10 kept, noise": (panoptic(10, noise), None),
        "SAM, 3 masks": (sam(), "<= 7"),
    }
    report = Report("masks", "Masks: from outputs to a 1080p result", {"rounds": options.rounds, "frame": "1920x1080"})
    further = "with all masks", "as JSON"
    columns = "case", "ours", "p95", *further, "transformers", "ours / transformers", "equal pixels", "segments"
    table = report.table("Milliseconds", *columns)
    for case, (work, limit) in cases.items():
        equal, same = agreement(work)
        times = interleave(work, options.rounds, warmup=1)
        own = quantiles(times["ours"])
        table.add(
            case,
            own["median"],
            own["p95"],
            *(quantiles(times[name])["median"] if name in times else None for name in further),
            quantiles(times["transformers"])["median"],
            str(ratio(times["ours"], times["transformers"])),
            f"{equal:.5%}",
            "the same" if same else "others",
        )
        report.raw[case] = times
        report.demand(f"{case}: share of equal pixels", ">= 0.999", equal)
        if limit:
            report.demand(f"{case}: ms", limit, own["median"])
    report.finish()


if __name__ == "__main__":
    main()
