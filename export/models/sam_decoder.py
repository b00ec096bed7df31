"""SAM's prompt encoder and mask decoder as one network, with the weights of transformers' `SamModel`.

Kirillov et al., "Segment Anything", 2023, section 3 and appendix A. P prompts of K points each share one embedding of
the image. P and K are the only sizes that vary, and no value of an input decides a shape. K is 0 for a mask alone.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from edgevtx.export.attention import use_attention
from edgevtx.prompts import NO_POINT, TEXT


class Decoder(nn.Module):
    """An embedding (1,C,h,w) and P prompts -> low_res_logits (P,M,4h,4w), iou (P,M), M masks for each prompt.

    `points` (P,K,2) x, y in px of the input; `point_labels` (P,K) int32: 1 on the object, 0 not on it, 2 and 3 a box's
    upper left and lower right corner, -1 no point (SAM adds one where there is no box), -2 the prompt's `text`;
    `mask_prompt` (P,1,4h,4w) logits of an earlier answer, looked at where `has_mask` (P,) is 1; `text` (P,C). Mask 0 is
    for prompts that leave no doubt, the others are the ways to read one point.
    """

    image_positions: torch.Tensor
    output_tokens: torch.Tensor
    label_table: torch.Tensor

    def __init__(self, model: Any, *, text: bool = False) -> None:
        super().__init__()
        prompts, decoder = model.prompt_encoder, copy.copy(model.mask_decoder)
        self.text = text
        self.size = float(prompts.input_image_size)
        self.frequencies = model.shared_image_embedding.positional_embedding
        self.mask_embed = prompts.mask_embed
        self.no_mask = prompts.no_mask_embed.weight
        self.no_point = prompts.not_a_point_embed.weight
        self.masks = int(decoder.num_mask_tokens)
        use_attention(decoder.config)
        self.transformer = decoder.transformer
        self.upscale = nn.ModuleList((decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2))
        self.activation = decoder.activation
        self.weigh = decoder.output_hypernetworks_mlps
        self.judge = decoder.iou_prediction_head
        self.register_buffer("label_table", torch.cat([item.weight for item in prompts.point_embed]))
        self.register_buffer("output_tokens", torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight)))
        self.register_buffer("image_positions", model.get_image_wide_positional_embeddings())

    def forward(
        self,
        embedding: torch.Tensor,
        points: torch.Tensor,
        point_labels: torch.Tensor,
        mask_prompt: torch.Tensor,
        has_mask: torch.Tensor,
        text: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = has_mask[:, None, None]
        sparse = self._points(points, point_labels, text)
        # a sum and not an Expand, whose shape would have to be computed
        tokens = torch.cat((self.output_tokens + 0 * given, sparse), 1)[:, None]
        none = self.no_mask[:, :, None, None]
        image = (embedding + none) + given[..., None] * (self.mask_embed(mask_prompt) - none)

        tokens, seen = self.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=self.image_positions,
            attention_similarity=None,
        )
        height, width = embedding.shape[2:]
        seen = torch.unflatten(seen[:, 0].transpose(1, 2), 2, (height, width))
        first, norm, second = self.upscale
        fine = self.activation(second(self.activation(norm(first(seen))))).flatten(2)
        weights = [mlp(tokens[:, 0, 1 + index]) for index, mlp in enumerate(self.weigh)]
        iou: torch.Tensor = self.judge(tokens[:, 0, 0])
        return torch.unflatten(torch.stack(weights, 1) @ fine, 2, (4 * height, 4 * width)), iou

    def _points(self, points: torch.Tensor, labels: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        """The sparse prompt embedding (P,K,C): Fourier features of the place, plus what kind of point it is."""
        place = (2 * ((points + 0.5) / self.size) - 1) @ self.frequencies * (2 * math.pi)
        features = torch.cat((place.sin(), place.cos()), -1)
        kinds = torch.arange(len(self.label_table), dtype=labels.dtype)
        kind = (labels[..., None] == kinds).to(torch.float32)
        found: torch.Tensor = kind @ self.label_table + features * (labels >= 0)[..., None].to(torch.float32)
        found = found + (labels == NO_POINT)[..., None].to(torch.float32) * self.no_point
        if text is not None:
            found = found + (labels == TEXT)[..., None].to(torch.float32) * text[:, None]
        return found
