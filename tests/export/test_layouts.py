"""Every layout against a replica of its author's modules: the same tensors, the same outputs as transformers' model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402

from edgevtx.decode import decode  # noqa: E402
from edgevtx.errors import CheckpointError  # noqa: E402
from edgevtx.export import detr as detr_recipe  # noqa: E402
from edgevtx.export import detr_panoptic as panoptic_recipe  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.layouts import LAYOUTS, names_for  # noqa: E402
from edgevtx.export.layouts.mapping import Source  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe  # noqa: E402
from edgevtx.geometry import plan  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from tests.export.replicas import detr, rtdetr, sam, swin, vit  # noqa: E402
from tests.export.replicas.weights import noise, randomise  # noqa: E402

TWO_HEADS = {"num_attention_heads": 2}
DETR_HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
EIGHT_HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}


@dataclass(frozen=True)
class Case:
    """One published form: the replica, the file it is saved as, and how both models are run on images."""

    layout: str
    make: Callable[[], Any]
    load: Callable[[Checkpoint], Any]
    ours: Callable[[Any, Any], tuple[Any, ...]]
    side: int
    config: dict[str, Any] = field(default_factory=dict)
    file: str = "weights.pth"
    wrap: Callable[[dict[str, Any]], Any] = lambda tensors: tensors
    timm: str = ""  # the architecture, where the directory is timm's
    theirs: Callable[[Any, Any], Any] = lambda replica, images: replica(images)


def model(name: str, **arguments: Any) -> Callable[[Checkpoint], Any]:
    return lambda checkpoint: checkpoint.load(getattr(transformers, name), **arguments)


def tokens(model: Any, images: Any) -> tuple[Any, ...]:
    return (model(pixel_values=images).last_hidden_state,)


def logits(model: Any, images: Any) -> tuple[Any, ...]:
    return (model(pixel_values=images).logits,)


def detections(model: Any, images: Any) -> tuple[Any, ...]:
    found = model(pixel_values=images)
    return found.logits, found.pred_boxes


def panoptic(model: Any, images: Any) -> tuple[Any, ...]:
    return *detections(model, images), model(pixel_values=images).pred_masks


def load_rtdetr(checkpoint: Checkpoint) -> Any:
    second = checkpoint.model_type == "rt_detr_v2"
    model_class = transformers.RTDetrV2ForObjectDetection if second else transformers.RTDetrForObjectDetection
    config = {**checkpoint.config, "num_denoising": 0}
    return checkpoint.load(model_class, config=config, unused=("model.denoising_class_embed.",))


POINTS, POINT_LABELS = torch.tensor([[[10.0, 20.0], [90.0, 60.0]]]), torch.tensor([[1, 0]])
BOX, MASK = torch.tensor([[5.0, 8.0, 90.0, 100.0]]), noise(1, 1, 32, 32)
PROMPTS: tuple[dict[str, Any], ...] = ({}, {"boxes": BOX}, {"masks": MASK})


def prompted(replica: Any, images: Any) -> tuple[Any, ...]:
    return tuple(out for extra in PROMPTS for out in replica(images, POINTS, POINT_LABELS, **extra))


def prompt(model: Any, images: Any) -> tuple[Any, ...]:
    found = []
    for extra in PROMPTS:
        inputs = {"input_points": POINTS[None], "input_labels": POINT_LABELS[None]}
        inputs |= {f"input_{name}": array[None] if name == "boxes" else array for name, array in extra.items()}
        answer = model(pixel_values=images, **inputs)
        found += [answer.pred_masks[:, 0], answer.iou_scores[:, 0]]
    return tuple(found)


def full_checkpoint(tensors: dict[str, Any]) -> dict[str, Any]:
    """As DINO's training saves it, with the heads that features do not use."""
    heads = {"head.mlp.0.weight": noise(4, 4), "head.last_layer.weight_v": noise(4, 4)}
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()} | heads
    return {
        "student": {f"module.{name}": tensor * 0 for name, tensor in teacher.items()},
        "teacher": teacher,
        "epoch": 3,
    }


