"""Files of weights: what wraps a state dict, what is refused with which sentence, what a partial match costs."""

from __future__ import annotations

import argparse
import hashlib
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402

from edgevtx.errors import CheckpointError, InputError  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.layouts.files import state_dict  # noqa: E402
from edgevtx.export.layouts.mapping import Rule, translate  # noqa: E402
from tests.export.replicas import detr, rtdetr, sam, swin, vit  # noqa: E402
from tests.export.replicas.weights import noise, randomise  # noqa: E402

ViT = transformers.ViTForImageClassification


@pytest.fixture
def tensors():
    """timm's ViT with a published width, so that nothing has to be told."""
    return randomise(vit.ViT(width=192, heads=3, depth=1, classes=5)).state_dict()


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth"):
        (save_file if name.endswith(".safetensors") else torch.save)(content, tmp_path / name)
        return tmp_path / name

    return write


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# -- what wraps a state dict -------------------------------------------------------------------------------------


def other(tensors):
    return {name: tensor * 0 for name, tensor in tensors.items()}


WRAPPED = {
    "flat": (lambda t: t, ""),
    "model": (lambda t: {"model": t, "optimizer": {"state": {}}, "epoch": 3}, "model"),
    "state_dict": (lambda t: {"state_dict": t, "arch": "vit"}, "state_dict"),
    "average before trained": (lambda t: {"model": other(t), "ema": {"module": t, "updates": 3}}, "ema.module"),
    "timm's average": (lambda t: {"state_dict": other(t), "state_dict_ema": t}, "state_dict_ema"),
    "teacher before student": (lambda t: {"student": other(t), "teacher": t}, "teacher"),
    "student alone": (lambda t: {"student": t}, "student"),
    "beside a tensor": (lambda t: {"model": t, "best_acc": torch.tensor(0.9), "epoch": torch.tensor(3)}, "model"),
    "average beside a tensor": (lambda t: {"ema": {"module": t, "decay": torch.tensor(0.99)}}, "ema.module"),
    "beside an empty average": (lambda t: {"model": t, "model_ema": {}}, "model"),
    "parallel": (lambda t: {"model": {f"module.{name}": tensor for name, tensor in t.items()}}, "model"),
    "compiled": (lambda t: {f"_orig_mod.{name}": tensor for name, tensor in t.items()}, ""),
    "averaged": (lambda t: {"n_averaged": torch.tensor(3)} | {f"module.{name}": t[name] for name in t}, ""),
    "teacher and student in one": (
        lambda t: {f"teacher.{name}": t[name] for name in t} | {f"student.{name}": t[name] * 0 for name in t},
        "",
    ),
}


@pytest.mark.parametrize(("wrap", "under"), WRAPPED.values(), ids=list(WRAPPED))
def test_a_state_dict_is_found_under_what_trainers_wrap_it_in(wrap, under, tensors, save):
    found = state_dict(save(wrap(tensors)))
    assert_same(found.tensors, tensors)
    assert (found.wrapper, found.classes) == (under, ())


def test_pickled_and_safetensors_files_of_any_precision_give_the_same_model(tensors, save):
    expected = weights_of(Checkpoint.open(save(tensors)).load(ViT))
    assert_same(weights_of(Checkpoint.open(save(tensors, "weights.safetensors")).load(ViT)), expected)
    assert_same(weights_of(Checkpoint.open(save(tensors, "weights.bin")).load(ViT)), expected)
    half = weights_of(Checkpoint.open(save({name: tensor.half() for name, tensor in tensors.items()})).load(ViT))
    assert_same(half, {name: tensor.half().float() for name, tensor in expected.items()})


def test_a_file_is_named_hashed_and_loaded_twice_alike(tensors, save):
    path = save(tensors, "deit_tiny.pth")
    checkpoint = Checkpoint.open(path)
    assert checkpoint.name == "deit_tiny.pth"
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.licence == ""
    assert checkpoint.labels == ("0", "1", "2", "3", "4")
    first = checkpoint.load(ViT)
    expected = weights_of(first)
    for parameter in first.parameters():
        parameter.zero_()
    assert_same(weights_of(checkpoint.load(ViT)), expected)


def test_what_the_user_gives_completes_and_replaces_what_the_shapes_tell(save, tmp_path):
    path = save(randomise(vit.ViT(width=48, heads=2, classes=3)).state_dict())
    with pytest.raises(CheckpointError, match=r"is 48 wide, which .* num_attention_heads is unknown; .* with --config"):
        Checkpoint.open(path)
    folder = tmp_path / "given"
    folder.mkdir()
    given = {"num_attention_heads": 2, "id2label": {"0": "a", "1": "b", "2": "c"}}
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 48, "width": 48}}))
    checkpoint = Checkpoint.open(path, config=folder / "config.json")
    assert checkpoint.labels == ("a", "b", "c")
    assert checkpoint.processor_config == {"size": {"height": 48, "width": 48}}
    assert checkpoint.sha256 != hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps({**given, "model_type": "swin"}))
    with pytest.raises(CheckpointError, match="of type vit, the config given for it is of type swin"):
        Checkpoint.open(path, config=folder / "config.json")
    with pytest.raises(CheckpointError, match=r"nowhere.json is no file; give a config.json"):
        Checkpoint.open(path, config=folder / "nowhere.json")


