"""The text encoder of a SAM that was trained for text prompts: CLIP's, and a projection to SAM's prompt tokens.

Kirillov et al., "Segment Anything", 2023, section 7.5 and appendix D.5: CLIP's embedding of a text is the prompt.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class TextEncoder(nn.Module):
    """token_ids (P,T) int64, an end token last and behind it -> text_embedding (P,C) float32.

    The forward pass of transformers' `CLIPTextModelWithProjection`, whose causal mask is a constant here.
    """

    mask: torch.Tensor

    def __init__(self, clip: Any, projection: nn.Linear) -> None:
        super().__init__()
        config = clip.config
        length = int(config.max_position_embeddings)
        self.text = clip.text_model
        self.heads = int(config.num_attention_heads)
        self.end = int(config.eos_token_id)
        self.to_clip, self.to_prompt = clip.text_projection, projection
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1).clamp(min=-1e9))

    def forward(self, token_ids: torch.Tensor) -> tuple[torch.Tensor]:
        embeddings = self.text.embeddings
        tokens = embeddings.token_embedding(token_ids) + embeddings.position_embedding.weight
        for layer in self.text.encoder.layers:
            tokens = tokens + self._attend(layer.self_attn, layer.layer_norm1(tokens))
            tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        tokens = self.text.final_layer_norm(tokens)
        # the first end token saw the whole text; early CLIP configs name another id, and mean the highest one
        ends = token_ids if self.end == 2 else (token_ids == self.end).to(torch.int32)
        last = F.one_hot(ends.argmax(-1), tokens.shape[1]).to(tokens.dtype)
        pooled = (last[:, None] @ tokens)[:, 0]
        return (self.to_prompt(self.to_clip(pooled)),)

    def _attend(self, attention: Any, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            torch.unflatten(part(tokens), -1, (self.heads, -1)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        out: torch.Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return out
