"""DETR panoptic: a frame in; one box, score, class and mask per object query out.

Carion et al., "End-to-End Object Detection with Transformers", 2020, section 4.4.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export import detr
from edgevtx.export.boxes import check_top_k, cxcywh_to_xyxy, reference_detections
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.processor import reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import check_batch, check_model_type, class_names, detect_outputs
from edgevtx.manifest import TensorInfo
from edgevtx.masks import MaskSet
from edgevtx.results import PanopticSegmentation, Segment
from edgevtx.rules import PanopticDecode
from edgevtx.runtimes.base import Array

STRIDE = 4  # of the mask head's finest feature map, a ResNet's first stage
STAGES = ("stage1", "stage2", "stage3", "stage4")
# the mask head's names in published weights -> transformers'
_PUBLISHED = {
    r"mask_head\.lay([12])\.": r"mask_head.conv\1.conv.",
    r"mask_head\.gn([12])\.": r"mask_head.conv\1.norm.",
    **{rf"mask_head\.lay{i + 3}\.": f"mask_head.fpn_stages.{i}.refine.conv." for i in range(3)},
    **{rf"mask_head\.gn{i + 3}\.": f"mask_head.fpn_stages.{i}.refine.norm." for i in range(3)},
    **{rf"mask_head\.adapter{i + 1}\.": f"mask_head.fpn_stages.{i}.fpn_adapter." for i in range(3)},
    r"mask_head\.out_lay\.": "mask_head.output_conv.",
    r"bbox_attention\.q_linear\.": "bbox_attention.q_proj.",
    r"bbox_attention\.k_linear\.": "bbox_attention.k_proj.",
}


class PanopticDetector(nn.Module):
    """pixels (N,H,W,3) uint8 BGR [, valid_size (N,2) int32] -> boxes, scores, class_ids, no_object, masks.

    As `detr.Detector`, with the probability of "no object" (N,K) and mask logits (N,K,h,w). Queries keep their order:
    the merge of their masks depends on it. Where `top_k` drops some, their masks are never computed.
    """

    def __init__(self, model: Any, frames: Frames, top_k: int, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.detector = detr.Detector(model.detr, frames, top_k, size)
        self.attention = model.bbox_attention
        self.head = MaskHead(model.mask_head, model.config.d_model)
        self.top_k = top_k

    def forward(
        self, pixels: torch.Tensor, valid_size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        seen, heads = self.detector.look(pixels, valid_size), self.detector.model
        answers = seen.answers
        probabilities = heads.class_labels_classifier(answers).softmax(-1)
        if self.top_k < answers.shape[1]:
            rows = probabilities[..., :-1].amax(-1).topk(self.top_k, dim=1).indices.sort(dim=1).values[..., None]
            answers = answers.gather(1, rows.expand(-1, -1, answers.shape[2]))
            probabilities = probabilities.gather(1, rows.expand(-1, -1, probabilities.shape[2]))
        scores, class_ids = probabilities[..., :-1].max(-1)
        boxes = cxcywh_to_xyxy(heads.bbox_predictor(answers).sigmoid())
        masks = self.head(seen.projected, self._attend(answers, seen), seen.maps)
        return boxes, scores, class_ids, probabilities[..., -1], masks

    def _attend(self, answers: torch.Tensor, seen: detr.Look) -> torch.Tensor:
        """Where each query looks in the encoder's memory, (N,K,heads,h,w), one in all over heads and cells.

        transformers' `DetrMHAttentionMap`, with the memory's tokens in the rows of a matrix.
        """
        attention, (batch, queries, _) = self.attention, answers.shape
        query = attention.q_proj(answers) * attention.scaling
        key = attention.k_proj(seen.memory)
        query, key = (x.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for x in (query, key))
        weights = (query @ key.transpose(2, 3)).transpose(1, 2)  # (N,K,heads,h*w)
        if seen.mask is not None:
            weights = weights.masked_fill(~seen.mask, -math.inf)
        height, width = seen.projected.shape[-2:]
        looks: torch.Tensor = weights.flatten(2).softmax(-1).view(batch, queries, -1, height, width)
        return looks


class MaskHead(nn.Module):
    """transformers' `DetrMaskHeadSmallConv`, computing once what all queries share.

    The head runs on features and attention of each query side by side. Its first convolution is linear: the share of
    the features, 256 of 264 channels in the published models, is the same for all queries, and so are the adapted
    feature maps that are added on the way up. At 100 queries that leaves a third of the multiplications.
    """

    def __init__(self, head: Any, channels: int) -> None:
        super().__init__()
        first = head.conv1.conv
        self.of_features = _part_of(first, slice(0, channels), bias=True)
        self.of_attention = _part_of(first, slice(channels, None), bias=False)
        self.norm, self.activation, self.second = head.conv1.norm, head.conv1.activation, head.conv2
        self.stages, self.last = head.fpn_stages, head.output_conv

    def forward(self, features: torch.Tensor, attention: torch.Tensor, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """features (N,D,h,w), attention (N,K,heads,h,w) and the backbone's maps, fine to coarse -> (N,K,H,W)."""
        queries = attention.shape[1]
        hidden = self.of_attention(attention.flatten(0, 1))
        hidden = _add(hidden, self.of_features(features), queries)
        hidden = self.second(self.activation(self.norm(hidden)))
        for stage, finer in zip(self.stages, (maps[2], maps[1], maps[0]), strict=True):
            hidden = nn.functional.interpolate(hidden, size=finer.shape[-2:], mode="nearest")
            hidden = stage.refine(_add(hidden, stage.fpn_adapter(finer), queries))
        masks: torch.Tensor = self.last(hidden)
        return _of_queries(masks, queries).squeeze(2)


