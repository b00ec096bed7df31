"""`edgevtx verify`: is the bundle whole, and does it still give the reference's answer on this device?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common
from edgevtx.errors import CompileError, DeviceError, RuntimeUnavailableError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgevtx.bundle import Bundle
    from edgevtx.manifest import Verdict


@click.command(short_help="Check a bundle, and its answers on this device.")
@common.bundle_argument
@click.option(
    "--runtime",
    "runtimes",
    metavar="NAME,...",
    callback=common.parse_names,
    help="Only these; default: all usable here.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="NAME,...",
    callback=common.parse_names,
    help="Only these; default: all in the bundle.",
)
@click.option(
    "--device", metavar="NAME", default="CPU", show_default=True, help="The runtime's name: CPU, GPU, NPU, AUTO."
)
@common.json_option
def command(bundle: str, runtimes: tuple[str, ...], precisions: tuple[str, ...], device: str, as_json: bool) -> None:
    """Hash every file of a bundle, and replay its golden sample on every runtime and precision usable here.

    \b
    Example:
      edgevtx verify fire.vtx
      edgevtx verify fire.vtx --runtime openvino --precision bf16

    Exit code 3 if a file differs, an answer does, or an engine cannot be built as asked. What you name must run.
    """
    from edgevtx.bundle import Bundle
    from edgevtx.errors import BundleError
    from edgevtx.manifest import REFUSED

    with common.stages("hash files") as progress:
        try:
            opened = Bundle.open(bundle)
            opened.check_hashes()
        except BundleError as error:
            raise VerificationError(str(error)) from None
        verdicts, skipped = replay_all(opened, runtimes, precisions, device, progress)
    if as_json:
        _print_json(opened, verdicts, skipped)
    else:
        _print(opened, verdicts, skipped)
    if refused := [item for item in verdicts if item.status in REFUSED]:
        names = ", ".join(f"{item.target} {item.precision}" for item in refused)
        raise VerificationError(f"{opened.manifest.name} failed verification here on {names}")
    ran = {name for item in verdicts for name in (item.target, item.precision)}
    if left := [name for name in (*runtimes, *precisions) if name not in ran]:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise RuntimeUnavailableError(
            f"{', '.join(left)} was asked for and could not be run here ({why or 'the bundle has no graph for it'}); "
            "leave it out to verify what can be run"
        )
    if not verdicts:
        raise RuntimeUnavailableError("no engine could be run, so nothing was proven beyond the hashes; see doctor")


def replay_all(
    bundle: Bundle,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    device: str,
    progress: Callable[[str], None],
) -> tuple[list[Verdict], dict[str, str]]:
    """The golden sample's verdict for every target and precision; and why others were left out.

    An engine that its runtime cannot build as asked, or builds in another precision, is a failed verdict. Left out is
    what this machine does not have: a runtime, a device, a processor's bf16.
    """
    from edgevtx.manifest import Verdict
    from edgevtx.runtimes import probe

    verdicts, skipped = [], {}
    targets = dict.fromkeys(graph.target for graph in bundle.manifest.graphs)
    if unknown := set(runtimes) - set(targets):
        raise RuntimeUnavailableError(
            f"the bundle has no graph for {', '.join(sorted(unknown))}, only for {', '.join(targets)}"
        )
    for target in runtimes or targets:
        found = probe(target)
        if not found.available:
            skipped[target] = f"{found.reason}; {found.install}"
            continue
        # the bundle's precisions are those of the network that takes frames; a part may keep another one
        graphs = [graph for graph in bundle.manifest.graphs if graph.target == target and not graph.part]
        for precision in dict.fromkeys(name for graph in graphs for name in graph.precisions):
            if not precisions or precision in precisions:
                progress(f"{target} {precision}")
                try:
                    verdicts.append(replay_one(bundle, target, precision, device))
                except DeviceError as error:  # it is here, and it failed
                    verdicts.append(Verdict(target=target, precision=precision, status="failed", reason=str(error)))
                except RuntimeUnavailableError as error:
                    skipped[f"{target} {precision}"] = str(error)
                except CompileError as error:
                    verdicts.append(Verdict(target=target, precision=precision, status="failed", reason=str(error)))
    return verdicts, skipped


def replay_one(bundle: Bundle, target: str, precision: str, device: str) -> Verdict:
    """The verdict over all networks of the bundle: the worst status and its reason, and the checks of all.

    Where all pass, the reason says which of them run in another precision, and why.
    """
    import msgspec

    from edgevtx.manifest import REFUSED, badness

    found = {part: replay_part(bundle, part, target, precision, device) for part in bundle.manifest.part_names}
    worst = max(found, key=lambda part: badness(found[part].status))
    parts = {part: verdict.precision for part, verdict in found.items() if verdict.precision != precision}
    reason = "; ".join(verdict.reason for verdict in found.values() if verdict.reason)
    at_export = bundle.manifest.verdict(target, precision)
    if parts and not reason and at_export is not None:
        reason = at_export.reason
    if found[worst].status in REFUSED:
        reason = f"{worst}: {found[worst].reason}" if worst else found[worst].reason
    return msgspec.structs.replace(
        found[""],
        status=found[worst].status,
        parts=parts,
        reason=reason,
        checks=tuple(
            msgspec.structs.replace(check, name=f"{part} {check.name}".lstrip())
            for part, verdict in found.items()
            for check in verdict.checks
        ),
    )


def replay_part(bundle: Bundle, part: str, target: str, precision: str, device: str) -> Verdict:
    """Open (compiling if need be) one engine, replay the golden sample and record the outcome beside the engine."""
    from edgevtx.runtimes.base import EngineOptions
    from edgevtx.selftest import open_proven

    found = open_proven(bundle, target, EngineOptions(precision=precision, device=device), part, anew=True)
    found.engine.close()
    assert found.verdict is not None  # what is verified is never the null runtime
    return found.verdict


def _print_json(bundle: Bundle, verdicts: list[Verdict], skipped: dict[str, str]) -> None:
    import msgspec

    facts: dict[str, Any] = {
        "name": bundle.manifest.name,
        "files": len(bundle.manifest.files),
        "verdicts": msgspec.to_builtins(verdicts),
        "skipped": skipped,
    }
    common.print_json(facts)


def _print(bundle: Bundle, verdicts: list[Verdict], skipped: dict[str, str]) -> None:
    out = common.console()
    total = common.size(sum(item.size for item in bundle.manifest.files))
    out.print(f"{len(bundle.manifest.files)} files, {total}: every hash is right\n")
    if verdicts:
        common.print_verdicts(out, verdicts)
    for name, why in skipped.items():
        out.print(f"{name} was not run: {why}")
