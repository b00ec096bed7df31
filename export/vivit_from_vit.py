"""A ViViT checkpoint out of an image classifier's: where the training of a video model begins.

Arnab et al., "ViViT: A Video Vision Transformer", 2021, section 3.4. Tubelet filters come from the image's by central
frame or by filter inflation, positions are repeated over time, the layers' weights are taken as they are, and a
temporal attention that the image model has not begins as a residual connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors.torch import save_file
from torch import nn

from edgevtx.errors import CheckpointError, InputError, OutputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.models.vivit import Attention, Pooling, Settings, make
from edgevtx.export.patches import pair
from edgevtx.export.processor import load_processor

Filters = Literal["central_frame", "filter_inflation"]

UNUSED = ("classifier.", "pooler.", "vit.pooler.", "decoder.", "embeddings.mask_token")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the ViViT is to be: its model (`attention`), the clip that it takes and its classes.

    `tubelet_frames` frames make one token in time; 1 is uniform frame sampling. `num_temporal_layers` and `pooling` are
    the factorised encoder's. `seed` is of the weights that the image model has none for: the classifier, and the
    factorised encoder's layers over time.
    """

    labels: tuple[str, ...]
    attention: Attention = "factorised_encoder"
    filters: Filters = "central_frame"
    num_frames: int = 32
    tubelet_frames: int = 2
    frame_rate: float | None = None
    num_temporal_layers: int = 4
    pooling: Pooling = "cls"
    seed: int = 0


