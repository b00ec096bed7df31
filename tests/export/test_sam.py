"""SAM: its networks against transformers' `SamModel`, `SamProcessor` and post-processing, prompt by prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import edgevtx  # noqa: E402
from edgevtx.decode.everything import Everything, crop_boxes  # noqa: E402
from edgevtx.errors import CheckpointError, InputError, VerificationError  # noqa: E402
from edgevtx.export import sam_questions  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.trial import seed_weights  # noqa: E402
from edgevtx.export.verify import run_module  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.prompt import PromptPredictor  # noqa: E402

PAD = {"height": 128, "width": 128}


def tiny_config(**vision):
    config = get_recipe("sam").tiny_config()["sam"]
    return {**config, "vision_config": {**config["vision_config"], **vision}}


def reference_model(config, seed=0):
    model = transformers.SamModel(transformers.SamConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    seed_weights(model.eval(), seed)
    return model


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    return folder


@pytest.fixture(scope="module")
def traceable(config_file):
    return get_recipe("sam").build(Checkpoint.open(config_file, seed=0), BuildOptions())


@pytest.fixture(scope="module")
def bundle(config_file, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("bundle") / "sam"
    return export("sam", Checkpoint.open(config_file, seed=0), out, ExportOptions()).bundle


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def opened(request, bundle):
    pytest.importorskip(request.param)
    with edgevtx.load(bundle, runtime=request.param, precision="fp32") as loaded:
        rule = msgspec.structs.replace(loaded.rule, stability_offset=0.02)  # seeded weights make flat logits
        loaded.manifest = msgspec.structs.replace(loaded.manifest, decode=rule)
        yield loaded


@pytest.fixture
def model(opened):
    """The predictor as it was loaded: nothing asked of every frame, no image."""
    opened.everything = opened.question = opened._scene = None
    return opened


class Reference:
    """Transformers' own way from a frame and a prompt to masks."""

    def __init__(self, model, processor):
        self.model, self.processor = model, transformers.SamProcessor(processor)

    @torch.no_grad()
    def __call__(self, frame, *, multimask=True, masks=None, **prompts):
        asked = self.processor(images=frame[..., ::-1].copy(), return_tensors="pt", **prompts)
        given = {key: asked[key] for key in ("input_points", "input_labels", "input_boxes") if key in asked}
        given = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
        if masks is not None:
            given["input_masks"] = torch.from_numpy(masks)
        found = self.model(pixel_values=asked["pixel_values"], multimask_output=multimask, **given)
        full = self.processor.post_process_masks(
            found.pred_masks, asked["original_sizes"], asked["reshaped_input_sizes"], pad_size=PAD
        )[0]
        return full.numpy(), found.iou_scores[0].numpy(), found.pred_masks[0].numpy()


@pytest.fixture(scope="module")
def reference(traceable):
    return Reference(*traceable.reference.args)


def assert_same(found, expected):
    masks, iou, logits = expected
    assert found.dense().shape == masks.shape
    assert 0 < masks.mean() < 1
    assert (found.dense() != masks).mean() < 1e-3
    np.testing.assert_allclose(found.iou, iou, atol=1e-3)
    np.testing.assert_allclose(found.low_res_logits, logits, atol=1e-4 * logits.std() * 10)


# -- the networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_size": 8},  # nothing to pad
        {"window_size": 5, "num_attention_heads": 2},
        {"use_rel_pos": False},
        {"use_abs_pos": False, "qkv_bias": False},
        {"global_attn_indexes": []},
        {"window_size": 0},
    ],
    ids=str,
)
def test_the_encoder_is_the_libraries_in_another_form(changes):
    from edgevtx.export.models.sam_encoder import Encoder

    encoder = reference_model(tiny_config(**changes)).vision_encoder
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = encoder(pixels).last_hidden_state, Encoder(encoder)(pixels)
    assert ((expected - found).abs().max() / expected.std()) < 1e-4


