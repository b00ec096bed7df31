"""SAM: a frame in, its embedding out; points, boxes, masks and texts about it in, masks out.

Kirillov et al., "Segment Anything", 2023. The image encoder is the network that takes frames, the part `decoder` is
the prompt encoder and mask decoder, and the part `text` the text encoder of a checkpoint that was trained for it
(section 7.5; the published SAM was not).

The layout of such a checkpoint is ours: the directory of a `SamModel`, and in it `text_encoder/` (config.json and
weights of a `CLIPTextModelWithProjection`), `text_projection.safetensors` (`weight` (C,P), `bias` (C,): CLIP's
embedding to the width of SAM's prompt tokens) and `tokenizer.json`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.models.sam_decoder import Decoder
from edgevtx.export.models.sam_encoder import Encoder
from edgevtx.export.processor import load_processor, preprocess_of
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable, TraceablePart
from edgevtx.export.sam_questions import our_answer, reference_answer
from edgevtx.export.sam_text import Texts, load_texts
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, needless_frame, pixels_spec
from edgevtx.manifest import TensorInfo
from edgevtx.prompts import TEXT
from edgevtx.rules import LongestEdge, PromptDecode, PromptMasksDecode
from edgevtx.runtimes.base import Arrays


class ImageEncoder(nn.Module):
    """pixels (N,S,S,3) uint8 BGR, valid_size (N,2) int32 -> embedding (N,C,h,w) float32."""

    def __init__(self, encoder: Any, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.encoder = Encoder(encoder)

    def forward(self, pixels: torch.Tensor, valid_size: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.encoder(self.frames(pixels, valid_size)),)


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The networks of a checkpoint; see `BuildOptions`."""
    from transformers import SamModel

    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    if options.top_k is not None or options.labels is not None:
        raise InputError("SAM has no classes: leave top_k and labels out")
    model: Any = checkpoint.load(SamModel)
    vision = model.config.vision_config
    side, grid = int(vision.image_size), int(vision.image_size) // int(vision.patch_size)
    settings = {
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": 4 * grid},
        "mask_pad_size": {"height": 4 * grid, "width": 4 * grid},
    }
    processor = load_processor(checkpoint, "Sam", settings)
    preprocess = preprocess_of(processor, options.resize)
    if preprocess.size != LongestEdge(longest=side):
        raise CheckpointError(
            f"the image processor of {checkpoint.path} gives {preprocess.size}, but this model was trained for a "
            f"longest edge of {side} px; make size and image_size equal"
        )
    if dict(processor.pad_size) != {**dict(processor.pad_size), "height": side, "width": side}:
        raise CheckpointError(
            f"the image processor of {checkpoint.path} pads to {dict(processor.pad_size)}, but this model sees "
            f"{side}x{side} px; make pad_size and image_size equal"
        )

    size = (side, side)
    texts = load_texts(checkpoint, vision.output_channels)
    traced = traced_copy(model, "vision_encoder.patch_embed.projection", preprocess)
    decoder = Decoder(traced, text=texts is not None).eval()
    embedding = TensorInfo(name="embedding", shape=(options.batch, vision.output_channels, grid, grid), dtype="float32")
    masks = decoder.masks
    rule = PromptDecode(masks=masks, mask_size=(4 * grid, 4 * grid), text=texts.prompts if texts else None)
    return Traceable(
        family=RECIPE.family,
        task=RECIPE.task,
        module=ImageEncoder(traced.vision_encoder, Frames(preprocess)).eval(),
        inputs=(
            pixels_spec(options.batch, size),
            TensorInfo(name="valid_size", shape=(options.batch, 2), dtype="int32"),
        ),
        outputs=(embedding,),
        dynamic=batch_dimension(options.batch, "pixels", "valid_size"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=rule,
        labels=(),
        reference=partial(reference_answer, model, processor, texts=texts),
        answer=partial(our_answer, decoder, rule, texts),
        parts=_parts(decoder, rule, embedding, texts),
        files={texts.prompts.file: texts.tokenizer} if texts else {},
        notes=needless_frame(options.frame, size),
    )


# -- the parts -------------------------------------------------------------------------------------------------


def _parts(
    decoder: Decoder, rule: PromptDecode, embedding: TensorInfo, texts: Texts | None
) -> dict[str, TraceablePart]:
    """The decoder, and where the checkpoint has one the text encoder."""
    channels = embedding.shape[1]
    inputs = [
        TensorInfo(name="embedding", shape=(1, *embedding.shape[1:]), dtype="float32"),
        TensorInfo(name="points", shape=(None, None, 2), dtype="float32"),
        TensorInfo(name="point_labels", shape=(None, None), dtype="int32"),
        TensorInfo(name="mask_prompt", shape=(None, 1, *rule.mask_size), dtype="float32"),
        TensorInfo(name="has_mask", shape=(None,), dtype="float32"),
    ]
    if texts:
        inputs.append(TensorInfo(name="text", shape=(None, channels), dtype="float32"))
    parts = {
        "decoder": TraceablePart(
            module=decoder,
            inputs=tuple(inputs),
            outputs=(
                TensorInfo(name="low_res_logits", shape=(None, rule.masks, *rule.mask_size), dtype="float32"),
                TensorInfo(name="iou", shape=(None, rule.masks), dtype="float32"),
            ),
            dynamic={
                item.name: {0: "prompts", **({1: "points"} if item.name.startswith("point") else {})}
                for item in inputs[1:]
            },
            examples=partial(_examples, rule, decoder.size, channels if texts else None),
            decode=PromptMasksDecode(mask_threshold=rule.mask_threshold),
        )
    }
    if texts:
        parts["text"] = texts.part()
    return parts


def _examples(rule: PromptDecode, side: float, text: int | None, outputs: Arrays) -> list[Arrays]:
    """Inputs of the decoder for one frame: a click, which is usual, four prompts of three points, two of five and two
    masks alone. The click has a mask as well, so that every part of the network has its share in the answer."""
    random = np.random.default_rng(0)
    labels: tuple[list[list[int]], ...] = (
        [[1, -1]],
        [[1, 0, -1], [1, 1, -1], [1, 2, 3], [0, 1, -1]],
        [[1, 1, 0, 0, -1], [1, 0, 1, 2, 3]],  # the second row has a mask, beside its box
        [[], []],
    )
    found = []
    for kinds in labels:
        count = len(kinds)
        # smooth, as an earlier answer is
        coarse = random.standard_normal((count, 1, 8, 8)).astype(np.float32)
        masks = coarse.repeat(rule.mask_size[0] // 8, 2).repeat(rule.mask_size[1] // 8, 3)
        feeds = {
            "embedding": outputs["embedding"][:1],
            "points": random.uniform(0, side, (count, len(kinds[0]), 2)).astype(np.float32),
            "point_labels": np.array(kinds, np.int32),
            "mask_prompt": 4 * masks,
            "has_mask": (np.arange(count) % 2 if count > 1 and kinds[0] else np.ones(count)).astype(np.float32),
        }
        if text is not None:
            feeds["point_labels"][0, -1:] = TEXT
            feeds["text"] = random.standard_normal((count, text)).astype(np.float32)
        found.append(feeds)
    return found


def _tiny_config() -> dict[str, Any]:
    width = 32
    return {
        "sam": {
            "model_type": "sam",
            "architectures": ["SamModel"],
            "vision_config": {
                "hidden_size": 48,
                "output_channels": width,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "image_size": 128,
                "patch_size": 8,
                "window_size": 6,
                "global_attn_indexes": [1],
                "num_pos_feats": width // 2,
                "mlp_ratio": 2.0,
            },
            "prompt_encoder_config": {
                "hidden_size": width,
                "image_size": 128,
                "patch_size": 8,
                "mask_input_channels": 8,
            },
            "mask_decoder_config": {
                "hidden_size": width,
                "mlp_dim": 64,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": width,
            },
        }
    }


RECIPE = Recipe(
    family="sam",
    title="Segment Anything: masks for points, boxes, masks and texts",
    paper="https://arxiv.org/abs/2304.02643",
    task="prompt",
    result="Masks",
    model_types=("sam",),
    layouts=(
        "Hugging Face directory",
        "the same with text_encoder/, text_projection.safetensors and tokenizer.json, for text prompts",
        "config.json alone with a seed",
        *names_for("sam"),
    ),
    variants=(
        "ViT-B, ViT-L and ViT-H image encoders",
        "prompts: points, boxes and masks",
        "prompts: texts, where the checkpoint was trained for them",
        "everything, without a prompt",
    ),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "resize"),
)
