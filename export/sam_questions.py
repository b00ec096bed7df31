"""What a SAM is asked when it is verified: every kind of prompt, answered by transformers and by our networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgevtx.decode.prompt import decode_prompts
from edgevtx.export.models.sam_decoder import Decoder
from edgevtx.export.processor import reference_inputs
from edgevtx.export.sam_text import Texts
from edgevtx.geometry import Geometry
from edgevtx.masks import MaskSet
from edgevtx.prompts import encode_prompts, read_prompts
from edgevtx.results import Masks
from edgevtx.rules import PromptDecode
from edgevtx.runtimes.base import Array, Arrays

Point = tuple[float, float]


@dataclass(frozen=True)
class Question:
    """Prompts that are asked at once: N times K points and their labels, N boxes xyxy, N texts.

    x and y in 0..1 of the frame. `mask`: with an earlier answer, which is an ellipse beside the middle; transformers
    takes one for all prompts that are asked at once. `multimask`: for the readings of a prompt, or for the one mask.
    """

    points: tuple[tuple[Point, ...], ...] | None = None
    labels: tuple[tuple[int, ...], ...] | None = None
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    texts: tuple[str, ...] | None = None
    mask: bool = False
    multimask: bool = True

    def __len__(self) -> int:
        return len(self.points or self.boxes or self.texts or [self.mask])

    def places(self, size: tuple[int, int]) -> tuple[Any, Any]:
        """The points (N,K,2) and the boxes (N,4) in px of a frame of (H,W), None where there are none."""
        scale = np.array([size[1], size[0]] * 2, np.float64)
        points = None if self.points is None else np.array(self.points) * scale[:2]
        return points, None if self.boxes is None else np.array(self.boxes) * scale


QUESTIONS = (
    Question(points=(((0.5, 0.5),),), labels=((1,),)),
    Question(points=(((0.3, 0.4), (0.72, 0.7)), ((0.1, 0.9), (0.6, 0.2))), labels=((1, 0), (1, 1))),
    Question(boxes=((0.1, 0.15, 0.5, 0.9), (0.4, 0.3, 0.95, 0.7))),
    Question(points=(((0.6, 0.45),),), labels=((1,),), boxes=((0.25, 0.2, 0.8, 0.75),)),
    Question(points=(((0.4, 0.5),),), labels=((1,),), mask=True),
    Question(mask=True),
    Question(boxes=((0.1, 0.15, 0.5, 0.9), (0.4, 0.3, 0.95, 0.7)), mask=True),
    Question(points=(((0.5, 0.5), (0.7, 0.3)),), labels=((1, 0),), multimask=False),
    Question(boxes=((0.1, 0.15, 0.5, 0.9), (0.4, 0.3, 0.95, 0.7)), multimask=False),
    Question(boxes=((0.25, 0.2, 0.8, 0.75),), mask=True, multimask=False),
    Question(texts=("smoke", "a person with a red hat")),
)


def questions(texts: Texts | None) -> list[Question]:
    """Those that a model can be asked."""
    return [item for item in QUESTIONS if item.texts is None or texts is not None]


def ellipse(size: tuple[int, int]) -> Array:
    """Logits (h,w) float32 of a mask."""
    y, x = (np.linspace(0, 1, side) for side in size)
    inside = 1 - np.hypot((x[None] - 0.4) / 0.3, (y[:, None] - 0.5) / 0.2)
    return np.asarray(np.clip(8 * inside, -8, 8), np.float32)


@torch.no_grad()
def reference_answer(model: Any, processor: Any, frame: Array, *, texts: Texts | None = None) -> Masks:
    """Transformers' processor, model and post-processing: all masks of all questions, as prompts of one mask each."""
    from transformers import SamProcessor

    whole = SamProcessor(processor)
    pad = {"height": int(processor.pad_size["height"]), "width": int(processor.pad_size["width"])}
    embedding = model.get_image_embeddings(reference_inputs(processor, [frame])["pixel_values"])
    found: list[Masks] = []
    for question in questions(texts):
        points, boxes = question.places((frame.shape[0], frame.shape[1]))
        asked = whole(
            images=frame[..., ::-1].copy(),
            input_points=None if points is None else [points.tolist()],
            input_labels=None if question.labels is None else [[list(row) for row in question.labels]],
            input_boxes=None if boxes is None else [boxes.tolist()],
            return_tensors="pt",
        )
        sparse, dense = model.prompt_encoder(
            input_points=asked["input_points"].float() if points is not None else None,
            input_labels=asked["input_labels"] if points is not None else None,
            input_boxes=asked["input_boxes"].float() if boxes is not None else None,
            input_masks=torch.from_numpy(ellipse(_mask_size(model)))[None, None] if question.mask else None,
        )
        if question.texts is not None and texts is not None:
            sparse = texts.reference(question.texts)[None, :, None]
        logits, iou = model.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=question.multimask,
        )
        sizes = asked["original_sizes"], asked["reshaped_input_sizes"]
        masks = processor.post_process_masks(logits, *sizes, pad_size=pad)[0].flatten(0, 1).numpy()
        found.append(Masks(MaskSet.from_dense(masks), iou[0].numpy(), logits[0].numpy()))
    return _together(found)


def our_answer(decoder: Decoder, rule: PromptDecode, texts: Texts | None, outputs: Arrays, geometry: Geometry) -> Masks:
    """Our answer for the first frame of a batch, whose embedding is among `outputs`."""
    embedding = torch.from_numpy(outputs["embedding"][:1])
    found: list[Masks] = []
    for question in questions(texts):
        points, boxes = question.places(geometry.frame_size)
        mask = ellipse(rule.mask_size)[None].repeat(len(question), 0) if question.mask else None
        prompts = read_prompts(points, question.labels, boxes, mask, question.texts, rule=rule)
        (batch,) = encode_prompts(prompts, geometry, rule)
        feeds = [torch.from_numpy(array) for array in batch.inputs.values()]
        if question.texts is not None and texts is not None:
            feeds.append(texts.answer(question.texts))
        elif decoder.text:
            feeds.append(torch.zeros(len(prompts), embedding.shape[1]))
        with torch.inference_mode():
            logits, iou = decoder(embedding, *feeds)
        decoded = {"low_res_logits": logits.numpy(), "iou": iou.numpy()}
        found.append(decode_prompts(decoded, geometry, rule, multimask=question.multimask))
    return _together(found)


def _mask_size(model: Any) -> tuple[int, int]:
    height, width = model.prompt_encoder.image_embedding_size
    return 4 * int(height), 4 * int(width)


def _together(found: list[Masks]) -> Masks:
    """(R,1): questions differ in how many masks they are answered by."""
    return Masks(
        MaskSet.concatenate([item.masks for item in found]),
        np.concatenate([item.iou.reshape(-1, 1) for item in found]),
        np.concatenate([item.low_res_logits.reshape(-1, 1, *item.low_res_logits.shape[2:]) for item in found]),
    )