def test_some_of_the_heads_at_a_time_give_what_all_of_them_give(monkeypatch):
    """Three heads over the whole image as two and one: ONNX Runtime divides attention among threads by heads alone."""
    from edgevtx.export.models import sam_encoder

    shapes = []

    def attend(query, *others):
        shapes.append(tuple(query.shape[1:3]))
        return whole(query, *others)

    whole = sam_encoder.attend
    monkeypatch.setattr(sam_encoder, "HEADS", 2)
    monkeypatch.setattr(sam_encoder, "attend", attend)
    encoder = reference_model(tiny_config()).vision_encoder
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = encoder(pixels).last_hidden_state, sam_encoder.Encoder(encoder)(pixels)
    assert ((expected - found).abs().max() / expected.std()) < 1e-4
    assert shapes == [(36, 3), (256, 2), (256, 1), (36, 3)]


@pytest.mark.parametrize("name", ["coffee", "portrait"])
def test_padding_is_exactly_the_references(name, traceable, photos):
    """A letterboxed frame: what lies beside it is zero after normalising, not a black pixel normalised."""
    from edgevtx.export.processor import reference_inputs

    library, processor = traceable.reference.args
    image, geometry = prepare(photos[name], traceable.preprocess)
    assert geometry.valid_size != geometry.input_size
    with torch.no_grad():
        (found,) = traceable.module(
            torch.from_numpy(image)[None], torch.tensor([geometry.valid_size], dtype=torch.int32)
        )
        expected = library.get_image_embeddings(reference_inputs(processor, [photos[name]])["pixel_values"])
    assert ((expected - found).abs().max() / expected.std()) < 1e-4


def test_no_value_decides_a_shape_and_nothing_but_a_cast_touches_uint8(bundle):
    ir = pytest.importorskip("onnx_ir")
    for file in bundle.glob("*.onnx"):
        graph = ir.load(file).graph
        kinds = {node.op_type for node in graph}
        assert not kinds & {"Shape", "OneHot", "NonZero", "Range", "ConstantOfShape", "Loop", "If"}, file.name
        for value in graph.inputs:
            if value.name == "pixels":
                assert {node.op_type for node in (use.node for use in value.uses())} == {"Cast"}


# -- prompts ---------------------------------------------------------------------------------------------------


def test_a_predictor_of_prompts_is_what_a_bundle_opens_as(model):
    assert isinstance(model, PromptPredictor)
    assert set(model.parts) == {"decoder"}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", ["coffee", "portrait"])
def test_one_point_and_several(model, reference, photos, name, multimask):
    frame = photos[name]
    height, width = frame.shape[:2]
    model.set_image(frame)
    one = [[0.4 * width, 0.6 * height]]
    expected = reference(frame, input_points=[[one]], input_labels=[[[1]]], multimask=multimask)
    assert_same(model.predict(points=one, multimask=multimask), expected)
    five = np.random.default_rng(0).uniform(0, 1, (5, 2)) * (width, height)
    labels = [1, 0, 1, 1, 0]
    expected = reference(frame, input_points=[[five.tolist()]], input_labels=[[labels]], multimask=multimask)
    assert_same(model.predict(points=five, point_labels=labels, multimask=multimask), expected)


def test_boxes_alone_and_with_points(model, reference, photos):
    frame = photos["portrait"]
    model.set_image(frame)
    boxes = [[40.5, 60, 250, 400], [10, 300, 340, 620.5], [100, 100, 180, 170]]
    assert_same(model.predict(boxes=boxes), reference(frame, input_boxes=[boxes]))
    assert_same(model.predict(boxes=boxes[0]), reference(frame, input_boxes=[boxes[:1]]))
    point = [[100, 200]]
    expected = reference(frame, input_boxes=[boxes[:1]], input_points=[[point]], input_labels=[[[0]]])
    assert_same(model.predict(point, [0], boxes=boxes[0]), expected)


def test_boxes_across_the_edge_of_the_frame_are_asked_as_a_detector_gives_them(model, reference, photos):
    """Not clipped, as transformers clips none; one that shows nothing of the frame is refused."""
    from edgevtx.results import Detections

    frame = photos["portrait"]
    height, width = frame.shape[:2]
    boxes = np.array([[-7.5, 60, 250, 400], [100, 300.5, width + 1.3, height + 40]], np.float32)
    detected = Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int64), ("dog", "dog"))
    model.set_image(frame)
    found = model.predict(boxes=detected.boxes)
    assert_same(found, reference(frame, input_boxes=[boxes.tolist()]))
    clipped = model.predict(boxes=boxes.clip(0, [width, height, width, height]))
    assert np.abs(found.low_res_logits - clipped.low_res_logits).max() > 0.005
    with pytest.raises(InputError, match=rf"wholly outside the frame of {width}x{height} px; leave it out"):
        model.predict(boxes=[*boxes, [width + 1, 5, width + 40, 50]])


