"""Convolutional networks with attention inside, as classifiers: a frame in, or a clip, and the best classes out.

Four blocks in a ResNet: SAGAN's self-attention (Zhang et al., 2019), the non-local block (Wang et al., 2018), also in
space-time in a ResNet of clips, stand-alone self-attention (Ramachandran et al., 2019) and the local relation layer (Hu
et al., 2019); see `edgevtx.export.models`. No library publishes such checkpoints, so theirs is a layout of this
project: `config.json` with the fields of `AttentionResNetSettings`, weights under the names of `AttentionResNet`, and
an image processor's configuration as Hugging Face writes it (default: the ImageNet evaluation of ResNets).
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.clips import clip_classifier
from edgevtx.export.frames import traced_copy
from edgevtx.export.models.attention_resnet import AttentionResNet, AttentionResNetSettings
from edgevtx.export.models.local_attention import LocalRelation, StandaloneAttention
from edgevtx.export.models.video_resnet import VideoResNet
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import check_batch, check_model_type
from edgevtx.export.vit import classifier

# evaluation on ImageNet: the shorter edge to 8/7 of the crop
_EVALUATION = {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The classifier of a checkpoint; see `BuildOptions`. `top_k` defaults to 5 or the number of classes.

    The reference computes local attention by unfolding windows, as the papers have it; the graph, by tiles.
    """
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    settings = checkpoint.settings(AttentionResNetSettings)
    of_clips = settings.model_type in RECIPE.clips
    if options.clip_fps is not None and not of_clips:
        raise InputError(f"{settings.model_type} takes single frames and has no clips; leave --clip-fps out")
    model = checkpoint.load_module(partial(VideoResNet if of_clips else AttentionResNet, settings))
    crop = settings.image_size
    default = {"size": {"shortest_edge": round(crop * 8 / 7)}, "crop_size": {"height": crop, "width": crop}}
    processor = load_processor(checkpoint, "Bit", {**default, **_EVALUATION})
    preprocess = preprocess_of(processor, options.resize)
    if fixed_size(preprocess) is None:
        raise CheckpointError(
            f"the image processor of {checkpoint.path} scales the shortest edge and does not crop, so the size depends "
            "on the frame; give it a size with height and width, or a crop_size"
        )
    traced = traced_copy(model, "resnet.embedder.embedder.convolution", preprocess)
    for module in traced.modules():
        if isinstance(module, StandaloneAttention | LocalRelation):
            module.tiled = True
    config = SimpleNamespace(id2label=dict(enumerate(checkpoint.labels or ())), problem_type=settings.problem_type)
    if of_clips:
        return clip_classifier(
            RECIPE,
            options,
            model,
            traced,
            processor,
            preprocess,
            config,
            frames=settings.num_frames,
            frame_rate=settings.frame_rate,
        )
    return classifier(RECIPE, options, model, traced, processor, preprocess, config)


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "image_size": 80,
        "embedding_size": 16,
        "hidden_sizes": [32, 64],
        "depths": [1, 2],
        "attention_stages": [1, 2],
        "num_attention_heads": 2,
        "window": 5,
        "share": 4,
        "id2label": {str(index): f"class {index}" for index in range(10)},
    }
    clip = {"num_frames": 12, "frame_rate": 10.0}
    return {kind: {"model_type": kind, **tiny, **(clip if kind in RECIPE.clips else {})} for kind in RECIPE.model_types}


RECIPE = Recipe(
    family="attention_cnn",
    title="ResNets with attention inside: SAGAN, non-local, stand-alone self-attention, local relation",
    paper="https://arxiv.org/abs/1906.05909",
    task="classify",
    result="Classification",
    model_types=(
        "sagan_resnet",
        "nonlocal_resnet",
        "nonlocal_video_resnet",
        "sasa_resnet",
        "local_relation_resnet",
    ),
    layouts=("config.json and safetensors of this project", "config.json alone with a seed"),
    variants=(
        "SAGAN self-attention",
        "non-local block",
        "non-local block in space-time, in a network of clips (C2D)",
        "stand-alone self-attention",
        "local relation layer",
    ),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "top_k", "labels", "resize", "clip_fps"),
    clips=("nonlocal_video_resnet",),
)
