"""DETR panoptic beyond the registry's conformance: the mask head's shortcut, padding, published names, DC5."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402

from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.errors import CheckpointError  # noqa: E402
from edgevtx.export import detr, detr_panoptic, resnet_keys  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.processor import reference_inputs  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.preprocess import pad_batch, prepare  # noqa: E402
from tests.decode.test_panoptic import FUSED, LABELS, fusing_scene, reference, segments_of  # noqa: E402


def outputs_of(traceable, frames):
    arrays, geometries = zip(*(prepare(frame, traceable.preprocess) for frame in frames), strict=True)
    pixels, valid_size = pad_batch(arrays)
    values = traceable.module(*map(torch.from_numpy, (pixels, valid_size)[: len(traceable.inputs)]))
    names = [spec.name for spec in traceable.outputs]
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}, geometries


def test_the_mask_head_computes_what_transformers_computes_for_every_query_alone(config_folder):
    model = Checkpoint.open(config_folder("detr_panoptic"), seed=0).load(transformers.DetrForSegmentation)
    generator = torch.Generator().manual_seed(0)
    channels = model.config.d_model
    sizes = [(27, 41), (14, 21), (7, 11)]  # odd: enlarging is no plain doubling
    maps = [torch.randn(2, width, *size, generator=generator) for width, size in zip((8, 16, 16), sizes, strict=True)]
    features = torch.randn(2, channels, 4, 6, generator=generator)
    attention = torch.rand(2, 5, 8, 4, 6, generator=generator)
    ours = detr_panoptic.MaskHead(model.mask_head, channels)
    with torch.no_grad():
        expected = model.mask_head(features, attention, [maps[2], maps[1], maps[0]])
        found = ours(features, attention, tuple(maps))
    assert found.shape == (2, 5, 27, 41)
    torch.testing.assert_close(found.flatten(0, 1)[:, None], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_unequal_frames_is_what_the_processor_and_model_make_of_it(config_folder, photos):
    traceable = detr_panoptic.build(Checkpoint.open(config_folder("detr_panoptic"), seed=0), BuildOptions(batch=None))
    frames = [photos[name] for name in ("astronaut", "rocket", "portrait")]
    outputs, _ = outputs_of(traceable, frames)
    model, processor = traceable.reference.args[:2]
    inputs = reference_inputs(processor, frames)
    with torch.no_grad():
        expected = model(**inputs)
    probabilities = expected.logits.softmax(-1)
    for index, mask in enumerate(inputs["pixel_mask"]):
        height, width = (-(-int(mask.any(axis).sum()) // 4) for axis in (1, 0))
        wanted = expected.pred_masks[index, :, :height, :width].numpy()
        assert error_of(wanted, outputs["masks"][index, :, :height, :width]) < 1e-5
        np.testing.assert_allclose(outputs["no_object"][index], probabilities[index, :, -1], atol=1e-5)


def test_fewer_queries_are_the_best_in_their_order(config_folder, photos):
    folder = config_folder("detr_panoptic")
    whole, few = (
        detr_panoptic.build(Checkpoint.open(folder, seed=0), BuildOptions(top_k=top_k)) for top_k in (None, 7)
    )
    everything, seven = (outputs_of(one, [photos["coffee"]])[0] for one in (whole, few))
    best = np.sort(np.argsort(-everything["scores"][0])[:7])
    for name, array in seven.items():
        np.testing.assert_allclose(array[0], everything[name][0][best], atol=1e-4)
    assert few.decode.top_k == 7 and len(few.reference(photos["coffee"]).detections) == 7


# the mask head's tensors as facebookresearch's DETR names them
PUBLISHED = {
    "mask_head.conv1.conv": "mask_head.lay1",
    "mask_head.conv1.norm": "mask_head.gn1",
    "mask_head.conv2.conv": "mask_head.lay2",
    "mask_head.conv2.norm": "mask_head.gn2",
    "mask_head.fpn_stages.0.refine.conv": "mask_head.lay3",
    "mask_head.fpn_stages.0.refine.norm": "mask_head.gn3",
    "mask_head.fpn_stages.1.refine.conv": "mask_head.lay4",
    "mask_head.fpn_stages.1.refine.norm": "mask_head.gn4",
    "mask_head.fpn_stages.2.refine.conv": "mask_head.lay5",
    "mask_head.fpn_stages.2.refine.norm": "mask_head.gn5",
    "mask_head.fpn_stages.0.fpn_adapter": "mask_head.adapter1",
    "mask_head.fpn_stages.1.fpn_adapter": "mask_head.adapter2",
    "mask_head.fpn_stages.2.fpn_adapter": "mask_head.adapter3",
    "mask_head.output_conv": "mask_head.out_lay",
    "bbox_attention.q_proj": "bbox_attention.q_linear",
    "bbox_attention.k_proj": "bbox_attention.k_linear",
}


def test_published_names_of_the_mask_head_are_read(config_folder, photos):
    seeded = detr_panoptic.build(Checkpoint.open(config_folder("detr_panoptic"), seed=0), BuildOptions())
    folder = config_folder("detr_panoptic")
    model = seeded.reference.args[0]
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith(("mask_head", "bbox_attention")):
            name = f"{PUBLISHED[layer]}.{kind}"
        state[name.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc")] = tensor.clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = detr_panoptic.build(Checkpoint.open(folder), BuildOptions())
    expected, found = (outputs_of(one, [photos["chelsea"]])[0] for one in (seeded, loaded))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dilation", [False, True])
def test_a_timm_backbone_gives_the_mask_head_all_four_stages(dilation, config_folder, monkeypatch, photos):
    monkeypatch.setitem(resnet_keys.RESNETS, "tiny", ("basic", (1, 1, 1, 1), (8, 16, 16, 32)))
    folder = config_folder(
        "detr_panoptic", use_timm_backbone=True, backbone="tiny", backbone_config=None, dilation=dilation
    )
    if dilation:  # torchvision dilates bottlenecks alone
        monkeypatch.setitem(resnet_keys.RESNETS, "tiny", ("bottleneck", (1, 1, 1, 2), (32, 64, 64, 128)))
    traceable = detr_panoptic.build(Checkpoint.open(folder, seed=1), BuildOptions())
    backbone = traceable.reference.args[0].detr.model.backbone.model
    sizes = [one.shape[-1] for one in backbone(torch.zeros(1, 3, 128, 128)).feature_maps]
    assert sizes == [32, 16, 8, 8 if dilation else 4]
    checks = []
    for frame in photos.values():  # on some the seeded masks merge into one segment, which proves nothing
        outputs, geometries = outputs_of(traceable, [frame])
        found = detr_panoptic_answer(traceable, outputs, geometries[0])
        checks.append(compare_results(traceable.reference(frame), found))
    assert all(check.passed for check in checks), checks
    assert sum(check.compared for check in checks) >= 20, checks


def detr_panoptic_answer(traceable, outputs, geometry):
    from edgevtx.decode.panoptic import decode_panoptic

    row = {name: array[0] for name, array in outputs.items()}
    return decode_panoptic(row, geometry, traceable.decode, traceable.labels, threshold=0.0)


def test_the_other_family_is_named_for_a_checkpoint_of_the_other_kind(config_folder):
    panoptic, boxes = config_folder("detr_panoptic"), config_folder("detr")
    with pytest.raises(CheckpointError, match="is a DETR with masks; export it as family detr_panoptic"):
        detr.build(Checkpoint.open(panoptic, seed=0), BuildOptions())
    with pytest.raises(CheckpointError, match="is a DETR without masks; export it as family detr"):
        detr_panoptic.build(Checkpoint.open(boxes, seed=0), BuildOptions())


def test_classes_to_fuse_are_the_configs(config_folder):
    fused = detr_panoptic.build(
        Checkpoint.open(config_folder("detr_panoptic", label_ids_to_fuse=[2, 0]), seed=0), BuildOptions()
    )
    assert fused.decode.label_ids_to_fuse == (0, 2)
    for wrong in ([4], [-1], ["sky"]):
        folder = config_folder("detr_panoptic", label_ids_to_fuse=wrong)
        with pytest.raises(CheckpointError, match=r"label_ids_to_fuse of .* must be class ids from 0 to 3"):
            detr_panoptic.build(Checkpoint.open(folder, seed=0), BuildOptions())


@pytest.mark.parametrize(("fused", "order"), FUSED)
def test_the_reference_fuses_as_transformers_does_where_that_is_right(fused, order):
    """The reference of verification is transformers' merge with every query apart, fused by us."""
    for frame in ((250, 417), (900, 301)):
        logits, masks = fusing_scene(frame, 0, order)
        wanted = reference(logits, masks, frame, label_ids_to_fuse=set(fused))
        segment_map, segments = detr_panoptic._fuse(reference(logits, masks, frame), fused, LABELS)
        np.testing.assert_array_equal(segment_map, np.maximum(wanted["segmentation"].numpy(), 0))
        assert [(one.id, one.class_id, one.score) for one in segments] == segments_of(wanted)


def test_a_backbone_that_shows_its_last_stage_alone_is_refused(config_folder):
    folder = config_folder("detr_panoptic")
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["out_features"] = ["stage2", "stage3", "stage4"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected out_features stage1, stage2, stage3, stage4"):
        detr_panoptic.build(Checkpoint.open(folder, seed=0), BuildOptions())
