"""Our preprocessing and our answers against transformers' own, on photographs of many shapes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.errors import CheckpointError  # noqa: E402
from edgevtx.export import detr, dino, rtdetr, vit  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.frames import Frames  # noqa: E402
from edgevtx.export.processor import load_processor, preprocess_of, reference_inputs  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.rules import Exact, ShortestEdge  # noqa: E402

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP = {"crop_size": 224, "do_center_crop": True}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# processor configs in the forms that published checkpoints have, old and new: what they mean
PUBLISHED = {
    "ViT": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, **HALF},
        (Exact(height=224, width=224), None, "bilinear"),
    ),
    "ViT, new": (
        {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 96, "width": 160}, "resample": 3, **HALF},
        (Exact(height=96, width=160), None, "bicubic"),
    ),
    "DeiT": (
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, **CROP, "resample": 3, **IMAGENET},
        (Exact(height=256, width=256), (224, 224), "bicubic"),
    ),
    "DINOv2": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **CROP, **IMAGENET},
        (ShortestEdge(shortest=256), (224, 224), "bicubic"),
    ),
    "DETR": (
        {"feature_extractor_type": "DetrFeatureExtractor", "size": 200, "max_size": 333, **IMAGENET},
        (ShortestEdge(shortest=200, longest=333), None, "bilinear"),
    ),
    "RT-DETR": (
        {"image_processor_type": "RTDetrImageProcessor", "do_normalize": False, "size": {"height": 160, "width": 160}},
        (Exact(height=160, width=160), None, "bilinear"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_host_and_graph_together_are_the_processor(name, config_folder, photos):
    config, meaning = PUBLISHED[name]
    checkpoint = Checkpoint.open(config_folder("vit", processor=config), seed=0)
    processor = load_processor(checkpoint, "ViT")
    preprocess = preprocess_of(processor)
    assert (preprocess.size, preprocess.crop, preprocess.interpolation) == meaning
    frames = Frames(preprocess)
    for frame in photos.values():
        array, _ = prepare(frame, preprocess)
        found = frames(torch.from_numpy(np.ascontiguousarray(array))[None]).flip(1)
        expected = reference_inputs(processor, [frame])["pixel_values"]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"image_processor_type": "PoolFormerImageProcessor"}, "asks for the image processor PoolFormer"),
        ({"do_resize": False}, "does not resize"),
        ({"size": {"max_height": 224, "max_width": 224}}, "expected height and width, or edges"),
        ({"size": {"wide": 224}}, "is not usable"),
        ({"resample": 9}, r"resample 9 is unknown; expected .*2 \(bilinear\)"),
        ({"resample": "bicubic"}, "resample 'bicubic' is unknown|is not usable"),
    ],
)
def test_a_processor_that_does_something_else_is_refused(config, sentence, config_folder):
    checkpoint = Checkpoint.open(config_folder("vit", processor=config), seed=0)
    with pytest.raises(CheckpointError, match=sentence):
        preprocess_of(load_processor(checkpoint, "ViT"))


def ours(traceable, frame):
    """Our outputs for one frame by name."""
    array, _ = prepare(frame, traceable.preprocess)
    outputs = traceable.module(torch.from_numpy(np.ascontiguousarray(array))[None])
    return {spec.name: output[0].numpy() for spec, output in zip(traceable.outputs, outputs, strict=True)}


def assert_detections(traceable, photos, at_least):
    """Class ids, scores within 1e-3 and boxes within 0.5 px for every detection above 0.3, by rank."""
    for name, frame in photos.items():
        expected, found = traceable.reference(frame), ours(traceable, frame)
        order = np.argsort(-found["scores"], kind="stable")
        height, width = frame.shape[:2]
        boxes, scores = found["boxes"][order] * [width, height, width, height], found["scores"][order]
        kept = np.flatnonzero(expected.scores > 0.3)
        assert len(kept) >= at_least, name
        np.testing.assert_allclose(scores[kept], expected.scores[kept], atol=1e-3)
        for row in kept:  # neighbours of the same score may change places
            near = np.flatnonzero(np.abs(scores - expected.scores[row]) < 1e-3)
            same = near[found["class_ids"][order][near] == expected.class_ids[row]]
            assert np.abs(boxes[same] - expected.boxes[row]).max(1).min(initial=np.inf) < 0.5, (name, row)


def test_detr_answers_as_transformers_does_on_every_photograph(config_folder, photos):
    traceable = detr.build(Checkpoint.open(config_folder("detr"), seed=0), BuildOptions())
    assert_detections(traceable, photos, at_least=20)


def test_detr_never_answers_no_object(config_folder, photos):
    """Where "no object" is the likeliest class, the best of the others is given, with its low score."""
    traceable = detr.build(Checkpoint.open(config_folder("detr"), seed=0), BuildOptions())
    model = traceable.reference.args[0]
    model.class_labels_classifier.bias[-1] += 8  # the traced module shares this tensor
    expected, found = traceable.reference(photos["coffee"]), ours(traceable, photos["coffee"])
    assert np.median(expected.scores) < 0.3
    np.testing.assert_allclose(np.sort(found["scores"])[::-1], expected.scores, atol=1e-5)
    assert sorted(found["class_ids"]) == sorted(expected.class_ids)


# 448 px wide: the outermost columns of anchors are invalid, so that their masking is seen
@pytest.mark.parametrize("kind", ["rt_detr", "rt_detr_v2"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_feature_levels": 4, "decoder_n_levels": 4},
        {"eval_size": 64},
        {"anchor_image_size": [64, 448]},
        {"normalize_before": True, "encode_proj_layers": [1, 2]},
    ],
    ids=str,
)
def test_rtdetr_answers_as_transformers_does_on_every_photograph(kind, changes, config_folder, photos):
    processor = {"size": {"height": 64, "width": 448}}
    changes = {key: value for key, value in changes.items() if key != "decoder_n_levels" or kind == "rt_detr_v2"}
    folder = config_folder("rtdetr", kind, processor=processor, **changes)
    traceable = rtdetr.build(Checkpoint.open(folder, seed=1), BuildOptions())
    assert not traceable.module.inside.bool().all()
    assert_detections(traceable, photos if not changes else {"coffee": photos["coffee"]}, at_least=20)


def test_queries_that_transformers_cannot_run_are_refused(config_folder):
    checkpoint = Checkpoint.open(config_folder("rtdetr", learn_initial_query=True), seed=0)
    with pytest.raises(CheckpointError, match="learn_initial_query"):
        rtdetr.build(checkpoint, BuildOptions())


def test_a_size_that_the_pyramid_does_not_fit_is_refused(config_folder):
    folder = config_folder("rtdetr", processor={"size": {"height": 100, "width": 160}})
    with pytest.raises(CheckpointError, match="100x160; RT-DETR's feature pyramid needs multiples of 32"):
        rtdetr.build(Checkpoint.open(folder, seed=0), BuildOptions())


@pytest.mark.parametrize(
    ("size", "trained"),
    [((48, 48), 48), ((64, 64), 48), ((48, 96), 48), ((48, 96), [48, 96]), ((50, 70), 48)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_vit_takes_any_input_size_with_its_positions_folded(kind, size, trained, config_folder, photos):
    processor = {"size": {"height": size[0], "width": size[1]}, "resample": 2, "do_center_crop": False}
    folder = config_folder("vit", kind, processor=processor, image_size=trained)
    traceable = vit.build(Checkpoint.open(folder, seed=0), BuildOptions(top_k=10))
    assert traceable.trace_size == size
    for frame in photos.values():
        expected, found = traceable.reference(frame), ours(traceable, frame)
        np.testing.assert_array_equal(found["class_ids"], expected.class_ids)
        np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)


def test_a_table_that_is_not_square_is_not_interpolated(config_folder):
    processor = {"size": {"height": 64, "width": 64}, "do_center_crop": False}
    checkpoint = Checkpoint.open(config_folder("vit", processor=processor, image_size=[48, 96]), seed=0)
    with pytest.raises(CheckpointError, match="trained for 48x96, the image processor gives 64x64"):
        vit.build(checkpoint, BuildOptions())


def test_classes_that_do_not_exclude_each_other_get_sigmoid_scores(config_folder, photos):
    folder = config_folder("vit", problem_type="multi_label_classification")
    traceable = vit.build(Checkpoint.open(folder, seed=0), BuildOptions(top_k=10))
    assert traceable.decode.activation == "sigmoid"
    found = ours(traceable, photos["coffee"])
    assert abs(found["scores"].sum() - 1) > 0.1
    np.testing.assert_allclose(found["scores"], traceable.reference(photos["coffee"]).scores, atol=1e-5)


def test_a_distilled_deit_averages_its_two_heads(config_folder, photos):
    folder = config_folder("vit", "deit", architectures=["DeiTForImageClassificationWithTeacher"])
    traceable = vit.build(Checkpoint.open(folder, seed=0), BuildOptions())
    assert hasattr(traceable.reference.args[0], "distillation_classifier")
    expected = traceable.reference(photos["rocket"])
    np.testing.assert_allclose(ours(traceable, photos["rocket"])["scores"], expected.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize("frame", [None, "rocket", "portrait"])
def test_dino_features_and_attention_are_transformers(kind, frame, config_folder, photos):
    shape = None if frame is None else photos[frame].shape[:2]
    traceable = dino.build(
        Checkpoint.open(config_folder("dino", kind), seed=0), BuildOptions(frame=shape, attention=True)
    )
    if shape is not None:
        # the whole frame, its shortest edge as the checkpoint has it, both edges whole patches, the aspect kept
        height, width = traceable.trace_size
        assert traceable.preprocess.crop is None
        assert min(height, width) == 56
        assert max(height, width) % 14 == 0
        assert abs(width / height / (shape[1] / shape[0]) - 1) < 0.13
    for image in (photos["rocket"], photos["portrait"]):
        expected, found = traceable.reference(image), ours(traceable, image)
        assert error_of(expected.cls, found["cls"]) < 1e-4
        assert error_of(expected.patches, found["patches"]) < 1e-4
        assert error_of(expected.attention, found["attention"]) < 1e-4
        assert found["attention"].sum((1, 2)).max() < 1  # the CLS token looks at itself too


@pytest.mark.parametrize(
    ("processor", "options", "sentence"),
    [
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 56}, "do_center_crop": False},
         BuildOptions(), "give your camera's with --frame 1920x1080"),
        ({"size": {"height": 60, "width": 60}, "do_center_crop": False}, BuildOptions(), "patches of 14 do not fill"),
    ],
)  # fmt: skip
def test_dino_sizes_that_give_no_whole_grid_are_refused(processor, options, sentence, config_folder):
    checkpoint = Checkpoint.open(config_folder("dino", "dinov2", processor=processor), seed=0)
    with pytest.raises(CheckpointError, match=sentence):
        dino.build(checkpoint, options)
