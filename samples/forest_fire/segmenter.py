"""A small SETR as the training run needs it: pixels and class maps in, a loss out, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import ViTImageProcessorPil

from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.models.setr import Setr, Settings, upsample

from .scenes import LABELS, UNKNOWN, Scene

NAMES = ("background", *LABELS)
SETTINGS = Settings(
    decoder="pup",
    image_size=(256, 256),
    hidden_size=96,
    num_hidden_layers=6,
    num_attention_heads=3,
    intermediate_size=384,
    decoder_channels=32,
    id2label={str(index): name for index, name in enumerate(NAMES)},
)
# smoke and flames cover a small part of most scenes
_WEIGHTS = torch.tensor([1.0, 1.6, 1.6])


class Core(nn.Module):
    """The network alone: what runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Setr(SETTINGS)
        nn.init.trunc_normal_(self.net.backbone.pos_embed, std=0.02)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused backward in bfloat16 is slower than its parts
            return {"logits": upsample(self.net(pixel_values), self.net.scale)}


class Segmenter(nn.Module):
    """SETR-PUP of under a million parameters, 256 pixels square, with the members of a transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Core()

    def set_attn_implementation(self, name: str) -> None:
        """There is but one."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.model.forward(pixel_values)["logits"]
        loss = F.cross_entropy(logits, labels, _WEIGHTS, ignore_index=UNKNOWN)
        return SimpleNamespace(loss=loss, logits=logits)

    def save_pretrained(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict() if state_dict is None else state_dict
        tensors = {name.removeprefix("model.net."): tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": "setr", **msgspec.to_builtins(SETTINGS)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def segmenter_processor() -> ViTImageProcessorPil:
    """256 pixels square, bilinear, ImageNet's mean and deviation."""
    size = {"height": 256, "width": 256}
    return ViTImageProcessorPil(size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


def class_targets(scenes: list[Scene], processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes of one size -> pixels (N,3,H,W) as the processor would make them, and class maps (N,H,W) int64."""
    frames = np.stack([scene.frame for scene in scenes])[..., ::-1]
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    maps = np.stack([scene.class_map() for scene in scenes]).astype(np.int64)
    return ((pixels - mean) / deviation).contiguous(), torch.from_numpy(maps)


@torch.inference_mode()
def segment(model: Setr, processor: Any, frame: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Frame (H,W,3) uint8 BGR -> the class of each pixel (H,W), in PyTorch's float32."""
    pixels = processor(images=np.ascontiguousarray(frame[..., ::-1]), return_tensors="pt")["pixel_values"]
    logits = upsample(model(pixels), model.scale)
    for size in (pixels.shape[2:], frame.shape[:2]):
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return np.asarray(logits[0].argmax(0).numpy())


def mean_iou(folder: Path, scenes: Iterable[Scene]) -> dict[str, float]:
    """Intersection over union of each class over all pixels of ``scenes``, and their mean."""
    model = Checkpoint.open(folder).load_module(lambda: Setr(SETTINGS))
    processor = ViTImageProcessorPil.from_pretrained(folder)
    counts = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for scene in scenes:
        pairs = scene.class_map().astype(np.int64) * len(NAMES) + segment(model, processor, scene.frame)
        counts += np.bincount(pairs.ravel(), minlength=counts.size).reshape(counts.shape)
    both = np.diag(counts)
    iou = both / (counts.sum(0) + counts.sum(1) - both)
    return {"mIoU": float(iou.mean()), **{f"IoU_{name}": float(v) for name, v in zip(NAMES, iou, strict=True)}}