def ema(tensors: dict[str, Any]) -> dict[str, Any]:
    return {"ema": {"module": tensors, "updates": 7}, "date": "2023", "last_epoch": 71}


def under(*keys: str, prefix: str = "") -> Callable[[dict[str, Any]], Any]:
    def wrap(tensors: dict[str, Any]) -> Any:
        found: Any = {prefix + name: tensor for name, tensor in tensors.items()}
        for key in reversed(keys):
            found = {key: found}
        return found

    return wrap


VIT = model("ViTModel", arguments={"add_pooling_layer": False})
DINOV2, REGISTERS = model("Dinov2Model"), model("Dinov2WithRegistersModel")
CLASSIFIER, DEIT = model("ViTForImageClassification"), model("DeiTForImageClassificationWithTeacher")
SWIN, SWIN2 = model("SwinForImageClassification"), model("Swinv2ForImageClassification")
V2 = {"heads": (2, 4, 8), "window": 8}
CASES = {
    "dino": Case("facebookresearch DINO", vit.ViT, VIT, tokens, 48, TWO_HEADS),
    "dino, full": Case("facebookresearch DINO", vit.ViT, VIT, tokens, 48, TWO_HEADS, wrap=full_checkpoint),
    "dino, parallel": Case(
        "facebookresearch DINO", vit.ViT, VIT, tokens, 48, TWO_HEADS, wrap=under("teacher", prefix="module.backbone.")
    ),
    "dino, timm": Case("timm DINO", vit.ViT, VIT, tokens, 48, TWO_HEADS, timm="vit_tiny_patch8_48.dino"),
    "vit": Case("timm ViT and DeiT", lambda: vit.ViT(classes=5), CLASSIFIER, logits, 48, TWO_HEADS),
    "vit, timm": Case(
        "timm ViT and DeiT", lambda: vit.ViT(classes=5), CLASSIFIER, logits, 48, TWO_HEADS, timm="vit_tiny_patch8_48"
    ),
    "deit": Case(
        "timm ViT and DeiT",
        lambda: vit.ViT(classes=5, distilled=True),
        DEIT,
        logits,
        48,
        TWO_HEADS,
        wrap=under("model"),
    ),
    "dinov2": Case("facebookresearch DINOv2", lambda: vit.ViT(scaled=True, mask=True), DINOV2, tokens, 48, TWO_HEADS),
    "dinov2, registers": Case(
        "facebookresearch DINOv2",
        lambda: vit.ViT(scaled=True, mask=True, registers=("register_tokens", 3)),
        REGISTERS,
        tokens,
        48,
        TWO_HEADS,
    ),
    "dinov2, gated": Case(
        "facebookresearch DINOv2",
        lambda: vit.ViT(scaled=True, mask=True, gated=("w12", "w3")),
        DINOV2,
        tokens,
        48,
        TWO_HEADS,
    ),
    "dinov2, chunks": Case(
        "facebookresearch DINOv2",
        lambda: vit.ViT(scaled=True, mask=True, depth=4, chunks=2),
        DINOV2,
        tokens,
        48,
        TWO_HEADS,
        wrap=under("teacher", prefix="backbone."),
    ),
    "dinov2, timm": Case(
        "timm DINOv2",
        lambda: vit.ViT(scaled=True, gated=("fc1", "fc2")),
        DINOV2,
        tokens,
        48,
        TWO_HEADS,
        timm="vit_tiny_patch8_dinov2",
    ),
    "dinov2, timm registers": Case(
        "timm DINOv2",
        lambda: vit.ViT(scaled=True, registers=("reg_token", 4), placed=False),
        REGISTERS,
        tokens,
        48,
        TWO_HEADS,
        timm="vit_tiny_patch8_reg4_dinov2",
    ),
    "swin": Case("microsoft Swin", lambda: swin.Swin(1), SWIN, logits, 64, wrap=under("model")),
    "swin, timm": Case(
        "timm Swin", lambda: swin.Swin(1, timm=True), SWIN, logits, 64, timm="swin_tiny_patch4_window4_64"
    ),
    "swin v2": Case("microsoft Swin v2", lambda: swin.Swin(2, **V2), SWIN2, logits, 64, wrap=under("model")),
    "swin v2, pretrained smaller": Case(
        "microsoft Swin v2", lambda: swin.Swin(2, **V2, pretrained=(6, 6, 3)), SWIN2, logits, 64, wrap=under("model")
    ),
    "swin v2, timm": Case(
        "timm Swin v2", lambda: swin.Swin(2, **V2, timm=True), SWIN2, logits, 64, timm="swinv2_tiny_window8_64"
    ),
    "swin v2, timm pretrained smaller": Case(
        "timm Swin v2",
        lambda: swin.Swin(2, **V2, pretrained=(6, 6, 6), timm=True),
        SWIN2,
        logits,
        64,
        timm="swinv2_tiny_window6to8_48to64",
    ),
    "detr": Case(
        "facebookresearch DETR", detr.Detr, detr_recipe._load, detections, 96, DETR_HEADS, wrap=under("model")
    ),
    "detr, learned positions": Case(
        "facebookresearch DETR", lambda: detr.Detr(learned=True), detr_recipe._load, detections, 96, DETR_HEADS
    ),
    "detr, dc5": Case(
        "facebookresearch DETR",
        lambda: detr.Detr(deep=True, depths=(3, 4, 6, 3), dilated=True),
        detr_recipe._load,
        detections,
        96,
        DETR_HEADS,
        file="detr-r50-dc5-f0fb7ef5.pth",
    ),
    "detr, panoptic": Case(
        "facebookresearch DETR panoptic",
        lambda: detr.Panoptic(width=128, heads=8, classes=250),
        panoptic_recipe._load,
        panoptic,
        96,
        EIGHT_HEADS,
        wrap=under("model"),
    ),
    "detr, panoptic dc5": Case(
        "facebookresearch DETR panoptic",
        lambda: detr.Panoptic(deep=True, depths=(3, 4, 6, 3), dilated=True, width=128, heads=8, classes=250),
        panoptic_recipe._load,
        panoptic,
        96,
        EIGHT_HEADS,
        file="detr-r50-dc5-panoptic-da08f1b1.pth",
        wrap=under("model"),
    ),
    "rtdetr": Case(
        "lyuwenyu RT-DETR", lambda: rtdetr.RTDetr(1), load_rtdetr, detections, 128, {"num_queries": 20}, wrap=ema
    ),
    "rtdetr, r50-m": Case(
        "lyuwenyu RT-DETR",
        lambda: rtdetr.RTDetr(1, deep=True, widths=(8, 8, 8, 16), expansion=0.5, layers=6, used=3),
        load_rtdetr,
        detections,
        128,
        {"num_queries": 20},
        wrap=ema,
    ),
    "rtdetr v2": Case(
        "lyuwenyu RT-DETRv2",
        lambda: rtdetr.RTDetr(2, expansion=0.5, points=2),
        load_rtdetr,
        detections,
        128,
        {"num_queries": 20},
        wrap=ema,
    ),
    "sam": Case("facebookresearch segment-anything", sam.Sam, model("SamModel"), prompt, 128, theirs=prompted),
}
# layouts of modules that are not transformers' are tested with their families
ELSEWHERE = {"MMSegmentation SETR"}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def timm_config(case: Case) -> dict[str, Any]:
    size = {"input_size": [3, case.side, case.side], "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center"}
    mean = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "license": "apache-2.0"}
    return {"architecture": case.timm, "num_classes": 5, "num_features": 32, "pretrained_cfg": {**size, **mean}}


