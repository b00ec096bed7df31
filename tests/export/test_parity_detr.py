"""DETR beyond the registry's conformance: batches with padding, camera sizes, position tables, timm's ResNets."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.errors import CheckpointError  # noqa: E402
from edgevtx.export import detr, resnet_keys  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.processor import reference_inputs  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.geometry import resized_size  # noqa: E402
from edgevtx.preprocess import pad_batch, prepare  # noqa: E402


def outputs_of(traceable, frames):
    arrays, _ = zip(*(prepare(frame, traceable.preprocess) for frame in frames), strict=True)
    pixels, valid_size = pad_batch(arrays)
    return traceable.module(*map(torch.from_numpy, (pixels, valid_size)[: len(traceable.inputs)]))


@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_a_batch_of_unequal_frames_is_what_the_processor_and_model_make_of_it(positions, config_folder, photos):
    folder = config_folder("detr", position_embedding_type=positions)
    traceable = detr.build(Checkpoint.open(folder, seed=0), BuildOptions(batch=None))
    assert [spec.name for spec in traceable.inputs] == ["pixels", "valid_size"]
    frames = [photos[name] for name in ("astronaut", "rocket", "portrait")]
    boxes, scores, class_ids = outputs_of(traceable, frames)

    model, processor = traceable.reference.args[:2]
    inputs = reference_inputs(processor, frames)
    assert 0 < inputs["pixel_mask"].float().mean() < 0.9  # much of the batch is padding
    with torch.no_grad():
        expected = model(**inputs)
    found = processor.post_process_object_detection(expected, -1.0)
    for index in range(3):
        np.testing.assert_array_equal(class_ids[index], found[index]["labels"])
        np.testing.assert_allclose(scores[index], found[index]["scores"], atol=1e-5)
        np.testing.assert_allclose(boxes[index], found[index]["boxes"], atol=1e-5)
        # and the padding does not change a frame's answer beyond what it does to the reference
        alone = traceable.reference(frames[index])
        assert len(alone) == 40


def test_padded_pixels_are_not_looked_at(config_folder, photos):
    traceable = detr.build(Checkpoint.open(config_folder("detr"), seed=0), BuildOptions(batch=2))
    arrays = [prepare(photos[name], traceable.preprocess)[0] for name in ("astronaut", "rocket")]
    pixels, valid_size = pad_batch(arrays)
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    for index, (height, width) in enumerate(valid_size):
        noise[index, :height, :width] = pixels[index, :height, :width]
    clean, noisy = (traceable.module(torch.from_numpy(x), torch.from_numpy(valid_size)) for x in (pixels, noise))
    for first, second in zip(clean, noisy, strict=True):
        assert torch.equal(first, second)


def test_a_camera_size_fixes_the_graph_to_what_the_rule_gives(config_folder, photos):
    folder = config_folder("detr")
    free = detr.build(Checkpoint.open(folder, seed=0), BuildOptions())
    fixed = detr.build(Checkpoint.open(folder, seed=0), BuildOptions(frame=(427, 640), batch=None))
    assert free.inputs[0].shape == (1, None, None, 3)
    assert free.dynamic == {"pixels": {1: "height", 2: "width"}}
    size = resized_size((427, 640), free.preprocess.size)
    assert fixed.inputs[0].shape == (None, *size, 3)
    assert fixed.dynamic == {"pixels": {0: "batch"}}
    frame = photos["flower"]
    assert frame.shape[:2] == (427, 640)
    for first, second in zip(outputs_of(free, [frame]), outputs_of(fixed, [frame]), strict=True):
        assert error_of(first.numpy(), second.numpy()) < 1e-4
    expected, found = free.reference(frame), fixed.reference(frame)
    np.testing.assert_allclose(expected.boxes, found.boxes, atol=0.01)


@pytest.mark.parametrize("kind", ["sine", "learned"])
@pytest.mark.parametrize("shape", [(1, 1), (25, 34), (42, 25)])
def test_position_tables_are_transformers(kind, shape, config_folder):
    folder = config_folder("detr", position_embedding_type=kind)
    model = Checkpoint.open(folder, seed=0).load(transformers.DetrForObjectDetection).model
    expected = model.position_embedding(torch.Size([1, 3, *shape]), "cpu", torch.float32)
    found = detr._positions(model, None)(*shape)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


def test_valid_cells_are_those_of_the_nearest_interpolated_mask():
    compared = 0
    for pixels in range(64, 1334, 9):
        for cells in {-(-pixels // 32), -(-pixels // 16)}:
            valid = torch.arange(1, pixels + 1, 7)
            mask = (torch.arange(pixels)[None] < valid[:, None]).float()
            expected = nn.functional.interpolate(mask[:, None], size=cells)[:, 0].bool()
            assert torch.equal(detr.valid_cells(cells, pixels, valid), expected)
            compared += expected.numel()
    assert compared > 500_000


def test_a_processor_with_a_fixed_pad_size_is_refused(config_folder):
    processor = {"size": {"shortest_edge": 128, "longest_edge": 213}, "pad_size": {"height": 256, "width": 256}}
    checkpoint = Checkpoint.open(config_folder("detr", processor=processor), seed=0)
    with pytest.raises(CheckpointError, match="pad_size"):
        detr.build(checkpoint, BuildOptions())


# -- timm's ResNets --------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """torchvision's ResNet v1.5 block, written down again: 1x1, 3x3 with stride and dilation, 1x1."""

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if stride != 1 or inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + skip).relu()