def test_a_mask_of_an_earlier_answer(model, reference, photos):
    frame = photos["coffee"]
    model.set_image(frame)
    first = model.predict([[300, 200]])
    mask = first.low_res_logits[0, 1]
    expected = reference(
        frame, input_points=[[[[300, 200]]]], input_labels=[[[1]]], masks=mask[None, None], multimask=False
    )
    found = model.predict([[300, 200]], mask=mask, multimask=False)
    assert_same(found, expected)
    assert np.abs(found.low_res_logits - model.predict([[300, 200]], multimask=False).low_res_logits).max() > 0.05
    assert_same(model.predict(mask=mask), reference(frame, masks=mask[None, None]))
    box = [100, 50, 400, 300]
    assert_same(model.predict(boxes=box, mask=mask), reference(frame, input_boxes=[[box]], masks=mask[None, None]))


def test_prompts_of_unequal_length_give_what_they_give_alone(model, photos):
    model.set_image(photos["chelsea"])
    prompts = [[[50, 60]], [[200, 100], [20, 30]], [[300, 150]]]
    together = model.predict(prompts, [[1], [1, 0], [0]])
    assert together.iou.shape == (3, 3)
    for index, points in enumerate(prompts):
        alone = model.predict(points, [[1], [1, 0], [0]][index])
        np.testing.assert_allclose(together.low_res_logits[index], alone.low_res_logits[0], atol=1e-5)


def test_a_part_of_the_frame_and_a_turned_frame(model, photos):
    frame = photos["coffee"]
    model.set_image(frame, roi=(100, 50, 400, 350))
    found = model.predict([[200, 150]])
    model.set_image(frame[50:350, 100:400])
    inside = model.predict([[100, 100]])
    np.testing.assert_array_equal(found.dense()[..., 50:350, 100:400], inside.dense())
    assert not found.dense()[..., :50, :].any()
    model.set_image(np.ascontiguousarray(np.rot90(frame)), rotation=90)
    turned = model.predict([[200, 600 - 150]])
    model.set_image(frame)
    upright = model.predict([[150, 200]])
    np.testing.assert_array_equal(np.rot90(turned.dense(), -1, axes=(2, 3)), upright.dense())


def test_prompts_that_cannot_be_answered(model, photos):
    with model.clone() as fresh, pytest.raises(InputError, match=r"call set_image\(frame\) before predict"):
        fresh.predict([[1, 1]])
    model.set_image(photos["chelsea"])
    for given, words in (
        (
            {"points": [[500, 10]]},
            r"outside the frame of 451x300 px; give x in 0\.\.451 and y in 0\.\.300, in px of the frame",
        ),
        ({"boxes": [10, 310, 20, 400]}, r"wholly outside the frame .*; leave it out, or give .* in x 0\.\.451"),
        ({}, "but got none"),
        ({"text": "a cat"}, "takes no texts"),
        ({"points": [[5, 5]], "mask": np.zeros((256, 256))}, r"mask must be \(64, 64\)"),
    ):
        with pytest.raises(InputError, match=words):
            model.predict(**given)


def forgets_masks_of_boxes(encode):
    def broken(prompts, geometry, rule):
        batches = encode(prompts, geometry, rule)
        for batch in batches if prompts.boxes is not None else ():
            batch.inputs["has_mask"][:] = 0
        return batches

    return broken


def takes_another_mask_for_the_one(decode):
    def broken(outputs, geometry, rule, *, multimask):
        if not multimask:
            outputs = {name: np.roll(array, -1, axis=1) for name, array in outputs.items()}
        return decode(outputs, geometry, rule, multimask=multimask)

    return broken


