"""Decoding against transformers' own post-processing, on outputs as the graphs give them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from edgevtx.decode import check_options, decode
from edgevtx.errors import InputError, VerificationError
from edgevtx.geometry import plan
from edgevtx.results import Classification, Detections, Features
from edgevtx.rules import (
    ClassifyDecode,
    Decode,
    DetectDecode,
    EmbedDecode,
    Exact,
    Letterbox,
    Preprocess,
    PromptMasksDecode,
    PyramidDecode,
    ShortestEdge,
    Suppress,
)


def preprocess(size: Any, **options: Any) -> Preprocess:
    return Preprocess(size=size, interpolation="bilinear", scale=1 / 255, mean=(0, 0, 0), std=(1, 1, 1), **options)


def manifest(rule: Any, labels: tuple[str, ...] = ("fire", "smoke", "dust")) -> Any:
    return SimpleNamespace(decode=rule, labels=labels)  # all that decoding reads of a manifest


@pytest.mark.parametrize("rule", get_args(Decode))
def test_every_rule_is_known_to_decoding_and_to_comparison(rule: Any) -> None:
    from edgevtx import compare
    from edgevtx.decode import _DECODERS

    assert rule in _DECODERS
    assert rule in compare._TASKS


def test_a_decoders_rule_alone_takes_no_limits() -> None:
    with pytest.raises(InputError, match=r"prompt_masks\) take no threshold"):
        check_options(PromptMasksDecode(), 0.5, None)


EXACT = plan((480, 853), preprocess(Exact(height=640, width=640)))
DETECT = DetectDecode(top_k=50, threshold=0.3)


def boxes_of(count: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).random((1, count, 2, 2)), 2).reshape(1, count, 4).astype(np.float32)


def detection_outputs(count: int = 50, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "boxes": boxes_of(count, seed),
        "scores": rng.random((1, count), np.float32),
        "class_ids": rng.integers(0, 3, (1, count)),
    }


# -- detection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["detr", "rtdetr"])
@pytest.mark.parametrize("frame", [(480, 853), (1000, 333), (2160, 3840)])
def test_detections_equal_transformers(family: str, frame: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 60, 4 if family == "detr" else 3, generator=generator) * 2
    cxcywh = torch.rand(1, 60, 4, generator=generator) * 1.2 - 0.1  # some reach over the frame's edge
    processor = DetrImageProcessorPil() if family == "detr" else RTDetrImageProcessorPil()
    (want,) = processor.post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=cxcywh), threshold=0.3, target_sizes=[frame]
    )
    # the graph's part: probabilities, corners, the best K
    xyxy = torch.cat([cxcywh[..., :2] - cxcywh[..., 2:] / 2, cxcywh[..., :2] + cxcywh[..., 2:] / 2], -1)
    if family == "detr":
        scores, class_ids = logits.softmax(-1)[..., :-1].max(-1)
    else:
        scores, flat = logits.sigmoid().flatten(1).topk(60)
        class_ids, xyxy = flat % 3, xyxy[:, flat[0] // 3]
    outputs = {"boxes": xyxy.numpy(), "scores": scores.numpy(), "class_ids": class_ids.numpy()}
    size = ShortestEdge(shortest=800, longest=1333) if family == "detr" else Exact(height=640, width=640)
    (found,) = decode(outputs, [plan(frame, preprocess(size))], manifest(DetectDecode(top_k=60, threshold=0.3)))

    assert isinstance(found, Detections) and len(found) >= 20
    order = torch.argsort(want["scores"], descending=True, stable=True)
    np.testing.assert_array_equal(found.scores, want["scores"][order])
    np.testing.assert_array_equal(found.class_ids, want["labels"][order])
    ordered = want["boxes"][order].numpy()  # corners may be swapped where a width was negative
    ordered = np.concatenate(
        [np.minimum(ordered[:, :2], ordered[:, 2:]), np.maximum(ordered[:, :2], ordered[:, 2:])], 1
    )
    np.testing.assert_allclose(found.boxes, ordered, atol=1e-3)


def test_the_threshold_itself_is_dropped_and_ties_keep_their_order() -> None:
    outputs = detection_outputs(5)
    outputs["scores"] = np.array([[0.5, 0.75, 0.25, 0.75, 0.9]], np.float32)
    outputs["class_ids"] = np.arange(5)[None]
    (found,) = decode(outputs, [EXACT], manifest(DETECT), threshold=0.5)
    assert found.class_ids.tolist() == [4, 1, 3]
    (best,) = decode(outputs, [EXACT], manifest(DETECT), top_k=2)
    assert best.class_ids.tolist() == [4, 1]
    (default,) = decode(outputs, [EXACT], manifest(DETECT))
    assert default.class_ids.tolist() == [4, 1, 3, 0] and default.labels == ("4", "smoke", "3", "fire")


@pytest.mark.parametrize("threshold", [1.0, 0.999999])
def test_nothing_found_is_an_empty_result(threshold: float) -> None:
    (found,) = decode(detection_outputs(), [EXACT], manifest(DETECT), threshold=threshold)
    assert len(found) == 0 and found.boxes.shape == (0, 4)


def test_boxes_of_a_letterbox_are_of_its_valid_part() -> None:
    geometry = plan((480, 853), preprocess(Letterbox(height=640, width=640)))
    outputs = detection_outputs(1) | {
        "boxes": np.array([[[0, 0, 1, 1]]], np.float32),
        "scores": np.ones((1, 1), np.float32),
    }
    (found,) = decode(outputs, [geometry], manifest(DETECT))
    np.testing.assert_allclose(found.boxes, [[0, 0, 853, 480]], atol=1e-3)


def test_boxes_of_a_rotated_region_land_in_the_region() -> None:
    geometry = plan((480, 853), preprocess(Exact(height=64, width=64)), roi=(100, 50, 300, 150), rotation=90)
    outputs = detection_outputs(1) | {
        "boxes": np.array([[[0, 0, 0.5, 0.25]]], np.float32),  # upper left of the upright region
        "scores": np.ones((1, 1), np.float32),
    }
    (found,) = decode(outputs, [geometry], manifest(DETECT))
    np.testing.assert_allclose(found.boxes, [[100, 100, 150, 150]], atol=1e-3)  # lower left of the region


def test_each_frame_of_a_batch_has_its_own_geometry() -> None:
    one, other = detection_outputs(seed=1), detection_outputs(seed=2)
    outputs = {name: np.concatenate([one[name], other[name]]) for name in one}
    second = plan((100, 50), preprocess(Exact(height=640, width=640)))
    found = decode(outputs, [EXACT, second], manifest(DETECT))
    for result, alone, geometry in zip(found, (one, other), (EXACT, second), strict=True):
        (want,) = decode(alone, [geometry], manifest(DETECT))
        np.testing.assert_array_equal(result.boxes, want.boxes)
    assert len(decode(outputs, [EXACT], manifest(DETECT))) == 1


def test_boxes_in_units_of_the_input_count_its_padding() -> None:
    """A frame of 240 x 320 in the upper half of 64 x 64: 48 rows of it are the frame's."""
    geometry = plan((240, 320), preprocess(Letterbox(height=64, width=64, centered=False)))
    outputs = {
        "boxes": np.array([[[0.25, 0.25, 0.5, 0.75]]], np.float32),
        "scores": np.array([[0.9]], np.float32),
        "class_ids": np.array([[1]]),
    }
    for units, box in (("input", [80, 80, 160, 240]), ("frame", [80, 60, 160, 180])):
        (found,) = decode(outputs, [geometry], manifest(DetectDecode(top_k=1, threshold=0.3, units=units)))
        np.testing.assert_allclose(found.boxes, [box], atol=1e-4)


