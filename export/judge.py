"""Verdicts: what the comparisons of `edgevtx.export.verify` say of a target at a precision, over all networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgevtx.compare import find_empty
from edgevtx.compare.tolerance import NOISIEST, SENSITIVE, TOLERANCES
from edgevtx.errors import CompileError, DeviceError, InputError, RuntimeUnavailableError
from edgevtx.export.noise import rounding_noise
from edgevtx.export.preflight import explain_findings, preflight_file
from edgevtx.export.recipe import Traceable, TraceablePart
from edgevtx.export.verify import Sample, verify_engine, verify_graph
from edgevtx.manifest import EXACT, Check, Graph, Manifest, Status, Verdict
from edgevtx.runtimes import probe
from edgevtx.runtimes.base import BuildReport, EngineOptions
from edgevtx.selftest import explain, explain_kept
from edgevtx.versions import in_range


@dataclass(frozen=True)
class Facts:
    """What all verdicts of one export share; `references` are the checks of our modules against the reference's.

    `apart` is how far the outputs of unlike inputs are from each other at least, in standard deviations, and
    `sensitivity` the same in tolerances.
    """

    samples: tuple[Sample, ...]
    manifest: Manifest
    references: tuple[Check, ...]
    sensitivity: float
    apart: float


@dataclass(frozen=True)
class Judged:
    """What was found of one network for a target at a precision.

    `report` is None where no engine was run, and `reason` says why. `refusal` says what is wrong, with its status.
    """

    graph: str
    checks: tuple[Check, ...]
    report: BuildReport | None = None
    reason: str = ""
    refusal: tuple[Status, str] | None = None


def judge(folder: Path, target: str, precision: str, graphs: Sequence[Graph], facts: Facts) -> Verdict:
    """The verdict of one target at one precision over all its networks: the engines' where they can be run here.

    A further network that does not pass in this precision keeps `EXACT`, if it passes there.
    """
    networks: dict[str, Judged] = {}
    kept: dict[str, str] = {}
    reasons: list[str] = []
    for part in facts.manifest.part_names:
        found = _judge_network(folder, target, precision, [item for item in graphs if item.part == part], facts)
        if found.refusal and part and precision != EXACT:
            exact = _judge_network(folder, target, EXACT, [item for item in graphs if item.part == part], facts)
            if not exact.refusal:
                kept[part] = EXACT
                reasons.append(explain_kept(part, precision, *found.refusal))
                found = exact
        networks[part] = found
    first = networks[""]
    reasons += [item.reason for item in networks.values() if item.reason][:1]
    verdict = Verdict(
        target=target,
        precision=precision,
        status="graph-only",
        parts=kept,
        graph=first.graph,
        sensitivity=float(f"{facts.sensitivity:.1e}"),
        checks=(*facts.references, *(check for item in networks.values() for check in item.checks)),
        reason="; ".join(reasons),
    )
    if first.report is not None and all(item.report for item in networks.values()):
        verdict = msgspec.structs.replace(
            verdict,
            status="passed-here",
            target_version=first.report.target_version,
            device=first.report.device,
            precision_share=dict(first.report.precision_share),
        )
    refusals = [_refusal(facts.references, precision), *(item.refusal for item in networks.values())]
    return _conclude(verdict, [refusal for refusal in refusals if refusal], facts.apart)


def _judge_network(folder: Path, target: str, precision: str, graphs: Sequence[Graph], facts: Facts) -> Judged:
    """One network's graphs and engine."""
    serving = [graph for graph in graphs if graph.target == target and precision in graph.precisions]
    if not serving:
        raise InputError(f"{target} has no graph for {precision}; choose another of --precisions")
    checks = [check for item in serving for check in verify_graph(folder, item, facts.samples, facts.manifest)]
    for item in serving:
        if words := explain_findings(preflight_file(folder / item.file, target, item.versions)):
            return Judged(item.file, tuple(checks), refusal=("failed", words))
    found = probe(target)
    graph = next((item for item in serving if found.available and in_range(found.version, item.versions)), None)
    report, reason = None, ""
    try:
        if not found.available:
            reason = f"no engine was run: {found.reason}"
        elif graph is None:
            reason = f"no engine was run: no graph serves {target} {found.version}"
        else:
            options = EngineOptions(precision=precision)
            more, report = verify_engine(folder, graph, facts.samples, facts.manifest, options)
            checks += more
    except (CompileError, DeviceError) as error:
        return Judged(serving[0].file, tuple(checks), refusal=("failed", str(error)))
    except RuntimeUnavailableError as error:
        reason = f"no engine was run: {error}"
    return Judged(serving[0].file, tuple(checks), report, reason, _refusal(checks, precision))


