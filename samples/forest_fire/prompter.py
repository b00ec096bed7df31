"""A small SAM as the training run needs it: pixels, prompts and masks in, a loss out, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from .scenes import UNKNOWN, Scene, render_mixed

SIDE, PATCH, WIDTH = 128, 8, 64
PROMPTS = 4  # of each scene
REMEMBERED = 5  # scenes, of those the model learns by heart; a model that knows any scene takes hours
_LEAST = 12  # px of a mask at the decoder's resolution


class Core(nn.Module):
    """The network alone: what runs in bfloat16. Two rounds of prompts, the second shown the first one's mask."""

    def __init__(self) -> None:
        super().__init__()
        decoder = {"hidden_size": WIDTH}
        self.sam = SamModel(
            SamConfig(
                vision_config=SamVisionConfig(
                    hidden_size=WIDTH,
                    output_channels=WIDTH,
                    num_hidden_layers=4,
                    num_attention_heads=2,
                    image_size=SIDE,
                    patch_size=PATCH,
                    window_size=7,
                    global_attn_indexes=[1, 3],
                    num_pos_feats=WIDTH // 2,
                ),
                prompt_encoder_config=SamPromptEncoderConfig(
                    image_size=SIDE, patch_size=PATCH, mask_input_channels=8, **decoder
                ),
                mask_decoder_config=SamMaskDecoderConfig(
                    mlp_dim=4 * WIDTH, num_attention_heads=4, iou_head_hidden_dim=WIDTH, **decoder
                ),
            )
        )
        # the paper's frequencies; transformers starts from higher ones, which published weights then replace
        nn.init.normal_(self.sam.shared_image_embedding.positional_embedding)
        nn.init.trunc_normal_(self.sam.vision_encoder.pos_embed, std=0.02)
        local_start(self.sam)

    def forward(self, pixel_values: torch.Tensor, prompts: dict[str, Any]) -> dict[str, torch.Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused backward in bfloat16 is slower than its parts
            return self._rounds(pixel_values, prompts)

    def _rounds(self, pixel_values: torch.Tensor, prompts: dict[str, Any]) -> dict[str, torch.Tensor]:
        embedding = self.sam.vision_encoder(pixel_values).last_hidden_state
        first = self._decode(embedding, prompts, prompts["multimask"])
        if not prompts["again"]:
            return {"masks": first.pred_masks, "iou": first.iou_scores}
        best = first.iou_scores.argmax(2)[:, :, None, None, None].expand(-1, -1, 1, *first.pred_masks.shape[3:])
        shown = first.pred_masks.detach().gather(2, best).flatten(0, 2)[:, None]
        again = {**prompts, "masks": shown}
        second = self._decode(embedding, again, False)
        return {
            "masks": first.pred_masks,
            "iou": first.iou_scores,
            "again_masks": second.pred_masks,
            "again_iou": second.iou_scores,
        }

    def _decode(self, embedding: torch.Tensor, prompts: dict[str, Any], multimask: bool) -> Any:
        masks = prompts.get("masks")
        if masks is None:
            return self.sam(
                image_embeddings=embedding,
                input_points=prompts["points"],
                input_labels=prompts["labels"],
                input_boxes=prompts["boxes"],
                multimask_output=multimask,
            )
        # transformers takes one mask an image; each prompt has its own here
        rows = prompts["points"] if prompts["points"] is not None else prompts["boxes"]
        count = rows.shape[1]
        return _per_prompt(self.sam, embedding, prompts, masks, count, multimask)


def _per_prompt(
    sam: Any, embedding: torch.Tensor, prompts: dict[str, Any], masks: torch.Tensor, count: int, multimask: bool
) -> Any:
    """The decoder with a mask prompt (N*P,1,h,w) for each of the P prompts of each of the N images."""
    flat = {
        name: None if prompts[name] is None else prompts[name].flatten(0, 1)[:, None]
        for name in ("points", "labels", "boxes")
    }
    found = sam(
        image_embeddings=embedding.repeat_interleave(count, 0),
        input_points=flat["points"],
        input_labels=flat["labels"],
        input_boxes=flat["boxes"],
        input_masks=masks,
        multimask_output=multimask,
    )
    shape = (len(embedding), count)
    return SimpleNamespace(
        pred_masks=found.pred_masks.unflatten(0, shape).squeeze(2),
        iou_scores=found.iou_scores.unflatten(0, shape).squeeze(2),
    )


@torch.no_grad()
def local_start(sam: Any) -> None:
    """Weights with which a prompt looks where it is, and is seen from there, before anything was learned.

    Queries and keys of the decoder's cross-attention start alike, and the place outweighs what is seen in it, so that a
    token attends to pixels near its point. From the library's own weights thousands of steps go by before that.
    """
    for layer in sam.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.1)
    sam.vision_encoder.neck.layer_norm2.weight.fill_(0.3)
    transformer = sam.mask_decoder.transformer
    crossing = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossing += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in crossing:
        nn.init.orthogonal_(attention.q_proj.weight, gain=1.7)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        for projection in (attention.q_proj, attention.k_proj):
            projection.bias.zero_()


