"""DETR: a frame in; one box, score and class per object query out.

Carion et al., "End-to-End Object Detection with Transformers", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.boxes import check_top_k, cxcywh_to_xyxy, keep_best, reference_detections
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.resnet_keys import asks_for_timm, dilate_last_stage, is_dilated, timm_to_native, without_timm
from edgevtx.export.spec import check_batch, check_model_type, class_names, detect_outputs, pixels_spec
from edgevtx.geometry import resized_size
from edgevtx.manifest import TensorInfo
from edgevtx.results import Detections, Result
from edgevtx.rules import Decode, DetectDecode, Preprocess
from edgevtx.runtimes.base import Array

THRESHOLD = 0.5
STEM = "model.backbone.model.embedder.embedder.convolution"  # of a DetrForObjectDetection: reads the frame
# frames whose resized sizes the graph is traced and checked with where the size depends on the frame: (height, width)
TRACE_FRAME, OTHER_FRAME = (480, 640), (1920, 1080)


class Look(NamedTuple):
    """What DETR sees: the backbone's `maps`, from fine to coarse; the last one `projected` (N,D,h,w); the encoder's
    `memory` (N,h*w,D); the decoder's `answers` (N,Q,D); the cells that are no padding (N,1,1,h*w), None for all.
    """

    maps: tuple[torch.Tensor, ...]
    projected: torch.Tensor
    memory: torch.Tensor
    answers: torch.Tensor
    mask: torch.Tensor | None


class Detector(nn.Module):
    """pixels (N,H,W,3) uint8 BGR [, valid_size (N,2) int32] -> boxes (N,K,4) xyxy in 0..1, scores, class_ids (N,K).

    DETR's own forward pass, except that no attention mask is made where nothing is padded. Queries keep their order
    unless `top_k` drops some of them.
    """

    def __init__(self, model: Any, frames: Frames, top_k: int, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.frames = frames
        self.model = model
        self.top_k = top_k
        self.positions = _positions(model.model, size)

    def forward(
        self, pixels: torch.Tensor, valid_size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        answers = self.look(pixels, valid_size).answers
        # the last class is "no object"
        scores, class_ids = self.model.class_labels_classifier(answers).softmax(-1)[..., :-1].max(-1)
        boxes = cxcywh_to_xyxy(self.model.bbox_predictor(answers).sigmoid())
        return keep_best(boxes, scores, class_ids, self.top_k)

    def look(self, pixels: torch.Tensor, valid_size: torch.Tensor | None) -> Look:
        """Backbone and transformer, without the heads."""
        detr = self.model.model
        maps = detr.backbone.model(self.frames(pixels, valid_size)).feature_maps
        features = maps[-1]
        height, width = features.shape[-2:]
        mask = None
        if valid_size is None:
            positions = self.positions(height, width)
        else:
            rows = valid_cells(height, pixels.shape[1], valid_size[:, 0])
            columns = valid_cells(width, pixels.shape[2], valid_size[:, 1])
            positions = self.positions(height, width, rows.sum(1), columns.sum(1))
            mask = (rows[:, :, None] & columns[:, None, :]).flatten(1)[:, None, None, :]

        projected = detr.input_projection(features)
        memory = detr.encoder(
            inputs_embeds=projected.flatten(2).transpose(1, 2),
            attention_mask=mask,
            spatial_position_embeddings=positions,
        ).last_hidden_state
        queries = detr.query_position_embeddings.weight.expand(pixels.shape[0], -1, -1)
        answers = detr.decoder(
            inputs_embeds=torch.zeros_like(queries),
            object_queries_position_embeddings=queries,
            spatial_position_embeddings=positions,
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
        ).last_hidden_state
        return Look(tuple(maps), projected, memory, answers, mask)


def valid_cells(cells: int, pixels: int, valid: torch.Tensor) -> torch.Tensor:
    """Which of `cells` rows (columns) of a feature map over `pixels` lie in the first valid (N,): (N,cells) bool.

    Cell i stands for pixel floor(i * pixels / cells), as nearest interpolation of the reference's pixel mask has
    it; in integers, since no float16 or bfloat16 can count pixels.
    """
    return torch.arange(cells, device=valid.device)[None] * pixels < valid.to(torch.int64)[:, None] * cells


class SinePositions(nn.Module):
    """DETR's sine position embedding of a feature map: (1 or N, height * width, D) float32.

    `valid_rows` and `valid_columns` (N,) count the cells that are no padding. Rows and columns are embedded apart
    and put together by broadcasting; cells in the padding get values that nothing looks at.
    """

    period: torch.Tensor

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        pairs = torch.arange(0, embedding.num_position_features, 2, dtype=torch.float32)
        self.register_buffer("period", embedding.temperature ** (pairs / embedding.num_position_features))
        self.scale = float(embedding.scale) if embedding.normalize else None

    def forward(
        self,
        height: int,
        width: int,
        valid_rows: torch.Tensor | None = None,
        valid_columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, columns = self._embed(height, valid_rows), self._embed(width, valid_columns)
        shape = (-1, -1, width, -1), (-1, height, -1, -1)
        both = [rows[:, :, None].expand(*shape[0]), columns[:, None].expand(*shape[1])]
        return torch.cat(both, 3).flatten(1, 2)

    def _embed(self, cells: int, valid: torch.Tensor | None) -> torch.Tensor:
        """(1 or N, cells, D/2)."""
        position = torch.arange(1, cells + 1, dtype=torch.float32, device=self.period.device)[None]
        if valid is not None:
            position = torch.minimum(position, valid[:, None].to(torch.float32))
        if self.scale is not None:
            position = position / (position[:, -1:] + 1e-6) * self.scale
        angle = position[:, :, None] / self.period
        return torch.stack((angle.sin(), angle.cos()), dim=3).flatten(2)


class LearnedPositions(nn.Module):
    """DETR's learned position embedding: (1, height * width, D); padding does not change it."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.rows, self.columns = embedding.row_embeddings, embedding.column_embeddings

    def forward(self, height: int, width: int, *_: torch.Tensor) -> torch.Tensor:
        rows = self.rows.weight[:height, None].expand(-1, width, -1)
        columns = self.columns.weight[None, :width].expand(height, -1, -1)
        return torch.cat((columns, rows), 2).flatten(0, 1)[None]


