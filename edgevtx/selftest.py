"""The golden sample, replayed on the device: an engine proves itself before it answers its first frame."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np

from edgevtx.bundle import Bundle
from edgevtx.compare import compare, find_empty
from edgevtx.decode.knn import compare_answers
from edgevtx.engines import CompileMode, PreparedEngine, open_prepared, prepare_engine, record_verdict
from edgevtx.errors import CompileError, InputError, OutputError, VerificationError
from edgevtx.golden import Exchange, Golden
from edgevtx.manifest import EXACT, REFUSED, Check, Manifest, Status, Verdict
from edgevtx.preprocess import prepare_item
from edgevtx.rules import KnnDecode, Preprocess
from edgevtx.runtimes.base import Arrays, Engine, EngineOptions, Runtime, TensorSpec
from edgevtx.windows import middle_window

log = logging.getLogger(__name__)

# mean difference in levels of 255. Releases of Pillow differ by single levels in a few pixels, and OpenCV's kernels
# with the processor; another filter, a missing antialiasing or swapped colours are off by more
LEVELS = {"pillow": 0.1, "opencv": 0.5, "opencv-plain": 0.5}


class Proven(NamedTuple):
    """A network's open engine, what it was opened from, and what the golden sample said of it on this device.

    `verdict` is None of the null runtime, which computes nothing.
    """

    prepared: PreparedEngine
    engine: Engine
    verdict: Verdict | None


def open_proven(
    bundle: Bundle,
    target: str,
    options: EngineOptions,
    part: str = "",
    *,
    compile: CompileMode = "auto",  # noqa: A002 -- the word that users know
    progress: Callable[[str], None] | None = None,
    anew: bool = False,
) -> Proven:
    """Open a network's engine, and replay the golden sample where that has not been done, or `anew`.

    A further network that does not pass in the precision of `options`, or cannot be compiled in it, is opened in
    `EXACT` where it passes there, as at export. What was found stays beside both engines, so that later only the one
    that runs is opened; what does not compile is tried again. The caller closes the engine. Raises as
    `edgevtx.engines.prepare_engine`, about the precision asked for.
    """

    def prepare(precision: str) -> PreparedEngine:
        wanted = replace(options, precision=precision)
        made = prepare_engine(bundle, target, wanted, part=part, compile=compile, progress=progress)
        if anew:
            made.record = msgspec.structs.replace(made.record, verdict=None)
        return made

    precision = bundle.manifest.precision_of(part, target, options.precision)
    if target == "null" or not _has_exact(bundle, target, part, precision):
        return _prove(bundle, prepare(options.precision))
    try:
        asked = prepare(options.precision)
        if not _is_refused(asked.record.verdict):
            found = _prove(bundle, asked)
            if not _is_refused(found.verdict):
                return found
            found.engine.close()
    except CompileError as error:
        exact = _prove_exact(bundle, prepare)
        if exact is None:
            raise
        return _explained(bundle, exact, part, precision, "failed", str(error))
    exact = _prove_exact(bundle, prepare)
    if exact is None:
        return _prove(bundle, asked)
    assert asked.record.verdict is not None
    return _explained(bundle, exact, part, precision, asked.record.verdict.status, asked.record.verdict.reason)


def _prove_exact(bundle: Bundle, prepare: Callable[[str], PreparedEngine]) -> Proven | None:
    """A further network in `EXACT`; None where it cannot be made, or does not pass there either."""
    try:
        found = _prove(bundle, prepare(EXACT))
    except (CompileError, OutputError) as error:
        log.warning("%s cannot be had in %s either: %s", bundle.manifest.name, EXACT, error)
        return None
    if _is_refused(found.verdict):
        found.engine.close()
        return None
    return found


def _explained(bundle: Bundle, exact: Proven, part: str, precision: str, status: str, reason: str) -> Proven:
    """`exact` with the words why it is not what was asked for, which go to the log too."""
    assert exact.verdict is not None
    words = explain_kept(part, precision, status, reason)
    log.warning("%s on %s: %s", bundle.manifest.name, exact.engine.target, words)
    return exact._replace(verdict=msgspec.structs.replace(exact.verdict, reason=words))


def _has_exact(bundle: Bundle, target: str, part: str, precision: str) -> bool:
    """Whether a network is a further one that has `EXACT` beside the precision that it is to run in."""
    graphs = [graph for graph in bundle.manifest.graphs if (graph.target, graph.part) == (target, part)]
    return bool(part) and precision != EXACT and any(EXACT in graph.precisions for graph in graphs)


def _is_refused(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.status in REFUSED


def _prove(bundle: Bundle, prepared: PreparedEngine) -> Proven:
    """Open an engine; one without a verdict replays the golden sample, and the verdict is kept beside it."""
    with contextlib.ExitStack() as opened:
        engine = opened.enter_context(contextlib.closing(open_prepared(prepared)))
        verdict = prepared.record.verdict
        if verdict is None and engine.target != "null":
            verdict = replay(bundle, engine, prepared)
            record_verdict(prepared, verdict)
            log.info("golden sample on %s %s: %s", engine.target, prepared.record.precision, verdict.status)
        opened.pop_all()  # from here on the caller closes it
    return Proven(prepared, engine, verdict)


def replay(bundle: Bundle, engine: Engine, prepared: PreparedEngine) -> Verdict:
    """Run the golden sample's input through an engine, and compare with what is stored.

    Of the network that takes frames the golden frame is prepared again as well.
    """
    report, precision, graph = prepared.record.report, prepared.record.precision, prepared.graph
    golden = bundle.golden()
    exchange = golden.exchange(graph.part)
    judge = partial(
        compare,
        decode=bundle.manifest.decode_of(graph.part),
        precision=precision,
        noise=bundle.manifest.noise.get(graph.part),
    )
    with engine.new_runtime() as runtime:
        outputs = runtime.run(exchange.inputs)
        checks = judge(exchange.outputs, outputs)
        if engine.two_forms:  # the sample has the usual shapes: twice at once it goes the other way
            checks = (*checks, *_replay_twice(exchange, runtime, judge))
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


def _replay_twice(
    exchange: Exchange, runtime: Runtime, judge: Callable[[Arrays, Arrays], tuple[Check, ...]]
) -> list[Check]:
    """The checks of an exchange whose rows are given twice at once; an engine that cannot take them has failed."""
    try:
        outputs = runtime.run(_twice(exchange.inputs, runtime.inputs))
    except InputError as error:
        return [Check(name="two at once", passed=False, compared=0, error=None, tolerance=0.0, note=str(error))]
    checks = judge(_twice(exchange.outputs, runtime.outputs), outputs)
    return [msgspec.structs.replace(check, name=f"{check.name}, two at once") for check in checks]


def _twice(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> Arrays:
    """Each array with its rows twice where the batch is open."""
    opened = {spec.name for spec in specs if spec.shape[:1] == (None,)}
    return {name: np.concatenate((array, array)) if name in opened else array for name, array in arrays.items()}


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


def explain_kept(part: str, precision: str, status: str, reason: str) -> str:
    """Why a further network runs in `EXACT`, in words."""
    return f"{part} runs in {EXACT}, since in {precision} it is {status} ({reason})"


def status_here(manifest: Manifest, engine: Engine, precision: str) -> Status | None:
    """The manifest's verdict as seen from this device: what passed at export passed elsewhere, unless that was here."""
    verdict = manifest.verdict(engine.target, precision)
    if verdict is None:
        return None
    here = (verdict.target_version, verdict.device) == (engine.target_version, engine.device)
    return "passed-elsewhere" if verdict.status == "passed-here" and not here else verdict.status


def accept(bundle: Bundle, proven: Proven, precision: str, *, allow_unverified: bool) -> str:
    """Return an engine's status on this device.

    `precision` is the one that the bundle runs in, whose verdict counts; this network may keep another. Raises
    `VerificationError` where the golden sample did not pass, unless `allow_unverified`.
    """
    engine, verdict = proven.engine, proven.verdict
    if engine.target == "null" or verdict is None:
        return "not verified: the null runtime computes nothing"
    exported = status_here(bundle.manifest, engine, precision)
    if verdict.status in REFUSED and not allow_unverified:
        raise VerificationError(
            f"the golden sample on {engine.target} {engine.target_version} ({engine.device}, "
            f"{verdict.precision}) is {verdict.status!r} against the reference: {verdict.reason}; "
            "choose another runtime or precision, or pass allow_unverified=True (--allow-unverified) to run it anyway"
        )
    return exported if exported in REFUSED else verdict.status
