"""`edgevtx compile --preflight`: what NVIDIA's compilers would refuse of a bundle, without them and without a GPU."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgevtx.bundle import Bundle
from edgevtx.cli import common
from edgevtx.errors import CompileError, InputError

if TYPE_CHECKING:
    from edgevtx.export.preflight import Finding

# graph file -> what was found, and in which versions; the versions that were looked at
Found = dict[str, tuple["dict[Finding, tuple[str, ...]]", tuple[str, ...]]]


def preflight(path: str, target: str, precision: str | None, as_json: bool) -> None:
    """Print what each version of the target is expected to refuse of a bundle's graphs.

    Raises `InputError` where the bundle has no graph for the target in that precision, and `CompileError` where a graph
    has an error.
    """
    found = _look(Bundle.open(path), target, precision)
    if as_json:
        rows = [
            {"graph": file, "versions": list(versions), **asdict(finding)}
            for file, (findings, _) in found.items()
            for finding, versions in findings.items()
        ]
        common.print_json({"target": target, "graphs": list(found), "findings": rows})
    else:
        _print(target, found)
    for file, (findings, _) in found.items():
        for finding, versions in findings.items():
            if finding.level == "error":
                raise CompileError(f"{file} would fail in {target} {', '.join(versions)}: {finding}")


def _look(bundle: Bundle, target: str, precision: str | None) -> Found:
    from edgevtx.cli.families import missing_export_extra

    try:
        from edgevtx.export.operators import TARGETS
        from edgevtx.export.preflight import by_finding, preflight_file
    except ImportError as error:
        raise missing_export_extra(error) from None
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
    looked = {item.file: preflight_file(bundle.graph_path(item), target, item.versions) for item in graphs}
    return {file: (by_finding(versions), tuple(versions)) for file, versions in looked.items()}


def _print(target: str, found: Found) -> None:
    console = common.console()
    for file, (findings, versions) in found.items():
        if not findings:
            console.print(f"{file}: nothing found for {target} {', '.join(versions)}", soft_wrap=True)
        for finding, having in findings.items():
            console.print(f"{file}: {finding.level} in {', '.join(having)}: {finding}", soft_wrap=True, markup=False)