class FoldedPositions(nn.Module):
    """The position embedding of one size, computed here: (1, height * width, D)."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, height: int, width: int) -> torch.Tensor:
        return self.table


def _positions(detr: Any, size: tuple[int, int] | None) -> nn.Module:
    learned = detr.config.position_embedding_type == "learned"
    positions = LearnedPositions(detr.position_embedding) if learned else SinePositions(detr.position_embedding)
    if size is None:
        return positions
    with torch.no_grad():
        height, width = detr.backbone.model(torch.zeros(1, 3, *size)).feature_maps[-1].shape[-2:]
        return FoldedPositions(positions(height, width))


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The detector of a checkpoint; see `BuildOptions`. Height and width are dynamic without `options.frame`."""
    check_model_type(checkpoint, RECIPE)
    if "Segmentation" in checkpoint.architecture:
        raise CheckpointError(f"{checkpoint.path} is a DETR with masks; export it as family detr_panoptic")
    check_batch(options.batch)
    model = _load(checkpoint)
    plan = plan_inputs(checkpoint, options)
    labels = class_names(model.config, options.labels)
    top_k = check_top_k(options.top_k, model.config.num_queries)
    traced = traced_copy(model, STEM, plan.preprocess)
    module = Detector(traced, Frames(plan.preprocess), top_k, plan.size)
    reference = partial(_reference, model, plan.processor, labels, top_k)
    rule = DetectDecode(top_k=top_k, threshold=THRESHOLD)
    return plan.traceable(RECIPE, module, detect_outputs(options.batch, top_k), rule, labels, reference)


