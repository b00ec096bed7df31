"""The attention that is traced: one fused scaled-dot-product per layer, and a mask only where one is needed.

Transformers' own sdpa attention builds an all-true mask while a graph is exported (it cannot look at the mask's
values then); every Attention node would carry it, and runtimes fuse less with a mask. A registered implementation
that has no mask function of its own gets exactly the mask that it is called with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

FUSED = "edgevtx_fused"
FUSED_WITH_CLS = "edgevtx_fused_with_cls"


def fused_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """query (N,heads,T,d), key and value (N,heads,S,d) -> (N,T,heads,d), and no probabilities."""
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def fused_attention_with_cls(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `fused_attention`, and the probabilities (N,heads,S) with which the first token looks at every token.

    One row of the attention matrix is computed a second time, so that the layer itself keeps its fused form.
    """
    output, _none = fused_attention(module, query, key, value, attention_mask, scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    row = (query[:, :, :1] * scale) @ key.transpose(-1, -2)
    return output, row.softmax(-1)[:, :, 0]


def use_attention(config: Any, name: str = FUSED) -> None:
    """Make the transformers modules that hold `config` compute their attention with the implementation `name`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(FUSED, fused_attention)
    ALL_ATTENTION_FUNCTIONS.register(FUSED_WITH_CLS, fused_attention_with_cls)
    config._attn_implementation = name
