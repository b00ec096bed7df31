"""Swin transformers, v1 and v2: a frame in; the best classes, or feature maps at four scales out.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021; Liu et al., "Swin
Transformer V2: Scaling Up Capacity and Resolution", 2022.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.models.swin import Classifier, Encoder, Grid, Reorder, raster
from edgevtx.export.patches import pair
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, pixels_spec
from edgevtx.export.vit import classifier
from edgevtx.geometry import plan
from edgevtx.manifest import TensorInfo
from edgevtx.results import Features
from edgevtx.rules import Preprocess, PyramidDecode, ShortestEdge
from edgevtx.runtimes.base import Array

# heads and tokens that a checkpoint may carry and another task does not need
UNUSED = ("classifier.", "decoder.", "embeddings.mask_token", "swin.embeddings.mask_token")


class Pyramid(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> [cls (N,D),] one map (N,h,w,D) float32 for each of `stages`, finest first.

    `norms` (backbones of v1) hold a layer norm for each map; `pooled` (whole models) the norm ahead of the mean over
    the last stage's tokens, which is `cls`.
    """

    def __init__(
        self, encoder: Encoder, frames: Frames, stages: tuple[int, ...], norms: list[Any], pooled: nn.Module | None
    ) -> None:
        super().__init__()
        self.frames, self.encoder, self.stages, self.pooled = frames, encoder, stages, pooled
        self.norms = nn.ModuleList(norms)
        self.rasters = nn.ModuleList(
            Reorder(encoder.orders[index], raster(encoder.grids[index]), math.prod(encoder.grids[index]))
            for index in stages
        )

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = self.encoder(self.frames(pixels))
        found = []
        if self.pooled is not None:
            found.append(self.pooled(tokens[-1]).mean(1))
        for at, index in enumerate(self.stages):
            ordered = self.rasters[at](tokens[index])
            if len(self.norms):
                ordered = self.norms[at](ordered)
            found.append(ordered.reshape(-1, *self.encoder.grids[index], ordered.shape[2]))
        return tuple(found)


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The classifier or the backbone of a checkpoint; see `BuildOptions`.

    A checkpoint with a classification head is a classifier unless `options.task` asks for its features. The input's
    size is the image processor's, or for features the camera's (`options.frame`).
    """
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    task = options.task or ("classify" if checkpoint.architecture.endswith("ForImageClassification") else "embed")
    if task == "classify":
        return _build_classifier(checkpoint, options)
    if task == "embed":
        return _build_backbone(checkpoint, options)
    raise InputError(f"family swin has no task {task!r}; choose one of: {', '.join(RECIPE.results)}")


def _build_classifier(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    if not checkpoint.architecture.endswith("ForImageClassification"):
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.architecture or 'checkpoint without architecture'}, which has no "
            "classes; export its features with task embed, or give a checkpoint with a classification head"
        )
    model = _load(checkpoint, "ForImageClassification", ())
    processor, preprocess, size = _preprocess(checkpoint, model.config, replace(options, frame=None))
    traced = traced_copy(model, f"{model.base_model_prefix}.embeddings.patch_embeddings.projection", preprocess)
    return classifier(
        RECIPE, options, model, Classifier(traced, size), processor, preprocess, model.config, **_any_size(model)
    )


def _build_backbone(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    if options.top_k is not None or options.labels is not None:
        raise InputError("a backbone has no classes: leave top_k and labels out")
    whole = not checkpoint.architecture.endswith("Backbone")
    model = _load(checkpoint, "Model" if whole else "Backbone", UNUSED)
    processor, preprocess, size = _preprocess(checkpoint, model.config, options)
    inner = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
    prefix = f"{inner}." if inner else ""
    traced = traced_copy(model, f"{prefix}embeddings.patch_embeddings.projection", preprocess)
    encoder = Encoder(traced.get_submodule(inner), size, clamp=whole and checkpoint.model_type == "swin")
    stages, names = _stages(model, whole)
    norms = [traced.hidden_states_norms[name] for name in names] if hasattr(traced, "hidden_states_norms") else []
    width = int(model.config.embed_dim)
    patch = pair(model.config.patch_size)
    if patch[0] != patch[1]:
        raise CheckpointError(f"the patches of {checkpoint.path} are {patch[0]}x{patch[1]}; square ones are expected")
    outputs = [
        TensorInfo(name=name, shape=(options.batch, *encoder.grids[index], width * 2**index), dtype="float32")
        for index, name in zip(stages, names, strict=True)
    ]
    if whole:
        outputs.insert(0, TensorInfo(name="cls", shape=(options.batch, width * 2 ** stages[-1]), dtype="float32"))
    return Traceable(
        family=RECIPE.family,
        task="embed",
        module=Pyramid(encoder, Frames(preprocess), stages, norms, traced.layernorm if whole else None).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=tuple(outputs),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=PyramidDecode(maps=names, strides=tuple(patch[0] * 2**index for index in stages)),
        labels=(),
        reference=partial(_backbone_reference, model, processor, preprocess, whole, stages),
    )


def _load(checkpoint: Checkpoint, kind: str, unused: tuple[str, ...]) -> Any:
    """The transformers model, `kind` the end of its class's name."""
    import transformers

    version = {"swin": "Swin", "swinv2": "Swinv2"}[checkpoint.model_type]
    config = dict(checkpoint.config)
    if config.get("use_absolute_embeddings") and version == "Swinv2":
        raise CheckpointError(f"{checkpoint.path} is a Swin v2 with absolute positions, which transformers cannot run")
    if kind == "Backbone" and not {"out_features", "out_indices"} & set(config):
        config["out_features"] = [f"stage{number}" for number in range(1, len(config.get("depths", range(4))) + 1)]
    return checkpoint.load(getattr(transformers, f"{version}{kind}"), config=config, unused=unused)