class Plan(NamedTuple):
    """What a DETR takes: its processor, and the inputs of its graph. `size` (h,w) is None where it is dynamic."""

    processor: Any
    preprocess: Preprocess
    size: tuple[int, int] | None
    inputs: tuple[TensorInfo, ...]
    dynamic: dict[str, dict[int, str]]
    trace_size: tuple[int, int]
    other_size: tuple[int, int]

    def traceable(
        self,
        recipe: Recipe,
        module: nn.Module,
        outputs: tuple[TensorInfo, ...],
        decode: Decode,
        labels: tuple[str, ...],
        reference: Callable[[Array], Result],
    ) -> Traceable:
        """What a DETR builds: `module` takes `inputs` and gives `outputs`."""
        return Traceable(
            family=recipe.family,
            task=recipe.task,
            module=module.eval(),
            inputs=self.inputs,
            outputs=outputs,
            dynamic=self.dynamic,
            trace_size=self.trace_size,
            other_size=self.other_size,
            preprocess=self.preprocess,
            decode=decode,
            labels=labels,
            reference=reference,
        )


def plan_inputs(checkpoint: Checkpoint, options: BuildOptions) -> Plan:
    """The processor of a checkpoint and the inputs that follow from it and the options."""
    processor = load_processor(checkpoint, "Detr")
    if getattr(processor, "pad_size", None):
        raise CheckpointError("the image processor pads every frame to pad_size, which is not supported; remove it")
    preprocess = preprocess_of(processor, options.resize)
    if options.frame is not None:
        height, width = resized_size(options.frame, preprocess.size)
        processor.size = {"height": height, "width": width}
        preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess)
    inputs = [pixels_spec(options.batch, size)]
    dynamic: dict[str, dict[int, str]] = {} if size else {"pixels": {1: "height", 2: "width"}}
    if size is None and options.batch != 1:  # unequal frames are padded
        inputs.append(TensorInfo(name="valid_size", shape=(options.batch, 2), dtype="int32"))
    if options.batch is None:
        for spec in inputs:
            dynamic[spec.name] = {0: "batch", **dynamic.get(spec.name, {})}
    trace_size, other_size = (size or resized_size(frame, preprocess.size) for frame in (TRACE_FRAME, OTHER_FRAME))
    return Plan(processor, preprocess, size, tuple(inputs), dynamic, trace_size, other_size)


def _load(checkpoint: Checkpoint) -> Any:
    from transformers import DetrForObjectDetection

    return load_with_resnet(checkpoint, DetrForObjectDetection, ("stage4",), {})


def load_with_resnet(checkpoint: Checkpoint, kind: Any, stages: tuple[str, ...], rename: Mapping[str, str]) -> Any:
    """A DETR of this class with transformers' ResNet; a config that asks for timm's gets its `stages`.

    `rename` are further renamings of published tensor names.
    """
    if not asks_for_timm(checkpoint.config):
        model: Any = checkpoint.load(kind, rename=rename)
        found = model.config.backbone_config.model_type
        if found != "resnet":
            raise CheckpointError(f"{checkpoint.path} has a backbone of type {found}; expected resnet")
        return model
    config = without_timm(checkpoint.config)
    config["backbone_config"]["out_features"] = list(stages)
    model = checkpoint.load(kind, config=config, rename={**timm_to_native(), **rename}, unused=("fc.",))
    if is_dilated(checkpoint.config):
        dilate_last_stage(getattr(model, "detr", model).model.backbone.model)
    return model


def _reference(model: Any, processor: Any, labels: tuple[str, ...], top_k: int, frame: Array) -> Detections:
    """Transformers' processor, model and post-processing, without a threshold."""
    with torch.no_grad():
        outputs = model(**reference_inputs(processor, [frame]))
        found = processor.post_process_object_detection(outputs, -math.inf, [frame.shape[:2]])[0]
    return reference_detections(found, labels, top_k)


def _tiny_config() -> dict[str, Any]:
    detr = {
        "model_type": "detr",
        "architectures": ["DetrForObjectDetection"],
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage4"],
        },
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 40,
        "id2label": {str(index): f"class {index}" for index in range(4)},
    }
    return {"detr": detr}


RECIPE = Recipe(
    family="detr",
    title="DETR object detection",
    paper="https://arxiv.org/abs/2005.12872",
    task="detect",
    result="Detections",
    model_types=("detr",),
    layouts=(
        "Hugging Face directory, with a transformers or a timm ResNet",
        "config.json alone with a seed",
        *names_for("detr"),
    ),
    variants=("DETR", "DETR-DC5"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "frame", "top_k", "labels", "resize"),
)