@pytest.fixture
def publish(tmp_path):
    """Saves a case as its author would; returns the replica and the checkpoint."""

    def make(
        case: Case, change: Callable[[dict[str, Any]], Any] = dict, allow_partial: bool = False
    ) -> tuple[Any, Checkpoint]:
        torch.manual_seed(0)  # small biases keep some of their first values
        replica = randomise(case.make())
        tensors = change(swin.timm_names(replica) if case.timm else replica.state_dict())
        config = None
        if case.config:
            config = tmp_path / "given.json"
            config.write_text(json.dumps(case.config))
        if case.timm:
            folder = tmp_path / case.timm
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(timm_config(case)))
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
            return replica, Checkpoint.open(folder, config=config, allow_partial=allow_partial)
        torch.save(case.wrap(tensors), tmp_path / case.file)
        return replica, Checkpoint.open(tmp_path / case.file, config=config, allow_partial=allow_partial)

    return make


def epsilons(module):
    return {layer.eps for layer in module.modules() if type(layer) is torch.nn.LayerNorm}


@each_case
def test_the_authors_tensors_give_the_authors_answers_in_transformers_model(case, publish):
    replica, checkpoint = publish(case)
    assert checkpoint.published.layout == case.layout
    images = noise(1 if "DETR" in case.layout or case.theirs is prompted else 2, 3, case.side, case.side)
    loaded = case.load(checkpoint)
    assert epsilons(loaded) == epsilons(replica)  # too small to show in outputs of random weights
    with torch.no_grad():
        expected, found = case.theirs(replica, images), case.ours(loaded, images)
    for want, got in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
        assert want.std() > 0.02
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def with_a_stranger(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "adapter.0.weight": noise(2, 2)}


