"""RT-DETR and RT-DETRv2: a frame in; the best boxes, scores and classes out.

Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", 2023; Lv et al., "RT-DETRv2: Improved Baseline with
Bag-of-Freebies for Real-Time Detection Transformer", 2024.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.boxes import check_top_k, cxcywh_to_xyxy, reference_detections
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import (
    batch_dimension,
    check_batch,
    check_model_type,
    class_names,
    detect_outputs,
    needless_frame,
    pixels_spec,
)
from edgevtx.results import Detections
from edgevtx.rules import DetectDecode
from edgevtx.runtimes.base import Array

THRESHOLD = 0.5


class Detector(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> boxes (N,K,4) xyxy in 0..1, scores (N,K), class_ids (N,K), best first.

    RT-DETR's own forward pass for one input size, with two savings that change no number: the encoder's box head
    runs on the selected queries only, and the decoder's class head on its last layer only.
    """

    anchors: torch.Tensor
    inside: torch.Tensor

    def __init__(self, model: Any, frames: Frames, top_k: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.frames = frames
        self.model = model
        self.top_k = top_k
        config = model.config
        self.num_queries = int(config.num_queries)
        self.levels = feature_shapes(config, size)
        # v2 asserts on the shapes in every layer: an assertion on a tensor would be traced, one on Python ints is not
        self.shapes = np.array(self.levels, dtype=object)
        anchors, inside = model.model.generate_anchors(
            tuple(self.levels), device=torch.device("cpu"), dtype=torch.float32
        )
        self.register_buffer("anchors", anchors.clone())
        self.register_buffer("inside", inside.to(torch.float32))
        for aifi, level in zip(model.model.encoder.aifi, config.encode_proj_layers, strict=True):
            height, width = self.levels[level]
            table = aifi.position_embedding(width=width, height=height, device=torch.device("cpu"), dtype=torch.float32)
            aifi.position_embedding = FoldedPositions(table)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        queries, reference, memory = self._select(self._encode(self.frames(pixels)))
        decoder = self.model.model.decoder
        for layer, box_head in zip(decoder.layers, decoder.bbox_embed, strict=True):
            queries = layer(
                queries,
                object_queries_position_embeddings=decoder.query_pos_head(reference),
                encoder_hidden_states=memory,
                reference_points=reference[:, :, None],
                spatial_shapes=self.shapes,
                spatial_shapes_list=self.levels,
            )
            reference = (box_head(queries) + inverse_sigmoid(reference)).sigmoid()
        return self._best(decoder.class_embed[-1](queries), reference)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N,3,H,W) -> the tokens of all feature levels (N,T,D)."""
        core = self.model.model
        features = core.backbone.model(images).feature_maps
        projected = [project(feature) for project, feature in zip(core.encoder_input_proj, features, strict=True)]
        maps = core.encoder(projected).last_hidden_state
        # levels beyond the encoder's are made from its last map, as the reference does
        maps = [*maps, *[maps[-1]] * (len(self.levels) - len(maps))]
        sources = [project(level) for project, level in zip(core.decoder_input_proj, maps, strict=True)]
        return torch.cat([source.flatten(2).transpose(1, 2) for source in sources], 1)

    def _select(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (N,T,D) -> the best as queries (N,Q,D), their boxes (N,Q,4) cxcywh in 0..1, and the tokens."""
        core = self.model.model
        proposals = core.enc_output(self.inside * memory)
        chosen = core.enc_score_head(proposals).max(-1).values.topk(self.num_queries, dim=1).indices[..., None]
        selected = proposals.gather(1, chosen.expand(-1, -1, proposals.shape[2]))
        anchors = self.anchors.expand(chosen.shape[0], -1, -1).gather(1, chosen.expand(-1, -1, 4))
        boxes = (core.enc_bbox_head(selected) + anchors).sigmoid()
        return selected, boxes, memory

    def margin(self, pixels: Array) -> float:
        """How clear the selection of queries was: the last kept score less the next, in standard deviations."""
        with torch.inference_mode():
            memory = self._encode(self.frames(torch.from_numpy(pixels)))
            core = self.model.model
            scores = core.enc_score_head(core.enc_output(self.inside * memory)).max(-1).values
            kept = min(self.num_queries, scores.shape[1] - 1)
            best = scores.topk(kept + 1, dim=1).values
            return float(((best[:, -2] - best[:, -1]) / scores.std(dim=1)).min())

    def _best(self, logits: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The K best of all query x class scores, as post_process_object_detection(use_focal_loss=True) has it."""
        classes = logits.shape[2]
        scores, index = logits.sigmoid().flatten(1).topk(self.top_k, dim=1)
        rows = torch.div(index, classes, rounding_mode="floor")
        kept = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        return cxcywh_to_xyxy(kept), scores, index - rows * classes


class FoldedPositions(nn.Module):
    """The encoder's position embedding (1,h*w,D) of one size, in place of the module that computes it."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.clone())

    def forward(self, **_: Any) -> torch.Tensor:
        return self.table


def inverse_sigmoid(values: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """The logit of values in 0..1, both sides held above `eps`."""
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))