def _add(each: torch.Tensor, shared: torch.Tensor, queries: int) -> torch.Tensor:
    """(N*K,C,h,w) of every query + (N,C,h,w) of its image."""
    return (_of_queries(each, queries) + shared[:, None]).flatten(0, 1)


def _of_queries(each: torch.Tensor, queries: int) -> torch.Tensor:
    """(N*K,...) -> (N,K,...)."""
    return each.view(-1, queries, *each.shape[1:])


def _part_of(convolution: nn.Conv2d, channels: slice, *, bias: bool) -> nn.Conv2d:
    """The convolution of some of the input's channels; all parts together give the whole one."""
    weight = convolution.weight[:, channels]
    part = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=1, bias=bias)
    part.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias and convolution.bias is not None:
        part.bias = convolution.bias
    return part


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The panoptic model of a checkpoint; see `BuildOptions`. Height and width are dynamic without `options.frame`."""
    check_model_type(checkpoint, RECIPE)
    if "ObjectDetection" in checkpoint.architecture:
        raise CheckpointError(f"{checkpoint.path} is a DETR without masks; export it as family detr")
    check_batch(options.batch)
    model = _load(checkpoint)
    plan = detr.plan_inputs(checkpoint, options)
    labels = class_names(model.config, options.labels)
    top_k = check_top_k(options.top_k, model.config.num_queries)
    rule = PanopticDecode(
        top_k=top_k, threshold=detr.THRESHOLD, stride=STRIDE, label_ids_to_fuse=_fused(checkpoint, len(labels))
    )
    traced = traced_copy(model, f"detr.{detr.STEM}", plan.preprocess)
    height, width = (-(-side // STRIDE) for side in plan.size) if plan.size else (None, None)
    outputs = (
        *detect_outputs(options.batch, top_k),
        TensorInfo(name="no_object", shape=(options.batch, top_k), dtype="float32"),
        TensorInfo(name="masks", shape=(options.batch, top_k, height, width), dtype="float32"),
    )
    module = PanopticDetector(traced, Frames(plan.preprocess), top_k, plan.size)
    reference = partial(_reference, model, plan.processor, labels, rule)
    return plan.traceable(RECIPE, module, outputs, rule, labels, reference)


def _load(checkpoint: Checkpoint) -> Any:
    from transformers import DetrForSegmentation

    model = detr.load_with_resnet(checkpoint, DetrForSegmentation, STAGES, _PUBLISHED)
    stages = model.config.backbone_config.out_features
    if len(stages) not in (3, 4) or stages[0] != "stage1":
        raise CheckpointError(
            f"{checkpoint.path} lets the mask head see the backbone's {', '.join(stages)}; expected out_features "
            f"{', '.join(STAGES)}"
        )
    return model


def _fused(checkpoint: Checkpoint, classes: int) -> tuple[int, ...]:
    """The config's `label_ids_to_fuse`: class ids of what has no instances, such as sky; none where it names none."""
    ids = checkpoint.config.get("label_ids_to_fuse") or ()
    if not all(isinstance(i, int) and 0 <= i < classes for i in ids):
        raise CheckpointError(
            f"label_ids_to_fuse of {checkpoint.path} must be class ids from 0 to {classes - 1}, but are {list(ids)}"
        )
    return tuple(sorted(set(ids)))


