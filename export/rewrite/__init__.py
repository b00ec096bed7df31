"""Rewrites: a traced graph into the form that one target runs fastest, and into one that its oldest version loads.

Each rewrite is a function in a file of its own that changes an `onnx_ir` model in place, keeps what it computes, and
returns how many places it changed. `lower` composes them into the graph variants of a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgevtx.errors import ExportError
from edgevtx.export.rewrite.affine import drop_neutral, fold_affine
from edgevtx.export.rewrite.attention import (
    drop_true_masks,
    fold_constant_attention,
    spell_out_attention,
    spell_out_broadcast_masks,
)
from edgevtx.export.rewrite.attention_scale import fold_attention_scale
from edgevtx.export.rewrite.cast_first import cast_first
from edgevtx.export.rewrite.grid_sample import drop_default_grid_mode
from edgevtx.export.rewrite.group_normalization import spell_out_group_normalization
from edgevtx.export.rewrite.multi_head_attention import use_multi_head_attention
from edgevtx.export.rewrite.norm_affine import fold_norm_affine
from edgevtx.export.rewrite.opset import declare_lowest_opset
from edgevtx.export.rewrite.parallel_convs import merge_parallel_convs
from edgevtx.export.rewrite.patterns import rows_of
from edgevtx.export.rewrite.reshapes import fix_reshapes

Rewrite = Callable[[ir.Model], int]


@dataclass(frozen=True)
class LoweredGraph:
    """A graph for one target. `versions` is the range of the target that it serves, as a PEP 440 specifier.

    `rewrites` names the rewrites that found something to change; `avoids` the compiler faults that they avoid, and
    `patterns` what the graph has of which some compiler is known to fail (see `edgevtx.runtimes.known_bad`).
    """

    target: str
    variant: str
    versions: str
    precisions: tuple[str, ...]
    model: ir.Model
    rewrites: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """How one graph of a target is made: rewrites in order, by name, and what the result serves."""

    name: str
    versions: str
    precisions: tuple[str, ...]
    rewrites: dict[str, Rewrite]


# before any target's own: what these change in the weights, all graphs share
COMMON: dict[str, Rewrite] = {
    "cast-first": cast_first,
    "fix-reshapes": fix_reshapes,
    "drop-true-masks": drop_true_masks,
    "fold-constant-attention": fold_constant_attention,
    "drop-neutral": drop_neutral,
    "fold-affine": fold_affine,
    "merge-parallel-convs": merge_parallel_convs,
    "fold-attention-scale": fold_attention_scale,
    "fold-norm-affine": fold_norm_affine,
    "spell-out-group-normalization": spell_out_group_normalization,
}
OPENVINO: dict[str, Rewrite] = {
    **COMMON,
    "spell-out-attention": spell_out_attention,
    "drop-default-grid-mode": drop_default_grid_mode,
}
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "onnxruntime": (
        Variant(
            "",
            ">=1.23",
            ("fp32",),
            {
                **COMMON,
                "use-multi-head-attention": use_multi_head_attention,
                "spell-out-broadcast-masks": spell_out_broadcast_masks,
                "declare-lowest-opset": declare_lowest_opset,
            },
        ),
    ),
    "openvino": (
        Variant("", ">=2025.0", ("fp32", "bf16"), {**OPENVINO, "declare-lowest-opset": declare_lowest_opset}),
    ),
}


def lower(model: ir.Model, target: str) -> tuple[LoweredGraph, ...]:
    """The variants of a traced graph for a target, the one to prefer first.

    The model is left as it is; the variants share its weights. Raises `ExportError` for an unknown target.
    """
    if target not in VARIANTS:
        raise ExportError(f"no graph can be made for {target!r}; targets are {', '.join(VARIANTS)}")
    return tuple(_apply(model.clone(), target, variant) for variant in VARIANTS[target])


def _apply(model: ir.Model, target: str, variant: Variant) -> LoweredGraph:
    before = rows_of(model, target, variant.precisions)
    changed = tuple(name for name, rewrite in variant.rewrites.items() if rewrite(model))
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    after = rows_of(model, target, variant.precisions)
    return LoweredGraph(
        target,
        variant.name,
        variant.versions,
        variant.precisions,
        model,
        rewrites=changed,
        avoids=tuple(row.id for row in before if row not in after),
        patterns=tuple(dict.fromkeys(row.pattern for row in after)),
    )