def write_vivit(checkpoint: Checkpoint, wanted: Wanted, folder: Path) -> None:
    """Write `config.json`, `preprocessor_config.json` and `model.safetensors` of a ViViT made of a ViT checkpoint.

    Raises `CheckpointError` for a checkpoint of another type, `InputError` for numbers that do not fit each other,
    `OutputError` where `folder` cannot be written or holds files.
    """
    if checkpoint.model_type != "vit":
        raise CheckpointError(f"{checkpoint.path} is of type {checkpoint.model_type}; a ViT image checkpoint is needed")
    import transformers

    vit: Any = checkpoint.load(transformers.ViTModel, unused=UNUSED, arguments={"add_pooling_layer": False})
    settings = settings_for(vit.config, wanted)
    tensors = tensors_for(vit, settings, wanted)
    config = {
        "model_type": "vivit",
        "architectures": ["VivitForVideoClassification"],
        **{key: value for key, value in msgspec.to_builtins(settings).items() if value is not None},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise OutputError(f"{folder} holds files; choose another folder")
        save_file(tensors, folder / "model.safetensors")
        for name, data in (("config.json", config), ("preprocessor_config.json", _processor(checkpoint, settings))):
            (folder / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None


def settings_for(vit: Any, wanted: Wanted) -> Settings:
    """The ViViT's config: the sizes of transformers' ViT config `vit`, and what is `wanted`."""
    settings = Settings(
        attention=wanted.attention,
        image_size=pair(vit.image_size),
        num_frames=wanted.num_frames,
        tubelet_size=(wanted.tubelet_frames, *pair(vit.patch_size)),
        hidden_size=vit.hidden_size,
        num_hidden_layers=vit.num_hidden_layers,
        num_attention_heads=vit.num_attention_heads,
        intermediate_size=vit.intermediate_size,
        hidden_act=vit.hidden_act,
        layer_norm_eps=vit.layer_norm_eps,
        qkv_bias=vit.qkv_bias,
        num_temporal_layers=wanted.num_temporal_layers,
        pooling=wanted.pooling,
        id2label={str(index): name for index, name in enumerate(wanted.labels)},
        frame_rate=wanted.frame_rate,
    )
    if not wanted.labels:
        raise InputError("a video classifier needs classes; give their names")
    try:
        settings.check()
    except ValueError as error:
        raise InputError(f"no such model can be made: {error}") from None
    return settings


def tensors_for(vit: nn.Module, settings: Settings, wanted: Wanted) -> dict[str, torch.Tensor]:
    """The state dict of the ViViT; `vit` is transformers' ViTModel without a pooler."""
    image = dict(vit.state_dict())
    filters = inflate(image["embeddings.patch_embeddings.projection.weight"], settings.tubelet_size[0], wanted.filters)
    table = image["embeddings.position_embeddings"]
    class_position, positions = table[:, :1], table[:, 1:]
    repeated = positions.repeat(1, settings.grid[0], 1)
    layers = {key: value for key, value in image.items() if key.startswith(("layers.", "layernorm."))}
    embedding = {
        "patch_embeddings.projection.weight": filters,
        "patch_embeddings.projection.bias": image["embeddings.patch_embeddings.projection.bias"],
    }
    cls_token = image["embeddings.cls_token"]
    if settings.attention == "spatio_temporal":
        embedding |= {"cls_token": cls_token, "position_embeddings": torch.cat([class_position, repeated], 1)}
        classes = _linear(len(settings.id2label), settings.hidden_size, torch.Generator().manual_seed(wanted.seed))
        body = {f"embeddings.{key}": value for key, value in embedding.items()} | layers
        found = {f"vivit.{key}": value for key, value in body.items()}
        found |= {f"classifier.{key}": value for key, value in classes.items()}
    else:
        found = _begin(make(settings), wanted.seed)
        if settings.attention == "factorised_encoder":
            body = {"position_embeddings": table if settings.pooling == "cls" else positions, **layers}
            body |= {"cls_token": cls_token} if settings.pooling == "cls" else {}
            found |= embedding | {f"spatial.{key}": value for key, value in body.items()}
        else:
            found |= embedding | {"position_embeddings": repeated, **layers}
        if settings.attention == "factorised_self_attention":
            found |= _temporal(layers)
    return {key: value.contiguous().clone() for key, value in found.items()}


def inflate(filters: torch.Tensor, frames: int, how: Filters) -> torch.Tensor:
    """An image's filters (D,3,h,w) -> a tubelet's (D,3,frames,h,w).

    "central_frame": at frame floor(frames / 2), zero elsewhere, so that a token sees that frame alone (eq. 9).
    "filter_inflation": the same at every frame, divided by their number, so that it sees their mean (eq. 8).
    """
    if how == "filter_inflation":
        return filters.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
    inflated = filters.new_zeros(*filters.shape[:2], frames, *filters.shape[2:])
    inflated[:, :, frames // 2] = filters
    return inflated


def _temporal(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Model 3's attention over time: a copy of the spatial one whose output projection is zero.

    So the layer begins as the image model's (eq. 5 is a residual connection), for which the paper sets all weights to
    zero; then none but one bias would ever get a gradient.
    """
    found = {}
    for key, value in layers.items():
        if ".layernorm_before." in key:
            found[key.replace(".layernorm_before.", ".layernorm_temporal.")] = value
        elif ".attention." in key:
            name = key.replace(".attention.", ".temporal_attention.")
            found[name] = torch.zeros_like(value) if ".o_proj." in key else value
    return found


def _begin(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A module's tensors as its training from scratch begins: products normal with deviation 0.02, the rest neutral."""
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.load_state_dict(_linear(part.out_features, part.in_features, random, bias=part.bias is not None))
    return dict(module.state_dict())


def _linear(outputs: int, inputs: int, random: torch.Generator, *, bias: bool = True) -> dict[str, torch.Tensor]:
    weight = torch.empty(outputs, inputs).normal_(0, 0.02, generator=random)
    return {"weight": weight, **({"bias": torch.zeros(outputs)} if bias else {})}


def _processor(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """What the image checkpoint's processor does, as a config of transformers' VivitImageProcessor."""
    height, width = settings.size
    own = load_processor(checkpoint, "ViT", {"size": {"height": height, "width": width}})
    crop = bool(getattr(own, "do_center_crop", None))
    return {
        "image_processor_type": "VivitImageProcessor",
        "do_resize": own.do_resize,
        "size": {key: value for key, value in dict(own.size).items() if value},
        "resample": int(own.resample),
        "do_center_crop": crop,
        **({"crop_size": {"height": height, "width": width}} if crop else {}),
        "do_rescale": own.do_rescale,
        "rescale_factor": own.rescale_factor,
        "offset": False,
        "do_normalize": own.do_normalize,
        "image_mean": list(own.image_mean),
        "image_std": list(own.image_std),
    }