def test_a_directory_of_timm_is_opened_by_its_path_and_by_its_weights(tensors, tmp_path):
    size = {"input_size": [3, 48, 48], "crop_pct": 0.9, "crop_mode": "squash", "mean": [0.1, 0.2, 0.3]}
    config = {"architecture": "vit_tiny", "label_names": ["n1", "n2", "n3", "n4", "n5"], "pretrained_cfg": size}
    config["label_descriptions"] = {"n1": "a cat"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.published.layout == "timm ViT and DeiT"
    assert checkpoint.labels == ("a cat", "n2", "n3", "n4", "n5")
    assert checkpoint.licence == "mit"
    assert checkpoint.processor_config["size"] == {"height": 53, "width": 53}
    assert checkpoint.processor_config["image_mean"] == [0.1, 0.2, 0.3]
    assert Checkpoint.open(tmp_path / "model.safetensors").sha256 == checkpoint.sha256
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**size, "crop_mode": "border"}}))
    with pytest.raises(CheckpointError, match=r"crop_mode border; expected .*center or squash"):
        Checkpoint.open(tmp_path)
    for change in ({"global_pool": "avg"}, {"model_args": {"act_layer": "quick_gelu"}}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=r"global_pool 'avg'|model_args act_layer"):
            Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"timm's config.json and 0 weight files"):
        Checkpoint.open(tmp_path)


# -- what is refused ---------------------------------------------------------------------------------------------


class Pickled(torch.nn.Linear):
    """A module of a program that is not here."""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda t: {"model": t, "args": argparse.Namespace(lr=1)}, r"objects beside tensors \(argparse.Namespace\)"),
        (lambda t: Pickled(2, 2), r"objects beside tensors \(.*Pickled.*reading them can run code"),
        (lambda t: {"epoch": 3}, r"no tensors where a state dict is looked for \(epoch\)"),
        (lambda t: {}, "it is empty"),
        (lambda t: torch.zeros(3), r"looked for \(Tensor\)"),
        (lambda t: {"weights": {"deep": t}}, r"looked for \(weights\); expected one, alone or under ema, "),
        (lambda t: {"a.b": t["cls_token"]}, r"has 1 tensors in no layout known here \(a.b\); .*facebookresearch DETR"),
    ],
)
def test_a_file_without_a_known_state_dict_is_refused_in_one_sentence(content, sentence, tensors, save):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        Checkpoint.open(save(content(tensors)))
    assert "\n" not in str(caught.value)


def test_a_refused_pickle_is_read_after_the_advice_was_followed(tensors, save, tmp_path, monkeypatch):
    path = save({"model": tensors, "args": argparse.Namespace(lr=1)}, "trained.pth")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    monkeypatch.chdir(tmp_path)
    advice = str(caught.value).rpartition("with --labels: ")[2]
    exec(advice, {"torch": torch})
    assert_same(state_dict(tmp_path / "weights.pth").tensors, tensors)


def test_damaged_files_are_refused_in_one_sentence(tensors, save, tmp_path):
    for name in ("weights.pth", "weights.safetensors"):
        path = save(tensors, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=r"weights of .* cannot be read") as caught:
            Checkpoint.open(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match=r"cannot be read, for it is no file that torch\.save wrote"):
        Checkpoint.open(tmp_path / "text.pth")


def test_a_file_has_weights_and_takes_no_seed(tensors, save):
    with pytest.raises(InputError, match="leave the seed out"):
        Checkpoint.open(save(tensors), seed=0)


def test_a_directory_of_hugging_face_takes_no_second_config(config_folder):
    folder = config_folder("vit")
    with pytest.raises(InputError, match="has a config of its own"):
        Checkpoint.open(folder, config=folder / "config.json")


VARIANTS = {
    "fused norm": (lambda: vit.ViT(width=192, heads=3, classes=2), {"fc_norm.weight": noise(192)}, "fc_norm.weight"),
    "layer scale of DeiT III": (
        lambda: vit.ViT(width=192, heads=3, classes=2, scaled=True),
        {},
        "blocks.0.ls1.gamma, blocks.0.ls2.gamma, blocks.1.ls1.gamma, blocks.1.ls2.gamma;",
    ),
    "pre-norm DETR": (
        lambda: detr.Detr(width=256, heads=8),
        {"transformer.encoder.norm.weight": noise(256)},
        "transformer.encoder.norm.weight",
    ),
    "adapter of SAM": (sam.Sam, {"image_encoder.blocks.0.Adapter.fc1.weight": noise(2, 2)}, "blocks.0.Adapter.fc1"),
    "RT-DETR with a fourth branch": (
        lambda: rtdetr.RTDetr(1),
        {"encoder.fpn_blocks.0.conv4.conv.weight": noise(2, 2)},
        "encoder.fpn_blocks.0.conv4.conv.weight",
    ),
    "Swin with extra norms": (lambda: swin.Swin(1), {"layers.0.blocks.0.norm3.weight": noise(2)}, "norm3.weight"),
}


