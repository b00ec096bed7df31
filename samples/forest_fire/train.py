"""Train one of the small models on rendered scenes, on a CPU.

    python -m samples.forest_fire.train --model rtdetr --out samples/forest_fire/checkpoint
    python -m samples.forest_fire.train --model detr --out tests/assets/tiny_detr
    python -m samples.forest_fire.train --model setr --out tests/assets/tiny_setr
    python -m samples.forest_fire.train --model detr_panoptic --out tests/assets/tiny_detr_panoptic
    python -m samples.forest_fire.train --model sam --out tests/assets/tiny_sam

The committed checkpoints come from such runs; README.md says what differed. A run can be stopped at any time and
taken up again with --resume; what it needs for that lies in --work.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from .convergence import thaw
from .data import Shard, cached_shard, pick, sample
from .evaluate import evaluate, held_out
from .families import FAMILIES, Family
from .scenes import Scene

log = logging.getLogger("train")
Weights = dict[str, torch.Tensor]
_DECAY = 0.998  # of the weight average


def trainable(family: Family) -> Any:
    """A fresh model in training mode, every parameter learning, all but the losses in bfloat16 autocast."""
    model = family.build()
    if family.prepare is not None:
        family.prepare(model)
    thaw(model)
    model.requires_grad_(True)
    model.set_attn_implementation("eager")  # the fused backward in bfloat16 is slower than its parts
    core = model.model
    plain: Callable[..., Any] = core.forward

    def autocast(*args: Any, **named: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = plain(*args, **named)
        for name, value in outputs.items():  # matching and losses need more than bfloat16's eight bits
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[name] = value.float()
        return outputs

    core.forward = autocast
    return model.train()


def store(family: Family, weights: Weights, folder: Path) -> None:
    """Write weights as a Hugging Face directory."""
    model = family.build()
    names = model.state_dict().keys()
    model.load_state_dict({n: w for n, w in weights.items() if n in names})
    state = {n: w.half() if w.is_floating_point() else w for n, w in model.state_dict().items()}
    model.save_pretrained(folder, **({"state_dict": state} if family.half else {}))
    family.processor().save_pretrained(folder)


def batch_of(scenes: list[Scene], family: Family, processor: Any) -> tuple[torch.Tensor, list[Weights]]:
    """Scenes of one size -> pixels (N,3,H,W) as the processor would make them, and labels in cxcywh in [0,1]."""
    frames = np.stack([scene.frame for scene in scenes])[..., ::-1]
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    if processor.do_normalize:
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        pixels = (pixels - mean) / deviation
    height, width = scenes[0].frame.shape[:2]
    labels = []
    for scene in scenes:
        boxes = torch.from_numpy(scene.boxes)
        centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        centred = centred / torch.tensor([width, height, width, height])
        ids = torch.from_numpy(scene.class_ids)
        labels.append({"boxes": centred.repeat(family.repeats, 1).float(), "class_labels": ids.repeat(family.repeats)})
    return pixels.contiguous(), labels


class Trainer:
    """One run: model, optimiser, averaged weights and the step they have reached."""

    def __init__(self, family: Family, seed: int, steps: int, work: Path, shards: list[Shard]) -> None:
        torch.manual_seed(seed)
        self.family, self.seed, self.steps, self.work, self.shards = family, seed, steps, work, shards
        self.model = trainable(family)
        self.processor = family.processor()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=family.rate, weight_decay=1e-4)
        self.average: Weights = {n: w.clone() for n, w in self.model.state_dict().items()}
        self.step = 0

    def save(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        torch.save(state, self.work / "state.new")
        (self.work / "state.new").replace(self.work / "state.pt")

    def load(self) -> None:
        state = torch.load(self.work / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], int(state["step"])

    def _rate(self) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(self.step / self.steps, 1))
        return self.family.rate * min((self.step + 1) / self.family.warm_up, 1) * max(cosine, 0.01)

    def _rest(self) -> None:
        for name in self.family.rest:
            self.model.get_submodule(name).requires_grad_(False).eval()
        self.model.config.num_denoising = 0

    def _hand_over(self) -> None:
        """Change weights as the family says; what the optimiser and the average remember of them is forgotten."""
        assert self.family.hand_over is not None
        before = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.family.hand_over(self.model)
        changed = {n for n, w in self.model.state_dict().items() if not torch.equal(w, before[n])}
        for name in changed:
            self.average[name] = self.model.state_dict()[name].clone()
        for name, parameter in self.model.named_parameters():
            if name in changed:
                self.optimizer.state.pop(parameter, None)

    def advance(self) -> float:
        """One optimiser step; returns the loss."""
        if self.family.hand_over is not None and self.step == int(self.family.hand_over_share * self.steps):
            self._hand_over()
        rng = np.random.default_rng((self.seed, self.step))  # so that a resumed run sees what an unbroken one sees
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        sizes = [s for start, s in self.family.phases if self.step >= start * self.steps][-1]
        size = sizes[int(rng.integers(len(sizes)))]
        scenes = (pick if self.family.by_heart else sample)(self.shards, size, self.family.batch, rng)
        if self.family.targets is None:
            pixels, labels = batch_of(scenes, self.family, self.processor)
        else:
            pixels, labels = self.family.targets(scenes, self.processor)
        if self.step >= self.family.rest_share * self.steps:
            self._rest()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        outputs = self.model(pixel_values=pixels, labels=labels)
        loss = outputs.loss
        if self.family.extra_loss is not None:
            loss = loss + self.family.extra_loss(self.model, outputs, labels, size)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.step += 1
        keep = min(_DECAY, (1 + self.step) / (10 + self.step))
        for name, weight in self.model.state_dict().items():
            if weight.is_floating_point():
                self.average[name].lerp_(weight, 1 - keep)
        return float(loss.detach())

    def run(self, every: int, judged: int) -> None:
        """Train to the end; log the loss, and how the averaged weights do on ``judged`` scenes."""
        losses: list[float] = []
        start, first = time.monotonic(), self.step
        while self.step < self.steps:
            losses.append(self.advance())
            if self.step % 50 == 0:
                pace = (self.step - first) * self.family.batch / (time.monotonic() - start)
                log.info("step %d loss %.3f %.1f images/s", self.step, float(np.mean(losses[-50:])), pace)
            if self.step % every == 0 or self.step == self.steps:
                self.save()
                store(self.family, self.average, self.work / "checkpoint")
                scenes = islice(held_out(self.family.kind, judged), judged)
                judge = self.family.judge or evaluate
                log.info("step %d %s", self.step, judge(self.work / "checkpoint", scenes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimiser steps (what FAMILIES says)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=400, metavar="STEPS")
    parser.add_argument("--evaluate-on", type=int, default=90, metavar="SCENES")
    scratch = Path(tempfile.gettempdir()) / "edgevtx-forest-fire"
    parser.add_argument("--cache", type=Path, default=scratch / "scenes", help="rendered scenes (%(default)s)")
    parser.add_argument("--work", type=Path, default=scratch, help="state for --resume (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --work")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    family = FAMILIES[options.model]
    n = family.scenes
    shards = [
        cached_shard(options.cache, family.render, size, range(i * n, (i + 1) * n))
        for i, size in enumerate(family.stored)
    ]
    trainer = Trainer(family, options.seed, options.steps or family.steps, options.work / options.model, shards)
    if options.resume:
        trainer.load()
    count = sum(p.numel() for p in trainer.model.parameters())
    log.info("%s: %d parameters, from step %d to %d", options.model, count, trainer.step, trainer.steps)
    trainer.run(options.evaluate_every, options.evaluate_on)
    store(family, trainer.average, options.out)


if __name__ == "__main__":
    main()