@pytest.mark.parametrize(
    ("name", "fault"), [("encode_prompts", forgets_masks_of_boxes), ("decode_prompts", takes_another_mask_for_the_one)]
)
def test_verification_asks_for_the_one_mask_and_for_a_box_with_a_mask(traceable, photos, monkeypatch, name, fault):
    frame = photos["portrait"]
    image, geometry = prepare(frame, traceable.preprocess)
    valid = np.array([geometry.valid_size], np.int32)
    outputs = run_module(traceable, {"pixels": image[None], "valid_size": valid})
    expected = traceable.reference(frame)
    assert compare_results(expected, traceable.answer(outputs, geometry)).passed
    monkeypatch.setattr(sam_questions, name, fault(getattr(sam_questions, name)))
    assert not compare_results(expected, traceable.answer(outputs, geometry)).passed


# -- everything, and pipelines ---------------------------------------------------------------------------------

LOOSE = Everything(points_per_side=5, iou_threshold=0.1, stability_threshold=0.0, overlap=1.0, batch=7)


def test_a_decoder_that_gives_nan_never_means_that_nothing_was_found(model, photos, monkeypatch):
    run = model._part_runtimes["decoder"].run
    broken = SimpleNamespace(run=lambda inputs: {**run(inputs), "iou": np.full((len(inputs["points"]), 4), np.nan)})
    monkeypatch.setitem(model._part_runtimes, "decoder", broken)
    model.set_image(photos["coffee"])
    for ask in (lambda: model.predict(points=[[5, 5]]), lambda: model(photos["coffee"])):
        with pytest.raises(VerificationError, match="NaN or infinity in 'iou'"):
            ask()


def test_a_frame_that_cannot_be_used_leaves_no_image_behind(model, photos):
    model.set_image(photos["coffee"])
    with pytest.raises(InputError, match="a frame must be"):
        model.set_image(np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="call set_image"):
        model.predict(points=[[5, 5]])
    with pytest.raises(InputError, match="a frame must be"):
        model.segment_everything(None)


def test_a_question_outside_one_frame_of_a_batch_is_refused(model, photos):
    model.ask(points=[[600, 10]])
    with pytest.raises(InputError, match="frame"):
        model.batch([photos["coffee"], photos["coffee"][:, :300].copy()])


def test_a_frame_alone_segments_everything(model, photos):
    frame = photos["portrait"]
    found = model.segment_everything(frame, LOOSE)
    assert len(found) > 1
    assert found.iou.shape == (len(found), 1)
    assert (np.diff(found.iou[:, 0]) <= 0).all()
    assert (found.stability > 0).all()
    row = found.to_dict()["masks"][0]
    assert set(row) == {"prompt", "mask", "iou", "stability", "area", "box", "rle"}
    assert set(model.stages) == {"preprocess", "engine", "decode"}
    assert all(spent > 0 for spent in model.stages.values())
    with pytest.raises(InputError, match=r"threshold must lie in 0\.\.1"):
        model.segment_everything(frame, threshold=2.0)


@pytest.fixture
def cut_masks(monkeypatch):
    """Masks that end where a crop does are kept: seeded weights make no others."""
    from edgevtx.decode import everything

    monkeypatch.setattr(everything, "touches_crop", lambda boxes, crop, whole: np.zeros(len(boxes), np.bool_))


@pytest.mark.parametrize("settings", [LOOSE, replace(LOOSE, points_per_side=3, crop_layers=1)], ids=["grid", "crops"])
@pytest.mark.parametrize("limits", [{}, {"threshold": 0.16}, {"threshold": 0.22}, {"top_k": 2}], ids=str)
def test_every_way_to_everything_knows_the_same_options(model, photos, tmp_path, cut_masks, settings, limits):
    """A threshold below the settings' own finds more, one above it less, whichever way the frame takes."""
    from edgevtx.images import write_image
    from edgevtx.stream.pipeline import run
    from edgevtx.stream.sources import open_source

    frame, roi = photos["portrait"], (20, 40, 260, 400)
    model.everything = replace(settings, iou_threshold=0.2)
    expected = model.segment_everything(frame, **limits)
    own = model.segment_everything(frame)
    if "threshold" in limits:
        more, less = (expected, own) if limits["threshold"] < 0.2 else (own, expected)
        assert len(more) > len(less) > 1
    else:
        assert len(own) > len(expected) == 2 if limits else len(own) == len(expected) > 2
    write_image(tmp_path / "frame.png", frame)
    records = []
    with open_source(str(tmp_path / "frame.png")) as source:
        run(source, model, on_record=records.append, **limits)
    for found in (model(frame, **limits), model.batch([frame], **limits)[0], records[0].result):
        np.testing.assert_array_equal(found.iou, expected.iou)
        np.testing.assert_array_equal(found.dense(), expected.dense())
    inside = model.segment_everything(frame, roi=roi, **limits)
    np.testing.assert_array_equal(inside.iou, model(frame, roi=roi, **limits).iou)
    cut = model(frame[40:400, 20:260].copy(), **limits)
    assert len(cut) == len(inside) > 0
    assert (inside.dense()[..., 40:400, 20:260] != cut.dense()).mean() < 1e-3