def _refusal(checks: Sequence[Check], precision: str) -> tuple[Status, str] | None:
    """What is wrong with the first check that failed or that compared nothing, if any."""
    if wrong := [check for check in checks if not check.passed]:
        return "failed", explain(wrong[0])
    if empty := find_empty(checks, precision):
        return "insensitive", f"{explain(empty)}; give --images that show what it detects"
    return None


def with_noise(facts: Facts, traceable: Traceable) -> Facts:
    """The facts with the rounding noise of every network in the manifest; see `rounding_noise`.

    The sensitivity is then in units of the largest limit.
    """
    clear = [sample for sample in facts.samples if sample.clear]
    networks: dict[str, Traceable | TraceablePart] = {"": traceable, **traceable.parts}
    noise = {}
    for part, network in networks.items():
        exchanges = [exchange for sample in clear for exchange in sample.exchanges(part)]
        if found := rounding_noise(network, exchanges, facts.manifest.decode_of(part)):
            noise[part] = found
    fp32 = TOLERANCES["fp32"]
    limits = [replace(fp32, noise=found).limit(name) for found in noise.values() for name in found]
    return replace(
        facts,
        manifest=msgspec.structs.replace(facts.manifest, noise=noise),
        sensitivity=facts.sensitivity * fp32.values / max([fp32.values, *limits]),
    )


def is_near(verdict: Verdict) -> bool:
    """Whether all that failed is fp32 values off by so little that rounding may be the reason.

    A verdict of a lower precision has such checks too where its graph is the float32 one, as OpenVINO's for bf16 is.
    """
    wrong = [check for check in verdict.checks if not check.passed]
    return bool(wrong) and all(
        check.level == "values"
        and check.tolerance == TOLERANCES["fp32"].values
        and check.error is not None
        and check.error <= NOISIEST * check.tolerance
        for check in wrong
    )


def _conclude(verdict: Verdict, refusals: Sequence[tuple[Status, str]], apart: float) -> Verdict:
    """A failed check outweighs everything, insensitive inputs outweigh a pass."""
    if wrong := [words for status, words in refusals if status == "failed"]:
        return msgspec.structs.replace(verdict, status="failed", reason=wrong[0])
    if verdict.sensitivity < SENSITIVE:
        words = (
            f"outputs that should differ do so by {verdict.sensitivity:g} tolerances only (at least {SENSITIVE:g} "
            "are needed): these weights or images cannot show a fault"
        )
        return msgspec.structs.replace(verdict, status="insensitive", reason=words)
    # so wide is int8's limit alone that another image's outputs may be within
    if verdict.precision == "int8" and apart <= (limit := TOLERANCES["int8"].values):
        words = (
            f"outputs that should differ do so by {apart:.2g} standard deviations only (more than {limit:g} are "
            "needed): in int8 these weights or images cannot show a fault"
        )
        return msgspec.structs.replace(verdict, status="insensitive", reason=words)
    if refusals:
        status, words = refusals[0]
        return msgspec.structs.replace(verdict, status=status, reason=words)
    return verdict
