"""What lets a small detector converge in under an hour on a CPU: where DETR's queries start, and dense losses.

DETR learns slowly because its queries must first discover where to look, and because its values carry no
position; RT-DETR because only its selected proposals are ever corrected. Nothing here changes the
architecture: the stored weights are those of a plain DETR and a plain RT-DETR.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# the two fastest sine/cosine pairs of the row half and of the column half of a 64-wide position embedding
_POSITION = (0, 1, 2, 3, 32, 33, 34, 35)
# how sharply each head looks at its query's own place, finest first
_GAINS = ((6.0, 4.0), (4.5, 3.0), (3.0, 2.0), (2.0, 1.4))
_STRIDE = 16
_FREQUENCIES = (0.5, 1.5, 4.0)
# how sharply the first heads look at their own place at first; the others are free
_LOCAL_GAINS = (0.45, 0.55, 0.65, 0.8)
# RT-DETR's feature levels: stride, and the square roots of box area (share of the image) that it answers for
_LEVELS = ((8, 0.0, 0.2), (16, 0.1, 0.4), (32, 0.25, 1.0))
_LEVEL_LIMITS = (0.1, 0.22)  # the size above which the next coarser level has the last word


@torch.no_grad()
def even_start(model: Any) -> None:
    """Draw weights that keep the scale of what flows through them, in place.

    The library draws them for weights about to be loaded: deviations of 0.01, batch norm gains included, so
    that an untrained decoder sees next to nothing. What it sets to zero is meant and stays.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and bool(module.weight.any()):
            nn.init.xavier_uniform_(module.weight)


def _waves(centre: Tensor) -> Tensor:
    """Sines and cosines of a coordinate in [0,1] at each of _FREQUENCIES; (N,) -> (N,2F)."""
    angle = 2 * math.pi * centre[:, None] * torch.tensor(_FREQUENCIES)
    return torch.cat([angle.sin(), angle.cos()], 1)


