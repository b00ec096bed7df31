"""The golden sample, replayed on the device: an engine proves itself before it answers its first frame."""

from __future__ import annotations

import logging

from edgevtx.bundle import Bundle
from edgevtx.compare import compare
from edgevtx.engines import PreparedEngine, record_verdict
from edgevtx.errors import VerificationError
from edgevtx.manifest import Check, Manifest, Status, Verdict
from edgevtx.runtimes.base import BuildReport, Engine

log = logging.getLogger(__name__)


def replay(bundle: Bundle, engine: Engine, report: BuildReport, precision: str, graph: str) -> Verdict:
    """Run the golden sample's input through the engine and compare with the reference's outputs, stored beside it."""
    golden = bundle.golden()
    with engine.new_runtime() as runtime:
        outputs = runtime.run(golden.inputs)
    checks = compare(golden.outputs, outputs, bundle.manifest.decode, precision)
    wrong = [check for check in checks if not check.passed]
    return Verdict(
        target=engine.target,
        precision=precision,
        status="failed" if wrong else "passed-here",
        graph=graph,
        target_version=engine.target_version,
        device=engine.device,
        precision_share=dict(report.precision_share),
        checks=checks,
        reason=explain(wrong[0]) if wrong else "",
    )


def explain(check: Check) -> str:
    """A failed check in words."""
    error = "without bounds" if check.error is None else f"{check.error:g}"
    allowed = "" if check.tolerance is None else f", allowed {check.tolerance:g}"
    words = f"{check.name}: error {error}{allowed}, over {check.compared} compared"
    return f"{words} ({check.note})" if check.note else words


def status_here(manifest: Manifest, engine: Engine, precision: str) -> Status | None:
    """The manifest's verdict as seen from this device: what passed at export passed elsewhere, unless that was here."""
    verdict = manifest.verdict(engine.target, precision)
    if verdict is None:
        return None
    here = (verdict.target_version, verdict.device) == (engine.target_version, engine.device)
    return "passed-elsewhere" if verdict.status == "passed-here" and not here else verdict.status


def accept(bundle: Bundle, prepared: PreparedEngine, engine: Engine, *, allow_unverified: bool) -> str:
    """Return the engine's status on this device, replaying the golden sample where it has none yet.

    Raises `VerificationError` where the replay fails, or failed before, unless `allow_unverified`.
    """
    if engine.target == "null":
        return "not verified: the null runtime computes nothing"
    precision = prepared.record.precision
    verdict = prepared.record.verdict
    if verdict is None:
        verdict = replay(bundle, engine, prepared.record.report, precision, prepared.graph.file)
        record_verdict(prepared, verdict)
        log.info("golden sample on %s %s: %s", engine.target, precision, verdict.status)
    exported = status_here(bundle.manifest, engine, precision)
    if verdict.status == "failed" and not allow_unverified:
        raise VerificationError(
            f"the golden sample's answer on {engine.target} {engine.target_version} ({engine.device}, {precision}) "
            f"differs from the reference: {verdict.reason}; choose another runtime or precision, "
            "or pass allow_unverified=True to run it anyway"
        )
    return exported if exported in ("failed", "insensitive") else verdict.status