@each_case
def test_a_tensor_that_the_layout_does_not_know_is_named_and_refused_unless_told(case, publish):
    with pytest.raises(CheckpointError, match=rf"of {re.escape(case.layout)}, but 1 of its \d+ .* adapter\.0\.weight;"):
        publish(case, with_a_stranger)
    checkpoint = publish(case, with_a_stranger, allow_partial=True)[1]
    assert any(note.endswith("tensors were left out: adapter.0.weight") for note in checkpoint.notes)
    assert_same(case.load(checkpoint), case.load(publish(case)[1]))


def without_a_norm(tensors: dict[str, Any]) -> dict[str, Any]:
    """Less one bias of a norm, which no layout reads a size off."""
    lost = next(name for name in reversed(tensors) if re.search(r"norm(_final_attn)?\.bias$", name))
    return {name: tensor for name, tensor in tensors.items() if name != lost}


@each_case
def test_a_tensor_that_the_file_lacks_is_named_and_refused_unless_told(case, publish):
    whole = case.load(publish(case)[1])
    with pytest.raises(CheckpointError, match=r"1 missing tensor for \w+: \S+\.bias; the weights do not") as caught:
        case.load(publish(case, without_a_norm)[1])
    name = re.search(r"for \w+: (\S+);", str(caught.value))[1]
    assert name in whole.state_dict()
    checkpoint = publish(case, without_a_norm, allow_partial=True)[1]
    partial = case.load(checkpoint)
    assert any(note.endswith(f"1 missing tensor for {type(partial).__name__}: {name}") for note in checkpoint.notes)
    assert_same(partial, whole, but=name)


def assert_same(first: Any, second: Any, but: str = "") -> None:
    expected = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, expected[name]) or name == but, name


def test_every_layout_has_a_case_and_is_listed_by_its_families():
    assert {layout.name for layout in LAYOUTS} - {case.layout for case in CASES.values()} <= ELSEWHERE
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    assert {family for layout in LAYOUTS for family in layout.families} <= set(FAMILIES)
    known = {layout.name for layout in LAYOUTS}
    for family in FAMILIES:
        assert known & set(get_recipe(family).layouts) == set(names_for(family))


# -- configs of the published models, without their weights ------------------------------------------------------


def read_published(module, file="weights.pth", **source):
    """What a layout reads off the shapes of a module on the meta device."""
    state = module.state_dict()
    layout = next(layout for layout in LAYOUTS if layout.matches(state) and not layout.timm)
    return layout.read(Source(file, state, **source))


