"""SETR against a second implementation with MMSegmentation's structure and names, whole and in windows."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


from edgevtx.decode import decode  # noqa: E402
from edgevtx.errors import CheckpointError, InputError  # noqa: E402
from edgevtx.export import setr  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.processor import load_processor, reference_inputs  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.export.verify import run_module  # noqa: E402
from edgevtx.predictor import collate  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.windows import run_in_turns  # noqa: E402
from tests.export import mmseg_setr as mmseg  # noqa: E402

DECODERS = ("naive", "pup", "mla")
TOLD = {"num_attention_heads": mmseg.HEADS}  # of so small a model no published config tells
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}


@pytest.fixture
def official(tmp_path):
    """(kind of decoder, processor=, state=, **config) -> an official checkpoint's file, opened."""

    def make(kind, *, processor=None, state=None, **config):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        state = mmseg.random_state(kind) if state is None else state
        torch.save({"meta": {"CLASSES": ("road",), "epoch": 3}, "state_dict": state}, folder / "setr.pth")
        (folder / "config.json").write_text(json.dumps({**TOLD, **config}))
        if processor:
            (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGENET, **processor}))
        return Checkpoint.open(folder / "setr.pth", config=folder / "config.json")

    return make


def answer(traceable, frame):
    """Our result for a frame, the torch module as the engine."""
    from types import SimpleNamespace

    image, geometry = prepare(frame, traceable.preprocess)
    inputs = collate([image], traceable.inputs, traceable.preprocess.windows)
    outputs = run_in_turns(lambda turn: run_module(traceable, turn), inputs, 1)
    manifest = SimpleNamespace(decode=traceable.decode, labels=traceable.labels, preprocess=traceable.preprocess)
    return decode(outputs, [geometry], manifest)[0]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 112)], ids=str)
def test_an_official_checkpoint_gives_mmsegmentations_logits_and_classes(decoder, size, official, photos):
    state = mmseg.random_state(decoder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size[0], "width": size[1]}}
    traceable = setr.build(official(decoder, processor=processor), BuildOptions())
    for name in ("coffee", "portrait"):
        frame = photos[name]
        pixels = reference_inputs(load_processor(official(decoder, processor=processor), "ViT"), [frame])
        expected = mmseg.logits(state, decoder, pixels["pixel_values"])
        image, _ = prepare(frame, traceable.preprocess)
        with torch.no_grad():
            (coarse,) = traceable.module(torch.from_numpy(image)[None])
            found = setr.upsample(coarse, traceable.decode.upsample)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) < 1e-4 * float(expected.std())

        classes = mmseg.class_map(mmseg.encode_decode(state, decoder, pixels["pixel_values"]), frame.shape[:2])
        assert len(np.unique(classes)) >= 3  # there is something to compare
        ours, reference = answer(traceable, frame), traceable.reference(frame)
        assert (ours.class_map == classes).mean() > 0.9999
        assert (reference.class_map == classes).mean() > 0.9999


def test_positions_may_be_interpolated_bicubically(official, photos):
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 80}}
    checkpoint = official("pup", processor=processor, position_interpolation="bicubic")
    traceable = setr.build(checkpoint, BuildOptions())
    pixels = reference_inputs(load_processor(checkpoint, "ViT"), [photos["coffee"]])["pixel_values"]
    bicubic, bilinear = (
        mmseg.logits(mmseg.random_state("pup"), "pup", pixels, interpolate_mode=mode)
        for mode in ("bicubic", "bilinear")
    )
    image, _ = prepare(photos["coffee"], traceable.preprocess)
    with torch.no_grad():
        found = setr.upsample(traceable.module(torch.from_numpy(image)[None])[0], traceable.decode.upsample)
    assert float((found - bicubic).abs().max()) < 1e-4 * float(bicubic.std())
    assert float((found - bilinear).abs().max()) > 1e-2 * float(bilinear.std())


WINDOWS = [((64, 64), (48, 40)), ((48, 80), (32, 80)), ((80, 80), (80, 80))]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("crop", "stride"), WINDOWS, ids=str)
def test_sliding_windows_give_mmsegmentations_slide_inference(decoder, crop, stride, official, photos):
    state = mmseg.random_state(decoder)
    edges = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 81, "longest_edge": 300}}
    window = {"size": crop, "stride": stride}
    checkpoint = official(decoder, processor=edges, window=window)
    traceable = setr.build(checkpoint, BuildOptions())
    assert traceable.inputs[0].shape == (1, *crop, 3)
    for name in ("coffee", "portrait", "rocket"):
        frame = photos[name]
        pixels = reference_inputs(load_processor(checkpoint, "Detr"), [frame])["pixel_values"]
        assert pixels.shape[2] != pixels.shape[3]
        classes = mmseg.class_map(mmseg.slide(state, decoder, pixels, crop, stride), frame.shape[:2])
        assert len(np.unique(classes)) >= 3
        assert (answer(traceable, frame).class_map == classes).mean() > 0.9999
        assert (traceable.reference(frame).class_map == classes).mean() > 0.9999


def test_windows_that_do_not_overlap_rightly_would_be_noticed(official, photos):
    """The comparison above sees a stride that is off by one pixel."""
    edges = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 81, "longest_edge": 300}}
    answers = [
        answer(setr.build(official("pup", processor=edges, window=window), BuildOptions()), photos["coffee"])
        for window in ({"size": [64, 64], "stride": [48, 40]}, {"size": [64, 64], "stride": [48, 41]})
    ]
    assert not compare_results(*answers).passed


