"""A graph of lower precision that passes: measured, typed, rehearsed, and where it fails, typed anew with less of it.

Each rung keeps the blocks in float32 where the one before it overflowed or began to diverge; of an int8 graph, which is
a graph of half precision that quantises, it keeps those in half precision that quantising harms most. What is left
after the last one is judged like any other graph.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from edgevtx.compare import compare
from edgevtx.export.ranges import choose_limits, measure_ranges
from edgevtx.export.rehearsal import Rehearsal, block_of, rehearse
from edgevtx.export.rewrite.edit import nodes
from edgevtx.export.rewrite.low_precision import GiveTypes, Typed, lower_precision
from edgevtx.export.rewrite.quantize import activations, quantize
from edgevtx.golden import Exchange
from edgevtx.rules import Decode
from edgevtx.runtimes.base import Arrays

log = logging.getLogger(__name__)

RUNGS = 4
"""How often a graph is typed at most."""

REHEARSED = 2
"""Of the exchanges so many are rehearsed on each rung; verification looks at all of them."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a network when its graphs are typed: real inputs and the torch module's outputs, and how outputs
    are compared. `calibration` are the inputs that int8's scales are chosen on; all where there are none."""

    exchanges: Sequence[Exchange]
    decode: Decode | None
    calibration: Sequence[Arrays] = ()


def from_evidence(evidence: Evidence) -> GiveTypes:
    """Types graphs by what was measured and rehearsed."""
    return partial(_give_types, evidence)


def _give_types(evidence: Evidence, exact: ir.Model, precisions: Sequence[str]) -> dict[str, Typed]:
    feeds = [exchange.inputs for exchange in evidence.exchanges]
    ranges = measure_ranges(exact, feeds)

    def lower_to(precision: str) -> Typed:
        def give(model: ir.Model, kept: Sequence[str]) -> None:
            lower_precision(model, precision, ranges, kept)

        return Typed(*_climb(evidence, exact, give, precision, otherwise="fp32"))

    found = {precision: lower_to(precision) for precision in precisions if precision != "int8"}
    if "int8" in precisions:
        kept_fp32 = (found.get("fp16") or lower_to("fp16")).kept_fp32
        keep = [*map(_inside, kept_fp32)]
        chosen_on = evidence.calibration or feeds
        limits = choose_limits(exact, chosen_on, measure_ranges(exact, chosen_on), activations(exact))

        def give(model: ir.Model, kept: Sequence[str]) -> None:
            quantize(model, ranges, limits, keep, kept)

        model, unquantised = _climb(evidence, exact, give, "int8", otherwise="fp16")
        found["int8"] = Typed(model, kept_fp32, unquantised)
    return found


def _climb(
    evidence: Evidence,
    exact: ir.Model,
    give: Callable[[ir.Model, Sequence[str]], object],
    precision: str,
    *,
    otherwise: str,
) -> tuple[ir.Model, tuple[str, ...]]:
    """The graph as `give` types it but for the nodes that match some patterns, and the blocks that these are of."""
    exchanges = evidence.exchanges[:REHEARSED]
    kept: tuple[str, ...] = ()
    for left in reversed(range(RUNGS)):
        model = exact.clone()
        give(model, [*map(_inside, kept)])
        if not left:
            break
        found = rehearse(exact, model, precision, [exchange.inputs for exchange in exchanges])
        worse = tuple(block for block in _worst(found, model) if block not in kept)
        if not worse or _passes(evidence, exchanges, found):
            break
        log.info("in %s the graph diverges in %s, which is kept in %s", precision, ", ".join(worse), otherwise)
        kept += worse
    return model, kept


def _worst(found: Rehearsal, model: ir.Model) -> tuple[str, ...]:
    """The blocks where a graph goes wrong; of an int8 graph that does not overflow, and whose error grows with every
    block that quantises, the one of these up to the first diverging (of all, where none alone does) that adds most."""
    if found.precision != "int8" or found.overflows:
        return found.diverging
    quantising = {block_of(node.name or "") for node in nodes(model, "QuantizeLinear")}
    until = [*found.errors].index(found.diverging[0]) + 1 if found.diverging else None
    errors = [(block, error) for block, error in list(found.errors.items())[:until] if block in quantising]
    before = [0.0, *(error for _, error in errors)]
    added = {block: error - earlier for (block, error), earlier in zip(errors, before, strict=False)}
    return (max(added, key=added.__getitem__),) if added else ()


def _passes(evidence: Evidence, exchanges: Sequence[Exchange], found: Rehearsal) -> bool:
    return not found.overflows and all(
        check.passed
        for exchange, outputs in zip(exchanges, found.outputs, strict=True)
        for check in compare(exchange.outputs, outputs, evidence.decode, found.precision)
    )


def _inside(block: str) -> str:
    """A pattern of the names of a block's nodes."""
    return rf"^{re.escape(block)}(?=[./]|$)"
