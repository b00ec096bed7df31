"""`edgevtx compile --preflight`: what NVIDIA's compilers would refuse of a bundle, without them and without a GPU.

Its graphs of lower precision are rehearsed as well, with the golden sample's inputs; see `edgevtx.export.rehearsal`.
"""

from __future__ import annotations

import importlib
import math
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgevtx.bundle import Bundle
from edgevtx.cli import common
from edgevtx.errors import CompileError, InputError
from edgevtx.manifest import EXACT, Graph
from edgevtx.runtimes.base import Arrays

if TYPE_CHECKING:
    from edgevtx.export.preflight import Finding

# graph file -> what was found, and in which versions; the versions that were looked at
Found = dict[str, tuple["dict[Finding, tuple[str, ...]]", tuple[str, ...]]]


@dataclass(frozen=True)
class Rehearsed:
    """What the rehearsal of a graph of lower precision showed on the golden sample.

    `exact` is the float32 graph beside which it ran, "" where the bundle has none and the graph itself was widened.
    `overflows` names blocks, and so does `diverging` where the answer is wrong. `worst` is the block that is furthest
    from the float32 graph, and `error` how far, in standard deviations (None: without bounds). `wrong` says what is
    wrong with the answer, "" where it passes.
    """

    graph: str
    precision: str
    exact: str = ""
    overflows: tuple[str, ...] = ()
    diverging: tuple[str, ...] = ()
    worst: str = ""
    error: float | None = None
    wrong: str = ""

    @property
    def passed(self) -> bool:
        return not self.overflows and not self.wrong

    def __str__(self) -> str:
        beside = self.exact or "itself in fp32, since the bundle has no fp32 graph"
        where = f"{self.graph}: rehearsed in {self.precision} beside {beside}"
        if self.overflows:
            return f"{where}: overflows in {', '.join(self.overflows)}"
        if self.wrong:
            block = f"the first block that diverges is {self.diverging[0]}" if self.diverging else "no block alone does"
            return f"{where}: wrong on the golden sample ({self.wrong}); {block}"
        error = "" if self.error is None else f", furthest off is {self.worst}, by {self.error:.1e} standard deviations"
        return f"{where}: passes{error}"


def preflight(path: str, target: str, precision: str | None, as_json: bool) -> None:
    """Print what each version of the target is expected to refuse of a bundle's graphs, and how those of lower
    precision do on the golden sample.

    Raises `InputError` where the bundle has no graph for the target in that precision, and `CompileError` where a graph
    has an error, overflows or gives another answer.
    """
    from edgevtx.cli.families import missing_export_extra

    try:
        for name in ("edgevtx.export.preflight", "edgevtx.export.rehearsal", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise missing_export_extra(error) from None
    bundle = Bundle.open(path)
    graphs = _graphs(bundle, target, precision)
    found = _look(bundle, target, graphs)
    sound = [item for item in graphs if not any(finding.level == "error" for finding in found[item.file][0])]
    with common.stages("rehearse") as progress:
        rehearsed = []
        for graph in sound:
            progress(f"rehearse {graph.file}")
            rehearsed += _rehearse(bundle, graph)
    if as_json:
        rows = [
            {"graph": file, "versions": list(versions), **asdict(finding)}
            for file, (findings, _) in found.items()
            for finding, versions in findings.items()
        ]
        trials = [{**asdict(item), "passed": item.passed} for item in rehearsed]
        common.print_json({"target": target, "graphs": list(found), "findings": rows, "rehearsals": trials})
    else:
        _print(target, found, rehearsed)
    for file, (findings, _) in found.items():
        for finding, versions in findings.items():
            if finding.level == "error":
                raise CompileError(f"{file} would fail in {target} {', '.join(versions)}: {finding}")
    for item in rehearsed:
        if not item.passed:
            raise CompileError(f"{item}; export the bundle again, or choose another precision")


def _graphs(bundle: Bundle, target: str, precision: str | None) -> list[Graph]:
    from edgevtx.export.operators import TARGETS

    if target not in TARGETS:
        raise InputError(f"--preflight is for {' and '.join(TARGETS)}, and --target is {target}")
    manifest = bundle.manifest
    graphs = [item for item in manifest.graphs if item.target == target and precision in (None, *item.precisions)]
    if not graphs:
        asked = f"{target} in {precision}" if precision else target
        raise InputError(
            f"{manifest.name} has no graph for {asked}; make one with: edgevtx export {manifest.family} "
            f"--checkpoint PATH --out {shlex.quote(manifest.name)}.vtx --targets {target}"
        )
    return graphs


def _look(bundle: Bundle, target: str, graphs: list[Graph]) -> Found:
    from edgevtx.export.preflight import by_finding, preflight_file

    looked = {item.file: preflight_file(bundle.graph_path(item), target, item.versions) for item in graphs}
    return {file: (by_finding(versions), tuple(versions)) for file, versions in looked.items()}


def _rehearse(bundle: Bundle, graph: Graph) -> list[Rehearsed]:
    """The rehearsal of a graph of lower precision; nothing for others."""
    import onnx_ir as ir

    from edgevtx.export.rehearsal import rehearse, widen
    from edgevtx.export.rewrite.patterns import precisions_of

    if EXACT in graph.precisions:
        return []
    (precision,) = graph.precisions
    typed = ir.load(bundle.graph_path(graph))
    if precision not in precisions_of(typed):
        return [Rehearsed(graph.file, precision, wrong=f"none of its operators runs in {precision}")]
    exact = _exact_of(bundle, graph)
    beside = widen(typed) if exact is None else ir.load(bundle.graph_path(exact))
    golden = bundle.golden().exchange(graph.part)
    found = rehearse(beside, typed, precision, [golden.inputs])
    wrong = _wrong(bundle, graph.part, precision, golden.outputs, found.outputs[0])
    worst = max(found.errors, key=lambda block: found.errors[block], default="")
    return [
        Rehearsed(
            graph=graph.file,
            precision=precision,
            exact="" if exact is None else exact.file,
            overflows=tuple(found.overflows),
            diverging=found.diverging if wrong else (),
            worst=worst,
            error=found.errors[worst] if worst and math.isfinite(found.errors[worst]) else None,
            wrong=wrong,
        )
    ]


def _exact_of(bundle: Bundle, graph: Graph) -> Graph | None:
    """The float32 graph that a typed one was made of."""
    same = [item for item in bundle.manifest.graphs if (item.target, item.part) == (graph.target, graph.part)]
    return next((item for item in same if EXACT in item.precisions and item.versions == graph.versions), None)


def _wrong(bundle: Bundle, part: str, precision: str, reference: Arrays, outputs: Arrays) -> str:
    """What is wrong with the answer of a network, or ""."""
    from edgevtx.compare import compare
    from edgevtx.selftest import explain

    manifest = bundle.manifest
    checks = compare(reference, outputs, manifest.decode_of(part), precision, manifest.noise.get(part))
    return next((explain(check) for check in checks if not check.passed), "")


def _print(target: str, found: Found, rehearsed: list[Rehearsed]) -> None:
    console = common.console()
    for file, (findings, versions) in found.items():
        if not findings:
            console.print(f"{file}: nothing found for {target} {', '.join(versions)}", soft_wrap=True)
        for finding, having in findings.items():
            console.print(f"{file}: {finding.level} in {', '.join(having)}: {finding}", soft_wrap=True, markup=False)
    for item in rehearsed:
        console.print(str(item), soft_wrap=True, markup=False)