def test_crops_find_what_the_grid_alone_does_not(model, photos, cut_masks):
    frame = photos["coffee"]
    few = replace(LOOSE, points_per_side=2)
    alone, crops = (model.segment_everything(frame, replace(few, crop_layers=layers)) for layers in (0, 1))
    assert len(crops) > len(alone)
    assert crops.masks.size == frame.shape[:2]
    (first, _), *further = crop_boxes((0, 0, frame.shape[1], frame.shape[0]), 1)
    of_crop = {box for box, _ in further for found in crops.masks.boxes if _inside(found, box)}
    assert len(of_crop) == 4
    assert all(_inside(found, first) for found in crops.masks.boxes)


def test_a_frame_smaller_than_its_crops_are_many(model, photos):
    """Of 64 crops of 20 px the last ones would begin beyond the frame."""
    few = replace(LOOSE, points_per_side=1, crop_layers=3)
    for found in (
        model.segment_everything(photos["coffee"][:20, :20].copy(), few),
        model.segment_everything(photos["coffee"], few, roi=(100, 50, 120, 70)),
    ):
        assert found.masks.size in ((20, 20), photos["coffee"].shape[:2])


def _inside(found, box):
    return (found[:2] >= box[:2]).all() and (found[2:] <= box[2:]).all()


def test_frames_of_a_batch_have_their_own_crops(model, photos, cut_masks):
    model.everything = replace(LOOSE, points_per_side=3, crop_layers=1)
    frames = [photos["coffee"], photos["portrait"]]
    for found, frame in zip(model.batch(frames), frames, strict=True):
        np.testing.assert_array_equal(found.dense(), model(frame).dense())


def test_answers_to_prompts_are_not_cut(model, photos):
    model.ask(points=[[50, 60]])
    for limits in ({"threshold": 0.5}, {"top_k": 1}):
        with pytest.raises(InputError, match="the answers to a prompt are not cut"):
            model(photos["coffee"], **limits)
    model.ask(points=[[5000, 60]])
    model.set_image(photos["coffee"])  # what is asked of other frames is no matter of this one
    assert len(model.predict(points=[[50, 60]])) == 1


