"""A small SAM that has learned a few rendered scenes by heart: masks that have an inside, as transformers makes them.

Random weights give masks whose borders run everywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
cv2 = pytest.importorskip("cv2")

from edgevtx.decode.prompt import decode_prompts, stability_scores  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.verify import run_module  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.prompts import encode_prompts, read_prompts  # noqa: E402
from samples.forest_fire.scenes import render_mixed  # noqa: E402

ASSET = Path(__file__).parents[1] / "assets" / "tiny_sam"
SIDE, SEEDS = 128, range(5)
SIZES = [(128, 128), (301, 301), (1080, 1080)]
PAD = {"height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def traceable():
    return get_recipe("sam").build(Checkpoint.open(ASSET), BuildOptions())


def scene(seed, size):
    """A scene enlarged to `size`, and its larger objects: boxes (N,4) and masks (N,H,W)."""
    rendered = render_mixed(seed, (SIDE, SIDE))
    owners = cv2.resize(rendered.segments, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    rows = [row for row in range(len(rendered.boxes)) if (rendered.segments == row + 1).sum() >= 60]
    frame = cv2.resize(rendered.frame, size[::-1], interpolation=cv2.INTER_CUBIC)
    return frame, rendered.boxes[rows] * (size[0] / SIDE), np.array([owners == row + 1 for row in rows])


def ask(traceable, frame, **prompts):
    """Our answer with the torch modules: the first mask of each prompt."""
    image, geometry = prepare(frame, traceable.preprocess)
    valid = np.array([geometry.valid_size], np.int32)
    embedding = run_module(traceable, {"pixels": image[None], "valid_size": valid})
    found = read_prompts(**prompts, rule=traceable.decode)
    (batch,) = encode_prompts(found, geometry, traceable.decode)
    outputs = run_module(traceable.parts["decoder"], {**embedding, **batch.inputs})
    return decode_prompts(outputs, geometry, traceable.decode, multimask=False)


@torch.no_grad()
def reference(traceable, frame, *, multimask=False, **prompts):
    """Transformers' answer: masks (N,M,H,W), iou (N,M), and the logits (N,M,H,W) that were thresholded."""
    from transformers import SamProcessor

    model, image_processor = traceable.reference.args
    processor = SamProcessor(image_processor)
    asked = processor(images=frame[..., ::-1].copy(), return_tensors="pt", **prompts)
    given = {name: asked[name] for name in prompts}
    given = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    found = model(pixel_values=asked["pixel_values"], multimask_output=multimask, **given)
    sizes = asked["original_sizes"], asked["reshaped_input_sizes"]
    logits = processor.post_process_masks(found.pred_masks, *sizes, pad_size=PAD, binarize=False)[0]
    return (logits > 0).numpy(), found.iou_scores[0].numpy(), logits.numpy()


def iou(first, second):
    return (first & second).sum((1, 2)) / np.maximum((first | second).sum((1, 2)), 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_are_the_references_and_show_the_objects(size, traceable):
    overlaps = []
    for seed in SEEDS:
        frame, boxes, truth = scene(seed, size)
        if not len(boxes):
            continue
        found = ask(traceable, frame, boxes=boxes)
        masks, scores, logits = (one[:, 0] for one in reference(traceable, frame, input_boxes=[boxes.tolist()]))
        mine = found.dense()[:, 0]
        assert (mine != masks).mean((1, 2)).max() < 1e-3
        np.testing.assert_allclose(found.iou[:, 0], scores, atol=1e-3)
        inner, outer = (logits > 1).sum((1, 2)), (logits > -1).sum((1, 2))
        np.testing.assert_allclose(found.stability[:, 0], inner / np.maximum(outer, 1), atol=2e-3)
        overlaps += iou(mine, truth).tolist()
    assert len(overlaps) >= 5
    assert np.mean(overlaps) > 0.5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from edgevtx.export.pipeline import ExportOptions, export

    report = export("sam", Checkpoint.open(ASSET), tmp_path_factory.mktemp("sam") / "sam.vtx", ExportOptions())
    assert [item.status for item in report.manifest.verdicts] == ["passed-here"] * 2
    return report.bundle


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_engines_give_the_references_masks_of_a_wide_frame(runtime, bundle, traceable):
    """A point on each object and its three masks, and a box around each and its one, on 1920x1080 px."""
    import edgevtx

    pytest.importorskip(runtime)
    frame, boxes, truth = scene(1, (1080, 1080))
    wide = cv2.resize(frame, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    boxes = boxes * (1920 / 1080, 1, 1920 / 1080, 1)
    places = [np.argwhere(one)[len(np.argwhere(one)) // 2] for one in truth]  # rows and columns inside the objects
    points = [[[float(x * 1920 / 1080), float(y)]] for y, x in places]
    labels = [[1] for _ in points]
    with edgevtx.load(bundle, runtime=runtime, precision="fp32") as model:
        model.set_image(wide)
        asked = (
            (model.predict(points, labels), {"multimask": True, "input_points": [points], "input_labels": [labels]}),
            (model.predict(boxes=boxes, multimask=False), {"input_boxes": [boxes.tolist()]}),
        )
    for found, prompts in asked:
        masks, scores, _ = reference(traceable, wide, **prompts)
        assert found.dense().shape == masks.shape == (len(points), 3 if "multimask" in prompts else 1, 1080, 1920)
        shown = masks.mean((2, 3)) > 1e-3
        assert shown.mean() > 0.8, "too little to compare"
        assert (found.dense() != masks).mean((2, 3)).max() < 1e-3
        assert iou(found.dense()[shown], masks[shown]).min() > 0.98  # 0.1% of the frame may be half of a small mask
        np.testing.assert_allclose(found.iou, scores, atol=1e-3)


def test_a_mask_given_back_keeps_what_it_shows(traceable):
    frame, boxes, _ = scene(1, (301, 301))
    first = ask(traceable, frame, boxes=boxes)
    again = ask(traceable, frame, boxes=boxes, mask=first.low_res_logits[:, 0])
    assert np.mean(iou(first.dense()[:, 0], again.dense()[:, 0])) > 0.5


def test_stability_of_nothing_is_zero(traceable):
    frame, _, _ = scene(1, (128, 128))
    _, geometry = prepare(frame, traceable.preprocess)
    nothing = np.full((2, *traceable.decode.mask_size), -9.0, np.float32)
    nothing[1, 10:20, 10:20] = 9
    scores = stability_scores(nothing, geometry, traceable.decode)
    assert scores[0] == 0
    assert scores[1] > 0.8


def test_in_bf16_the_decoder_keeps_fp32(tmp_path):
    """Its masks' borders wander in bf16; it is a hundredth of the time, so that nothing is lost."""
    import edgevtx
    from edgevtx.export.pipeline import ExportOptions, export

    pytest.importorskip("openvino")
    options = ExportOptions(targets=("openvino",), precisions=("bf16",))
    report = export("sam", Checkpoint.open(ASSET), tmp_path / "sam", options)
    (verdict,) = report.manifest.verdicts
    if verdict.status == "graph-only":
        pytest.skip(f"this processor has no bf16: {verdict.reason}")
    assert (verdict.status, verdict.parts) == ("passed-here", {"decoder": "fp32"}), verdict.reason
    with edgevtx.load(report.bundle) as model:
        assert (model.info.precision, model.info.part_precisions) == ("bf16", {"decoder": "fp32"})
        frame, boxes, truth = scene(1, (301, 301))
        model.set_image(frame)
        assert np.mean(iou(model.predict(boxes=boxes, multimask=False).dense()[:, 0], truth)) > 0.5
