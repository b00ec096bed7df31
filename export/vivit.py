"""ViViT video classifiers: a clip in, the best classes out.

Arnab et al., "ViViT: A Video Vision Transformer", 2021. Model 1 (spatio-temporal attention) is transformers' module and
checkpoint layout; models 2 to 4 are `edgevtx.export.models.vivit`'s, and `attention` in their config.json names them.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.clips import clip_classifier
from edgevtx.export.frames import traced_copy
from edgevtx.export.models.vivit import Settings, make
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import check_batch, check_model_type
from edgevtx.rules import Preprocess


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The classifier of a checkpoint; see `BuildOptions`. `top_k` defaults to 5 or the number of classes."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    settings = read_settings(checkpoint)
    model = _load(checkpoint, settings)
    processor, preprocess = _preprocess(checkpoint, settings, options)
    prefix = "vivit.embeddings." if settings.attention == "spatio_temporal" else ""
    traced = traced_copy(model, f"{prefix}patch_embeddings.projection", preprocess)
    return clip_classifier(
        RECIPE,
        options,
        model,
        traced,
        processor,
        preprocess,
        _named(model, settings),
        frames=settings.num_frames,
        frame_rate=settings.frame_rate,
    )


def read_settings(checkpoint: Checkpoint) -> Settings:
    """The config of a ViViT checkpoint; raises `CheckpointError` where its numbers do not fit each other."""
    from transformers import VivitConfig

    # a config of transformers' own may have fields of its older versions
    also = VivitConfig().to_dict() if "attention" in checkpoint.config else None
    settings = checkpoint.settings(Settings, also)
    try:
        settings.check()
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path / 'config.json'} is not a usable config: {error}; mend it") from None
    if settings.attention != "spatio_temporal" and not settings.id2label:
        raise CheckpointError(f"{checkpoint.path / 'config.json'} names no classes; give them as id2label")
    return settings


def _load(checkpoint: Checkpoint, settings: Settings) -> nn.Module:
    if settings.attention == "spatio_temporal":
        import transformers

        return checkpoint.load(transformers.VivitForVideoClassification, unused=("pooler.", "vivit.pooler."))
    return checkpoint.load_module(partial(make, settings))


def _named(model: Any, settings: Settings) -> Any:
    """What has the classes' names by number as `id2label`, and `problem_type`."""
    if hasattr(model, "config"):
        return model.config
    return SimpleNamespace(
        id2label={int(key): name for key, name in settings.id2label.items()}, problem_type=settings.problem_type
    )


def _preprocess(checkpoint: Checkpoint, settings: Settings, options: BuildOptions) -> tuple[Any, Preprocess]:
    """The processor and what it does; without a config transformers' default, scaled to the model's size."""
    height, width = settings.size
    default = {"size": {"shortest_edge": round(max(height, width) * 256 / 224)}, "crop_size": [height, width]}
    processor = load_processor(checkpoint, "Vivit", default)
    preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess)
    if size != settings.size:
        gives = "no fixed size" if size is None else f"{size[0]}x{size[1]}"
        raise CheckpointError(
            f"the model of {checkpoint.path} takes frames of {height}x{width} (height x width), its image processor "
            f"gives {gives}; set the processor's crop_size to image_size"
        )
    return processor, preprocess


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "model_type": "vivit",
        "architectures": ["VivitForVideoClassification"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "num_frames": 4,
        "tubelet_size": [2, 8, 8],
        "frame_rate": 10.0,
        "id2label": {str(index): f"class {index}" for index in range(10)},
    }
    return {
        "vivit": tiny,
        "vivit-factorised-encoder": {**tiny, "attention": "factorised_encoder", "num_temporal_layers": 2},
        # uniform frame sampling: every frame by itself
        "vivit-factorised-self-attention": {
            **tiny,
            "attention": "factorised_self_attention",
            "tubelet_size": [1, 8, 8],
        },
        "vivit-factorised-dot-product": {**tiny, "attention": "factorised_dot_product", "num_attention_heads": 4},
    }


RECIPE = Recipe(
    family="vivit",
    title="ViViT video classification, models 1 to 4",
    paper="https://arxiv.org/abs/2103.15691",
    task="classify",
    result="Classification",
    model_types=("vivit",),
    layouts=(
        "Hugging Face directory",
        "edgevtx directory (models 2 to 4)",
        "edgevtx directory to be trained, begun from a ViT image checkpoint by central frame or filter inflation: "
        "scripts/vivit_from_vit.py",
        "config.json alone with a seed",
    ),
    variants=(
        "model 1: spatio-temporal attention",
        "model 2: factorised encoder",
        "model 3: factorised self-attention",
        "model 4: factorised dot-product attention",
    ),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "top_k", "labels", "resize", "clip_fps"),
    clips=("vivit",),
)
