"""A checkpoint's image processor: the reference for preprocessing, and the source of the manifest's.

Transformers' PIL processors are used: they need no torchvision and define what "exact" means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.geometry import resized_size
from edgevtx.rules import Exact, Interpolation, LongestEdge, Preprocess, ResizeBackend, ShortestEdge, SizeRule
from edgevtx.runtimes.base import Array

# processors whose whole work is resize, centre crop, rescale, normalise and pad; others do more than the host does
KNOWN = ("Bit", "ConditionalDetr", "DeiT", "DeformableDetr", "Detr", "MMSeg", "RTDetr", "Sam", "ViT", "Vivit")
# processors that transformers no longer has -> the one that does the same
FORMER = {"ViTHybrid": "Bit"}
# PIL.Image.Resampling by number, as processor configs write it
_INTERPOLATION: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}

_MMSEG_SIZES = ({"height", "width"}, {"shortest_edge", "longest_edge"})


@dataclass
class MMSegImageProcessor:
    """The preparation of test images by MMSegmentation: mmcv's resize, then mean and deviation.

    One call of `cv2.resize`, bilinear and without antialiasing, to `size`: a height and width, or as large as fits
    into a `shortest_edge` and a `longest_edge` with the aspect ratio kept, both edges rounded half up
    (`mmcv.imrescale`). An image processor's config asks for it as "MMSegImageProcessor".
    """

    size: dict[str, int]
    image_mean: list[float]
    image_std: list[float]
    do_resize: ClassVar[bool] = True
    do_rescale: ClassVar[bool] = True
    do_normalize: ClassVar[bool] = True
    rescale_factor: ClassVar[float] = 1 / 255
    resample: ClassVar[int] = 2

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> MMSegImageProcessor:
        """The processor of a config; raises `TypeError` for other fields and `ValueError` for another size."""
        made = cls(**config)
        if not isinstance(made.size, dict) or set(made.size) not in _MMSEG_SIZES:
            raise ValueError(f"size is {made.size}; expected height and width, or shortest_edge and longest_edge")
        return made

    def __call__(self, images: list[Array], **_: Any) -> dict[str, torch.Tensor]:
        """RGB images (H,W,3) uint8 -> `pixel_values` (N,3,h,w) float32; they must all get one size."""
        import cv2

        mean, std = (np.asarray(values, np.float32) for values in (self.image_mean, self.image_std))
        arrays = []
        for image in images:
            height, width = resized_size((image.shape[0], image.shape[1]), _size_rule(self.size, self))
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            arrays.append((resized * np.float32(self.rescale_factor) - mean) / std)
        return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()}


def load_processor(checkpoint: Checkpoint, default: str, settings: dict[str, Any] | None = None) -> Any:
    """The checkpoint's transformers processor (PIL), or MMSegmentation's.

    Where the checkpoint has no processor config: the processor named `default` ("ViT", "Bit", "Detr", ...) with
    `settings`. Raises `CheckpointError` for a processor that is not one of `KNOWN`.
    """
    import transformers

    config = checkpoint.processor_config or settings or {}
    types = ("image_processor_type", "video_processor_type", "feature_extractor_type")
    named = next((config[key] for key in types if config.get(key)), "")
    kind = default
    for suffix in ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "VideoProcessor", "FeatureExtractor"):
        if named.endswith(suffix):
            kind = named.removesuffix(suffix)
            break
    kind = FORMER.get(kind, kind)
    if kind not in KNOWN:
        raise CheckpointError(
            f"{checkpoint.path} asks for the image processor {named}; expected one of "
            f"{', '.join(f'{name}ImageProcessor' for name in KNOWN)}"
        )
    # Vivit's only image processor has no suffix, and resizes with Pillow; its video processor needs torchvision
    processor_class = (
        MMSegImageProcessor
        if kind == "MMSeg"
        else getattr(transformers, f"{kind}ImageProcessor{'' if kind == 'Vivit' else 'Pil'}")
    )
    try:
        return processor_class.from_dict({k: v for k, v in config.items() if k not in types})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the image processor config of {checkpoint.path} is not usable: {error}") from None


def resize_backend(resize: str | None) -> ResizeBackend:
    """How a checkpoint's own processor resizes, Pillow, or "opencv"; raises `InputError` for another name."""
    if resize not in (None, "pillow", "opencv"):
        raise InputError(f"resize is {resize!r}; choose pillow or opencv")
    return "opencv" if resize == "opencv" else "pillow"