class Prompter(nn.Module):
    """SAM of under half a million parameters, 128 pixels, with the members of a transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Core()

    def set_attn_implementation(self, name: str) -> None:
        """Vision layers choose theirs when they are made."""

    def forward(self, pixel_values: torch.Tensor, labels: dict[str, Any]) -> SimpleNamespace:
        found = self.model.forward(pixel_values, labels)
        truth = labels["truth"]
        losses = [
            mask_loss(found[f"{turn}masks"], found[f"{turn}iou"], truth, labels["known"])
            for turn in ("", "again_")[: 1 + labels["again"]]
        ]
        return SimpleNamespace(loss=sum(losses))

    def save_pretrained(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the SamModel alone."""
        state = self.state_dict() if state_dict is None else state_dict
        named = {name.removeprefix("model.sam."): tensor for name, tensor in state.items()}
        self.model.sam.save_pretrained(folder, state_dict=named)


def mask_loss(masks: torch.Tensor, iou: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Of the masks (N,P,M,h,w) the best one's loss, and the squared error of every predicted `iou`.

    Cross entropy, in which the object weighs as much as all that is around it, and dice. Kirillov et al., "Segment
    Anything", 2023, appendix A, has the focal loss; objects of one pixel in a hundred learn nothing from it for long.
    `truth` and `known` (N,P,h,w) in 0..1.
    """
    target, weight = (tensor[:, :, None].expand_as(masks) for tensor in (truth, known))
    plain = F.binary_cross_entropy_with_logits(masks, target, reduction="none")
    sides = (target * weight, (1 - target) * weight)
    balanced = sum((plain * side).sum((3, 4)) / side.sum((3, 4)).clamp(min=1) for side in sides)
    chance = masks.sigmoid()
    both, sums = (chance * target * weight).sum((3, 4)), ((chance + target) * weight).sum((3, 4))
    dice = 1 - (2 * both + 1) / (sums + 1)
    best = (balanced + dice).min(2).values.mean()
    with torch.no_grad():
        hit, wanted = (masks > 0) & (weight > 0), (target > 0.5) & (weight > 0)
        real = (hit & wanted).sum((3, 4)) / (hit | wanted).sum((3, 4)).clamp(min=1)
    return best + F.mse_loss(iou, real)


# -- prompts from scenes ---------------------------------------------------------------------------------------


def prompt_targets(scenes: list[Scene], processor: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Scenes of one size -> pixels (N,3,SIDE,SIDE) padded as the processor pads, and prompts of one kind for them.

    Scenes without an object that can be asked about are replaced by others.
    """
    useful = [scene for scene in scenes if len(_rows(scene))] or scenes
    scenes = [useful[i % len(useful)] for i in range(len(scenes))]
    first = scenes[0].segments
    rng = np.random.default_rng(int(first.astype(np.int64).sum()) + int(scenes[0].frame.sum(dtype=np.int64)))
    kind = ("point", "pair", "box")[int(rng.integers(3))]
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    frames = np.ascontiguousarray(np.stack([scene.frame for scene in scenes])[..., ::-1])
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    height, width = first.shape
    pixels = F.pad(pixels, (0, SIDE - width, 0, SIDE - height))
    rows = [_prompts_of(scene, kind, rng) for scene in scenes]
    truth, known, points, labels, boxes = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return pixels.contiguous(), {
        "truth": truth,
        "known": known,
        "points": None if kind == "box" else points,
        "labels": None if kind == "box" else labels,
        "boxes": boxes if kind == "box" else None,
        "multimask": kind == "point" and rng.random() < 0.7,
        "again": bool(rng.random() < 0.25),
    }


def _prompts_of(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """PROMPTS prompts for a scene: masks and known pixels (P,h,w), points (P,K,2), labels (P,K), boxes (P,4)."""
    height, width = scene.segments.shape
    segments = np.full((SIDE, SIDE), UNKNOWN, np.uint8)
    segments[:height, :width] = scene.segments
    rows = _rows(scene)
    made = [_prompt(segments, int(rng.choice(rows)) if len(rows) else 0, kind, rng) for _ in range(PROMPTS)]
    return tuple(np.stack(part) for part in zip(*made, strict=True))


def _rows(scene: Scene) -> NDArray[np.intp]:
    """The objects of a scene, from 1, of which enough is seen."""
    sizes = np.bincount(scene.segments.ravel(), minlength=256)[:UNKNOWN]
    return np.asarray(1 + np.flatnonzero(sizes[1:] >= 4 * _LEAST))


def _prompt(segments: NDArray[np.uint8], row: int, kind: str, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    mask = segments == row
    fine = mask.astype(np.float32)
    coarse = fine.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    seen = (segments != UNKNOWN).astype(np.float32).reshape(SIDE // 2, 2, SIDE // 2, 2).min((1, 3))
    points = [_pixel(mask, rng)]
    labels = [1]
    if kind == "pair":
        inside = bool(rng.random() < 0.5)
        others = mask if inside else ~mask & (segments != UNKNOWN)
        points.append(_pixel(others, rng) if others.any() else points[0])
        labels.append(int(inside or not others.any()))
    ys, xs = np.nonzero(mask) if mask.any() else (np.array([0]), np.array([0]))
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
    box += (rng.normal(0, 0.06, 4) * np.tile(box[2:] - box[:2], 2)).astype(np.float32)
    return coarse, seen, np.array(points, np.float32), np.array(labels, np.int64), np.clip(box, 0, SIDE)


def _pixel(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    """x, y of a random pixel of a mask; the first pixel where it is empty."""
    places = np.flatnonzero(mask)
    at = int(rng.choice(places)) if len(places) else 0
    return at % mask.shape[1], at // mask.shape[1]


# -- how good it is --------------------------------------------------------------------------------------------


@torch.inference_mode()
def prompt_iou(folder: Path, scenes: Iterable[Scene]) -> dict[str, float]:
    """Mean intersection over union with the objects of ``scenes``, at the decoder's resolution: the first mask for a
    box around the object, and the best of three by predicted IoU for a point in the middle of it."""
    model: Any = SamModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = SamImageProcessorPil.from_pretrained(folder)
    found: dict[str, list[float]] = {"box": [], "point": [], "whole_box": []}
    for scene in scenes:
        inputs = processor(images=np.ascontiguousarray(scene.frame[..., ::-1]), return_tensors="pt")
        embedding = model.get_image_embeddings(inputs["pixel_values"])
        height, width = (int(v) for v in inputs["reshaped_input_sizes"][0])
        scale = height / scene.frame.shape[0], width / scene.frame.shape[1]
        for row, box in enumerate(scene.boxes):
            mask = scene.segments == row + 1
            if mask.sum() < 4 * _LEAST / (scale[0] * scale[1]):
                continue
            prompts = {
                "box": {"input_boxes": torch.tensor(box * np.tile(scale[::-1], 2), dtype=torch.float32)[None, None]},
                "point": {"input_points": torch.tensor(_middle(mask, scale))[None, None, None]},
            }
            for kind, prompt in prompts.items():
                outputs = model(image_embeddings=embedding, multimask_output=kind == "point", **prompt)
                chosen = outputs.pred_masks[0, 0, int(outputs.iou_scores[0, 0].argmax())]
                shown = processor.post_process_masks(
                    [chosen[None, None]],
                    [scene.frame.shape[:2]],
                    [(height, width)],
                    pad_size={"height": SIDE, "width": SIDE},
                )[0][0, 0].numpy()
                found[kind].append(_iou(shown, mask))
            x0, y0, x1, y1 = (round(float(value)) for value in box)
            whole = np.zeros_like(mask)
            whole[y0:y1, x0:x1] = True
            found["whole_box"].append(_iou(whole, mask))
    return {name: float(np.mean(values)) for name, values in found.items()}


def remembered_iou(folder: Path, scenes: Iterable[Scene]) -> dict[str, float]:
    """`prompt_iou` over the scenes that the training run saw, whatever ``scenes``: of others it knows nothing."""
    return prompt_iou(folder, (render_mixed(seed, (SIDE, SIDE)) for seed in range(REMEMBERED)))


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def _middle(mask: NDArray[np.bool_], scale: tuple[float, float]) -> tuple[float, float]:
    """x, y in input px of the mask's pixel nearest to its centre of mass."""
    ys, xs = np.nonzero(mask)
    at = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
    return float(xs[at] * scale[1]), float(ys[at] * scale[0])
