"""ViT with tokens from a feature map, against the same computed from transformers' own parts."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.errors import CheckpointError  # noqa: E402
from edgevtx.export import vit  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.models.hybrid_vit import in_pixels  # noqa: E402
from edgevtx.export.processor import load_processor  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.export.rewrite import lower  # noqa: E402
from edgevtx.export.trace import trace  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402

BIT = vit.RECIPE.tiny_config()["vit_hybrid"]["backbone_config"]
RESNET = {
    "model_type": "resnet",
    "layer_type": "bottleneck",
    "depths": [1, 2, 1],
    "embedding_size": 16,
    "hidden_sizes": [32, 64, 64],
    "out_features": ["stage3"],
}
CASES = {
    "bit, 1x1": {},
    "bit, 2x2": {"patch_size": 2, "image_size": 128},
    "bit, stage 2, symmetric padding": {
        "backbone_config": {
            **BIT,
            "out_features": ["stage2"],
            "global_padding": None,
            "embedding_dynamic_padding": False,
        }
    },
    "bit, dilated": {"backbone_config": {**BIT, "output_stride": 8}},
    "resnet": {"backbone_config": RESNET},
    "vit with a resnet, 2x2": {"model_type": "vit", "backbone_config": RESNET, "patch_size": 2, "image_size": 96},
}
each_case = pytest.mark.parametrize("name", CASES)


def build(config_folder, name, processor=None, **options):
    folder = config_folder("vit", "vit_hybrid", processor=processor)
    config = {**json.loads((folder / "config.json").read_text()), **CASES[name]}
    (folder / "config.json").write_text(json.dumps(config))
    return vit.build(Checkpoint.open(folder, seed=0), BuildOptions(**options))


def from_parts(model, config, pixels):
    """The backbone as transformers' whole classifier network, then the ViT's layers, one after another."""
    backbone = config.get("backbone_config", BIT)
    weights = model.vit.embeddings.patch_embeddings.backbone.state_dict()
    if backbone["model_type"] == "bit":
        kind, settings, weights = (
            transformers.BitModel,
            transformers.BitConfig,
            {key.removeprefix("bit."): tensor for key, tensor in weights.items()},
        )
    else:
        kind, settings = transformers.ResNetModel, transformers.ResNetConfig
    network = kind(settings(**{key: value for key, value in backbone.items() if key != "model_type"})).eval()
    network.load_state_dict(weights)
    stage = int(backbone["out_features"][0].removeprefix("stage"))
    features = network(pixels, output_hidden_states=True).hidden_states[stage]
    edge = config["patch_size"]
    projection = model.vit.embeddings.patch_embeddings.projection
    patches = F.unfold(features, edge, stride=edge).transpose(1, 2)
    tokens = patches @ projection.weight.flatten(1).T + projection.bias
    embeddings = model.vit.embeddings
    tokens = torch.cat([embeddings.cls_token.expand(len(pixels), -1, -1), tokens], 1) + embeddings.position_embeddings
    for layer in model.vit.layers:
        tokens = layer(tokens)
    return model.classifier(model.vit.layernorm(tokens)[:, 0])


@each_case
def test_the_model_is_its_parts_put_together(name, config_folder):
    traceable = build(config_folder, name)
    model = traceable.reference.args[0]
    config = {**vit.RECIPE.tiny_config()["vit_hybrid"], **CASES[name]}
    edge = config["image_size"]
    pixels = torch.randn(2, 3, edge, edge, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = from_parts(model, config, pixels), model(pixel_values=pixels).logits
    assert error_of(expected.numpy(), found.numpy()) < 5e-6


@pytest.mark.parametrize(("name", "size"), [("bit, 1x1", None), ("bit, 2x2", 96), ("resnet", 96)])
def test_both_graphs_hold_plain_convolutions_and_answer_right(name, size, config_folder, photos, graph_runner):
    """Also at another size than the trained one: the position table is interpolated once."""
    processor = None if size is None else {"size": {"height": size, "width": size}}
    traceable = build(config_folder, name, processor)
    model = trace(traceable)
    for target in ("onnxruntime", "openvino"):
        graph = lower(model, target)[0].model
        convolutions = [node for node in graph.graph if node.op_type == "Conv"]
        assert len(convolutions) > 5
        assert all(node.inputs[1].const_value is not None for node in convolutions)
        kinds = {node.op_type for node in graph.graph}
        assert not kinds & {"Loop", "If", "GatherND", "BatchNormalization", "ReduceMean", "Resize"}, kinds
        for photo in ("coffee", "portrait"):
            array, _ = prepare(photos[photo], traceable.preprocess)
            found = graph_runner(graph, target, {"pixels": array[None]})
            expected = traceable.reference(photos[photo])
            np.testing.assert_array_equal(found["class_ids"][0], expected.class_ids)
            np.testing.assert_allclose(found["scores"][0], expected.scores, rtol=1e-3, atol=1e-5)


def test_the_published_names_of_tensors_and_processor_are_read(config_folder, photos):
    """As in Hugging Face's vit-hybrid-base-bit-384, a config that leaves the backbone's type out among them."""
    published = {"backbone_config": {key: value for key, value in BIT.items() if key != "model_type"}}
    processor = {
        "image_processor_type": "ViTHybridImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    folder = config_folder("vit", "vit_hybrid", processor=processor, **published)
    seeded = vit.build(Checkpoint.open(folder, seed=0), BuildOptions())
    names = {
        "vit.layers.": "vit.encoder.layer.",
        ".attention.q_proj.": ".attention.attention.query.",
        ".attention.k_proj.": ".attention.attention.key.",
        ".attention.v_proj.": ".attention.attention.value.",
        ".attention.o_proj.": ".attention.output.dense.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }
    tensors = {}
    for key, tensor in seeded.reference.args[0].state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        tensors[key] = tensor.contiguous()
    assert "vit.embeddings.patch_embeddings.backbone.bit.encoder.stages.2.layers.1.conv2.weight" in tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    assert type(load_processor(checkpoint, "ViT")).__name__.startswith("Bit")
    loaded = vit.build(checkpoint, BuildOptions())
    array, _ = prepare(photos["chelsea"], loaded.preprocess)
    pixels = torch.from_numpy(array.copy())[None]
    for expected, found in zip(seeded.module(pixels), loaded.module(pixels), strict=True):
        assert torch.equal(expected, found)
    lost = dict(load_file(folder / "model.safetensors"))
    del lost["vit.embeddings.patch_embeddings.backbone.bit.embedder.convolution.weight"]
    save_file(lost, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing tensor .*backbone\.bit\.embedder\.convolution\.weight"):
        vit.build(checkpoint, BuildOptions())


def test_without_a_backbone_config_it_is_the_published_one():
    config = in_pixels({"model_type": "vit_hybrid", "patch_size": 1})
    assert config["patch_size"] == 16
    assert config["backbone_config"]["depths"] == [3, 4, 9]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone_config": {"model_type": "swin"}}, "the backbone is of type swin, expected bit or resnet"),
        ({"backbone_config": {**BIT, "out_features": ["stage9"]}}, "is not a usable config"),
        (
            {"backbone_config": {**BIT, "out_features": ["stem"]}},
            "out_features of the backbone end at the stem; expected",
        ),
        ({"image_size": 72}, "is 72x72, but a token covers 16x16 px; set"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, sentence, config_folder):
    folder = config_folder("vit", "vit_hybrid", **changes)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vit_hybrid"
    with pytest.raises(CheckpointError, match=sentence):
        vit.build(Checkpoint.open(folder, seed=0), BuildOptions())