def feature_shapes(config: Any, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of every feature level for an input of `size`; raises where its pyramid would not fit."""
    stride = max(config.feat_strides)
    if size[0] % stride or size[1] % stride:
        raise CheckpointError(
            f"the image processor's size is {size[0]}x{size[1]}; RT-DETR's feature pyramid needs multiples of {stride}"
        )
    shapes = [(size[0] // step, size[1] // step) for step in config.feat_strides]
    last = shapes[-1]
    extra = config.num_feature_levels - len(shapes)
    return shapes + [(math.ceil(last[0] / 2), math.ceil(last[1] / 2))] * extra


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The detector of a checkpoint; see `BuildOptions`. The input has the processor's one size."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    model = _load(checkpoint)
    processor = load_processor(checkpoint, "RTDetr")
    preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess)
    if size is None:
        raise CheckpointError(
            f"the image processor of {checkpoint.path} scales edges, but RT-DETR takes one size; give height and width"
        )
    labels = class_names(model.config, options.labels)
    top_k = check_top_k(options.top_k, model.config.num_queries)

    kind = model.config.backbone_config.model_type
    if kind not in ("rt_detr_resnet", "resnet"):
        raise CheckpointError(f"{checkpoint.path} has a backbone of type {kind}; expected rt_detr_resnet or resnet")
    stem = "embedder.embedder.0" if kind == "rt_detr_resnet" else "embedder.embedder"
    traced = traced_copy(model, f"model.backbone.model.{stem}.convolution", preprocess)
    detector = Detector(traced, Frames(preprocess), top_k, size).eval()
    return Traceable(
        family=RECIPE.family,
        task=RECIPE.task,
        module=detector,
        inputs=(pixels_spec(options.batch, size),),
        outputs=detect_outputs(options.batch, top_k),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=DetectDecode(top_k=top_k, threshold=THRESHOLD),
        labels=labels,
        reference=partial(_reference, model, processor, labels, top_k),
        selection=detector.margin,
        notes=needless_frame(options.frame, size),
    )


def _load(checkpoint: Checkpoint) -> Any:
    import transformers

    if checkpoint.config.get("learn_initial_query"):
        raise CheckpointError(
            f"{checkpoint.path} has learn_initial_query, which transformers cannot run, so there is no reference for it"
        )
    v1, v2 = transformers.RTDetrForObjectDetection, transformers.RTDetrV2ForObjectDetection
    # training's label embedding is left out; anchors follow the size of the input instead of a cached one
    config = {**checkpoint.config, "num_denoising": 0, "anchor_image_size": None}
    model_class = v1 if checkpoint.model_type == "rt_detr" else v2
    return checkpoint.load(model_class, config=config, unused=("model.denoising_class_embed.",))


def _reference(model: Any, processor: Any, labels: tuple[str, ...], top_k: int, frame: Array) -> Detections:
    """Transformers' processor, model and post-processing, without a threshold."""
    with torch.no_grad():
        outputs = model(pixel_values=reference_inputs(processor, [frame])["pixel_values"])
        found = processor.post_process_object_detection(outputs, -math.inf, [frame.shape[:2]])[0]
    return reference_detections(found, labels, top_k)


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "embedding_size": 16,
            "hidden_sizes": [16, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "encoder_in_channels": [16, 24, 32],
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "decoder_in_channels": [32, 32, 32],
        "d_model": 32,
        "decoder_ffn_dim": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_queries": 40,
        "id2label": {str(index): f"class {index}" for index in range(4)},
    }
    return {
        "rt_detr": {"model_type": "rt_detr", "architectures": ["RTDetrForObjectDetection"], **tiny},
        "rt_detr_v2": {"model_type": "rt_detr_v2", "architectures": ["RTDetrV2ForObjectDetection"], **tiny},
    }


RECIPE = Recipe(
    family="rtdetr",
    title="RT-DETR and RT-DETRv2 object detection",
    paper="https://arxiv.org/abs/2304.08069",
    task="detect",
    result="Detections",
    model_types=("rt_detr", "rt_detr_v2"),
    layouts=("Hugging Face directory", "config.json alone with a seed", *names_for("rtdetr")),
    variants=("RT-DETR", "RT-DETRv2"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "top_k", "labels", "resize"),
)
