"""Texts as prompts of a SAM whose checkpoint has a text encoder: against transformers' CLIP, through the bundle."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("onnxruntime")

import edgevtx  # noqa: E402
from edgevtx.bundle import Bundle  # noqa: E402
from edgevtx.errors import CheckpointError, InputError  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.trial import seed_weights  # noqa: E402

WORDS = ["<start>", "<end>", "smoke", "flame", "a", "column", "of", "white", "grey", "the", "tree"]
LENGTH = 12
# the last one is as long as may be, its start and end counted
TEXTS = ["a column of white smoke", "flame", "the grey tree of the white tree of the smoke"]
OPTIONS = ExportOptions(targets=("onnxruntime",), precisions=("fp32",))


def clip_model(end):
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=24,
        bos_token_id=0,
        eos_token_id=end,
        pad_token_id=1,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    seed_weights(model, 3)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole directory of the layout: SamModel, text_encoder/, text_projection.safetensors, tokenizer.json."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("sam-text")
    config = get_recipe("sam").tiny_config()["sam"]
    sam = transformers.SamModel(transformers.SamConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    seed_weights(sam.eval(), 0)
    sam.save_pretrained(folder)
    clip_model(1).save_pretrained(folder / "text_encoder")
    random = torch.Generator().manual_seed(4)
    projection = {"weight": torch.randn(32, 24, generator=random), "bias": torch.randn(32, generator=random)}
    save_file(projection, folder / "text_projection.safetensors")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<end>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "sam.vtx"
    return export("sam", Checkpoint.open(checkpoint), out, OPTIONS).bundle


@pytest.fixture(scope="module")
def model(bundle):
    with edgevtx.load(bundle, runtime="onnxruntime") as opened:
        yield opened


def test_the_text_encoder_is_clips(model, checkpoint):
    from safetensors.torch import load_file

    clip = transformers.CLIPTextModelWithProjection.from_pretrained(checkpoint / "text_encoder").eval()
    projection = load_file(checkpoint / "text_projection.safetensors")
    for text in TEXTS:
        ids = [0, *[WORDS.index(word) for word in text.split()], 1]
        with torch.no_grad():
            expected = clip(input_ids=torch.tensor([ids])).text_embeds[0] @ projection["weight"].T + projection["bias"]
        np.testing.assert_allclose(model._embed_texts([text])[0], expected, atol=1e-4)


def test_a_text_that_is_too_long_is_refused_and_not_answered_for_its_beginning(model, photos):
    model.set_image(photos["chelsea"])
    longer = f"{TEXTS[-1]} tree"
    words = r"the text 'the grey tree of the white tree of the s\.\.\.' is 13 tokens long, .* at most 12; shorten it"
    for ask in (model.predict, model.ask):
        with pytest.raises(InputError, match=words):
            ask(text=["flame", longer])
    assert model.question is None


@pytest.mark.parametrize("end", [1, 2])
def test_the_end_of_a_text_is_found_as_clip_finds_it(end):
    from edgevtx.export.models.sam_text import TextEncoder

    clip, projection = clip_model(end), torch.nn.Identity()
    ids = torch.tensor([[0, 4, 5, 10, 1, 1, 1, 1, 1, 1, 1, 1], [0, 3, 9, 9, 2, 4, 7, 10, 2, 8, 1, 1]])
    with torch.no_grad():
        expected, (found,) = clip(input_ids=ids).text_embeds, TextEncoder(clip, projection)(ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_text_is_a_prompt_alone_and_with_points(model, photos):
    frame = photos["coffee"]
    model.set_image(frame)
    assert set(model.parts) == {"decoder", "text"}
    found = model.predict(text=TEXTS)
    assert found.iou.shape == (3, 3)
    assert np.abs(found.low_res_logits[0] - found.low_res_logits[1]).max() > 0.01
    embedding = model._embed_texts(TEXTS[:1])
    direct = model.run_part(
        "decoder",
        {
            "embedding": model._scene.embedding,
            "points": np.zeros((1, 1, 2), np.float32),
            "point_labels": np.array([[-2]], np.int32),
            "mask_prompt": np.zeros((1, 1, 64, 64), np.float32),
            "has_mask": np.zeros(1, np.float32),
            "text": embedding,
        },
    )
    np.testing.assert_allclose(found.low_res_logits[0], direct["low_res_logits"][0, 1:], atol=1e-5)
    both = model.predict([[300, 200]], text="flame")
    alone = model.predict([[300, 200]])
    assert np.abs(both.low_res_logits - alone.low_res_logits).max() > 0.01
    with pytest.raises(InputError, match="2 by points, 1 by text"):
        model.predict(np.zeros((2, 1, 2)), text="flame")


def test_a_standing_text_is_embedded_once_for_many_frames(model, photos, monkeypatch):
    runtime = model._part_runtimes["text"]
    runs = []
    counted = SimpleNamespace(run=lambda inputs: [runs.append(1), runtime.run(inputs)][1])
    monkeypatch.setitem(model._part_runtimes, "text", counted)
    model.ask(text=TEXTS)
    try:
        found = [model(photos[name]) for name in ("coffee", "chelsea", "coffee")]
    finally:
        model.question = None
    assert len(runs) == 1
    model.set_image(photos["chelsea"])
    np.testing.assert_array_equal(found[1].dense(), model.predict(text=TEXTS).dense())
    assert (found[0].dense()[0] != found[0].dense()[1]).any()


def test_verification_compares_the_text_encoder_with_the_references(bundle):
    (verdict,) = Bundle.open(bundle).manifest.verdicts
    names = [check.name for check in verdict.checks]
    assert "reference of text: values: text_embedding" in names


@pytest.mark.parametrize("fault", ["layers", "end", "projection", "tokenizer"])
def test_a_text_encoder_that_differs_from_clips_is_refused(fault, checkpoint, tmp_path, monkeypatch):
    """Every graph agrees with our own network here; transformers' does not."""
    from edgevtx.export import sam_text
    from edgevtx.export.models.sam_text import TextEncoder

    make = TextEncoder.__init__

    def faulty(self, clip, projection):
        make(self, clip, projection)
        if fault == "layers":
            self.mask = torch.zeros_like(self.mask)
        elif fault == "end":
            self.end = 0
        elif fault == "projection":
            self.to_prompt = torch.nn.Linear(24, 32)

    class Shouting(sam_text.Tokenizer):
        def __call__(self, texts):
            return np.where(super().__call__(texts) == WORDS.index("smoke"), 5, super().__call__(texts))

    monkeypatch.setattr(TextEncoder, "__init__", faulty)
    if fault == "tokenizer":
        monkeypatch.setattr(sam_text, "Tokenizer", Shouting)
    report = export("sam", Checkpoint.open(checkpoint), tmp_path / "wrong.vtx", OPTIONS)
    assert report.bundle is None
    assert report.refused[0].reason.startswith("reference")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("text_projection.safetensors", "no text_projection.safetensors, which maps"),
        ("tokenizer.json", "no tokenizer.json, without which"),
        ("text_encoder/model.safetensors", "has no weights"),
    ],
)
def test_a_text_encoder_that_is_not_whole_is_refused(missing, words, checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=words):
        get_recipe("sam").build(Checkpoint.open(folder), BuildOptions())


def test_without_the_library_a_text_names_what_to_install(model, photos, monkeypatch):
    import sys

    from edgevtx.errors import RuntimeUnavailableError

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with model.clone() as fresh:
        fresh.set_image(photos["chelsea"])
        with pytest.raises(RuntimeUnavailableError, match=r'pip install "edgevtx\[text\]"'):
            fresh.predict(text="flame")


def test_seeded_texts_need_no_weights(checkpoint, tmp_path):
    (tmp_path / "text_encoder").mkdir()
    for name in ("config.json", "tokenizer.json", "text_encoder/config.json"):
        shutil.copy(checkpoint / name, tmp_path / name)
    traceable = get_recipe("sam").build(Checkpoint.open(tmp_path, seed=0), BuildOptions())
    assert set(traceable.parts) == {"decoder", "text"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam"