def test_a_question_is_asked_of_every_frame_of_a_pipeline(model, photos, tmp_path):
    from edgevtx.images import write_image
    from edgevtx.stream.pipeline import run
    from edgevtx.stream.sources import open_source

    for name in ("coffee", "chelsea"):
        write_image(tmp_path / f"{name}.png", photos[name])
    with model.clone() as asked:
        asked.ask(points=[[[50, 60]], [[200, 100]]], multimask=False)
        records = []
        with open_source(str(tmp_path)) as source:
            run(source, asked, on_record=records.append)
        assert [record.result.iou.shape for record in records] == [(2, 1), (2, 1)]
        asked.set_image(photos["chelsea"])
        alone = asked.predict(points=[[[50, 60]], [[200, 100]]], multimask=False)
        np.testing.assert_array_equal(records[0].result.dense(), alone.dense())
        drawn = alone.draw(photos["chelsea"])
        assert (drawn != photos["chelsea"]).any()
        asked.ask(points=[[5000, 60]])
        with pytest.raises(InputError, match="outside the frame"):
            asked(photos["chelsea"])


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["--points", "50,60;200,100,0"], [(0, 0), (0, 1), (0, 2)]),
        (["--boxes", "10,10,200,150", "--boxes", "5,5,400,290.5"], [(p, m) for p in (0, 1) for m in (0, 1, 2)]),
        (["--boxes", "10,10,200,150", "--boxes", "5,5,400,290.5", "--single-mask"], [(0, 0), (1, 0)]),
        (["--threshold", "0.99"], []),
    ],
)
def test_the_command_line_takes_prompts(bundle, photos, tmp_path, arguments, rows):
    from click.testing import CliRunner

    from edgevtx.cli import cli
    from edgevtx.images import write_image

    write_image(tmp_path / "cat.png", photos["chelsea"])
    options = ["--runtime", "onnxruntime", "--json", *arguments]
    found = CliRunner().invoke(cli, ["run", str(bundle), str(tmp_path / "cat.png"), *options])
    assert found.exit_code == 0, found.stderr
    masks = json.loads(found.stdout.splitlines()[0])["result"]["masks"]
    assert [(row["prompt"], row["mask"]) for row in masks] == rows


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--points-per-side", "4", "--threshold", "0.2"], {"points_per_side": 4, "iou_threshold": 0.2}),
        (["--points-per-side", "3", "--crop-layers", "1"], {"points_per_side": 3, "crop_layers": 1}),
        (["--points-per-side", "3", "--min-region-area", "40"], {"points_per_side": 3, "min_region_area": 40}),
    ],
    ids=str,
)
def test_the_command_line_says_how_everything_is_looked_for(bundle, photos, tmp_path, monkeypatch, arguments, settings):
    from click.testing import CliRunner

    from edgevtx import prompt
    from edgevtx.cli import cli
    from edgevtx.images import write_image

    write_image(tmp_path / "cat.png", photos["chelsea"])
    used, best = [], prompt.best_of
    monkeypatch.setattr(prompt, "best_of", lambda found, how: [used.append(how), best(found, how)][1])
    options = ["--runtime", "onnxruntime", "--json", *arguments]
    found = CliRunner().invoke(cli, ["run", str(bundle), str(tmp_path / "cat.png"), *options])
    assert found.exit_code == 0, found.stderr
    assert used == [replace(Everything(), **settings)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--points", "5,5", "--top-k", "3"],
            "--top-k says what is kept of everything, and --points asks for something",
        ),
        (["--boxes", "1,1,5,5", "--threshold", "0.5"], "--threshold says what is kept of everything, and --boxes"),
        (["--points", "5,5", "--crop-layers", "1"], "--crop-layers says what is kept of everything, and --points"),
        (["--single-mask"], "--single-mask needs a prompt; add --points, --boxes or --text"),
        (["--text", "a cat"], "takes no texts"),
        (["--points", "5,5", "--boxes", "1,1,5,5", "--boxes", "1,1,9,9"], "1 by points, 2 by boxes"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_opened(bundle, monkeypatch, arguments, words):
    from click.testing import CliRunner

    from edgevtx.cli import cli
    from edgevtx.stream import sources

    monkeypatch.setattr("edgevtx.predictor.load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sources, "open_source", lambda *args, **kwargs: pytest.fail("the source was opened"))
    found = CliRunner().invoke(cli, ["run", str(bundle), "missing.png", *arguments])
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.stderr.replace("\u2502", " ").split())


def test_masks_are_indexed_by_prompt(model, photos):
    model.set_image(photos["coffee"])
    found = model.predict(points=[[[50, 60]], [[200, 100]], [[300, 300]]])
    assert found[1].iou.shape == (1, 3)
    np.testing.assert_array_equal(found[[2, 0]].dense(), found.dense()[[2, 0]])
    best = found.best()
    assert best.iou.shape == (3, 1)
    np.testing.assert_array_equal(best.iou[:, 0], found.iou.max(1))
    np.testing.assert_array_equal(best[0].dense()[0, 0], found.dense()[0, found.iou[0].argmax()])
    assert len(edgevtx.results.Masks.empty((4, 5))) == 0
    assert edgevtx.results.Masks.empty((4, 5)).to_dict() == {"masks": []}


# -- checkpoints -----------------------------------------------------------------------------------------------


def test_a_processor_of_another_size_is_refused(config_file, tmp_path):
    (tmp_path / "config.json").write_text((config_file / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SamImageProcessor", "size": {"longest_edge": 256}})
    )
    with pytest.raises(CheckpointError, match="make size and image_size equal"):
        get_recipe("sam").build(Checkpoint.open(tmp_path, seed=0), BuildOptions())