# -- official files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "stride", "edges"), [(768, 512, (1024, 2048)), (512, 341, (512, 2048))])
def test_published_sizes_bring_their_windows_and_image_processor(side, stride, edges, official):
    checkpoint = official("pup", state=mmseg.random_state("pup", side=side))
    assert checkpoint.config["window"] == {"size": [side, side], "stride": [stride, stride]}
    assert checkpoint.processor_config["size"] == dict(zip(("shortest_edge", "longest_edge"), edges, strict=True))
    assert any("assumed as published" in note for note in checkpoint.notes)


def test_every_tensor_of_an_official_file_is_accounted_for(official):
    state = mmseg.random_state("mla")
    assert official("mla").config["decoder"] == "mla"
    with pytest.raises(CheckpointError, match=r"1 of its \d+ tensors has no place in it: decode_head.extra.weight"):
        official("mla", state={**state, "decode_head.extra.weight": torch.zeros(1)})
    short = {name: value for name, value in state.items() if name != "backbone.layers.3.ln2.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing tensor .*backbone.layers.3.norm2.weight"):
        setr.build(official("mla", state=short), BuildOptions())
    three = {name: value for name, value in mmseg.random_state("pup").items() if ".up_convs.3." not in name}
    with pytest.raises(CheckpointError, match="a decoder of 3 convolutions of 3x3; expected SETR's"):
        official("pup", state=three)
    with pytest.raises(CheckpointError, match=r"num_attention_heads is unknown; give a config.json"):
        official("pup", num_attention_heads=None)


def test_a_config_whose_decoder_is_not_the_files_is_refused(official):
    with pytest.raises(CheckpointError, match=r"missing tensors? .*decoder\.|unknown tensors? .*decoder\."):
        setr.build(official("pup", decoder="mla", out_indices=[0, 1, 2, 3]), BuildOptions())


# -- our own form ----------------------------------------------------------------------------------------------


@pytest.fixture
def build(config_folder):
    def make(processor=None, options=None, **changes):
        checkpoint = Checkpoint.open(config_folder("setr", processor=processor, **changes), seed=0)
        return setr.build(checkpoint, options or BuildOptions())

    return make


REFUSED = {
    "an unknown decoder": ({"decoder": "fcn"}, r"Invalid enum value 'fcn' - at `\$.decoder`"),
    "heads that do not divide": ({"num_attention_heads": 3}, "hidden_size of 32 among 3 heads"),
    "an image without a patch": ({"image_size": [64, 8]}, "holds no patch of 16 px"),
    "layers that are not there": ({"decoder": "mla", "out_indices": [0, 1, 2, 4]}, "the last of 4 is 3"),
    "no classes": ({"id2label": {}}, "has 0 classes"),
    "several classes for one map": ({"activation": "sigmoid"}, "with the activation sigmoid exactly one"),
    "a window that patches do not fill": (
        {"window": {"size": [64, 60], "stride": [32, 32]}},
        "window of .* is 64x60 px .*, which patches of 16 px do not fill",
    ),
    "windows with gaps": ({"window": {"size": [64, 64], "stride": [32, 65]}}, "parts of the frame are never seen"),
    "a stride of nothing": ({"window": {"size": [64, 64], "stride": [0, 64]}}, "the stride must lie in 1 to the size"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_config_that_cannot_be_used_is_refused(changes, message, build):
    with pytest.raises(CheckpointError, match=message):
        build(**changes)


def test_processors_that_do_not_fit_are_refused(build):
    with pytest.raises(CheckpointError, match=r"input of .* is 70x64 px .*, which patches of 16 px do not fill"):
        build({"size": {"height": 70, "width": 64}, **IMAGENET})
    with pytest.raises(
        CheckpointError, match=r"the size depends on the frame; give it a size .* or the config a window"
    ):
        build({"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 100}})
    window = {"size": [64, 64], "stride": [32, 32]}
    with pytest.raises(CheckpointError, match=r"makes frames 48x64 px .*, smaller than a window of 64x64"):
        build({"size": {"height": 48, "width": 64}, **IMAGENET}, window=window)


def test_labels_and_top_k_that_do_not_fit_are_refused(build):
    with pytest.raises(InputError, match="1 labels were given, but the checkpoint has 4 classes"):
        build(options=BuildOptions(labels=("fire",)))
    with pytest.raises(InputError, match="top_k is 3, but each pixel has one class"):
        build(options=BuildOptions(top_k=3))


def test_a_narrow_frame_that_holds_no_window_is_refused(build, photos):
    traceable = build(window={"size": [64, 64], "stride": [32, 32]})
    panorama = np.ascontiguousarray(photos["coffee"][:60])
    with pytest.raises(InputError, match="holds no window of 64x64 px; use frames or a roi that are less narrow"):
        answer(traceable, panorama)


def test_one_class_gives_its_probability_and_what_exceeds_the_threshold(build, photos):
    changes = {"activation": "sigmoid", "id2label": {"0": "fire"}, "threshold": 0.55}
    traceable = build(**changes)
    assert traceable.labels == ("background", "fire")
    found, reference = answer(traceable, photos["coffee"]), traceable.reference(photos["coffee"])
    assert compare_results(reference, found).passed
    np.testing.assert_array_equal(found.class_map, found.scores > 0.55)
