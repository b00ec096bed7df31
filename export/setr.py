"""SETR: a frame in, the class of every pixel out.

Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", 2021.
No library publishes such checkpoints in Hugging Face's form. Here a folder is one: `config.json` with the fields of
`edgevtx.export.models.setr.Settings`, weights under the names of `Setr`, and an image processor's configuration as
Hugging Face writes it (default: ImageNet's mean and deviation, bilinear, the size that the model was trained for; with
windows, the shortest edge at a window's and the longest at four times as much). MMSegmentation's own files are read by
`edgevtx.export.layouts`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.models.setr import Setr, Settings, upsample
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, needless_frame, pixels_spec
from edgevtx.manifest import SegmentDecode, TensorInfo
from edgevtx.results import SemanticSegmentation
from edgevtx.runtimes.base import Array

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
# the branches that training adds to layers in the middle, as our own names have them
UNUSED = ("auxiliary.",)


class Segmenter(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> logits (N,C,h,w) float32, before the decoder's last upsampling."""

    def __init__(self, model: nn.Module, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(self.frames(pixels)),)


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The segmenter of a checkpoint; see `BuildOptions`. The graph is static: the input's size, or a window's."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    settings = checkpoint.settings(Settings)
    labels = class_labels(checkpoint, settings.activation, options)
    _check(checkpoint, settings)
    model = checkpoint.load_module(partial(Setr, settings), unused=UNUSED)
    processor = _processor(checkpoint, settings)
    windows = settings.window
    preprocess = preprocess_of(processor, options.resize, windows)
    size = windows.size if windows else fixed_size(preprocess)
    if size is None:
        raise CheckpointError(
            f"the image processor of {checkpoint.path} scales the shortest edge, so the size depends on the frame; "
            "give it a size with height and width, or the config a window"
        )
    _check_fits(checkpoint, settings, size, fixed_size(preprocess))

    traced = traced_copy(model, "backbone.patch_embed", preprocess)
    traced.backbone.fold_positions((size[0] // settings.patch_size, size[1] // settings.patch_size))
    return Traceable(
        family=RECIPE.family,
        task=RECIPE.task,
        module=Segmenter(traced, Frames(preprocess)).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=(logits_spec(options.batch, model, size),),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=SegmentDecode(activation=settings.activation, threshold=settings.threshold, upsample=model.scale),
        labels=labels,
        reference=partial(_reference, model, processor, settings, labels),
        notes=needless_frame(options.frame, size) if windows is None else (),
    )


def logits_spec(batch: int | None, model: nn.Module, size: tuple[int, int]) -> TensorInfo:
    """The output of a segmenter for an input of `size`, found by running it once on nothing."""
    with torch.no_grad():
        shape = model(torch.zeros(1, 3, *size)).shape
    return TensorInfo(name="logits", shape=(batch, *shape[1:]), dtype="float32")


def class_labels(checkpoint: Checkpoint, activation: str, options: BuildOptions) -> tuple[str, ...]:
    """The names of the classes: the user's or the config's; of one class with a threshold, the background first.

    Raises `CheckpointError` where the config has no names, or several for one map with a threshold; `InputError` where
    the user gives another number of names, or asks for the best few classes.
    """
    labels, given = checkpoint.labels, options.labels
    if not labels or (activation == "sigmoid" and len(labels) != 1):
        raise CheckpointError(
            f"id2label of {checkpoint.path} has {len(labels or ())} classes; expected one or more, and with the "
            "activation sigmoid exactly one"
        )
    if options.top_k is not None:
        raise InputError(f"top_k is {options.top_k}, but each pixel has one class; leave it out")
    if given is not None and len(given) != len(labels):
        raise InputError(f"{len(given)} labels were given, but the checkpoint has {len(labels)} classes; give as many")
    return (("background",) if activation == "sigmoid" else ()) + (given or labels)


def _check(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise `CheckpointError` for a config that contradicts itself."""
    where = checkpoint.path / "config.json"
    patch, last = settings.patch_size, settings.num_hidden_layers - 1
    if settings.hidden_size % settings.num_attention_heads:
        raise CheckpointError(
            f"{where} splits a hidden_size of {settings.hidden_size} among {settings.num_attention_heads} heads; "
            "num_attention_heads must divide it"
        )
    if any(side < patch for side in settings.image_size):
        raise CheckpointError(f"{where} has an image_size of {settings.image_size}, which holds no patch of {patch} px")
    if settings.decoder == "mla" and not 0 <= min(settings.out_indices) <= max(settings.out_indices) <= last:
        raise CheckpointError(
            f"{where} takes the layers {settings.out_indices}, but the last of {last + 1} is {last}; mend out_indices"
        )


def _check_fits(
    checkpoint: Checkpoint, settings: Settings, size: tuple[int, int], image: tuple[int, int] | None
) -> None:
    """Raise `CheckpointError` for an input or windows that patches do not fill, or windows that leave gaps."""
    patch, window = settings.patch_size, settings.window
    what = "window" if window else "input"
    if any(side % patch or side < patch for side in size):
        raise CheckpointError(
            f"the {what} of {checkpoint.path} is {size[0]}x{size[1]} px (height x width), which patches of {patch} px "
            f"do not fill; set {'the config' if window else 'the image processor'}'s size to multiples of {patch}"
        )
    if window is None:
        return
    if any(not 0 < stride <= side for stride, side in zip(window.stride, window.size, strict=True)):
        raise CheckpointError(
            f"the windows of {checkpoint.path} are {window.size} px (height, width) and {window.stride} px apart; "
            f"the stride must lie in 1 to the size, or parts of the frame are never seen"
        )
    if image is not None and any(side < crop for side, crop in zip(image, window.size, strict=True)):
        raise CheckpointError(
            f"the image processor of {checkpoint.path} makes frames {image[0]}x{image[1]} px (height x width), "
            f"smaller than a window of {window.size[0]}x{window.size[1]}; make the windows smaller or leave them out"
        )


def _processor(checkpoint: Checkpoint, settings: Settings) -> Any:
    if settings.window is None:
        height, width = settings.image_size
        return load_processor(checkpoint, "ViT", {"size": {"height": height, "width": width}, **IMAGENET})
    edge = max(settings.window.size)
    return load_processor(checkpoint, "Detr", {"size": {"shortest_edge": edge, "longest_edge": 4 * edge}, **IMAGENET})


# -- the reference ---------------------------------------------------------------------------------------------


def _reference(
    model: Setr, processor: Any, settings: Settings, labels: tuple[str, ...], frame: Array
) -> SemanticSegmentation:
    """MMSegmentation's inference: whole, or in windows; logits resized to the input, then to the frame."""
    with torch.no_grad():
        pixels = reference_inputs(processor, [frame])["pixel_values"]
        logits = slide(partial(_encode_decode, model), pixels, settings)
        logits = F.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=False)[0]
    if settings.activation == "softmax":
        return SemanticSegmentation(logits.argmax(0).numpy().astype(np.int32), labels)
    scores = logits[0].sigmoid().numpy()
    return SemanticSegmentation((scores > settings.threshold).astype(np.int32), labels, scores)


def _encode_decode(model: Setr, pixels: torch.Tensor) -> torch.Tensor:
    logits = upsample(model(pixels), model.scale)
    return F.interpolate(logits, pixels.shape[2:], mode="bilinear", align_corners=False)


def slide(answer: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Logits of a whole image (1,C,H,W): the mean over windows, or the answer for the image where there are none."""
    if settings.window is None:
        return answer(pixels)
    height, width = pixels.shape[2:]
    (high, wide), (down, right) = settings.window.size, settings.window.stride
    total, count = torch.zeros(1), torch.zeros(1, 1, height, width)
    for bottom in _ends(height, high, down):
        for end in _ends(width, wide, right):
            part = (..., slice(bottom - high, bottom), slice(end - wide, end))
            place = (end - wide, width - end, bottom - high, height - bottom)
            total = total + F.pad(answer(pixels[part]), place)
            count[part] += 1
    return total / count


def _ends(length: int, window: int, stride: int) -> list[int]:
    """Where windows along one side end; the last one at the image's edge."""
    ends = list(range(window, length, stride))
    return [*ends, length]


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "model_type": "setr",
        "decoder": "pup",
        "image_size": [64, 64],
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "out_indices": [0, 1, 2, 3],
        "decoder_channels": 16,
        "head_channels": 8,
        "id2label": {str(index): f"class {index}" for index in range(4)},
    }
    return {"setr": tiny}


RECIPE = Recipe(
    family="setr",
    title="SETR semantic segmentation: naive, PUP and MLA decoders, whole frames or sliding windows",
    paper="https://arxiv.org/abs/2012.15840",
    task="segment",
    result="SemanticSegmentation",
    model_types=("setr",),
    layouts=("config.json and safetensors of this project", "config.json alone with a seed", *names_for("setr")),
    variants=("naive decoder", "PUP decoder", "MLA decoder", "sliding windows over large frames"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "labels", "resize"),
)
