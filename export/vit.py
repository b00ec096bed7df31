"""ViT, hybrid ViT and DeiT image classifiers: a frame in, the best classes out.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; Touvron et al., "Training data-efficient image
transformers & distillation through attention", 2021.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.classes import Classes, Classifier, choose_classes
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.models.hybrid_vit import (
    HybridViTForImageClassification,
    fold_standardisation,
    in_pixels,
    is_hybrid,
)
from edgevtx.export.patches import fold_positions, pair
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, needless_frame, pixels_spec
from edgevtx.results import Classification
from edgevtx.rules import Preprocess
from edgevtx.runtimes.base import Array

UNUSED = ("pooler.", "vit.pooler.", "deit.pooler.")


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The classifier of a checkpoint; see `BuildOptions`. `top_k` defaults to 5 or the number of classes."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    hybrid = is_hybrid(checkpoint.config)
    model: Any = _load_hybrid(checkpoint) if hybrid else checkpoint.load(_model_class(checkpoint), unused=UNUSED)
    trained = pair(model.config.image_size)
    default = "DeiT" if checkpoint.model_type == "deit" else "ViT"
    settings = {"size": {"height": trained[0], "width": trained[1]}, "do_center_crop": False}
    processor = load_processor(checkpoint, default, settings)
    preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess) or _no_fixed_size(checkpoint)

    patches = f"{model.base_model_prefix}.embeddings.patch_embeddings"
    if hybrid:
        _check_map(checkpoint, model.config, size)
        stem = "bit.embedder" if model.config.backbone_config["model_type"] == "bit" else "embedder.embedder"
        traced = traced_copy(model, f"{patches}.backbone.{stem}.convolution", preprocess)
        fold_standardisation(traced)
    else:
        traced = traced_copy(model, f"{patches}.projection", preprocess)
    fold_positions(getattr(traced, model.base_model_prefix).embeddings, model.config, size)
    return classifier(
        RECIPE, options, model, traced, processor, preprocess, model.config, interpolate_pos_encoding=size != trained
    )


def classifier(
    recipe: Recipe,
    options: BuildOptions,
    model: Any,
    traced: nn.Module,
    processor: Any,
    preprocess: Preprocess,
    config: Any,
    **arguments: Any,
) -> Traceable:
    """What a family of image classifiers builds, once its model and processor are there.

    `model(pixel_values=, **arguments)` is the reference and `traced(pixel_values=)`, which takes BGR, what is exported;
    both give an object with `logits`. `config` has `id2label` by number and `problem_type`. Raises `InputError` for
    labels or a `top_k` that do not fit.
    """
    size = fixed_size(preprocess)
    assert size is not None
    classes = choose_classes(config, options)
    return Traceable(
        family=recipe.family,
        task=recipe.task,
        module=Classifier(traced, Frames(preprocess), classes).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=classes.outputs(options.batch),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=classes.decode,
        labels=classes.labels,
        reference=partial(_reference, model, processor, classes, arguments),
        notes=needless_frame(options.frame, size),
    )


def _reference(model: Any, processor: Any, classes: Classes, arguments: dict[str, Any], frame: Array) -> Classification:
    """The processor, the model and softmax (or sigmoid), as transformers' image classification pipeline has it."""
    with torch.no_grad():
        inputs = reference_inputs(processor, [frame])
        return classes.result(model(pixel_values=inputs["pixel_values"], **arguments).logits)


def _model_class(checkpoint: Checkpoint) -> Any:
    import transformers

    if checkpoint.model_type == "vit":
        return transformers.ViTForImageClassification
    if checkpoint.architecture == "DeiTForImageClassificationWithTeacher":
        return transformers.DeiTForImageClassificationWithTeacher
    return transformers.DeiTForImageClassification


def _load_hybrid(checkpoint: Checkpoint) -> Any:
    try:
        config = in_pixels(checkpoint.config)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{checkpoint.path / 'config.json'} is not a usable config: {error}; mend it") from error
    return checkpoint.load(HybridViTForImageClassification, config=config, unused=UNUSED)


def _check_map(checkpoint: Checkpoint, config: Any, size: tuple[int, int]) -> None:
    """Raise `CheckpointError` where the feature map of an input of `size` is not cut evenly into patches."""
    patch = pair(config.patch_size)
    if size[0] % patch[0] or size[1] % patch[1]:
        raise CheckpointError(
            f"the input of {checkpoint.path} is {size[0]}x{size[1]}, but a token covers {patch[0]}x{patch[1]} px; set "
            "the image processor's size or crop_size to a multiple"
        )


def _no_fixed_size(checkpoint: Checkpoint) -> tuple[int, int]:
    raise CheckpointError(
        f"the image processor of {checkpoint.path} scales the shortest edge and does not crop, but a ViT needs one "
        "size; give it a size with height and width, or a crop_size"
    )


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 48,
        "patch_size": 8,
        "id2label": {str(index): f"class {index}" for index in range(10)},
    }
    return {
        "vit": {"model_type": "vit", "architectures": ["ViTForImageClassification"], **tiny},
        "deit": {"model_type": "deit", "architectures": ["DeiTForImageClassification"], **tiny},
        "vit_hybrid": {
            "model_type": "vit_hybrid",
            "architectures": ["ViTHybridForImageClassification"],
            **tiny,
            "patch_size": 1,
            "image_size": 64,
            "backbone_config": {
                "model_type": "bit",
                "global_padding": "same",
                "layer_type": "bottleneck",
                "depths": [1, 1, 2],
                "embedding_size": 16,
                "hidden_sizes": [32, 64, 64],
                "num_groups": 4,
                "out_features": ["stage3"],
                "embedding_dynamic_padding": True,
            },
        },
    }


RECIPE = Recipe(
    family="vit",
    title="ViT, hybrid ViT and DeiT image classification",
    paper="https://arxiv.org/abs/2010.11929",
    task="classify",
    result="Classification",
    model_types=("vit", "deit", "vit_hybrid"),
    layouts=("Hugging Face directory", "config.json alone with a seed", *names_for("vit")),
    variants=("ViT", "DeiT", "hybrid ViT: tokens of a CNN's feature map (BiT or ResNet), 1x1 patches too"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "top_k", "labels", "resize"),
)
