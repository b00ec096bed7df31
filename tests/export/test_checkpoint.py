"""What a checkpoint directory may look like, and what is refused with which sentence."""

from __future__ import annotations

import json
import shutil
import socket

import msgspec
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from edgevtx.errors import CheckpointError, InputError  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402

ViT = transformers.ViTForImageClassification


@pytest.fixture
def saved(config_folder):
    """A ViT directory with model.safetensors, as transformers writes it."""
    folder = config_folder("vit")
    Checkpoint.open(folder, seed=3).load(ViT).save_pretrained(folder)
    return folder


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_directory_gives_its_config_labels_licence_and_weights(saved):
    (saved / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\nlicense: not this\n")
    checkpoint = Checkpoint.open(saved)
    assert checkpoint.model_type == "vit"
    assert checkpoint.labels == tuple(f"class {index}" for index in range(10))
    assert checkpoint.licence == "apache-2.0"
    assert checkpoint.architecture == "ViTForImageClassification"
    model = checkpoint.load(ViT)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert_same(weights_of(model), weights_of(Checkpoint.open(saved / "config.json", seed=3).load(ViT)))


def test_shards_bin_files_and_half_precision_load_as_the_same_model(saved, tmp_path):
    expected = weights_of(Checkpoint.open(saved).load(ViT))
    model = ViT.from_pretrained(saved)

    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shutil.copy(saved / "config.json", tmp_path / "sharded")
    assert len(Checkpoint.open(tmp_path / "sharded").weights) > 1
    assert_same(weights_of(Checkpoint.open(tmp_path / "sharded").load(ViT)), expected)

    shutil.copytree(saved, tmp_path / "bin")
    torch.save(load_file(saved / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    assert_same(weights_of(Checkpoint.open(tmp_path / "bin").load(ViT)), expected)

    shutil.copytree(saved, tmp_path / "half")
    halves = {name: tensor.half() for name, tensor in load_file(saved / "model.safetensors").items()}
    save_file(halves, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    loaded = weights_of(Checkpoint.open(tmp_path / "half").load(ViT))
    assert_same(loaded, {name: tensor.half().float() for name, tensor in expected.items()})


def test_the_hash_covers_config_processor_and_weights(saved):
    first = Checkpoint.open(saved).sha256
    assert len(first) == 64
    assert Checkpoint.open(saved).sha256 == first
    (saved / "README.md").write_text("words do not count")
    assert Checkpoint.open(saved).sha256 == first
    (saved / "preprocessor_config.json").write_text('{"size": 48}')
    second = Checkpoint.open(saved).sha256
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "model.safetensors").write_bytes(data)
    assert len({first, second, Checkpoint.open(saved).sha256}) == 3
    assert Checkpoint.open(saved / "config.json", seed=0).sha256 == ""


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(config_folder):
    folder = config_folder("vit")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (weights_of(Checkpoint.open(folder, seed=seed).load(ViT)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert_same(first, second)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_loading_reaches_for_no_network(saved, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    Checkpoint.open(saved).load(ViT)


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"], tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_stray_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "adapter.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "classifier.weight": torch.zeros(3, 32)}, folder / "model.safetensors", {"format": "pt"})


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def with_a_lost_shard(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def with_code_in_its_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": socket.socket}, folder / "pytorch_model.bin")


def with_broken_json(folder):
    (folder / "config.json").write_text('{"model_type": "vit"')


def without_a_model_type(folder):
    (folder / "config.json").write_text('{"hidden_size": 32}')


def without_a_config(folder):
    (folder / "config.json").unlink()


def with_a_list(folder):
    (folder / "config.json").write_text("[1, 2]")


def with_an_impossible_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "many"}))


def with_gaps_in_its_labels(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "2": "b"}}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without_weights, "has no weights .*seeded random ones with --seed"),
        (without_a_tensor, "has 2 missing tensors for ViTForImageClassification: classifier.bias, classifier.weight"),
        (with_a_stray_tensor, "has 1 unknown tensor for ViTForImageClassification: adapter.weight"),
        (with_another_shape, r"1 misshapen tensor .*classifier.weight \[3, 32\] instead of \[10, 32\]"),
        (truncated, "weights of .* cannot be read"),
        (with_a_lost_shard, "lacks 1 of 1 weight files: model-1.safetensors"),
        (with_code_in_its_weights, "weights of .* cannot be read"),
        (with_broken_json, "config.json is no JSON"),
        (without_a_model_type, "names no model_type"),
        (without_a_config, "has no config.json"),
        (with_a_list, "is JSON but no object"),
        (with_an_impossible_config, "is not a usable config"),
        (with_gaps_in_its_labels, "ids from 0 without gaps"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(saved, damage, sentence):
    damage(saved)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoint = Checkpoint.open(saved)
        assert checkpoint.labels is not None
        checkpoint.load(ViT)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path, saved):
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "nowhere")
    (tmp_path / "weights.dat").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="is no JSON"):
        Checkpoint.open(tmp_path / "weights.dat")
    with pytest.raises(InputError, match="leave the seed out"):
        Checkpoint.open(saved, seed=0)


