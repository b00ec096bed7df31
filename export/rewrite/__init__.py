"""Rewrites: a traced graph into the form that one target runs fastest, and into one that its oldest version loads.

Each rewrite is a function in a file of its own that changes an `onnx_ir` model in place, keeps what it computes, and
returns how many places it changed. `lower` composes them into the graph variants of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

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
from edgevtx.export.rewrite.low_precision import GiveTypes, by_operators
from edgevtx.export.rewrite.multi_head_attention import use_multi_head_attention
from edgevtx.export.rewrite.norm_affine import fold_norm_affine
from edgevtx.export.rewrite.opset import declare_lowest_opset
from edgevtx.export.rewrite.parallel_convs import merge_parallel_convs
from edgevtx.export.rewrite.patterns import rows_of
from edgevtx.export.rewrite.remedies import remedies, typed_remedies
from edgevtx.export.rewrite.reshapes import fix_reshapes
from edgevtx.runtimes.known_bad import KnownBad

Rewrite = Callable[[ir.Model], int]


@dataclass(frozen=True)
class LoweredGraph:
    """A graph for one target. `versions` is the range of the target that it serves, as a PEP 440 specifier.

    `rewrites` names the rewrites that found something to change; `avoids` the compiler faults that they avoid, and
    `patterns` what the graph has of which some compiler is known to fail (see `edgevtx.runtimes.known_bad`);
    `kept_fp32` the modules of a graph of lower precision that keep float32 as a whole, `unquantised` those of an int8
    graph that are not quantised.
    """

    target: str
    variant: str
    versions: str
    precisions: tuple[str, ...]
    model: ir.Model
    rewrites: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    kept_fp32: tuple[str, ...] = ()
    unquantised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """How graphs of a target are made: rewrites in order, by name, and what the result serves.

    `precisions` are those of the float32 graph itself, which a compiler may be told to compute in another one; for each
    of `typed` there is a graph more, with that precision's casts, or its quantisation.
    """

    name: str
    versions: str
    precisions: tuple[str, ...]
    rewrites: dict[str, Rewrite]
    typed: tuple[str, ...] = ()

    @property
    def serves(self) -> tuple[str, ...]:
        return (*self.precisions, *self.typed)


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
NVIDIA: dict[str, dict[str, Rewrite]] = {
    target: {
        **COMMON,
        "spell-out-attention": spell_out_attention,  # TensorRT has the operator from 10.14 on
        **remedies(target),
        "declare-lowest-opset": declare_lowest_opset,
    }
    for target in ("tensorrt", "tensorrt-rtx")
}
TYPED = ("fp16", "bf16", "int8")  # bf16 wants Ampere or newer
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
    "tensorrt": (Variant("", ">=10.3", ("fp32",), NVIDIA["tensorrt"], TYPED),),
    "tensorrt-rtx": (Variant("", ">=1.0", ("fp32",), NVIDIA["tensorrt-rtx"], TYPED),),
}


def lower(
    model: ir.Model,
    target: str,
    precisions: Collection[str] | None = None,
    give_types: GiveTypes = by_operators,
) -> tuple[LoweredGraph, ...]:
    """The variants of a traced graph for a target that serve one of `precisions` (all), the one to prefer first.

    `give_types` makes the graphs of lower precision; see `edgevtx.export.ladder` for one that measures and tries. The
    model is left as it is; the variants share its weights. Raises `ExportError` for an unknown target.
    """
    if target not in VARIANTS:
        raise ExportError(f"no graph can be made for {target!r}; targets are {', '.join(VARIANTS)}")
    return tuple(
        graph
        for variant in VARIANTS[target]
        if precisions is None or set(variant.serves) & set(precisions)
        for graph in _apply(model.clone(), target, variant, precisions or variant.serves, give_types)
    )


def _apply(
    model: ir.Model, target: str, variant: Variant, precisions: Collection[str], give_types: GiveTypes
) -> Iterator[LoweredGraph]:
    known = rows_of(model, target, variant.serves)
    changed = [name for name, rewrite in variant.rewrites.items() if rewrite(model)]
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    if set(variant.precisions) & set(precisions):
        yield _describe(LoweredGraph(target, variant.name, variant.versions, variant.precisions, model), known, changed)
    wanted = [precision for precision in variant.typed if precision in precisions]
    for precision, typed in (give_types(model, wanted) if wanted else {}).items():
        name = ".".join(word for word in (variant.name, precision) if word)
        raised = [name for name, rewrite in typed_remedies(target, precision).items() if rewrite(typed.model)]
        kept = {"kept_fp32": typed.kept_fp32, "unquantised": typed.unquantised}
        graph = LoweredGraph(target, name, variant.versions, (precision,), typed.model, **kept)
        typing = "quantize" if precision == "int8" else "lower-precision"
        yield _describe(graph, known, [*changed, typing, *raised])


def _describe(graph: LoweredGraph, known: Sequence[KnownBad], rewrites: Sequence[str]) -> LoweredGraph:
    """The graph with what was done to it, and which of the faults `known` of it before are gone."""
    left = rows_of(graph.model, graph.target, graph.precisions)
    gone = [row.id for row in known if row not in left and set(row.precisions) & set(graph.precisions)]
    patterns = tuple(dict.fromkeys(row.pattern for row in left))
    return replace(graph, rewrites=tuple(rewrites), avoids=tuple(gone), patterns=patterns)