@torch.no_grad()
def local_start(model: Any) -> None:
    """even_start, and RT-DETR's queries see at first those whose boxes lie where their own does, in place.

    Which of two queries on one object has to give way can only be learnt by queries that look at each other. The
    position head starts as sines and cosines of centre and size, which its hinges can draw; query and key
    projections share rows that read only those.
    """
    even_start(model)
    decoder = model.model.decoder
    first, last = decoder.query_pos_head.layers
    knots = first.out_features // 4
    at = torch.arange(knots) / knots
    line = torch.linspace(0, 1, 512)
    hinges = torch.cat([torch.relu(4 * (line[:, None] - at)), torch.ones(512, 1)], 1)
    waves = _waves(line)
    drawn = 3 * torch.linalg.lstsq(hinges.double(), waves.double()).solution.float()
    used = waves.shape[1]
    first.weight.zero_()
    last.weight.mul_(0.3)
    last.weight[: 4 * used] = 0
    last.bias.zero_()
    for coordinate in range(4):
        inner, outer = (slice(coordinate * n, (coordinate + 1) * n) for n in (knots, used))
        first.weight[inner, coordinate] = 4
        first.bias[inner] = -4 * at
        last.weight[outer, inner] = drawn[:-1].T
        last.bias[outer] = drawn[-1]
    pair = [used // 4, used // 4 + used // 2]  # a sine, and its cosine half a row on
    seen = torch.tensor([*range(2 * used), *(2 * used + i for i in pair), *(3 * used + i for i in pair)])
    for layer in decoder.layers:
        attention = layer.self_attn
        for head, gain in enumerate(_LOCAL_GAINS):
            rows = torch.arange(len(seen)) + head * attention.head_dim
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[rows] = 0
                projection.weight[rows, seen] = gain


@torch.no_grad()
def anchor_queries(model: Any) -> None:
    """Start with query i looking at cell i of a square grid, in place.

    The query embeddings become the position embeddings of the grid. Query and key projections share rows that
    read only position, so that their product is largest where the positions agree. Layer norms keep content
    out of those dimensions at the start, where it would be noise.
    """
    core = model.model
    count, width = core.query_position_embeddings.weight.shape
    side = math.isqrt(count)
    grid = core.position_embedding(
        shape=torch.Size([1, width, side, side]), device=torch.device("cpu"), dtype=torch.float32
    )
    core.query_position_embeddings.weight.copy_(grid.flatten(2)[0].T)
    position = torch.tensor(_POSITION)
    for layer in core.decoder.layers:
        layer.self_attn_layer_norm.weight[position] = 0
        attention = layer.encoder_attn
        for head, (fast, slow) in enumerate(_GAINS):
            gains = torch.tensor([fast, fast, slow, slow] * 2)
            rows = torch.arange(len(position)) + head * attention.head_dim
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[rows] = 0
                projection.weight[rows, position] = gains
    core.encoder.layers[-1].final_layer_norm.weight[position] = 0


def _overlap(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of row i with row i, both (N,4) cxcywh; (N,) each."""
    low, high = one[:, :2] - one[:, 2:] / 2, one[:, :2] + one[:, 2:] / 2
    low2, high2 = two[:, :2] - two[:, 2:] / 2, two[:, :2] + two[:, 2:] / 2
    shared = (torch.minimum(high, high2) - torch.maximum(low, low2)).clamp(min=0).prod(1)
    union = one[:, 2:].prod(1) + two[:, 2:].prod(1) - shared
    hull = (torch.maximum(high, high2) - torch.minimum(low, low2)).prod(1)
    iou = shared / union.clamp(min=1e-7)
    return iou, iou - (hull - union) / hull.clamp(min=1e-7)


def _assign(boxes: Tensor, rows: int, cols: int, allowed: Tensor | None = None) -> Tensor:
    """For each cell of the grid the index of the smallest (allowed) box whose middle holds it, or -1; (rows*cols,)."""
    owner = torch.full((rows * cols,), -1)
    if not len(boxes):
        return owner
    ys, xs = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols, indexing="ij")
    away_x = (xs.flatten()[:, None] - boxes[None, :, 0]).abs()
    away_y = (ys.flatten()[:, None] - boxes[None, :, 1]).abs()
    # a box smaller than a cell still owns the cell around its centre
    inside = (away_x <= (boxes[:, 2] * 0.3).clamp(min=0.5 / cols)) & (
        away_y <= (boxes[:, 3] * 0.3).clamp(min=0.5 / rows)
    )
    if allowed is not None:
        inside = inside & allowed
    area = torch.where(inside, (boxes[:, 2] * boxes[:, 3])[None], torch.tensor(torch.inf))
    least, index = area.min(1)
    return torch.where(least.isfinite(), index, owner)


def dense_loss(model: Any, outputs: Any, labels: list[dict[str, Tensor]], size: tuple[int, int]) -> Tensor:
    """Ask every encoder cell for the class and box of the object on it, through the decoder's own heads.

    The encoder then holds absolute boxes that the decoder has only to pick up.
    """
    cells = outputs.encoder_last_hidden_state
    rows, cols = (math.ceil(side / _STRIDE) for side in size)
    logits, boxes = model.class_labels_classifier(cells), model.bbox_predictor(cells).sigmoid()
    nothing = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], nothing)
    wanted, given = [], []
    for image, label in enumerate(labels):
        owner = _assign(label["boxes"], rows, cols)
        hit = owner >= 0
        classes[image, hit] = label["class_labels"][owner[hit]]
        wanted.append(label["boxes"][owner[hit]])
        given.append(boxes[image, hit])
    target, found = torch.cat(wanted), torch.cat(given)
    weight = torch.ones(nothing + 1)
    weight[-1] = 0.3
    loss: Tensor = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight)
    if len(target):
        loss = loss + 5 * (found - target).abs().sum(1).mean() + 2 * (1 - _overlap(found, target)[1]).mean()
    return loss


def _peaks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The one proposal that should answer for each box: its centre cell on the level of its size; (N,)."""
    levels = (boxes[:, 2:].prod(1).sqrt()[:, None] > torch.tensor(_LEVEL_LIMITS)).sum(1)
    shapes = torch.tensor([[math.ceil(side / stride) for side in size] for stride, _, _ in _LEVELS])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), shapes.prod(1).cumsum(0)])[:-1]
    rows, cols = shapes[levels].unbind(1)
    y = (boxes[:, 1] * rows).long().clamp(min=0).minimum(rows - 1)
    x = (boxes[:, 0] * cols).long().clamp(min=0).minimum(cols - 1)
    return starts[levels] + y * cols + x


