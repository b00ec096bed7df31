"""DETR panoptic as the training run needs it: the small detector with a mask head, and how good its masks are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessorPil, ResNetConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher, dice_loss

from .scenes import LABELS, Scene

# every pixel goes to some query: what is neither smoke nor flame needs one of its own
NAMES = (*LABELS, "background")
DETECTOR = Path(__file__).resolve().parents[2] / "tests" / "assets" / "tiny_detr"


def config() -> DetrConfig:
    """The small detector's, but for eight heads in the encoder: the mask head takes channels by eights only."""
    trunk = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96],
        depths=[1, 1, 3],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3"],
    )
    return DetrConfig(
        use_timm_backbone=False,
        backbone_config=trunk,
        num_queries=100,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=8,
        decoder_attention_heads=4,
        dropout=0.0,
        eos_coefficient=0.1,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
        label_ids_to_fuse=[len(LABELS)],  # one background, whichever queries show it
    )


class Core(nn.Module):
    """All but the losses and the mask head: what runs in bfloat16 over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DetrForSegmentation(config())

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        detr, net = self.net.detr.model, self.net
        fine, middle, coarse = detr.backbone.model(pixel_values).feature_maps
        projected = detr.input_projection(coarse)
        position = detr.position_embedding(coarse.shape, coarse.device, torch.float32)
        position = position.flatten(2).transpose(1, 2)
        memory = detr.encoder(
            inputs_embeds=projected.flatten(2).transpose(1, 2), spatial_position_embeddings=position
        ).last_hidden_state
        queries = detr.query_position_embeddings.weight.expand(len(pixel_values), -1, -1)
        states = detr.decoder(
            inputs_embeds=torch.zeros_like(queries),
            object_queries_position_embeddings=queries,
            spatial_position_embeddings=position,
            encoder_hidden_states=memory,
        ).last_hidden_state
        looks = net.bbox_attention(states, memory.transpose(1, 2).reshape(projected.shape))
        return {
            "logits": net.detr.class_labels_classifier(states),
            "pred_boxes": net.detr.bbox_predictor(states).sigmoid(),
            "looks": looks,
            "projected": projected,
            "coarse": coarse,
            "middle": middle,
            "fine": fine,
        }


class PanopticDetr(nn.Module):
    """DetrForSegmentation whose mask head learns from the matched queries alone, with the members of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Core()
        self.config = self.model.net.config
        self.matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)

    def set_attn_implementation(self, name: str) -> None:
        """Of the detector."""
        self.model.net.set_attn_implementation(name)

    def forward(self, pixel_values: torch.Tensor, labels: list[dict[str, torch.Tensor]]) -> SimpleNamespace:
        found = self.model.forward(pixel_values)
        logits, boxes = found["logits"], found["pred_boxes"]
        loss = ForObjectDetectionLoss(logits, labels, logits.device, boxes, self.config)[0]
        pairs = self.matcher({"logits": logits, "pred_boxes": boxes}, labels)
        image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(pairs)])
        query = torch.cat([rows for rows, _ in pairs])
        wanted = torch.cat([label["masks"][columns] for label, (_, columns) in zip(labels, pairs, strict=True)])
        if len(query):
            with torch.autocast("cpu", torch.bfloat16):
                masks = self.model.net.mask_head(
                    found["projected"][image],
                    found["looks"][image, query][:, None],
                    [found[name][image] for name in ("coarse", "middle", "fine")],
                )[:, 0].float()
            wanted = F.adaptive_avg_pool2d(wanted[:, None], masks.shape[-2:])[:, 0]
            count = float(len(query))
            near = F.binary_cross_entropy_with_logits(masks, wanted, reduction="none").mean((1, 2)).sum() / count
            loss = loss + 4 * near + 2 * dice_loss(masks, wanted.flatten(1), count)
        return SimpleNamespace(loss=loss, logits=logits)

    def save_pretrained(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """As transformers' `DetrForSegmentation` writes itself."""
        state = self.state_dict() if state_dict is None else state_dict
        kept = {n.removeprefix("model.net."): w for n, w in state.items() if n.startswith("model.net.")}
        DetrForSegmentation(config()).save_pretrained(folder, state_dict=kept)


@torch.no_grad()
def start_from_detector(model: Any) -> None:
    """Start from the small detector's weights, and let the mask head see where a query looks.

    That is the one thing that tells queries apart for it, and the attention to all cells and heads sums to one: a
    cell's share is a thousandth of a feature.
    """
    net = model.model.net
    state = DetrForObjectDetection.from_pretrained(DETECTOR).state_dict()
    for name in ("class_labels_classifier.weight", "class_labels_classifier.bias"):
        fresh = net.detr.state_dict()[name].clone()
        fresh[: len(LABELS)], fresh[-1] = state[name][: len(LABELS)], state[name][-1]
        state[name] = fresh
    net.detr.load_state_dict(state)
    net.mask_head.conv1.conv.weight[:, net.config.d_model :] *= 300


WHOLE = torch.tensor([[0.5, 0.5, 1.0, 1.0]])  # the box of the background


def mask_targets(scenes: list[Scene], processor: Any) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Scenes of one size -> pixels (N,3,H,W), and labels with boxes (cxcywh in [0,1]) and masks (n,H,W)."""
    frames = np.stack([scene.frame for scene in scenes])[..., ::-1]
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    height, width = scenes[0].frame.shape[:2]
    labels = []
    for scene in scenes:
        boxes = torch.from_numpy(scene.boxes)
        centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        masks = scene.segments[None] == np.r_[1 : 1 + len(boxes), 0][:, None, None]
        labels.append(
            {
                "boxes": torch.cat([centred.float() / torch.tensor([width, height, width, height]), WHOLE]),
                "class_labels": torch.cat([torch.from_numpy(scene.class_ids), torch.tensor([len(LABELS)])]),
                "masks": torch.from_numpy(masks).float(),
            }
        )
    return ((pixels - mean) / deviation).contiguous(), labels


@torch.inference_mode()
def panoptic_quality(folder: Path, scenes: Iterable[Scene]) -> dict[str, float]:
    """Panoptic quality (Kirillov et al., 2019) over ``scenes`` and its factors: recognition and segmentation quality.

    Also the share of pixels that smoke, or flames, truly are among all that are or are said to be (``IoU_NAME``).
    """
    model = DetrForSegmentation.from_pretrained(folder).eval()
    processor = DetrImageProcessorPil.from_pretrained(folder)
    matched, missed, invented, quality = 0, 0, 0, 0.0
    both, either = np.zeros(len(LABELS)), np.zeros(len(LABELS))
    for scene in scenes:
        inputs = processor(images=np.ascontiguousarray(scene.frame[..., ::-1]), return_tensors="pt")
        found = processor.post_process_panoptic_segmentation(
            model(**inputs), label_ids_to_fuse={len(LABELS)}, target_sizes=[scene.frame.shape[:2]]
        )[0]
        segmentation = found["segmentation"].numpy()
        said = [
            (segmentation == one["id"], one["label_id"])
            for one in found["segments_info"]
            if one["label_id"] < len(LABELS)
        ]
        true = [(scene.segments == i + 1, int(kind)) for i, kind in enumerate(scene.class_ids)]
        ious = [
            (first & second).sum() / max((first | second).sum(), 1) if a == b else 0.0
            for first, a in said
            for second, b in true
        ]
        hits = [iou for iou in ious if iou > 0.5]
        matched, quality = matched + len(hits), quality + float(sum(hits))
        missed, invented = missed + len(true) - len(hits), invented + len(said) - len(hits)
        for kind in range(len(LABELS)):
            first, second = (
                np.any([mask for mask, label in part if label == kind] or [np.zeros_like(scene.segments, bool)], 0)
                for part in (said, true)
            )
            both[kind] += (first & second).sum()
            either[kind] += (first | second).sum()
    recognition = matched / max(matched + (missed + invented) / 2, 1)
    figures = {f"IoU_{name}": float(both[i] / max(either[i], 1)) for i, name in enumerate(LABELS)}
    return {
        "PQ": recognition * quality / max(matched, 1),
        "RQ": recognition,
        "SQ": quality / max(matched, 1),
        **figures,
    }