def suppressed(boxes: np.ndarray, class_ids: np.ndarray, iou: float) -> list[int]:
    """Greedy suppression by its definition, one pair of rows at a time, boxes best first."""
    kept: list[int] = []
    for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for other in kept:
            u0, v0, u1, v1 = boxes[other].tolist()
            shared = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared
            if class_ids[other] == class_ids[row] and union > 0 and shared / union > iou:
                break
        else:
            kept.append(row)
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iou", [0.0, 0.2, 0.45, 1.0])
def test_of_overlapping_boxes_of_a_class_the_best_stays(seed: int, iou: float) -> None:
    outputs = detection_outputs(seed=seed)
    rule = DetectDecode(top_k=50, threshold=0.3, suppress=Suppress(iou=iou))
    (found,) = decode(outputs, [EXACT], manifest(rule))
    (everything,) = decode(outputs, [EXACT], manifest(DETECT))
    kept = suppressed(everything.boxes, everything.class_ids, iou)
    np.testing.assert_array_equal(found.boxes, everything.boxes[kept])
    np.testing.assert_array_equal(found.scores, everything.scores[kept])
    assert 0 < len(kept) <= len(everything)
    assert iou > 0.2 or len(kept) < len(everything)
    (few,) = decode(outputs, [EXACT], manifest(rule), top_k=3)
    np.testing.assert_array_equal(few.boxes, found.boxes[:3])  # the best three of what is left, not of all
    most = DetectDecode(top_k=50, threshold=0.3, suppress=Suppress(iou=iou, keep=2))
    assert len(decode(outputs, [EXACT], manifest(most))[0]) == 2


