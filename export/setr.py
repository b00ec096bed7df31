"""SETR: a frame in, the class of every pixel out.

Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", 2021.
No library publishes such checkpoints in Hugging Face's form. Here a folder is one: `config.json` with the fields of
`edgevtx.export.models.setr.Settings`, weights under the names of `Setr`, and an image processor's configuration as
Hugging Face writes it, or MMSegmentation's (see `edgevtx.export.processor.MMSegImageProcessor`). Without one frames are
scaled with Pillow by ImageNet's mean and deviation, bilinearly, to the size that the model was trained for; with
windows, the shortest edge to a window's and the longest to four times as much at most. MMSegmentation's own files are
read by `edgevtx.export.layouts`.

One thing differs from MMSegmentation: where a scaled frame is smaller than a window, it gives its network a smaller
window. The graph has one size, so the frame is padded to the window with the mean colour, as its training pads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import torch
import torch.nn.functional as F

from edgevtx.errors import CheckpointError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.class_maps import class_labels, reference_classes, segmenter
from edgevtx.export.frames import traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.models.setr import Setr, Settings, upsample
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import check_batch, check_model_type
from edgevtx.results import SemanticSegmentation
from edgevtx.rules import Preprocess, SegmentDecode, Windows
from edgevtx.runtimes.base import Array

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
# the branches that training adds to layers in the middle, as our own names have them
UNUSED = ("auxiliary.",)


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The segmenter of a checkpoint; see `BuildOptions`. The graph is static: the input's size, or a window's."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    settings = checkpoint.settings(Settings)
    labels = class_labels(checkpoint, settings.activation, options)
    _check(checkpoint, settings)
    model = checkpoint.load_module(partial(Setr, settings), unused=UNUSED)
    processor = _processor(checkpoint, settings)
    preprocess = preprocess_of(processor, options.resize)
    image = fixed_size(preprocess)
    size = settings.window.size if settings.window else image
    if size is None:
        raise CheckpointError(
            f"the image processor of {checkpoint.path} scales the shortest edge, so the size depends on the frame; "
            "give it a size with height and width, or the config a window"
        )
    _check_fits(checkpoint, settings, size, image)
    if settings.window is not None:
        windows = Windows(size=settings.window.size, stride=settings.window.stride, fill=_mean_colour(preprocess))
        preprocess = msgspec.structs.replace(preprocess, windows=windows)

    traced = traced_copy(model, "backbone.patch_embed", preprocess)
    traced.backbone.fold_positions((size[0] // settings.patch_size, size[1] // settings.patch_size))
    rule = SegmentDecode(activation=settings.activation, threshold=settings.threshold, upsample=model.scale)
    reference = partial(_reference, model, processor, preprocess, rule, labels)
    return segmenter(RECIPE, options, traced, size, preprocess, rule, labels, reference)


def _mean_colour(preprocess: Preprocess) -> tuple[int, int, int]:
    """The colour (BGR) that is normalised to zero, as nearly as whole numbers allow."""
    red, green, blue = (min(max(round(mean / preprocess.scale), 0), 255) for mean in preprocess.mean)
    return blue, green, red


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
    window = settings.window
    if window and any(not 0 < stride <= side for stride, side in zip(window.stride, window.size, strict=True)):
        raise CheckpointError(
            f"{where} has windows of {window.size} px (height, width), {window.stride} px apart; the stride must lie "
            "in 1 to the size, or parts of the frame are never seen"
        )


def _check_fits(
    checkpoint: Checkpoint, settings: Settings, size: tuple[int, int], image: tuple[int, int] | None
) -> None:
    """Raise `CheckpointError` for an input or windows that patches do not fill."""
    patch, window = settings.patch_size, settings.window
    what = "window" if window else "input"
    if any(side % patch or side < patch for side in size):
        raise CheckpointError(
            f"the {what} of {checkpoint.path} is {size[0]}x{size[1]} px (height x width), which patches of {patch} px "
            f"do not fill; set {'the config' if window else 'the image processor'}'s size to multiples of {patch}"
        )
    if window and image and any(side < crop for side, crop in zip(image, window.size, strict=True)):
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
    model: Setr,
    processor: Any,
    preprocess: Preprocess,
    rule: SegmentDecode,
    labels: tuple[str, ...],
    frame: Array,
) -> SemanticSegmentation:
    """MMSegmentation's inference: whole, or in windows; logits resized to the input, then to the frame."""
    with torch.no_grad():
        pixels = reference_inputs(processor, [frame])["pixel_values"]
        logits = slide(partial(_encode_decode, model), pixels, preprocess)
        logits = F.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=False)[0]
    return reference_classes(logits, rule, labels)


def _encode_decode(model: Setr, pixels: torch.Tensor) -> torch.Tensor:
    logits = upsample(model(pixels), model.scale)
    return F.interpolate(logits, pixels.shape[2:], mode="bilinear", align_corners=False)


def slide(answer: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Logits of a whole image (1,C,H,W): the mean over windows, or the answer for the image where there are none.

    An image smaller than a window is padded to it, and the border's logits are dropped: see `Windows`.
    """
    if preprocess.windows is None:
        return answer(image)
    (high, wide), (down, right) = preprocess.windows.size, preprocess.windows.stride
    colour = torch.tensor(preprocess.windows.fill[::-1]) * preprocess.scale
    fill = (colour - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    height, width = max(image.shape[2], high), max(image.shape[3], wide)
    pixels = fill[None, :, None, None].repeat(1, 1, height, width)
    pixels[..., : image.shape[2], : image.shape[3]] = image
    total, count = torch.zeros(1), torch.zeros(1, 1, height, width)
    for bottom in _ends(height, high, down):
        for end in _ends(width, wide, right):
            part = (..., slice(bottom - high, bottom), slice(end - wide, end))
            place = (end - wide, width - end, bottom - high, height - bottom)
            total = total + F.pad(answer(pixels[part]), place)
            count[part] += 1
    return (total / count)[..., : image.shape[2], : image.shape[3]]


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