@pytest.fixture
def meta():
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads", "everywhere"),
    [("b", 768, 12, 12, (2, 5, 8, 11)), ("l", 1024, 24, 16, (5, 11, 17, 23)), ("h", 1280, 32, 16, (7, 15, 23, 31))],
)
def test_sam_b_l_and_h_are_told_apart_by_their_shapes(meta, size, width, depth, heads, everywhere):
    windows = [0 if at in everywhere else 14 for at in range(depth)]
    config = read_published(sam.Sam(side=64, width=width, heads=heads, windows=windows, channels=256)).config
    vision = config["vision_config"]
    assert (vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"]) == (width, depth, heads)
    assert (vision["image_size"], vision["window_size"], vision["global_attn_indexes"]) == (1024, 14, list(everywhere))
    assert config["mask_decoder_config"]["num_attention_heads"] == 8


@pytest.mark.parametrize(
    ("width", "patch", "heads"),
    [(192, 16, 3), (384, 16, 6), (384, 8, 6), (768, 16, 12), (1024, 16, 16), (1280, 14, 16)],
)
def test_heads_of_a_published_vit_follow_from_its_width(meta, width, patch, heads):
    reading = read_published(vit.ViT(width=width, heads=heads, patch=patch, side=224))
    assert reading.config["num_attention_heads"] == heads
    assert (reading.config["image_size"], reading.config["patch_size"]) == (224, patch)
    assert reading.processor["size"] == {"shortest_edge": 256}
    assert reading.processor["crop_size"] == {"height": 224, "width": 224}


def test_dinov2_g_has_a_gated_mlp_of_the_config_it_is_published_with(meta):
    module = vit.ViT(width=1536, heads=24, patch=14, side=518, scaled=True, mask=True, gated=("w12", "w3"))
    config = read_published(module).config
    assert (config["num_attention_heads"], config["mlp_ratio"], config["use_swiglu_ffn"]) == (24, 4, True)
    assert config["image_size"] == 518


@pytest.mark.parametrize(
    ("version", "side", "window", "processor"),
    [
        (1, 224, 7, {"shortest_edge": 256}),
        (1, 384, 12, {"height": 384, "width": 384}),
        (2, 256, 8, {"shortest_edge": 292}),
        (2, 256, 16, {"shortest_edge": 292}),
        (2, 192, 12, {"shortest_edge": 219}),
        (2, 384, 24, {"height": 384, "width": 384}),
    ],
)
def test_a_swins_input_size_follows_from_its_masks_or_its_window(version, side, window, processor):
    module = swin.Swin(version, side=side, window=window, heads=(1, 2, 4, 8))
    reading = read_published(module)
    assert (reading.config["image_size"], reading.config["window_size"]) == (side, window)
    assert reading.processor["size"] == processor
    without = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("attn_mask")}
    layout = next(layout for layout in LAYOUTS if layout.matches(without) and not layout.timm)
    assert layout.read(Source("weights.pth", without)).config["image_size"] == side


@pytest.mark.parametrize(("depths", "name"), [((3, 4, 6, 3), "resnet50"), ((3, 4, 23, 3), "resnet101")])
def test_detrs_backbone_is_told_by_its_blocks(meta, depths, name):
    config = read_published(detr.Detr(depths=depths, deep=True, width=256, heads=8, classes=91)).config
    assert (config["backbone"], config["encoder_attention_heads"], config["dilation"]) == (name, 8, False)
    assert (config["id2label"]["1"], config["id2label"]["12"], config["id2label"]["90"]) == (
        "person",
        "N/A",
        "toothbrush",
    )


