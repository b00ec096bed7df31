"""The rewrites that `edgevtx.runtimes.known_bad` names as remedies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgevtx.export.rewrite.attention import spell_out_attention
from edgevtx.export.rewrite.cast_first import cast_first
from edgevtx.export.rewrite.cumulative_sum import spell_out_cumulative_sum
from edgevtx.export.rewrite.full_precision import conv_transpose_in_fp32, depthwise_conv_in_fp32, softmax_in_fp32
from edgevtx.export.rewrite.fuse_layer_norm import fuse_layer_norm
from edgevtx.export.rewrite.gather_grid_sample import gather_grid_sample
from edgevtx.runtimes.known_bad import find

Rewrite = Callable[[ir.Model], int]

REMEDIES: dict[str, Rewrite] = {
    "cast-first": cast_first,
    "fuse-layer-norm": fuse_layer_norm,
    "spell-out-attention": spell_out_attention,
    "spell-out-cumsum": spell_out_cumulative_sum,
    "gather-grid-sample": gather_grid_sample,
}
"""Remedies of a float32 graph, in the order in which they are applied."""

TYPED: dict[str, Rewrite] = {
    "softmax-in-fp32": softmax_in_fp32,
    "conv-transpose-in-fp32": conv_transpose_in_fp32,
    "depthwise-conv-in-fp32": depthwise_conv_in_fp32,
}
"""Remedies of a graph that has been typed lower."""


def remedies(target: str) -> dict[str, Rewrite]:
    """The rewrites that make a target's float32 graphs avoid what is known of it, by name and in order."""
    return _named(target, REMEDIES)


def typed_remedies(target: str, precision: str) -> dict[str, Rewrite]:
    """The rewrites that do so for a graph that has been typed in a precision."""
    return _named(target, TYPED, precision)


def _named(target: str, known: Mapping[str, Rewrite], precision: str | None = None) -> dict[str, Rewrite]:
    asked = {row.remedy for row in find(target, precision=precision)}
    return {name: rewrite for name, rewrite in known.items() if name in asked}
