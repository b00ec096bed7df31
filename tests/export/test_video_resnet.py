"""The network of clips with space-time non-local blocks, against table 1 of Wang et al. (2018) in three dimensions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.nn.functional as F  # noqa: E402

import edgevtx  # noqa: E402
from edgevtx.errors import InputError  # noqa: E402
from edgevtx.export.attention_cnn import RECIPE, build  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.models.attention_resnet import AttentionResNetSettings  # noqa: E402
from edgevtx.export.models.global_attention import NonLocalBlock  # noqa: E402
from edgevtx.export.models.video_resnet import TemporalMaxPool, VideoResNet  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.export.samples import move_over  # noqa: E402
from edgevtx.export.trial import seed_weights  # noqa: E402
from edgevtx.rules import Clip  # noqa: E402

KIND = "nonlocal_video_resnet"
SMALL = {
    "model_type": KIND,
    "id2label": {str(index): f"class {index}" for index in range(7)},
    "embedding_size": 8,
    "hidden_sizes": (16, 24, 32),
    "depths": (2, 1, 3),
    "attention_stages": (1, 3),
}


def settings(**changes):
    return AttentionResNetSettings(**{**SMALL, **changes})


# -- table 1, layer by layer: x is (N,C,T,H,W), and every kernel and stride has its three numbers -------------------


def batch_norm(x, norm):
    mean, variance, weight, bias = (
        tensor.reshape(1, -1, 1, 1, 1) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias


def convolve(x, layer, stride):
    """1xkxk, and the norm behind it."""
    weight = layer.convolution.weight[:, :, None]
    reach = weight.shape[-1] // 2
    return batch_norm(F.conv3d(x, weight, stride=stride, padding=(0, reach, reach)), layer.normalization)


def bottleneck(x, layer, stride):
    """He et al. (2016), the stride in the 3x3 convolution as torchvision and transformers have it."""
    first, second, third = layer.layer
    found = F.relu(convolve(x, first, 1))
    found = F.relu(convolve(found, second, (1, stride, stride)))
    found = convolve(found, third, 1)
    shortcut = layer.shortcut
    return F.relu(
        found + (x if isinstance(shortcut, torch.nn.Identity) else convolve(x, shortcut, (1, stride, stride)))
    )


def non_local(x, block, subsample):
    """Section 3.3 with f = exp(theta' phi), over all positions of space and time."""

    def embed(x, part):
        return torch.einsum("ncthw,dc->ndthw", x, part.weight[:, :, 0, 0]) + part.bias[:, None, None, None]

    theta, phi, g = (embed(x, part) for part in (block.theta, block.phi, block.g))
    if subsample:
        phi, g = (F.max_pool3d(part, (1, 2, 2)) for part in (phi, g))
    similar = torch.exp(torch.einsum("ncthw,ncsij->nthwsij", theta, phi))
    weights = similar / similar.sum((4, 5, 6), keepdim=True)
    y = torch.einsum("nthwsij,ndsij->ndthw", weights, g)
    return batch_norm(embed(y, block.z), block.normalization) + x


def table_1(model, clips, wanted):
    stem, stages = model.resnet.embedder.embedder, model.resnet.encoder.stages
    x = F.relu(convolve(clips.transpose(1, 2), stem, (2, 2, 2)))  # conv1
    x = F.max_pool3d(x, 3, 2, 1)  # pool1
    for number, stage in enumerate(stages, 1):
        *most, last = (layer for layer in stage.layers if hasattr(layer, "shortcut"))
        stride = 1 if number == 1 else 2
        for layer in most:
            x, stride = bottleneck(x, layer, stride), 1
        if number in wanted.attention_stages:
            (block,) = (layer for layer in stage.layers if isinstance(layer, NonLocalBlock))
            x = non_local(x, block, wanted.subsample)
        x = bottleneck(x, last, stride)
        if number == 1:
            x = F.max_pool3d(x, (3, 1, 1), (2, 1, 1), (1, 0, 0))  # pool2
    features = x.mean((2, 3, 4))
    classifier = model.classifier[1]
    return features @ classifier.weight.T + classifier.bias


@torch.no_grad()
@pytest.mark.parametrize("subsample", [True, False])
@pytest.mark.parametrize(("frames", "size"), [(16, (64, 64)), (11, (48, 80)), (1, (40, 33))])
def test_the_network_is_table_1_with_blocks_before_the_last_layers(frames, size, subsample):
    wanted = settings(num_frames=frames, subsample=subsample)
    model = VideoResNet(wanted).eval()
    seed_weights(model, 0)
    model.double()
    clips = torch.randn(2, frames, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = table_1(model, clips, wanted)
    torch.testing.assert_close(model(clips).logits, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1


def test_the_maps_of_32_frames_are_as_many_as_in_table_1():
    wanted = settings(num_frames=32, hidden_sizes=(8, 8, 8, 8), depths=(1, 1, 1, 1), attention_stages=(1, 2, 3, 4))
    model = VideoResNet(wanted)
    pools = [module for module in model.modules() if isinstance(module, TemporalMaxPool)]
    assert [(pool.times, pool.left) for pool in pools] == [(16, 8), (8, 4)]
    blocks = [module for module in model.modules() if isinstance(module, NonLocalBlock)]
    assert [block.times for block in blocks] == [8, 4, 4, 4]
    assert model.times == 4


# -- as a family -----------------------------------------------------------------------------------------------------


def test_it_takes_clips_at_the_rate_of_its_config_of_the_user_or_of_the_paper(config_folder):
    def made(options=BuildOptions(), **changes):  # noqa: B008
        traceable = build(Checkpoint.open(config_folder("attention_cnn", KIND, **changes), seed=0), options)
        assert traceable.inputs[0].shape == (1, 12, 80, 80, 3)
        return traceable.preprocess.clip, traceable.notes

    assert RECIPE.clips == (KIND,)
    assert made() == (Clip(frames=12, fps=10.0, stride=6), ())
    assert made(BuildOptions(clip_fps=4.0))[0].fps == 4.0
    clip, notes = made(frame_rate=None)
    assert clip.fps == 12.5 and "12.5 frames a second are assumed" in notes[0]


def test_a_network_of_single_frames_takes_no_rate(config_folder):
    checkpoint = Checkpoint.open(config_folder("attention_cnn", "sagan_resnet"), seed=0)
    with pytest.raises(InputError, match="sagan_resnet takes single frames"):
        build(checkpoint, BuildOptions(clip_fps=4.0))


def test_a_processor_of_clips_prepares_as_one_of_images(config_folder, photos):
    rule = {"size": {"shortest_edge": 91}, "crop_size": {"height": 80, "width": 80}, "resample": 2}
    rule |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "rescale_factor": 1 / 255}
    clip = move_over(photos["coffee"], 12)
    found = []
    for kind in ("BitImageProcessor", "VivitImageProcessor"):
        processor = {"image_processor_type": kind, "offset": False, **rule}
        checkpoint = Checkpoint.open(config_folder("attention_cnn", KIND, processor=processor), seed=0)
        found.append(build(checkpoint, BuildOptions()).reference(clip))
    np.testing.assert_array_equal(found[0].class_ids, found[1].class_ids)
    np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-6)


def test_a_bundle_answers_a_stream(config_folder, photos, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    checkpoint = Checkpoint.open(config_folder("attention_cnn", KIND), seed=0)
    report = export("attention_cnn", checkpoint, tmp_path / "clip.vtx", ExportOptions(targets=("onnxruntime",)))
    frames = move_over(photos["rocket"], 24, 1)
    expected = build(checkpoint, BuildOptions()).reference(frames[0:24:2])
    with edgevtx.load(report.bundle) as model:
        answers = [model.push(frame, index / 20) for index, frame in enumerate(frames)]  # twice the model's rate
    assert [index for index, answer in enumerate(answers) if answer is not None] == [22]
    np.testing.assert_array_equal(answers[22].class_ids, expected.class_ids)
    np.testing.assert_allclose(answers[22].scores, expected.scores, atol=1e-4)