def preprocess_of(processor: Any, resize: str | None = None) -> Preprocess:
    """What a processor does to an image, as the manifest's data.

    `resize` replaces Pillow's; MMSegmentation's processor has one of its own and takes none (`InputError`). Raises
    `CheckpointError` for a processor without resizing, or with a size rule or `resample` unknown here.
    """
    backend = resize_backend(resize)
    if isinstance(processor, MMSegImageProcessor):
        if resize is not None:
            raise InputError("MMSegmentation's checkpoints are resized by OpenCV as mmcv does it; leave --resize out")
        backend = "opencv-plain"
    if not processor.do_resize:
        raise CheckpointError("the image processor does not resize (do_resize is false); give the model's size there")
    normalise = processor.do_normalize
    mean = _triple(processor.image_mean) if normalise else (0.0, 0.0, 0.0)
    if getattr(processor, "offset", False):  # Vivit's: 1 is subtracted ahead of the mean
        if not processor.do_rescale:
            raise CheckpointError("the image processor has an offset and does not rescale; set do_rescale there")
        mean = (mean[0] + 1, mean[1] + 1, mean[2] + 1)
    crop = processor.crop_size if getattr(processor, "do_center_crop", None) else None
    return Preprocess(
        size=_size_rule(processor.size, processor),
        interpolation=_interpolation(processor.resample),
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=mean,
        std=_triple(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        crop=None if crop is None else (int(crop["height"]), int(crop["width"])),
        resize=backend,
    )


def _interpolation(resample: Any) -> Interpolation:
    try:
        return _INTERPOLATION[int(resample)]
    except (KeyError, TypeError, ValueError):
        known = ", ".join(f"{number} ({name})" for number, name in _INTERPOLATION.items())
        raise CheckpointError(
            f"the image processor's resample {resample!r} is unknown; expected one of Pillow's filters: {known}"
        ) from None


def _size_rule(size: Any, processor: Any) -> SizeRule:
    edges = dict(size)
    height, width = edges.get("height"), edges.get("width")
    if height and width:
        return Exact(height=int(height), width=int(width))
    if edges.get("shortest_edge"):
        longest = edges.get("longest_edge")
        return ShortestEdge(
            shortest=int(edges["shortest_edge"]),
            longest=int(longest) if longest else None,
            rounding="nearest" if isinstance(processor, MMSegImageProcessor) else "floor",
        )
    if edges.get("longest_edge"):
        return LongestEdge(longest=int(edges["longest_edge"]))
    raise CheckpointError(f"the image processor's size {edges} is unknown; expected height and width, or edges")


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in ([values] * 3 if isinstance(values, float | int) else values))
    return first, second, third


def fixed_size(preprocess: Preprocess) -> tuple[int, int] | None:
    """The (height, width) that every frame gets, or None where it depends on the frame."""
    if preprocess.crop is not None:
        return preprocess.crop
    if isinstance(preprocess.size, Exact):
        return preprocess.size.height, preprocess.size.width
    return None


def reference_inputs(
    processor: Any, frames: list[Array], **override: Any
) -> dict[Literal["pixel_values", "pixel_mask"], torch.Tensor]:
    """What the reference processor gives for BGR frames: `pixel_values` (N,3,H,W) RGB, and DETR's `pixel_mask`."""
    images = [frame[..., ::-1].copy() for frame in frames]
    batch = processor(images=images, return_tensors="pt", input_data_format="channels_last", **override)
    return {key: batch[key] for key in ("pixel_values", "pixel_mask") if key in batch}