def test_another_family_is_named(config_folder):
    checkpoint = Checkpoint.open(config_folder("detr"), seed=0)
    with pytest.raises(CheckpointError, match=r"of type detr, family vit reads vit, deit.*; export it as family detr"):
        get_recipe("vit").build(checkpoint, BuildOptions())
    folder = config_folder("vit")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    checkpoint = Checkpoint.open(folder, seed=0)
    with pytest.raises(CheckpointError, match="no family of edgevtx reads it"):
        get_recipe("vit").build(checkpoint, BuildOptions())


# -- modules of ours ---------------------------------------------------------------------------------------------


class Tiny(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width))
        self.head = torch.nn.Linear(width, 2)


class TinySettings(msgspec.Struct, kw_only=True):
    width: int
    names: tuple[str, ...] = ()


@pytest.fixture
def published(tmp_path):
    """A folder of `Tiny` as an author with other names for its layers and one more tensor would publish it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "width": 4}))
    tensors = Checkpoint.open(folder / "config.json", seed=7).load_module(Tiny).state_dict()
    renamed = {f"net.{name}".replace("net.head", "net.classifier"): tensor for name, tensor in tensors.items()}
    save_file({**renamed, "aux.weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder


RENAME = {r"^net\.": "", r"^classifier\.": "head."}


def test_a_module_of_ours_takes_its_weights_from_seed_safetensors_shards_and_bin(published, tmp_path):
    expected = weights_of(Checkpoint.open(published / "config.json", seed=7).load_module(Tiny))
    loaded = Checkpoint.open(published).load_module(Tiny, rename=RENAME, unused=("aux.",))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert_same(weights_of(loaded), expected)

    tensors = load_file(published / "model.safetensors")
    for form in ("shards", "bin"):
        shutil.copytree(published, tmp_path / form)
        (tmp_path / form / "model.safetensors").unlink()
    names = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, tmp_path / "shards" / file)
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    torch.save({name: tensor.double() for name, tensor in tensors.items()}, tmp_path / "bin" / "pytorch_model.bin")
    for form in ("shards", "bin"):
        module = Checkpoint.open(tmp_path / form).load_module(Tiny, rename=RENAME, unused=("aux.",))
        assert_same(weights_of(module), expected)


def test_a_module_of_ours_has_every_tensor_accounted_for(published):
    def load(factory=Tiny, rename=RENAME, unused=("aux.",)):
        return Checkpoint.open(published).load_module(factory, rename=rename, unused=unused)

    with pytest.raises(CheckpointError, match=r"has 1 unknown tensor for Tiny: aux.weight"):
        load(unused=())
    with pytest.raises(CheckpointError, match=r"has 2 missing tensors for Tiny: head.bias, head.weight"):
        load(rename={r"^net\.": ""}, unused=("aux.", "classifier."))
    with pytest.raises(CheckpointError, match=r"misshapen .* net.body.0.bias \[4\] instead of \[5\]"):
        load(lambda: Tiny(5))
    with pytest.raises(CheckpointError, match=r"is not a usable config: .*; mend it"):
        load(lambda: Tiny(-1))
    tensors = load_file(published / "model.safetensors")
    save_file({**tensors, "head.bias": torch.zeros(2)}, published / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has 1 repeated tensor for Tiny: head.bias"):
        load()
    (published / "model.safetensors").unlink()
    torch.save({"net": tensors}, published / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load()


MISSPELT = {
    "setr": (None, {"head_chanels": 8}, "head_channels"),
    "dinoseg": (None, {"decoder_chanels": [16, 8]}, "decoder_channels"),
    "attention_cnn": (None, {"reducton": 4}, "reduction"),
    "vivit": ("vivit-factorised-encoder", {"poling": "mean"}, "pooling"),
}


@pytest.mark.parametrize("family", MISSPELT)
def test_a_misspelt_field_is_refused_by_its_name_with_the_one_that_is_meant(family, config_folder):
    kind, change, meant = MISSPELT[family]
    checkpoint = Checkpoint.open(config_folder(family, kind, **change), seed=0)
    with pytest.raises(CheckpointError, match=rf"{next(iter(change))} \(did you mean {meant}\?\); mend the spelling"):
        get_recipe(family).build(checkpoint, BuildOptions())


def test_a_config_of_ours_is_checked_field_by_field(published):
    assert Checkpoint.open(published).settings(TinySettings) == TinySettings(width=4)
    common = {"architectures": None, "torch_dtype": "float32", "transformers_version": "5.0", "_comment": "mine"}
    (published / "config.json").write_text(json.dumps({"model_type": "tiny", "width": 4, "extra": 1, **common}))
    checkpoint = Checkpoint.open(published)
    assert checkpoint.settings(TinySettings, also=("extra",)) == checkpoint.settings(TinySettings, also=None)
    with pytest.raises(CheckpointError, match=r"a field that nothing here reads: extra; .*known: names, width"):
        checkpoint.settings(TinySettings)
    (published / "config.json").write_text(json.dumps({"model_type": "tiny", "width": "wide"}))
    with pytest.raises(CheckpointError, match=r"not a usable config: Expected `int`, got `str` - at `\$.width`"):
        Checkpoint.open(published).settings(TinySettings)