def _stages(model: Any, whole: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The stages that give maps, as numbers from 0 and as the names of their outputs."""
    if whole:
        numbers = tuple(range(len(model.config.depths)))
        return numbers, tuple(f"stage{number + 1}" for number in numbers)
    if "stem" in model.out_features:
        raise CheckpointError(
            "the backbone's out_features name the stem, which is no stage; leave it out of config.json"
        )
    return tuple(model.stage_names.index(name) - 1 for name in model.out_features), tuple(model.out_features)


def _preprocess(checkpoint: Checkpoint, config: Any, options: BuildOptions) -> tuple[Any, Preprocess, Grid]:
    """The processor, set to one size, what it does, and that size.

    With `options.frame`: the whole frame at the scale that the processor's rule gives its shortest edge, not cropped.
    """
    trained = pair(config.image_size)
    settings = {
        "size": {"height": trained[0], "width": trained[1]},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    processor = load_processor(checkpoint, "ViT", settings)
    preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess)
    if options.frame is None:
        if size is None:
            raise CheckpointError(
                f"the image processor of {checkpoint.path} scales the shortest edge and does not crop, so the size "
                "depends on the frame; give it a size with height and width, or your camera's with --frame 1920x1080 "
                "(task embed)"
            )
        return processor, preprocess, size
    rule = preprocess.size
    shortest = rule.shortest if isinstance(rule, ShortestEdge) else min(size or trained)
    scale = shortest / min(options.frame)
    fixed = (max(1, round(options.frame[0] * scale)), max(1, round(options.frame[1] * scale)))
    processor.size, processor.do_center_crop = {"height": fixed[0], "width": fixed[1]}, False
    return processor, preprocess_of(processor, options.resize), fixed


def _backbone_reference(
    model: Any, processor: Any, preprocess: Preprocess, whole: bool, stages: tuple[int, ...], frame: Array
) -> Features:
    """The processor and the model, each stage's tokens before they are merged."""
    with torch.no_grad():
        pixels = reference_inputs(processor, [frame])["pixel_values"]
        if not whole:
            maps = model(pixels, **_any_size(model)).feature_maps
        else:
            tokens, grid = model.embeddings(pixels, **_any_size(model))
            encoded = model.encoder(
                tokens, grid, output_hidden_states=True, output_hidden_states_before_downsampling=True
            )
            maps = encoded.reshaped_hidden_states[1:]
            cls = model.layernorm(encoded.last_hidden_state).mean(1)[0].numpy()
    patch = pair(model.config.patch_size)[0]
    return Features.pyramid(
        tuple(one[0].permute(1, 2, 0).numpy() for one in maps),
        tuple(patch * 2**index for index in stages),
        plan((frame.shape[0], frame.shape[1]), preprocess),
        cls=cls if whole else None,
    )


def _any_size(model: Any) -> dict[str, bool]:
    """What lets v1 take other sizes than the trained one where it has absolute positions."""
    return {"interpolate_pos_encoding": True} if model.config.model_type == "swin" else {}


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "image_size": 96,
        "embed_dim": 16,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 2, 4],
        "mlp_ratio": 2.0,
        "id2label": {str(index): f"class {index}" for index in range(10)},
    }
    return {
        "swin": {"model_type": "swin", "architectures": ["SwinForImageClassification"], "window_size": 3, **tiny},
        "swinv2": {"model_type": "swinv2", "architectures": ["Swinv2ForImageClassification"], "window_size": 4, **tiny},
    }


RECIPE = Recipe(
    family="swin",
    title="Swin image classification and feature maps",
    paper="https://arxiv.org/abs/2103.14030",
    task="classify",
    result="Classification",
    further={"embed": "Features"},
    model_types=("swin", "swinv2"),
    layouts=("Hugging Face directory", "config.json alone with a seed", *names_for("swin")),
    variants=("Swin v1", "Swin v2", "feature maps of up to four scales (--task embed)"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "task", "frame", "top_k", "labels", "resize"),
)