class BasicBlock(nn.Module):
    """torchvision's block of two 3x3 convolutions; torchvision gives it no dilation."""

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        assert dilation == 1
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + skip).relu()


class TorchvisionResNet(nn.Module):
    """The stem and four stages; `dilated` replaces the last stage's stride, previous dilation for its first block."""

    def __init__(self, block, depths, widths, dilated):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        expansion, inputs = (4 if block is Bottleneck else 1), 64
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stride, dilation = (
                (1 if stage == 0 or (dilated and stage == 3) else 2),
                (2 if dilated and stage == 3 else 1),
            )
            blocks = []
            for index in range(depth):
                blocks.append(block(inputs, width, stride if index == 0 else 1, 1 if index == 0 else dilation))
                inputs = expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


TINY = {
    "tiny-bottleneck": ("bottleneck", (1, 2, 1, 3), (32, 48, 64, 80)),
    "tiny-basic": ("basic", (1, 2, 1, 2), (64, 16, 24, 32)),
}
BLOCKS = {"bottleneck": Bottleneck, "basic": BasicBlock}
PREFIX = "model.backbone.conv_encoder.model."


def timm_checkpoint(folder, name, written, config):
    """A DETR directory as published: the backbone's tensors named as timm names them."""
    layer_type, depths, channels = resnet_keys.RESNETS[name]
    torch.manual_seed(0)
    dilated = resnet_keys.is_dilated(config)
    widths = [count // (4 if layer_type == "bottleneck" else 1) for count in channels]
    backbone = TorchvisionResNet(BLOCKS[layer_type], depths, widths, dilated).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.2, 1.0)
    model = Checkpoint.open(folder, seed=0).load(
        transformers.DetrForObjectDetection, config=resnet_keys.without_timm(config)
    )
    rest = {name: tensor for name, tensor in model.state_dict().items() if "backbone" not in name}
    old = {name.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc"): tensor for name, tensor in rest.items()}
    named = {written + name: tensor for name, tensor in backbone.state_dict().items()}
    save_file({**old, **named}, folder / "model.safetensors", metadata={"format": "pt"})
    return backbone


@pytest.mark.parametrize("written", [PREFIX, "model.backbone.model."])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-bottleneck", {"use_timm_backbone": True, "backbone": "tiny-bottleneck"}),
        ("tiny-bottleneck", {"backbone": "tiny-bottleneck.a1_in1k", "dilation": True}),
        ("tiny-basic", {"backbone_config": {"model_type": "timm_backbone", "backbone": "tiny-basic"}}),
        (
            "tiny-bottleneck",
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "tiny-bottleneck", "output_stride": 16}},
        ),
    ],
    ids=["published", "published DC5", "nested", "nested DC5"],
)
def test_a_timm_backbone_loads_without_timm(written, name, changes, config_folder, monkeypatch, photos):
    monkeypatch.setitem(resnet_keys.RESNETS, name, TINY[name])
    folder = config_folder("detr")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("use_timm_backbone", "backbone_config")}
    config = {**config, "backbone": None, "backbone_config": None, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = timm_checkpoint(folder, name, written, config)

    traceable = detr.build(Checkpoint.open(folder), BuildOptions())
    loaded = traceable.reference.args[0].model.backbone.model
    pixels = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = backbone(pixels), loaded(pixels).feature_maps[-1]
    stride = 16 if resnet_keys.is_dilated(config) else 32
    assert found.shape[-2:] == (128 // stride, 160 // stride)
    assert error_of(expected.numpy(), found.numpy()) < 1e-5

    frame = photos["chelsea"]
    _, scores, _ = outputs_of(traceable, [frame])
    answer = traceable.reference(frame)
    np.testing.assert_allclose(np.sort(scores[0])[::-1], answer.scores, atol=1e-5)


def test_published_names_cover_the_real_resnets():
    """Every tensor of timm's ResNet-50 gets the name of a tensor of transformers' ResNet-50, and none is left."""
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [WeightRenaming(source, target) for source, target in resnet_keys.timm_to_native().items()]
    layer_type, depths, channels = resnet_keys.RESNETS["resnet50"]
    with torch.device("meta"):
        theirs = TorchvisionResNet(Bottleneck, depths, [count // 4 for count in channels], False)
        config = transformers.ResNetConfig(layer_type=layer_type, depths=depths, hidden_sizes=channels)
        ours = transformers.ResNetBackbone(config)
    expected = {f"model.backbone.model.{name}": tensor.shape for name, tensor in ours.state_dict().items()}
    names = {name: rename_source_key(PREFIX + name, renamings, [])[0] for name in theirs.state_dict()}
    # transformers itself drops the "conv_encoder" of older files
    found = {names[name].replace(".conv_encoder", ""): tensor.shape for name, tensor in theirs.state_dict().items()}
    assert found == expected


def test_an_unknown_backbone_is_named(config_folder):
    folder = config_folder("detr", use_timm_backbone=True, backbone="tf_efficientnet_b0", backbone_config=None)
    with pytest.raises(
        CheckpointError, match="backbone tf_efficientnet_b0 is not known here; expected one of resnet18"
    ):
        detr.build(Checkpoint.open(folder, seed=0), BuildOptions())
