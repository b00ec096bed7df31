"""ViViT against transformers (model 1) and against the paper's equations, written out here (models 2 to 4)."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

import edgevtx  # noqa: E402
from edgevtx.compare.tolerance import SENSITIVE, error_of  # noqa: E402
from edgevtx.errors import CheckpointError, InputError, OutputError  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.frames import Frames  # noqa: E402
from edgevtx.export.models.vivit import Settings, make  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.processor import load_processor, preprocess_of  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.samples import Photo, load_clips, move_over  # noqa: E402
from edgevtx.export.trial import seed_weights  # noqa: E402
from edgevtx.export.verify import make_samples, measure_sensitivity  # noqa: E402
from edgevtx.export.vivit_from_vit import Wanted, inflate, write_vivit  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from edgevtx.preprocess import prepare_item  # noqa: E402
from edgevtx.rules import Clip  # noqa: E402

KINDS = get_recipe("vivit").tiny_config()
FACTORISED = [kind for kind in KINDS if kind != "vivit"]


@pytest.fixture
def build(config_folder):
    def make_one(kind, *, seed=0, processor=None, options=BuildOptions(), **changes):  # noqa: B008
        folder = config_folder("vivit", kind, processor=processor, **changes)
        return get_recipe("vivit").build(Checkpoint.open(folder, seed=seed), options)

    return make_one


def scores_of(traceable, clip):
    """{class: score} that our module gives for a clip of BGR frames."""
    pixels = prepare_item(clip, traceable.preprocess)[0][None]
    scores, ids = traceable.module(torch.from_numpy(pixels))
    return dict(zip(ids[0].tolist(), scores[0].tolist(), strict=True))


# -- model 1 and its processor: transformers -------------------------------------------------------------------

PROCESSORS = {
    "published": {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}},
    "without an offset": {
        "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "offset": False,
        "rescale_factor": 1 / 255, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25],
    },
    "not normalised": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_normalize": False},
    "one size": {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("photo", ["coffee", "portrait", "astronaut"])
def test_our_input_is_the_reference_processors(name, photo, photos, config_folder):
    folder = config_folder("vivit", processor={"image_processor_type": "VivitImageProcessor", **PROCESSORS[name]})
    processor = load_processor(Checkpoint.open(folder / "config.json", seed=0), "Vivit")
    assert type(processor) is transformers.VivitImageProcessor
    preprocess = preprocess_of(processor)
    frame = photos[photo]
    (expected,) = processor(frame[..., ::-1].copy(), return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ]
    pixels, _ = prepare_item(frame, preprocess)
    found = Frames(preprocess)(torch.from_numpy(pixels)[None]).numpy()[:, ::-1]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_video_processors_config_says_the_same(config_folder):
    folder = config_folder("vivit", processor={})
    config = {"video_processor_type": "VivitVideoProcessor", **PROCESSORS["published"]}
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": config}))
    checkpoint = Checkpoint.open(folder / "config.json", seed=0)
    published = {"image_processor_type": "VivitImageProcessor", **PROCESSORS["published"]}
    expected = preprocess_of(transformers.VivitImageProcessor.from_dict(published))
    assert preprocess_of(load_processor(checkpoint, "ViT")) == expected


SECOND = {
    "image_size": [32, 48],
    "num_frames": 6,
    "tubelet_size": [3, 8, 16],
    "processor": {"size": {"shortest_edge": 50}, "crop_size": {"height": 32, "width": 48}},
}


@pytest.mark.parametrize("changes", [{}, SECOND], ids=["first size", "second size"])
@pytest.mark.parametrize("photo", ["portrait", "chelsea"])
def test_model_1_is_transformers(changes, photo, photos, build, tmp_path):
    traceable = build("vivit", **changes, options=BuildOptions(top_k=10))
    clip = move_over(photos[photo], traceable.preprocess.clip.frames)
    seeded = traceable.reference.args[0]
    seeded.save_pretrained(tmp_path / "published")
    model = transformers.VivitForVideoClassification.from_pretrained(tmp_path / "published").eval()
    rule = changes.get("processor") or {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.VivitImageProcessor(**rule)
    inputs = processor([frame[..., ::-1].copy() for frame in clip], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0].softmax(-1)
    found = scores_of(traceable, clip)
    assert [found[index] for index in range(10)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert expected.max() - expected.min() > 0.05


# -- models 2 to 4: the paper ----------------------------------------------------------------------------------


class Paper:
    """The equations of Arnab et al. 2021 token by token in float64; an encoder's tokens are a list of vectors."""

    def __init__(self, module, settings):
        self.weights = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
        self.settings = settings

    def linear(self, x, name):
        bias = self.weights.get(f"{name}.bias")
        return self.weights[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def norm(self, x, name):
        centred = x - x.mean()
        scaled = centred / np.sqrt((centred**2).mean() + self.settings.layer_norm_eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, x, name):
        hidden = self.linear(x, f"{name}.fc1")
        if self.settings.hidden_act == "gelu":
            active = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in hidden])
        else:
            active = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return self.linear(active, f"{name}.fc2")

    def head(self, number, query_token, tokens, name):
        """Attention of one token over `tokens` with one head (eq. 7)."""
        width = self.settings.hidden_size // self.settings.num_attention_heads
        rows = slice(number * width, (number + 1) * width)
        query = self.linear(query_token, f"{name}.q_proj")[rows]
        keys = [self.linear(token, f"{name}.k_proj")[rows] for token in tokens]
        values = [self.linear(token, f"{name}.v_proj")[rows] for token in tokens]
        weights = np.exp([query @ key / math.sqrt(width) for key in keys])
        return sum(weight * value for weight, value in zip(weights / weights.sum(), values, strict=True))

    def attention(self, tokens, name):
        heads = range(self.settings.num_attention_heads)
        mixed = [np.concatenate([self.head(h, token, tokens, name) for h in heads]) for token in tokens]
        return [self.linear(token, f"{name}.o_proj") for token in mixed]

    def layer(self, tokens, name):
        """Equations 2 and 3."""
        normal = [self.norm(token, f"{name}.layernorm_before") for token in tokens]
        tokens = [a + b for a, b in zip(tokens, self.attention(normal, f"{name}.attention"), strict=True)]
        return [token + self.mlp(self.norm(token, f"{name}.layernorm_after"), f"{name}.mlp") for token in tokens]

    def encoder(self, tokens, name, layers):
        if self.settings.pooling == "cls":
            tokens = [self.weights[f"{name}.cls_token"][0, 0], *tokens]
        tokens = [
            token + place for token, place in zip(tokens, self.weights[f"{name}.position_embeddings"][0], strict=True)
        ]
        for number in range(layers):
            tokens = self.layer(tokens, f"{name}.layers.{number}")
        tokens = [self.norm(token, f"{name}.layernorm") for token in tokens]
        return tokens[0] if self.settings.pooling == "cls" else sum(tokens) / len(tokens)

    def tubelets(self, frames):
        """frames (T,3,H,W) -> one list of tokens for each time, row by row."""
        times, rows, columns = self.settings.grid
        t, h, w = self.settings.tubelet_size
        filters, bias = (self.weights[f"patch_embeddings.projection.{name}"] for name in ("weight", "bias"))

        def token(at, row, column):
            tubelet = frames[at * t : (at + 1) * t, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
            return (filters * tubelet.transpose(1, 0, 2, 3)).sum((1, 2, 3, 4)) + bias

        return [[token(at, row, column) for row in range(rows) for column in range(columns)] for at in range(times)]

    def factorised_encoder(self, tokens):
        frames = [self.encoder(places, "spatial", self.settings.num_hidden_layers) for places in tokens]
        return self.encoder(frames, "temporal", self.settings.num_temporal_layers)

    def factorised_self_attention(self, tokens):
        tokens = self.placed(tokens)
        for number in range(self.settings.num_hidden_layers):
            name = f"layers.{number}"
            for at, places in enumerate(tokens):  # eq. 4
                normal = [self.norm(token, f"{name}.layernorm_before") for token in places]
                seen = self.attention(normal, f"{name}.attention")
                tokens[at] = [a + b for a, b in zip(places, seen, strict=True)]
            for place in range(len(tokens[0])):  # eq. 5
                column = [places[place] for places in tokens]
                normal = [self.norm(token, f"{name}.layernorm_temporal") for token in column]
                for at, seen in enumerate(self.attention(normal, f"{name}.temporal_attention")):
                    tokens[at][place] = column[at] + seen
            tokens = [[x + self.mlp(self.norm(x, f"{name}.layernorm_after"), f"{name}.mlp") for x in y] for y in tokens]
        return self.mean(tokens)

    def factorised_dot_product(self, tokens):
        tokens = self.placed(tokens)
        heads = self.settings.num_attention_heads
        for number in range(self.settings.num_hidden_layers):
            name = f"layers.{number}"
            normal = [[self.norm(token, f"{name}.layernorm_before") for token in places] for places in tokens]
            for at, places in enumerate(normal):
                for place, query in enumerate(places):
                    neighbours, moments = places, [other[place] for other in normal]
                    spatial = [self.head(h, query, neighbours, f"{name}.attention") for h in range(heads // 2)]
                    temporal = [self.head(h, query, moments, f"{name}.attention") for h in range(heads // 2, heads)]
                    mixed = self.linear(np.concatenate(spatial + temporal), f"{name}.attention.o_proj")
                    tokens[at][place] = tokens[at][place] + mixed
            tokens = [[x + self.mlp(self.norm(x, f"{name}.layernorm_after"), f"{name}.mlp") for x in y] for y in tokens]
        return self.mean(tokens)

    def placed(self, tokens):
        table = iter(self.weights["position_embeddings"][0])
        return [[token + next(table) for token in places] for places in tokens]

    def mean(self, tokens):
        normal = [self.norm(token, "layernorm") for places in tokens for token in places]
        return sum(normal) / len(normal)

    def logits(self, frames):
        return self.linear(getattr(self, self.settings.attention)(self.tubelets(frames)), "classifier")


SMALL = {
    "image_size": (16, 24), "num_frames": 6, "tubelet_size": (2, 8, 8), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 24, "num_temporal_layers": 3,
    "id2label": {str(index): f"class {index}" for index in range(5)},
}  # fmt: skip
VARIANTS = {
    "a class token": {"attention": "factorised_encoder"},
    "the mean": {"attention": "factorised_encoder", "pooling": "mean", "hidden_act": "gelu"},
    "self-attention": {"attention": "factorised_self_attention"},
    "uniform frame sampling": {"attention": "factorised_self_attention", "tubelet_size": (1, 8, 8), "num_frames": 4},
    "dot-product": {"attention": "factorised_dot_product"},
    "without biases": {"attention": "factorised_dot_product", "qkv_bias": False, "layer_norm_eps": 1e-2},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_models_2_to_4_are_the_papers(name):
    settings = Settings(**{**SMALL, **VARIANTS[name]})
    module = make(settings).eval()
    seed_weights(module, 3)
    frames = torch.randn(2, settings.num_frames, 3, *settings.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = module(frames).numpy()
    paper = Paper(module, settings)
    for clip, logits in zip(frames.double().numpy(), found, strict=True):
        np.testing.assert_allclose(logits, paper.logits(clip), atol=2e-5)
    # time matters: the same frames in another order are another clip
    with torch.no_grad():
        assert error_of(found, module(frames.flip(1)).numpy()) > 0.01


# -- checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 5}, r"5 frames of 32x32 px are no multiple of tubelet_size \[2, 8, 8\]"),
        ({"image_size": 36}, "no multiple of tubelet_size"),
        ({"num_attention_heads": 3}, "hidden_size 32 is no multiple of 3 heads"),
        ({"attention": "factorised_dot_product", "num_attention_heads": 1}, "half of the heads look along time"),
        ({"attention": "factorised_encoder", "hidden_act": "relu"}, "hidden_act relu is none of gelu"),
        ({"attention": "everything"}, "Invalid enum value 'everything'"),
        ({"attention": "factorised_encoder", "id2label": {}}, "names no classes; give them as id2label"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message, build):
    with pytest.raises(CheckpointError, match=message):
        build("vivit", **changes)


def test_a_processor_of_another_size_is_refused(build):
    for processor, gives in (
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}, "gives 40x40"),
        ({"size": {"shortest_edge": 40}, "do_center_crop": False}, "gives no fixed size"),
    ):
        with pytest.raises(CheckpointError, match=f"takes frames of 32x32 .* {gives}; set the processor's crop_size"):
            build("vivit", processor=processor)
    with pytest.raises(CheckpointError, match="has an offset and does not rescale"):
        build("vivit", processor={**PROCESSORS["published"], "do_rescale": False})


def test_the_frame_rate_is_the_configs_the_users_or_the_papers(build):
    def clip(**changes):
        traceable = build("vivit", **changes)
        return traceable.preprocess.clip, " ".join(traceable.notes)

    assert clip() == (Clip(frames=4, fps=10.0, stride=2), "")
    assert clip(options=BuildOptions(clip_fps=5)) == (Clip(frames=4, fps=5, stride=2), "")
    assumed, note = clip(frame_rate=None)
    assert assumed.fps == 12.5 and "12.5 frames a second are assumed" in note and "--clip-fps" in note
    for fps in (0, -1, float("nan")):
        with pytest.raises(InputError, match="clip_fps is"):
            clip(options=BuildOptions(clip_fps=fps))
        with pytest.raises(CheckpointError, match="frame_rate is"):
            clip(frame_rate=fps)


@pytest.mark.parametrize("kind", FACTORISED)
def test_a_tensor_that_is_missing_is_named(kind, config_folder, build):
    folder = config_folder("vivit", kind)
    tensors = dict(build(kind).reference.args[0].state_dict())
    del tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has 1 missing tensor for Factorised.*: classifier.bias"):
        get_recipe("vivit").build(Checkpoint.open(folder), BuildOptions())


# -- out of an image model -------------------------------------------------------------------------------------


@pytest.fixture
def vit(config_folder):
    """(a ViT checkpoint's folder, transformers' model of it)"""
    folder = config_folder("vit", "vit", processor={"size": {"height": 48, "width": 48}, "image_mean": [0.4, 0.5, 0.6]})
    model = transformers.ViTModel(transformers.ViTConfig.from_dict(json.loads((folder / "config.json").read_text())))
    seed_weights(model, 5)
    model.save_pretrained(folder)
    return folder, model.eval()


def made_of(vit, tmp_path, **wanted):
    """The ViViT made of a ViT checkpoint, opened as any other: its model, and its traceable module."""
    folder = tmp_path / "-".join(map(str, wanted.values()))
    numbers = {"num_frames": 6, "tubelet_frames": 3, "labels": tuple("abc"), "frame_rate": 25.0}
    write_vivit(Checkpoint.open(vit[0]), Wanted(**{**numbers, **wanted}), folder)
    traceable = get_recipe("vivit").build(Checkpoint.open(folder), BuildOptions())
    assert traceable.labels == tuple("abc")
    assert traceable.preprocess.clip == Clip(frames=6, fps=25.0, stride=3)
    return traceable.reference.args[0], traceable


def frames_of(seed, count, moving):
    """Normalised frames (1,count,3,48,48), all the same unless they are `moving`."""
    frames = torch.randn(1, count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return frames if moving else frames[:, :1].repeat(1, count, 1, 1, 1)


@torch.no_grad()
def test_a_central_frame_token_sees_that_frame_and_an_inflated_one_the_mean(vit):
    """Section 3.4, equations 8 and 9."""
    projection = vit[1].embeddings.patch_embeddings.projection
    for frames in (1, 2, 3, 4):
        clip = frames_of(0, frames, moving=True)
        alone = [projection(clip[:, index]) for index in range(frames)]
        weights = {how: inflate(projection.weight, frames, how) for how in ("central_frame", "filter_inflation")}
        found = {
            how: torch.nn.functional.conv3d(clip.transpose(1, 2), weight, projection.bias, stride=(frames, 8, 8))[
                :, :, 0
            ]
            for how, weight in weights.items()
        }
        torch.testing.assert_close(found["central_frame"], alone[frames // 2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["filter_inflation"], sum(alone) / frames, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("filters", ["central_frame", "filter_inflation"])
def test_a_static_clip_begins_as_the_image(filters, vit, tmp_path):
    """Of frames that are all the same, every encoder over space says what the image model says of the one frame."""
    static = frames_of(1, 6, moving=False)
    tokens = vit[1](pixel_values=static[:, 0]).last_hidden_state
    encoder, _ = made_of(vit, tmp_path, attention="factorised_encoder", filters=filters)
    seen = encoder.spatial(encoder.patch_embeddings(static).flatten(0, 1))
    torch.testing.assert_close(seen, tokens[:, 0].expand(2, -1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_moving_clip_begins_as_its_central_frames(vit, tmp_path):
    moving = frames_of(2, 6, moving=True)
    encoder, _ = made_of(vit, tmp_path, attention="factorised_encoder")
    seen = encoder.spatial(encoder.patch_embeddings(moving).flatten(0, 1))
    expected = vit[1](pixel_values=moving[0, [1, 4]]).last_hidden_state[:, 0]
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_are_repeated_and_attention_over_time_begins_as_nothing(vit, tmp_path):
    clip = frames_of(3, 6, moving=False)
    # the image model without its class token, which models 3 and 4 have none of
    plain = vit[1].embeddings.patch_embeddings(clip[:, 0]) + vit[1].embeddings.position_embeddings[:, 1:]
    for layer in vit[1].layers:
        plain = layer(plain)
    expected = vit[1].layernorm(plain).mean(1)
    model, _ = made_of(vit, tmp_path, attention="factorised_self_attention")
    logits = model(clip)
    torch.testing.assert_close(logits, model.classifier(expected), atol=1e-5, rtol=1e-5)
    with torch.enable_grad():
        layer = model.layers[0].temporal_attention.requires_grad_(True)
        model(frames_of(4, 6, moving=True)).sum().backward()
    assert layer.o_proj.weight.grad.abs().max() > 0

    first, _ = made_of(vit, tmp_path, attention="spatio_temporal")
    table = first.vivit.embeddings.position_embeddings[0, 1:].unflatten(0, (2, 36))
    torch.testing.assert_close(table[0], table[1])
    torch.testing.assert_close(table[0], vit[1].embeddings.position_embeddings[0, 1:])
    for kind in ("spatio_temporal", "factorised_dot_product"):
        model, _ = made_of(vit, tmp_path, attention=kind, filters="filter_inflation")
        ours = {name.removeprefix("vivit."): tensor for name, tensor in model.state_dict().items()}
        for name, tensor in vit[1].state_dict().items():
            if name.startswith(("layers.", "layernorm.")):
                torch.testing.assert_close(ours[name], tensor)


def test_the_image_models_preprocessing_is_kept(vit, tmp_path, photos):
    _, traceable = made_of(vit, tmp_path, attention="factorised_dot_product")
    processor = transformers.ViTImageProcessorPil.from_pretrained(vit[0])
    (expected,) = processor(photos["coffee"][..., ::-1].copy(), return_tensors="np")["pixel_values"]
    (pixels, *_), _ = prepare_item([photos["coffee"]] * 6, traceable.preprocess)
    found = Frames(traceable.preprocess)(torch.from_numpy(pixels)[None]).numpy()[0, ::-1]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_what_cannot_become_a_vivit_is_refused(vit, tmp_path, config_folder):
    checkpoint = Checkpoint.open(vit[0])
    with pytest.raises(InputError, match="no such model can be made: 7 frames"):
        write_vivit(checkpoint, Wanted(labels=("a",), num_frames=7), tmp_path / "out")
    with pytest.raises(InputError, match="needs classes"):
        write_vivit(checkpoint, Wanted(labels=()), tmp_path / "out")
    with pytest.raises(OutputError, match="holds files; choose another folder"):
        write_vivit(checkpoint, Wanted(labels=("a",)), vit[0])
    other = Checkpoint.open(config_folder("dino", "dinov2"), seed=0)
    with pytest.raises(CheckpointError, match="is of type dinov2; a ViT image checkpoint is needed"):
        write_vivit(other, Wanted(labels=("a",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_script_writes_a_checkpoint_that_opens(vit, tmp_path):
    place = Path(__file__).parents[2] / "scripts" / "vivit_from_vit.py"
    spec = importlib.util.spec_from_file_location("vivit_from_vit", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "classes.txt").write_text("walking\nrunning\n")
    options = [str(vit[0]), str(tmp_path / "vivit"), "--labels", str(tmp_path / "classes.txt")]
    options += ["--frames", "4", "--attention", "factorised_dot_product"]
    assert CliRunner().invoke(script.main, options).exit_code == 0
    config = json.loads((tmp_path / "vivit" / "config.json").read_text())
    assert config["attention"] == "factorised_dot_product" and config["id2label"] == {"0": "walking", "1": "running"}
    assert load_file(tmp_path / "vivit" / "model.safetensors")["position_embeddings"].shape == (1, 72, 32)
    again = CliRunner().invoke(script.main, options)
    assert again.exit_code == 1 and "choose another folder" in again.output


# -- samples and bundles ---------------------------------------------------------------------------------------


def test_clips_move_and_are_small(photos):
    for turn, photo in enumerate(photos.values()):
        clip = move_over(photo, 16, turn)
        assert clip.shape[0] == 16 and clip.shape[3] == 3 and clip.size <= 3.03 * 4_000_000
        steps = [np.abs(one.astype(int) - other).mean() for one, other in itertools.pairwise(clip)]
        assert min(steps) > 0.1, turn  # no frame is like the one before
        np.testing.assert_array_equal(clip, move_over(photo, 16, turn))
    assert len(load_clips(None, Clip(frames=4, fps=10, stride=2))) == 4


def test_videos_and_images_of_the_user_become_clips(tmp_path, photos):
    cv2 = pytest.importorskip("cv2")
    clip = Clip(frames=4, fps=12.5, stride=2)
    video = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
    for index in range(40):
        writer.write(np.full((48, 64, 3), 5 * index, np.uint8))
    writer.release()
    with pytest.raises(InputError, match=r"at least two videos or images, .* has 1"):
        load_clips(tmp_path, clip)
    write_image(tmp_path / "b.png", photos["coffee"])
    found = load_clips(tmp_path, clip)
    assert [photo.name for photo in found] == ["a.avi", "b.png"]
    brightness = found[0].frame.mean((1, 2, 3)) / 5
    np.testing.assert_allclose(np.diff(brightness), 2, atol=0.5)  # every second frame
    assert 14 <= brightness[0] <= 20  # of the middle
    with pytest.raises(InputError, match=r"has fewer than the 64 frames at 12.5 a second"):
        load_clips(tmp_path, Clip(frames=64, fps=12.5, stride=2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="at least two videos or images"):
        load_clips(tmp_path / "empty", clip)


@pytest.mark.parametrize("kind", KINDS)
def test_clips_that_stand_still_cannot_show_a_fault(kind, build, photos):
    """Their frames could come in any order; clips that move are answered otherwise when they run backwards."""
    traceable = build(kind)
    moving = [Photo(name, move_over(photos[name], 4, turn)) for turn, name in enumerate(("coffee", "rocket"))]
    still = [Photo(photo.name, photo.frame[:1].repeat(4, axis=0)) for photo in moving]
    found = [measure_sensitivity(traceable, list(make_samples(traceable, clips))) for clips in (moving, still)]
    assert found[0] > SENSITIVE > 10 * found[1]


@pytest.mark.parametrize("kind", ["vivit", "vivit-factorised-encoder"])
def test_a_bundle_answers_clips_and_streams(kind, tmp_path, config_folder, photos):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    checkpoint = Checkpoint.open(config_folder("vivit", kind), seed=0)
    report = export("vivit", checkpoint, tmp_path / "clip.vtx", ExportOptions())
    assert report.bundle is not None and [verdict.status for verdict in report.manifest.verdicts] == ["passed-here"] * 2
    assert report.manifest.inputs[0].shape == (1, 4, 32, 32, 3)
    traceable = get_recipe("vivit").build(checkpoint, BuildOptions())
    clip = move_over(photos["rocket"], 9, 1)
    expected = traceable.reference(clip)
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(tmp_path / "clip.vtx", runtime=runtime) as model:
            found = model(clip)
            assert found.labels == expected.labels
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
            answers = [model.push(frame, index / 20) for index, frame in enumerate(clip)]  # twice the model's rate
            assert [index for index, answer in enumerate(answers) if answer is not None] == [6]
            np.testing.assert_allclose(answers[6].scores, traceable.reference(clip[0:7:2]).scores, atol=1e-4)
            with pytest.raises(InputError, match="got one frame"):
                model(clip[0])
    golden = edgevtx.bundle.Bundle.open(tmp_path / "clip.vtx").golden()
    assert golden.frame.shape[0] == 4 and golden.frame.nbytes <= 3.03 * 4_000_000


def test_on_the_command_line(tmp_path, config_folder, photos):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    from edgevtx.cli import cli

    checkpoint = Checkpoint.open(config_folder("vivit", "vivit-factorised-self-attention"), seed=0)
    bundle = export("vivit", checkpoint, tmp_path / "clip.vtx", ExportOptions(targets=("onnxruntime",))).bundle
    video = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (96, 64))
    for frame in move_over(photos["coffee"], 20):
        writer.write(cv2.resize(frame, (96, 64)))
    writer.release()

    def run(*arguments):
        return CliRunner().invoke(cli, ["run", str(bundle), *map(str, arguments)])

    for stride, changes in ((1, 7), (3, 3)):  # 20 frames are 10 of the model's
        out = tmp_path / f"out-{stride}"
        assert run(video, "--stride", stride, "--out", out).exit_code == 0
        rows = [json.loads(line)["result"]["classes"] for line in (out / "results.jsonl").read_text().splitlines()]
        assert len(rows) == 20 and rows[:6] == [[]] * 6 and all(rows[6:])
        assert sum(one != other for one, other in itertools.pairwise(rows)) == changes
        assert (out / "annotated.mp4").stat().st_size > 0
    assert "no class" in run(video, "--limit", 2).stdout
    write_image(tmp_path / "photo.png", photos["coffee"])
    refused = run(tmp_path / "photo.png")
    assert refused.exit_code == 2 and "holds single images" in refused.stderr
