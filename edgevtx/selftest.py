"""The golden sample, replayed on the device: an engine proves itself before it answers its first frame."""

from __future__ import annotations

import logging

import numpy as np

from edgevtx.bundle import Bundle
from edgevtx.compare import compare, find_empty
from edgevtx.decode.knn import compare_answers
from edgevtx.engines import PreparedEngine, record_verdict
from edgevtx.errors import VerificationError
from edgevtx.golden import Golden
from edgevtx.manifest import REFUSED, Check, Manifest, Status, Verdict
from edgevtx.preprocess import prepare_item
from edgevtx.rules import KnnDecode, Preprocess
from edgevtx.runtimes.base import Engine
from edgevtx.windows import middle_window

log = logging.getLogger(__name__)

# mean difference in levels of 255. Releases of Pillow differ by single levels in a few pixels, and OpenCV's kernels
# with the processor; another filter, a missing antialiasing or swapped colours are off by more
LEVELS = {"pillow": 0.1, "opencv": 0.5, "opencv-plain": 0.5}


def replay(bundle: Bundle, engine: Engine, prepared: PreparedEngine) -> Verdict:
    """Run the golden sample's input through an engine, and compare with what is stored.

    Of the network that takes frames the golden frame is prepared again as well.
    """
    report, precision, graph = prepared.record.report, prepared.record.precision, prepared.graph
    golden = bundle.golden()
    exchange = golden.exchange(graph.part)
    with engine.new_runtime() as runtime:
        outputs = runtime.run(exchange.inputs)
    noise = bundle.manifest.noise.get(graph.part)
    checks = compare(exchange.outputs, outputs, bundle.manifest.decode_of(graph.part), precision, noise)
    if not graph.part:
        checks = (check_preprocess(golden, bundle.manifest.preprocess), *checks)
        bank, rule = bundle.bank(), bundle.manifest.decode
        if isinstance(rule, KnnDecode) and bank is not None and all(check.passed for check in checks):
            classes = len(bundle.manifest.labels)
            checks = (*checks, compare_answers(exchange.outputs, outputs, bank, rule, classes))
    wrong = [check for check in checks if not check.passed]
    doubtful = wrong[0] if wrong else find_empty(checks, precision)
    return Verdict(
        target=engine.target,
        precision=precision,
        status="failed" if wrong else "insensitive" if doubtful else "passed-here",
        graph=graph.file,
        target_version=engine.target_version,
        device=engine.device,
        precision_share=dict(report.precision_share),
        checks=checks,
        reason=explain(doubtful) if doubtful else "",
    )


def check_preprocess(golden: Golden, preprocess: Preprocess) -> Check:
    """What this device's Pillow or OpenCV makes of the golden frame, against the input made at export."""
    image = middle_window(prepare_item(golden.frame, preprocess)[0], preprocess.windows)
    rows, columns = image.shape[-3:-1]
    wanted = golden.inputs["pixels"][0][..., :rows, :columns, :]  # the first of a batch, which may be padded
    same = wanted.shape == image.shape
    error = float(np.abs(wanted.astype(np.int16) - image).mean()) if same else float("inf")
    limit = LEVELS[preprocess.resize]
    return Check(
        name="preprocessing of the golden frame",
        passed=error <= limit,
        compared=image.size,
        error=float(f"{error:.1e}") if same else None,
        tolerance=limit,
        note="" if same else f"{columns}x{rows} px, at export {wanted.shape[-2]}x{wanted.shape[-3]}",
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


def accept(bundle: Bundle, prepared: PreparedEngine, engine: Engine, precision: str, *, allow_unverified: bool) -> str:
    """Return the engine's status on this device, replaying the golden sample where it has none yet.

    `precision` is the one that the bundle runs in, whose verdict counts; this network may keep another. Raises
    `VerificationError` where the replay fails, or failed before, unless `allow_unverified`.
    """
    if engine.target == "null":
        return "not verified: the null runtime computes nothing"
    verdict = prepared.record.verdict
    if verdict is None:
        verdict = replay(bundle, engine, prepared)
        record_verdict(prepared, verdict)
        log.info("golden sample on %s %s: %s", engine.target, prepared.record.precision, verdict.status)
    exported = status_here(bundle.manifest, engine, precision)
    if verdict.status in REFUSED and not allow_unverified:
        raise VerificationError(
            f"the golden sample on {engine.target} {engine.target_version} ({engine.device}, "
            f"{prepared.record.precision}) is {verdict.status!r} against the reference: {verdict.reason}; "
            "choose another runtime or precision, or pass allow_unverified=True to run it anyway"
        )
    return exported if exported in REFUSED else verdict.status
