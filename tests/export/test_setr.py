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
from edgevtx.prepared import collate  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.windows import run_in_turns  # noqa: E402
from tests.export import mmseg_setr as mmseg  # noqa: E402

DECODERS = ("naive", "pup", "mla")
TOLD = {"num_attention_heads": mmseg.HEADS}  # of so small a model no published config tells
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET = {"image_mean": MEAN, "image_std": STD, "resample": 2}


@pytest.fixture
def official(tmp_path):
    """(kind of decoder, processor=, state=, **config) -> an official checkpoint's file, opened."""

    def make(kind, *, processor=None, state=None, meta=None, allow_partial=False, **config):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        state = mmseg.random_state(kind) if state is None else state
        torch.save({"meta": {"epoch": 3, **(meta or {})}, "state_dict": state}, folder / "setr.pth")
        (folder / "config.json").write_text(json.dumps({**TOLD, **config}))
        if processor:
            (folder / "preprocessor_config.json").write_text(
                json.dumps({**({} if "MMSeg" in processor["image_processor_type"] else IMAGENET), **processor})
            )
        return Checkpoint.open(folder / "setr.pth", config=folder / "config.json", allow_partial=allow_partial)

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


# mmcv's way to test images, with windows that most photographs of that size are smaller than
SMALL = {"image_processor_type": "MMSegImageProcessor", "size": {"shortest_edge": 70, "longest_edge": 70}}
STRIDES = {"size": [64, 64], "stride": [43, 43]}


def mmcv_pixels(frame, longest, shortest):
    """mmcv's `imrescale` and `imnormalize` of MMSegmentation's configs: BGR uint8 -> (1,3,h,w), and the BGR image."""
    cv2 = pytest.importorskip("cv2")
    height, width = frame.shape[:2]
    factor = min(longest / max(height, width), shortest / min(height, width))
    size = int(width * float(factor) + 0.5), int(height * float(factor) + 0.5)
    image = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    mean, std = np.float64([123.675, 116.28, 103.53]), np.float64([58.395, 57.12, 57.375])
    pixels = (cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2RGB) - mean) * (1 / std)
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None], image