def dense_proposals(model: Any, outputs: Any, labels: list[dict[str, Tensor]], size: tuple[int, int]) -> Tensor:
    """Correct every proposal of RT-DETR's encoder, not only those that it selects.

    Every cell in the middle of an object learns its box, and one cell alone to score: where several do, all
    queries crowd on the easy objects, and the decoder takes very long to learn which of them to silence.
    """
    logits, boxes = outputs.enc_outputs_class, outputs.enc_outputs_coord_logits.sigmoid()
    quality = torch.zeros_like(logits)
    wanted, given = [], []
    for image, label in enumerate(labels):
        truth = label["boxes"]
        sides = truth[:, 2:].prod(1).sqrt()
        owner = torch.cat(
            [
                _assign(
                    truth, math.ceil(size[0] / stride), math.ceil(size[1] / stride), (sides >= low) & (sides <= high)
                )
                for stride, low, high in _LEVELS
            ]
        )
        hit = torch.nonzero(owner >= 0)[:, 0]
        wanted.append(truth[owner[hit]])
        given.append(boxes[image, hit])
        if len(truth):
            peak = _peaks(truth, size)
            agreed = _overlap(boxes[image, peak].detach(), truth)[0]
            quality[image, peak, label["class_labels"]] = agreed.clamp(min=0.1)
    target, found = torch.cat(wanted), torch.cat(given)
    weight = torch.where(quality > 0, quality, 0.75 * logits.detach().sigmoid() ** 2)
    count = max(sum(len(label["boxes"]) for label in labels), 1)
    loss = F.binary_cross_entropy_with_logits(logits, quality, weight, reduction="sum") / count
    if len(target):
        loss = loss + 5 * (found - target).abs().sum(1).mean() + 2 * (1 - _overlap(found, target)[1]).mean()
    return 2 * loss


@torch.no_grad()
def inherit_scores(model: Any) -> None:
    """Let RT-DETR's decoder begin with what the encoder's proposals have learnt, in place.

    Its layers become identities, and its heads the proposals' own. The proposals score once an object; a decoder that
    begins elsewhere first doubles the objects again, and takes very long to unlearn it.
    """
    core = model.model
    scale, shift = core.enc_output[1].weight.clone(), core.enc_output[1].bias.clone()
    # the proposals' scale and shift go into what reads them, so that norms in a row change nothing
    for reader in (core.enc_score_head, core.enc_bbox_head.layers[0]):
        reader.bias += reader.weight @ shift
        reader.weight *= scale
    norms = [core.enc_output[1]]
    for index, layer in enumerate(core.decoder.layers):
        norms += [layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm]
        for last in (layer.self_attn.o_proj, layer.encoder_attn.output_proj, layer.mlp.fc2):
            last.weight.zero_()
            last.bias.zero_()
        core.decoder.class_embed[index].load_state_dict(core.enc_score_head.state_dict())
        core.decoder.bbox_embed[index].layers[-1].weight.zero_()
        core.decoder.bbox_embed[index].layers[-1].bias.zero_()
    for norm in norms:
        norm.weight.fill_(1)
        norm.bias.zero_()


def thaw(module: nn.Module) -> None:
    """Turn frozen batch norms back into trainable ones: without pretrained statistics there is nothing to freeze."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("FrozenBatchNorm2d"):
            buffers = dict(child.named_buffers())
            norm = nn.BatchNorm2d(len(buffers["weight"]))
            norm.load_state_dict({**buffers, "num_batches_tracked": torch.tensor(0)})
            setattr(module, name, norm)
        else:
            thaw(child)