def test_class_names_are_cocos_where_their_number_is():
    from edgevtx.export.layouts.coco import STUFF, id2label

    assert [id2label(80)[str(index)] for index in (0, 24, 79)] == ["person", "backpack", "toothbrush"]
    panoptic = id2label(250)
    assert [panoptic[str(index)] for index in (1, 92, 119, 149, 187, 200, 201)] == [
        "person",
        "banner",
        "flower",
        "road",
        "sky-other-merged",
        "rug-merged",
        "N/A",
    ]
    assert len({name for name in panoptic.values() if name != "N/A"}) == 133
    # facebookresearch/detr's notebook calls the ids up to 90 things, and merges the others
    named = [index for index in range(250) if panoptic[str(index)] != "N/A"]
    assert list(STUFF) == [index for index in named if index > 90]
    assert len(STUFF) == 53
    assert id2label(3) == {"0": "0", "1": "1", "2": "2"}


def test_classes_of_ones_own_are_not_fused(publish):
    case = replace(CASES["detr, panoptic"], make=lambda: detr.Panoptic(width=128, heads=8, classes=4))
    assert "label_ids_to_fuse" not in publish(case)[1].config


def test_queries_of_one_kind_of_cocos_stuff_are_one_segment(publish, tmp_path):
    """And two of one kind of thing are two, as DETR's authors merge them."""
    from edgevtx.decode.panoptic import decode_panoptic

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 96, "longest_edge": 160}}))
    built = get_recipe("detr_panoptic").build(publish(CASES["detr, panoptic"])[1], BuildOptions())
    person, sky = built.labels.index("person"), built.labels.index("sky-other-merged")
    assert {sky, 92, 200} <= set(built.decode.label_ids_to_fuse) and person not in built.decode.label_ids_to_fuse
    logits = torch.zeros(1, 4, 251)
    masks = torch.full((1, 4, 24, 24), -9.0)
    for query, (label, score) in enumerate(((sky, 12.0), (person, 11.0), (sky, 10.0), (person, 13.0))):
        logits[0, query, label] = score
        masks[0, query, 6 * query : 6 * query + 6] = 9.0  # four stripes
    probabilities = logits.softmax(-1)
    scores, class_ids = probabilities[..., :-1].max(-1)
    row = {"boxes": np.zeros((4, 4), np.float32), "no_object": probabilities[0, :, -1].numpy()}
    row |= {"scores": scores[0].numpy(), "class_ids": class_ids[0].numpy(), "masks": masks[0].numpy()}
    geometry = plan((96, 96), built.preprocess)
    found = decode_panoptic(row, geometry, built.decode, built.labels)
    assert [(one.id, one.class_id) for one in found.segments] == [(1, sky), (2, person), (3, person)]
    stripes = found.segment_map.reshape(4, -1)
    assert [np.unique(stripe).tolist() for stripe in stripes] == [[1], [2], [1], [3]]


# -- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("vit", "vit"),
        ("vit", "deit"),
        ("dino", "dino"),
        ("dino", "vit"),
        ("dino", "dinov2, registers"),
        ("detr", "detr, dc5"),
        ("rtdetr", "rtdetr v2"),
        ("swin", "swin, timm"),
        ("swin", "swin v2, pretrained smaller"),
        ("detr_panoptic", "detr, panoptic"),
        ("detr_panoptic", "detr, panoptic dc5"),
    ],
)
def test_a_recipe_takes_the_authors_file_as_it_takes_a_directory(family, name, publish, photos, tmp_path):
    case = CASES[name]
    edges = {"size": {"shortest_edge": 96, "longest_edge": 160}}
    small = {
        "detr": edges,
        "detr_panoptic": edges,
        "rtdetr": {"size": {"height": 128, "width": 128}},
    }
    if family in small:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(small[family]))
    checkpoint = publish(case)[1]
    traceable = get_recipe(family).build(checkpoint, BuildOptions(resize="pillow"))
    array, geometry = prepare(photos["coffee"], traceable.preprocess)
    outputs = traceable.module(torch.from_numpy(array.copy())[None])
    named = {spec.name: output.numpy() for spec, output in zip(traceable.outputs, outputs, strict=True)}
    found = decode(named, [geometry], traceable, threshold=None if family == "dino" else 0.0)[0]
    check = compare_results(traceable.reference(photos["coffee"]), found)
    assert check.passed, check
    assert any(note.startswith(f"read as {case.layout}") for note in checkpoint.notes)
