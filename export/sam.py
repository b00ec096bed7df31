"""SAM: a frame in, its embedding out; points, boxes, masks and texts about it in, masks out.

Kirillov et al., "Segment Anything", 2023. The image encoder is the network that takes frames, the part `decoder` is
the prompt encoder and mask decoder, and the part `text` the text encoder of a checkpoint that was trained for it
(section 7.5; the published SAM was not).

The layout of such a checkpoint is ours: the directory of a `SamModel`, and in it `text_encoder/` (config.json and
weights of a `CLIPTextModelWithProjection`), `text_projection.safetensors` (`weight` (C,P), `bias` (C,): CLIP's
embedding to the width of SAM's prompt tokens) and `tokenizer.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevtx.decode.prompt import decode_prompts
from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.models.sam_decoder import Decoder
from edgevtx.export.models.sam_encoder import Encoder
from edgevtx.export.models.sam_text import TextEncoder
from edgevtx.export.processor import load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable, TraceablePart
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, needless_frame, pixels_spec
from edgevtx.export.trial import seed_weights
from edgevtx.geometry import Geometry
from edgevtx.manifest import LongestEdge, PromptDecode, PromptMasksDecode, TensorInfo, TextPrompts
from edgevtx.masks import MaskSet
from edgevtx.prompts import TEXT, Prompts, encode_prompts
from edgevtx.results import Masks
from edgevtx.runtimes.base import Array, Arrays

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Question:
    """A prompt that every image is verified with: x, y in 0..1 of the frame."""

    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box: tuple[float, float, float, float] | None = None


QUESTIONS = (
    Question(((0.5, 0.5),), (1,)),
    Question(((0.3, 0.4), (0.72, 0.7)), (1, 0)),
    Question(((0.6, 0.45),), (1,), (0.25, 0.2, 0.8, 0.75)),
)


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
    texts = _text_part(checkpoint, vision.output_channels)
    traced = traced_copy(model, "vision_encoder.patch_embed.projection", preprocess)
    decoder = Decoder(traced, text=texts is not None).eval()
    embedding = TensorInfo(name="embedding", shape=(options.batch, vision.output_channels, grid, grid), dtype="float32")
    masks = decoder.masks
    rule = PromptDecode(masks=masks, mask_size=(4 * grid, 4 * grid), text=texts[1] if texts else None)
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
        reference=partial(_reference, model, processor),
        answer=partial(_answer, decoder, rule),
        parts=_parts(decoder, rule, embedding, texts),
        files={TOKENIZER: checkpoint.path / TOKENIZER} if texts else {},
        notes=needless_frame(options.frame, size),
    )


# -- the parts -------------------------------------------------------------------------------------------------


def _parts(
    decoder: Decoder, rule: PromptDecode, embedding: TensorInfo, texts: tuple[TextEncoder, TextPrompts] | None
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
        length = texts[1].length
        parts["text"] = TraceablePart(
            module=texts[0],
            inputs=(TensorInfo(name="token_ids", shape=(None, length), dtype="int64"),),
            outputs=(TensorInfo(name="text_embedding", shape=(None, channels), dtype="float32"),),
            dynamic={"token_ids": {0: "prompts"}},
            examples=partial(_texts, texts[0], length),
        )
    return parts


def _examples(rule: PromptDecode, side: float, text: int | None, outputs: Arrays) -> list[Arrays]:
    """Inputs of the decoder for one frame: four prompts of three points, one of five, with masks and without."""
    random = np.random.default_rng(0)
    labels = ([[1, 0, -1], [1, 1, -1], [1, 2, 3], [0, 1, -1]], [[1, 0, 1, 2, 3]])
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
            "has_mask": (np.arange(count) % 2).astype(np.float32),
        }
        if text is not None:
            feeds["point_labels"][0, -1] = TEXT
            feeds["text"] = random.standard_normal((count, text)).astype(np.float32)
        found.append(feeds)
    return found


def _texts(encoder: TextEncoder, length: int, outputs: Arrays) -> list[Arrays]:
    """Token ids that end at different places; what they say does not matter."""
    random = np.random.default_rng(0)
    words = encoder.text.embeddings.token_embedding.num_embeddings
    end = encoder.end if encoder.end != 2 else words - 1
    ids = random.integers(0, words, (3, length))
    ids[ids == end] = (end + 1) % words
    for row, stop in zip(ids, (3, length // 2, length - 1), strict=True):
        row[stop:] = end
    return [{"token_ids": ids.astype(np.int64)}]


def _text_part(checkpoint: Checkpoint, channels: int) -> tuple[TextEncoder, TextPrompts] | None:
    """The text encoder of a checkpoint that has one; see the module. Raises `CheckpointError` where it is not whole."""
    from transformers import CLIPTextModelWithProjection

    folder = checkpoint.path / "text_encoder"
    if not folder.is_dir():
        return None
    clip: Any = Checkpoint.open(folder, checkpoint.seed).load(CLIPTextModelWithProjection)
    projection = nn.Linear(int(clip.config.projection_dim), channels)
    file = checkpoint.path / "text_projection.safetensors"
    if file.is_file():
        _load_projection(projection, file)
    elif checkpoint.seed is None:
        raise CheckpointError(
            f"{checkpoint.path} has a text_encoder but no {file.name}, which maps CLIP's embedding to SAM's prompts; "
            "copy it there, or remove text_encoder to export without texts"
        )
    else:
        seed_weights(projection, checkpoint.seed)
    if not (checkpoint.path / TOKENIZER).is_file():
        raise CheckpointError(
            f"{checkpoint.path} has a text_encoder but no {TOKENIZER}, without which no text becomes tokens; copy the "
            "tokenizer's there, or remove text_encoder to export without texts"
        )
    encoder = TextEncoder(clip, projection.requires_grad_(False)).eval()
    return encoder, TextPrompts(file=TOKENIZER, length=int(clip.config.max_position_embeddings))


def _load_projection(projection: nn.Linear, file: Path) -> None:
    from safetensors.torch import load_file

    try:
        projection.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    except Exception as error:  # safetensors and torch raise unlike types
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"{file} cannot be used ({lines[-1].strip()}); it must hold weight {list(projection.weight.shape)} and "
            f"bias {list(projection.bias.shape)}"
        ) from None


# -- the answer, theirs and ours ---------------------------------------------------------------------------------


def _reference(model: Any, processor: Any, frame: Array) -> Masks:
    """Transformers' processor, model and post-processing for the `QUESTIONS`: three masks each."""
    from transformers import SamProcessor

    whole = SamProcessor(processor)
    height, width = frame.shape[:2]
    inputs = reference_inputs(processor, [frame])
    pad = {"height": int(processor.pad_size["height"]), "width": int(processor.pad_size["width"])}
    embedding = model.get_image_embeddings(inputs["pixel_values"])
    masks, ious, logits = [], [], []
    for question in QUESTIONS:
        points = [[[[x * width, y * height] for x, y in question.points]]]
        box = (
            None
            if question.box is None
            else [[[v * s for v, s in zip(question.box, [width, height] * 2, strict=True)]]]
        )
        asked = whole(
            images=frame[..., ::-1].copy(),
            input_points=points,
            input_labels=[[list(question.labels)]],
            input_boxes=box,
            return_tensors="pt",
        )
        boxes = {} if box is None else {"input_boxes": asked["input_boxes"].float()}
        with torch.no_grad():
            found = model(
                image_embeddings=embedding,
                input_points=asked["input_points"].float(),
                input_labels=asked["input_labels"],
                multimask_output=True,
                **boxes,
            )
        sizes = asked["original_sizes"], asked["reshaped_input_sizes"]
        masks.append(processor.post_process_masks(found.pred_masks, *sizes, pad_size=pad)[0][0].numpy())
        ious.append(found.iou_scores[0, 0].numpy())
        logits.append(found.pred_masks[0, 0].numpy())
    return Masks(MaskSet.from_dense(np.concatenate(masks)), np.stack(ious), np.stack(logits))


def _answer(decoder: Decoder, rule: PromptDecode, outputs: Arrays, geometry: Geometry) -> Masks:
    """Our answer to the `QUESTIONS` for the first frame of a batch."""
    height, width = geometry.frame_size
    found = []
    for question in QUESTIONS:
        prompts = Prompts(
            points=(np.array(question.points) * (width, height),),
            labels=(np.array(question.labels),),
            boxes=None if question.box is None else np.array([question.box]) * ([width, height] * 2),
        )
        (feeds,) = encode_prompts(prompts, geometry, rule)
        if decoder.text:
            feeds.inputs["text"] = np.zeros((1, outputs["embedding"].shape[1]), np.float32)
        tensors = [torch.from_numpy(outputs["embedding"][:1]), *map(torch.from_numpy, feeds.inputs.values())]
        with torch.inference_mode():
            logits, iou = decoder(*tensors)
        found.append({"low_res_logits": logits.numpy(), "iou": iou.numpy()})
    together = {name: np.concatenate([item[name] for item in found]) for name in found[0]}
    return decode_prompts(together, geometry, rule, multimask=True)


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