@pytest.mark.parametrize(("make", "extra", "named"), VARIANTS.values(), ids=list(VARIANTS))
def test_tensors_without_a_place_are_named_and_refused_unless_told(make, extra, named, save):
    path = save({"model": randomise(make()).state_dict() | extra})
    with pytest.raises(CheckpointError, match="no place in it") as caught:
        Checkpoint.open(path)
    assert named in str(caught.value)
    notes = Checkpoint.open(path, allow_partial=True).notes
    assert any("were left out" in note and named.rstrip(";") in note for note in notes)


def test_missing_and_misshapen_tensors_are_named_and_refused_unless_told(tensors, save):
    del tensors["blocks.0.norm2.weight"], tensors["blocks.0.attn.proj.bias"]
    path = save(tensors)
    with pytest.raises(
        CheckpointError, match=r"2 missing tensors for ViTForImageClassification: .*layernorm_after.weight"
    ):
        Checkpoint.open(path).load(ViT)
    partial = Checkpoint.open(path, allow_partial=True)
    first = partial.load(ViT)
    note = next(note for note in partial.notes if "missing" in note)
    assert "layernorm_after.weight" in note
    assert "o_proj.bias" in note
    assert_same(weights_of(first), weights_of(Checkpoint.open(path, allow_partial=True).load(ViT)))

    tensors["blocks.0.norm2.weight"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"misshapen|missing"):
        Checkpoint.open(save(tensors)).load(ViT)


def test_the_wrong_family_is_named(save):
    from edgevtx.export.recipe import BuildOptions, get_recipe

    replica = vit.ViT(width=384, heads=6, depth=1, scaled=True, mask=True)
    checkpoint = Checkpoint.open(save(replica.state_dict()))
    with pytest.raises(
        CheckpointError, match=r"of type dinov2, family vit reads vit, deit.*; export it as family dino"
    ):
        get_recipe("vit").build(checkpoint, BuildOptions())


def test_shapes_that_no_published_model_has_are_explained(save):
    uneven = vit.ViT(width=192, heads=3, classes=2).state_dict()
    uneven["pos_embed"] = torch.zeros(1, 12, 192)
    with pytest.raises(CheckpointError, match="position table for 11 patches, which is no square"):
        Checkpoint.open(save(uneven))
    small = swin.timm_names(swin.Swin(1))
    with pytest.raises(CheckpointError, match=r"windows of 4, which no published Swin has.*image_size"):
        Checkpoint.open(save(small))
    other = detr.Detr(depths=(1, 1, 1, 1), width=256, heads=8).state_dict()
    with pytest.raises(CheckpointError, match="backbone of 1, 1, 1, 1 basic blocks; expected a ResNet: R18, R34, R50"):
        Checkpoint.open(save(other))


def test_a_swin_without_a_head_is_a_backbone(save):
    replica = randomise(swin.Swin(1))
    headless = {name: tensor for name, tensor in replica.state_dict().items() if not name.startswith("head.")}
    checkpoint = Checkpoint.open(save(headless))
    assert checkpoint.architecture == "SwinModel"
    model = checkpoint.load(transformers.SwinModel, arguments={"add_pooling_layer": True})
    replica.head = torch.nn.Identity()
    images = noise(1, 3, 64, 64)
    torch.testing.assert_close(model(pixel_values=images).pooler_output, replica(images), rtol=1e-4, atol=1e-4)


# -- the table of names ------------------------------------------------------------------------------------------


def test_rules_repeat_numbers_and_words_cut_and_leave_out():
    rules = (
        Rule("b.#.c.#.@", ("x.#.y.#.@",)),
        Rule("chunk.~.#.@", ("plain.#.@",)),
        Rule("qkv.@", ("q.@", "k.@", "v.@")),
        Rule("t", ("u",), lambda tensor: tensor.T),
        Rule("buffer"),
    )
    given = {
        "b.1.c.22.weight": torch.zeros(1),
        "chunk.3.17.bias": torch.ones(1),
        "qkv.weight": torch.arange(6.0).view(3, 2),
        "t": torch.arange(6.0).view(3, 2),
        "buffer": torch.zeros(1),
        "bX1.c.22.weight": torch.zeros(1),
        "b.1.c.22.weight.extra": torch.zeros(1),
    }
    mapped, unmapped = translate(rules, given)
    assert set(mapped) == {"x.1.y.22.weight", "plain.17.bias", "q.weight", "k.weight", "v.weight", "u"}
    assert mapped["k.weight"].tolist() == [[2.0, 3.0]]
    assert mapped["u"].shape == (2, 3)
    assert unmapped == ("bX1.c.22.weight", "b.1.c.22.weight.extra")
    with pytest.raises(CheckpointError, match=r"qkv.bias has the shape \[4\], expected 3 equal parts"):
        translate(rules, {"qkv.bias": torch.zeros(4)})
