"""The panoptic merge against transformers' own post-processing, on masks that overlap, touch and hide one another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevtx.decode import decode
from edgevtx.decode.panoptic import number_segments
from edgevtx.errors import InputError, VerificationError
from edgevtx.geometry import plan
from edgevtx.masks import MaskSet
from edgevtx.results import Detections, PanopticSegmentation
from edgevtx.rules import PanopticDecode, Preprocess, ShortestEdge

LABELS = ("sky", "person", "car")
PREPROCESS = Preprocess(
    size=ShortestEdge(shortest=128, longest=213), interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1)
)


def scene(count: int, size: tuple[int, int], seed: int, sharp: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Class logits (count,4) and mask logits (count,h,w) of ellipses, of which some lie on one another."""
    rng = np.random.default_rng(seed)
    height, width = size
    ys, xs = np.mgrid[:height, :width] + 0.5
    masks = np.empty((count, height, width), np.float32)
    for mask in masks:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        radius = rng.uniform(0.08, 0.35) * min(size)
        mask[:] = sharp * (radius - np.hypot(ys - y, (xs - x) * rng.uniform(0.6, 1.6))) + rng.normal(0, 0.3, size)
    masks[count // 2] = masks[0] + 0.05  # a double
    logits = rng.normal(0, 2.5, (count, len(LABELS) + 1)).astype(np.float32)
    return logits, masks


def outputs_of(logits: np.ndarray, masks: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """As the graph gives them, a batch of one."""
    torch = pytest.importorskip("torch")
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    boxes = np.sort(np.random.default_rng(seed).random((len(logits), 2, 2)), 1).reshape(-1, 4)
    return {
        "boxes": boxes[None].astype(np.float32),
        "scores": probabilities[None, :, :-1].max(-1),
        "class_ids": probabilities[None, :, :-1].argmax(-1),
        "no_object": probabilities[None, :, -1],
        "masks": masks[None],
    }


def reference(logits: np.ndarray, masks: np.ndarray, frame: tuple[int, int], **options: Any) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    raw = SimpleNamespace(logits=torch.from_numpy(logits)[None], pred_masks=torch.from_numpy(masks)[None])
    options = {"label_ids_to_fuse": set(), **options}
    return DetrImageProcessorPil().post_process_panoptic_segmentation(raw, target_sizes=[frame], **options)[0]


def answer(
    outputs: dict[str, np.ndarray], frame: tuple[int, int], threshold: float | None = None, **options: Any
) -> Any:
    rule = PanopticDecode(**{"top_k": outputs["scores"].shape[1], "threshold": 0.5, "stride": 4, **options})
    manifest: Any = SimpleNamespace(decode=rule, labels=LABELS)
    return decode(outputs, [plan(frame, PREPROCESS)], manifest, threshold=threshold)[0]


FRAMES = [(480, 640), (250, 417), (900, 301)]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("sharp", [0.15, 1.0, 40.0])
@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.2}, {"overlap_mask_area_threshold": 0.3, "mask_threshold": 0.3}]
)
def test_the_merge_equals_transformers(frame: tuple[int, int], sharp: float, options: dict[str, float]) -> None:
    height, width = (-(-side // 4) for side in plan(frame, PREPROCESS).input_size)
    segments = 0
    for seed in range(3):
        logits, masks = scene(24, (height, width), seed, sharp)
        wanted = reference(logits, masks, frame, **options)
        found = answer(outputs_of(logits, masks), frame, **options)
        assert (found.segment_map != np.maximum(wanted["segmentation"].numpy(), 0)).mean() < 1e-4
        assert [(one.id, one.class_id) for one in found.segments] == [
            (one["id"], one["label_id"]) for one in wanted["segments_info"]
        ]
        np.testing.assert_allclose(
            [one.score for one in found.segments], [one["score"] for one in wanted["segments_info"]], atol=1e-5
        )
        areas = np.bincount(found.segment_map.ravel(), minlength=1 + len(found.segments))
        assert [one.area for one in found.segments] == [areas[one.id] for one in found.segments]
        segments += len(found.segments)
    assert segments >= 9


def test_queries_of_a_fused_class_are_one_segment_and_all_others_keep_theirs() -> None:
    """Against transformers' merge without fusing: it gives one id to several things after a fused class (#23461)."""
    fused = 0
    for seed in range(6):
        logits, masks = scene(24, (32, 43), seed)
        logits[::3, 0] += 6  # much sky
        wanted = reference(logits, masks, (480, 640))
        found = answer(outputs_of(logits, masks), (480, 640), label_ids_to_fuse=(0,))
        apart = np.maximum(wanted["segmentation"].numpy(), 0)
        infos = wanted["segments_info"]
        sky = [one for one in infos if one["label_id"] == 0]
        things = [one for one in infos if one["label_id"] != 0]
        assert [one.id for one in found.segments] == list(range(1, len(things) + 2))
        (whole,) = [one for one in found.segments if one.class_id == 0]
        region = np.isin(apart, [one["id"] for one in sky])
        assert ((found.segment_map == whole.id) != region).mean() < 1e-4
        assert whole.score == pytest.approx(max(one["score"] for one in sky), abs=1e-5)
        for ours, theirs in zip([one for one in found.segments if one.class_id], things, strict=True):
            assert ours.class_id == theirs["label_id"]
            assert ((found.segment_map == ours.id) != (apart == theirs["id"])).mean() < 1e-4
        areas = np.bincount(found.segment_map.ravel())
        assert [one.area for one in found.segments] == [areas[one.id] for one in found.segments]
        fused += len(sky) - 1
    assert fused >= 3


# class ids to fuse -> an order of the queries in which transformers counts right: no segment that is new comes after a
# class that was fused again, unless that class has the highest id so far (huggingface/transformers#23461)
FUSED = [((0,), (1, 2, 0)), ((0,), (0, 1, 2)), ((0, 2), (1, 2, 0)), ((0, 1, 2), (2, 0, 1))]


def fusing_scene(frame: tuple[int, int], seed: int, order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """As `scene`, with much sky, the queries in the order of their classes."""
    height, width = (-(-side // 4) for side in plan(frame, PREPROCESS).input_size)
    logits, masks = scene(24, (height, width), seed)
    logits[::3, 0] += 6
    rank = np.argsort(order)[logits[:, :-1].argmax(-1)]
    rows = np.argsort(rank, kind="stable")
    return logits[rows], masks[rows]


def segments_of(merged: dict[str, Any]) -> list[tuple[int, int, float]]:
    """Id, class and best score of each of transformers' segments, which it lists once for every query."""
    found: dict[tuple[int, int], list[float]] = {}
    for one in merged["segments_info"]:
        found.setdefault((one["id"], one["label_id"]), []).append(one["score"])
    return [(*key, max(scores)) for key, scores in found.items()]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(("fused", "order"), FUSED)
def test_fused_classes_are_those_of_transformers(
    frame: tuple[int, int], fused: tuple[int, ...], order: tuple[int, ...]
) -> None:
    again = 0
    for seed in range(3):
        logits, masks = fusing_scene(frame, seed, order)
        merged = reference(logits, masks, frame, label_ids_to_fuse=set(fused))
        wanted = segments_of(merged)
        assert [one[0] for one in wanted] == list(range(1, len(wanted) + 1)), "transformers' bug shows here"
        found = answer(outputs_of(logits, masks), frame, label_ids_to_fuse=fused)
        np.testing.assert_array_equal(found.segment_map, np.maximum(merged["segmentation"].numpy(), 0))
        assert [(one.id, one.class_id) for one in found.segments] == [one[:2] for one in wanted]
        np.testing.assert_allclose([one.score for one in found.segments], [one[2] for one in wanted], atol=1e-6)
        again += len(merged["segments_info"]) - len(wanted)
    assert again >= 3


def test_ids_count_on_after_a_fused_class() -> None:
    standing = np.array([True, True, True, False, True])
    assert number_segments(np.array([0, 1, 0, 1, 2]), standing, (0,)).tolist() == [1, 2, 1, 0, 3]
    assert number_segments(np.array([0, 1, 0, 1, 2]), standing, ()).tolist() == [1, 2, 3, 0, 4]


def test_queries_that_show_nothing_rather_than_something_do_not_take_part() -> None:
    logits, masks = scene(24, (32, 43), 1)
    logits[:, -1] = logits[:, :-1].max(-1) + np.where(np.arange(24) % 2, 0.5, -3)
    wanted = reference(logits, masks, (480, 640), threshold=0.1)
    found = answer(outputs_of(logits, masks), (480, 640), threshold=0.1)
    assert (found.segment_map != np.maximum(wanted["segmentation"].numpy(), 0)).mean() < 1e-4
    assert len(found.detections) > np.count_nonzero(np.arange(24) % 2 == 0)  # as objects they count


def test_detections_have_their_whole_masks() -> None:
    torch = pytest.importorskip("torch")
    logits, masks = scene(24, (32, 43), 2)
    outputs = outputs_of(logits, masks)
    found = answer(outputs, (480, 640)).detections
    rows = np.flatnonzero(outputs["scores"][0] > 0.5)
    rows = rows[np.argsort(-outputs["scores"][0][rows], kind="stable")]
    np.testing.assert_array_equal(found.scores, outputs["scores"][0][rows])
    dense = torch.nn.functional.interpolate(torch.from_numpy(masks[rows])[None].sigmoid(), (480, 640), mode="bilinear")
    assert (found.masks.dense() != (dense[0] > 0.5).numpy()).mean() < 1e-4
    assert (found[:2].masks.areas == found.masks.areas[:2]).all()
    assert [row["mask"] for row in found.to_dict()["detections"]] == found.masks.rle()


def test_the_best_few_give_what_they_give_where_there_are_no_others() -> None:
    logits, masks = scene(24, (32, 43), 2)
    outputs = outputs_of(logits, masks)
    best = np.sort(np.argsort(-outputs["scores"][0], kind="stable")[:4])
    rule = PanopticDecode(top_k=24, threshold=0.5, stride=4)
    manifest: Any = SimpleNamespace(decode=rule, labels=LABELS)
    few = decode(outputs, [plan((480, 640), PREPROCESS)], manifest, top_k=4)[0]
    alone = answer({name: array[:, best] for name, array in outputs.items()}, (480, 640))
    np.testing.assert_array_equal(few.segment_map, alone.segment_map)
    assert few.segments == alone.segments and len(few.detections) == len(few.detections.masks) == 4


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_part_of_the_frame_gives_the_turned_answer(rotation: int) -> None:
    """The roi is looked at upright: its answer is that of the upright cut-out, turned back and put in its place."""
    roi = (31, 17, 271, 177)
    frame = (200, 300)
    upright = (160, 240) if rotation == 180 else (240, 160)
    whole, part = plan(upright, PREPROCESS), plan(frame, PREPROCESS, roi=roi, rotation=rotation)
    height, width = (-(-side // 4) for side in whole.input_size)
    logits, masks = scene(24, (height, width), 3)
    rule = PanopticDecode(top_k=24, threshold=0.5, stride=4)
    manifest: Any = SimpleNamespace(decode=rule, labels=LABELS)
    alone, there = (decode(outputs_of(logits, masks), [place], manifest)[0] for place in (whole, part))
    turned = np.rot90(alone.segment_map, rotation // 90)
    np.testing.assert_array_equal(there.segment_map[17:177, 31:271], turned)
    assert there.segment_map.sum() == turned.sum() and there.segments == alone.segments
    dense = np.rot90(alone.detections.masks.dense(), rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(there.detections.masks.dense()[:, 17:177, 31:271], dense)


def test_in_a_padded_batch_only_the_valid_part_is_enlarged() -> None:
    logits, masks = scene(24, (32, 43), 4)
    padded = np.full((24, 54, 54), 9, np.float32)  # padding that would win everywhere
    padded[:, :32, :43] = masks
    found, alone = (answer(outputs_of(logits, maps), (480, 640)) for maps in (padded, masks))
    np.testing.assert_array_equal(found.segment_map, alone.segment_map)


def test_nothing_found() -> None:
    logits, masks = scene(24, (32, 43), 5)
    found = answer(outputs_of(logits, masks), (480, 640), threshold=1.0)
    assert not found.segment_map.any() and found.segments == () and len(found.detections) == 0
    assert found.summary() == "nothing found" and len(found.detections.masks) == 0
    assert found.to_dict() == {"segments": [], "masks": {}, "detections": []}
    assert PanopticSegmentation.empty((4, 5)).segment_map.shape == (4, 5)


def test_the_segments_as_json_and_on_one_line() -> None:
    logits, masks = scene(24, (32, 43), 2)
    found = answer(outputs_of(logits, masks), (480, 640))
    rows = found.to_dict()
    runs = [rows["masks"][str(one.id)] for one in found.segments]
    areas = MaskSet.from_rle(runs).areas.tolist()
    assert areas == [row["area"] for row in rows["segments"]] == found.masks().areas.tolist()
    largest = max(found.segments, key=lambda one: one.area)
    assert found.summary().startswith(f"{largest.label} {largest.score:.2f} ({largest.area / (480 * 640):.1%})")


def test_what_cannot_be_decoded_is_refused() -> None:
    logits, masks = scene(24, (32, 43), 2)
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="threshold must lie in"):
            answer(outputs_of(logits, masks), (480, 640), threshold)
    masks[3, 4, 5] = np.nan
    with pytest.raises(VerificationError, match="NaN or infinity in 'masks'"):
        answer(outputs_of(logits, masks), (480, 640))
    with pytest.raises(InputError, match="masks must be 2, one a detection, but got 0"):
        boxes, ids = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
        Detections(boxes, np.zeros(2, np.float32), ids, ("a", "b"), MaskSet.empty((4, 4)))