def _reference(
    model: Any, processor: Any, labels: tuple[str, ...], rule: PanopticDecode, frame: Array, threshold: float = 0.0
) -> PanopticSegmentation:
    """Transformers' processor, model and post-processing; of detections and masks, and of the merged map.

    transformers merges masks and nothing more: an object's whole mask is its probability enlarged to the frame, as
    the merge enlarges it, above `mask_threshold`.
    """
    size = frame.shape[:2]
    with torch.no_grad():
        outputs = model(**reference_inputs(processor, [frame]))
        best = outputs.logits.softmax(-1)[0, :, :-1].amax(-1).topk(rule.top_k).indices.sort().values
        for name in ("logits", "pred_boxes", "pred_masks"):
            setattr(outputs, name, outputs[name][:, best])
        boxes = processor.post_process_object_detection(outputs, threshold, [size])[0]
        merged = processor.post_process_panoptic_segmentation(
            outputs,
            threshold,
            rule.mask_threshold,
            rule.overlap_mask_area_threshold,
            set(),
            [size],
        )[0]
        scores = outputs.logits.softmax(-1)[0, :, :-1].amax(-1)
        chosen = torch.nonzero(scores > threshold)[:, 0]
        chosen = chosen[scores[chosen].sort(descending=True, stable=True).indices]
        masks = [
            nn.functional.interpolate(outputs.pred_masks[:, i : i + 1].sigmoid(), size, mode="bilinear")[0, 0]
            > rule.mask_threshold
            for i in chosen
        ]
    found = reference_detections(boxes, labels, rule.top_k)
    sets = [MaskSet.from_dense(mask.numpy()[None]) for mask in masks]
    whole = MaskSet.concatenate([MaskSet.empty(size), *sets])
    segment_map, segments = _fuse(merged, rule.label_ids_to_fuse, labels)
    return PanopticSegmentation(segment_map, segments, lambda: dataclasses.replace(found, masks=whole))


def _fuse(merged: dict[str, Any], fused: tuple[int, ...], labels: tuple[str, ...]) -> tuple[Array, tuple[Segment, ...]]:
    """transformers' map with every query apart -> the map and segments with one segment for each class of `fused`.

    Where it fuses by itself, it goes on counting from the fused segment's id, and gives later things an id that others
    have (huggingface/transformers#23461). What stands does not depend on what is fused.
    """
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in merged["segments_info"]:
        groups.setdefault((one["label_id"], 0 if one["label_id"] in fused else one["id"]), []).append(one)
    apart = np.maximum(merged["segmentation"].numpy(), 0)  # -1 where no query takes part
    segment_map, segments = np.zeros(apart.shape, np.int32), []
    for number, ((kind, _), group) in enumerate(groups.items(), 1):
        region = np.isin(apart, [one["id"] for one in group])
        segment_map[region] = number
        score = max(one["score"] for one in group)
        segments.append(Segment(number, kind, labels[kind], score, int(np.count_nonzero(region))))
    return segment_map, tuple(segments)


def _tiny_config() -> dict[str, Any]:
    config = detr._tiny_config()["detr"]
    backbone = {**config["backbone_config"], "out_features": list(STAGES)}
    small = {"num_queries": 44, "d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    named = {"architectures": ["DetrForSegmentation"], "backbone_config": backbone}
    return {"detr": {**config, **small, **named}}  # a mask head counts channels and heads by eights


RECIPE = Recipe(
    family="detr_panoptic",
    title="DETR panoptic segmentation",
    paper="https://arxiv.org/abs/2005.12872",
    task="panoptic",
    result="PanopticSegmentation",
    model_types=("detr",),
    layouts=(
        "Hugging Face directory, with a transformers or a timm ResNet",
        "config.json alone with a seed",
        *names_for("detr_panoptic"),
    ),
    variants=("DETR panoptic", "DETR-DC5 panoptic"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "frame", "top_k", "labels", "resize"),
)