@pytest.mark.parametrize("name", ["coffee", "portrait", "astronaut"])
def test_frames_smaller_than_a_window_are_padded_to_it_as_in_training(name, official, photos):
    state, frame = mmseg.random_state("pup"), photos[name]
    checkpoint = official("pup", processor={**SMALL, "image_mean": MEAN, "image_std": STD}, window=STRIDES)
    traceable = setr.build(checkpoint, BuildOptions())
    assert traceable.preprocess.windows.fill == (104, 116, 124)
    pixels, _ = mmcv_pixels(frame, 70, 70)
    height, width = pixels.shape[2:]
    assert (height < 64 or width < 64) == (name != "astronaut")
    colour = (torch.tensor([124.0, 116.0, 104.0]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    whole = colour[None, :, None, None].repeat(1, 1, max(height, 64), max(width, 64))
    whole[:, :, :height, :width] = pixels
    expected = mmseg.slide(state, "pup", whole, (64, 64), (43, 43))[:, :, :height, :width]
    classes = mmseg.class_map(expected, frame.shape[:2])
    assert len(np.unique(classes)) >= 3
    assert (answer(traceable, frame).class_map == classes).mean() > 0.9999
    assert (traceable.reference(frame).class_map == classes).mean() > 0.9999


# -- official files --------------------------------------------------------------------------------------------


PUBLISHED = [(768, 512, (1025, 2049)), (512, 341, (512, 2048)), (480, 320, (520, 520))]


@pytest.mark.parametrize(("side", "stride", "edges"), PUBLISHED)
def test_published_sizes_bring_their_windows_and_image_processor(side, stride, edges, official):
    checkpoint = official("pup", state=mmseg.random_state("pup", side=side))
    assert checkpoint.published.layout == "MMSegmentation SETR"
    assert checkpoint.config["window"] == {"size": [side, side], "stride": [stride, stride]}
    assert checkpoint.processor_config["size"] == dict(zip(("shortest_edge", "longest_edge"), edges, strict=True))
    assert any("assumed as published" in note for note in checkpoint.notes)


@pytest.mark.parametrize(("side", "edges"), [(side, edges) for side, _, edges in PUBLISHED] + [(64, None)], ids=str)
def test_frames_are_prepared_as_mmcv_prepares_them(side, edges, official, photos):
    checkpoint = official("naive", state=mmseg.random_state("naive", side=side))
    traceable = setr.build(checkpoint, BuildOptions())
    with pytest.raises(InputError, match="leave --resize out"):
        setr.build(checkpoint, BuildOptions(resize="pillow"))
    cv2 = pytest.importorskip("cv2")
    for name in ("coffee", "portrait", "chelsea"):
        image, _ = prepare(photos[name], traceable.preprocess)
        found = reference_inputs(load_processor(checkpoint, "ViT"), [photos[name]])["pixel_values"]
        if edges is None:  # of no published size: the whole frame
            np.testing.assert_array_equal(image, cv2.resize(photos[name], (64, 64), interpolation=cv2.INTER_LINEAR))
            continue
        pixels, expected = mmcv_pixels(photos[name], max(edges), min(edges))
        np.testing.assert_array_equal(image, expected)
        torch.testing.assert_close(found, pixels, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frame", [(480, 640), (1080, 1920), (333, 500), (500, 333), (64, 1000)], ids=str)
def test_any_frame_is_answered_by_a_model_of_pascal_context(frame, official):
    traceable = setr.build(official("naive", state=mmseg.random_state("naive", side=480)), BuildOptions())
    noise = np.random.default_rng(0).integers(0, 256, (*frame, 3), np.uint8)
    image, geometry = prepare(noise, traceable.preprocess)
    assert max(image.shape[:2]) == 520
    inputs = collate([image], traceable.inputs, traceable.preprocess.windows)
    assert len(inputs["pixels"]) == 2 and inputs["pixels"].shape[1:3] == (480, 480)
    assert geometry.input_size == image.shape[:2]


NAMES = ("road", "sky", "tree", "person", "car")


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": NAMES, "PALETTE": [[1, 2, 3]] * 5},
        {"dataset_meta": {"classes": list(NAMES), "palette": [[1, 2, 3]] * 5}},
        {"dataset_meta": {"CLASSES": NAMES}},
    ],
    ids=["up to 0.x", "since 1.0", "1.0's first"],
)
def test_class_names_are_those_of_the_files_meta(meta, official):
    traceable = setr.build(official("naive", meta=meta), BuildOptions())
    assert traceable.labels == NAMES
    assert setr.build(official("naive", meta=meta), BuildOptions(labels=("a", "b", "c", "d", "e"))).labels[0] == "a"
    replaced = official("naive", meta=meta, id2label={str(index): f"mine {index}" for index in range(5)})
    assert replaced.labels[0] == "mine 0"


@pytest.mark.parametrize("meta", [{}, {"CLASSES": None}, {"CLASSES": [1, 2, 3, 4, 5]}, {"dataset_meta": {}}], ids=str)
def test_classes_without_names_are_numbered(meta, official):
    assert official("naive", meta=meta).labels == ("0", "1", "2", "3", "4")


def test_names_of_another_number_of_classes_are_not_used_and_said(official):
    checkpoint = official("naive", meta={"CLASSES": ("road",)})
    assert checkpoint.labels == ("0", "1", "2", "3", "4")
    assert "the file names 1 classes and has 5, so they are numbered" in checkpoint.notes


def test_a_meta_with_objects_of_a_program_is_refused_with_what_to_do(official):
    class_names = np.array(NAMES, dtype=object)
    with pytest.raises(CheckpointError, match=r"pickled objects .* save those alone, and give class names.* --labels"):
        official("naive", meta={"CLASSES": class_names})


def test_every_tensor_of_an_official_file_is_accounted_for(official):
    state = mmseg.random_state("mla")
    assert official("mla").config["decoder"] == "mla"
    with pytest.raises(CheckpointError, match=r"1 of its \d+ tensors has no place in it: decode_head.extra.weight"):
        official("mla", state={**state, "decode_head.extra.weight": torch.zeros(1)})
    short = {name: value for name, value in state.items() if name != "backbone.layers.3.ln2.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing tensor .*backbone.layers.3.norm2.weight"):
        setr.build(official("mla", state=short), BuildOptions())
    partial = official("mla", state={**short, "decode_head.extra.weight": torch.zeros(1)}, allow_partial=True)
    setr.build(partial, BuildOptions())
    assert any("left out: decode_head.extra.weight" in note for note in partial.notes)
    assert any("missing tensor for Setr: backbone.layers.3.norm2.weight" in note for note in partial.notes)
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
    "a misspelt field": ({"decoder_chanels": 8}, r"decoder_chanels \(did you mean decoder_channels\?\)"),
    "a misspelt field of a window": (
        {"window": {"size": [64, 64], "strid": [32, 32]}},
        r"unknown field `strid` - at `\$.window`|missing required field `stride`",
    ),
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


def test_an_image_processor_of_mmsegmentation_takes_its_two_ways_of_sizes_alone(build):
    mmseg_like = {"image_processor_type": "MMSegImageProcessor", "image_mean": MEAN, "image_std": STD}
    for size in ({"shortest_edge": 64}, {"longest_edge": 64}, 64):
        with pytest.raises(CheckpointError, match="expected height and width, or shortest_edge and longest_edge"):
            build({**mmseg_like, "size": size})
    with pytest.raises(CheckpointError, match="do_pad"):
        build({**mmseg_like, "size": {"height": 64, "width": 64}, "do_pad": True})


def test_one_class_gives_its_probability_and_what_exceeds_the_threshold(build, photos):
    changes = {"activation": "sigmoid", "id2label": {"0": "fire"}, "threshold": 0.55}
    traceable = build(**changes)
    assert traceable.labels == ("background", "fire")
    found, reference = answer(traceable, photos["coffee"]), traceable.reference(photos["coffee"])
    assert compare_results(reference, found).passed
    np.testing.assert_array_equal(found.class_map, found.scores > 0.55)


def test_a_bundle_whose_windows_stick_out_of_the_frame_is_verified_and_answers(official, photos, tmp_path, monkeypatch):
    import edgevtx
    from edgevtx.export.pipeline import ExportOptions, export

    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    checkpoint = official("pup", processor={**SMALL, "image_mean": MEAN, "image_std": STD}, window=STRIDES)
    report = export("setr", checkpoint, tmp_path / "small.vtx", ExportOptions(targets=("openvino",)))
    assert [item.status for item in report.manifest.verdicts] == ["passed-here"]
    reference = setr.build(checkpoint, BuildOptions()).reference(photos["coffee"])
    with edgevtx.load(tmp_path / "small.vtx") as model:
        assert compare_results(reference, model(photos["coffee"])).passed