def test_nothing_above_the_threshold_leaves_nothing_to_suppress() -> None:
    rule = DetectDecode(top_k=50, threshold=1.0, suppress=Suppress(iou=0.5))
    assert len(decode(detection_outputs(), [EXACT], manifest(rule))[0]) == 0


# -- classification and features ---------------------------------------------------------------------------------

SCORES = {"scores": np.array([[0.6, 0.3, 0.1]], np.float32), "class_ids": np.array([[1, 2, 0]])}
CLASSIFY = ClassifyDecode(top_k=3)


@pytest.mark.parametrize(
    ("options", "want"),
    [({}, [1, 2, 0]), ({"top_k": 2}, [1, 2]), ({"threshold": 0.3}, [1]), ({"threshold": 0.05, "top_k": 1}, [1])],
)
def test_classes(options: dict[str, Any], want: list[int]) -> None:
    (found,) = decode(SCORES, [EXACT], manifest(CLASSIFY), **options)
    assert isinstance(found, Classification) and found.class_ids.tolist() == want
    assert found.labels == tuple(("fire", "smoke", "dust")[i] for i in want)
    assert not np.shares_memory(found.scores, SCORES["scores"])


def test_features_know_where_their_patches_lie() -> None:
    geometry = plan((100, 200), preprocess(ShortestEdge(shortest=50), crop=(50, 50)))
    rng = np.random.default_rng(0)
    outputs = {
        "cls": rng.random((1, 8), np.float32),
        "patches": rng.random((1, 3, 3, 8), np.float32),
        "attention": np.ones((1, 2, 3, 3), np.float32),
    }
    (found,) = decode(outputs, [geometry], manifest(EmbedDecode(patch_size=14, attention=True)))
    assert isinstance(found, Features) and found.geometry is not None
    np.testing.assert_array_equal(found.patches, outputs["patches"][0])
    # 3 patches of 14 px cover 42 of the 50 px of the crop, which shows x from 50 to 150 of the frame
    shown = np.argwhere(found.geometry.masks_to_frame(found.attention, fill=0)[0])
    assert shown.min(0).tolist() == [0, 50] and shown.max(0).tolist() == [83, 133]
    (bare,) = decode({"patches": outputs["patches"]}, [geometry], manifest(EmbedDecode(patch_size=14)))
    assert bare.cls is None and bare.attention is None


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 51}, "at most 50, which was fixed at export, but got 51; export .* --top-k 51"),
        ({"top_k": 0}, "at least 1, but got 0"),
        ({"top_k": -3}, "at least 1"),
        ({"top_k": 2.5}, "whole number"),
        ({"top_k": True}, "whole number"),
        ({"threshold": 1.01}, r"0\.\.1, but got 1.01"),
        ({"threshold": -0.1}, r"0\.\.1"),
        ({"threshold": float("nan")}, r"0\.\.1, but got nan"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        decode(detection_outputs(), [EXACT], manifest(DETECT), **options)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"threshold": 0.5}])
def test_features_take_no_threshold(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"take no (top_k|threshold)"):
        decode({"patches": np.zeros((1, 2, 2, 3))}, [EXACT], manifest(EmbedDecode(patch_size=14)), **options)


@pytest.mark.parametrize("name", ["scores", "boxes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_engine_that_overflows_never_means_nothing_found(name: str, value: float) -> None:
    outputs = detection_outputs()
    outputs[name][0, 7] = value
    with pytest.raises(VerificationError, match=f"NaN or infinity in '{name}'"):
        decode(outputs, [EXACT], manifest(DETECT))


def test_a_pyramid_keeps_the_order_of_its_rule() -> None:
    rng = np.random.default_rng(0)
    sizes = {"fine": (13, 19, 8), "coarse": (7, 10, 16)}
    outputs = {name: rng.random((1, *size), np.float32) for name, size in reversed(sizes.items())}
    outputs["cls"] = rng.random((1, 16), np.float32)
    rule = PyramidDecode(maps=("fine", "coarse"), strides=(4, 8))
    (found,) = decode(outputs, [plan((100, 150), preprocess(Exact(height=50, width=75)))], manifest(rule))
    assert [one.shape for one in found.maps] == list(sizes.values()) and found.strides == (4, 8)
    np.testing.assert_array_equal(found.maps[0], outputs["fine"][0])
    assert found.cls is not None and not np.shares_memory(found.maps[0], outputs["fine"])
    assert found.scale(0).geometry.input_size == (52, 76) and found.geometry.input_size == (56, 80)
    with pytest.raises(InputError, match="take no top_k"):
        decode(outputs, [EXACT], manifest(rule), top_k=1)
