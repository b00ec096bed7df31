"""Engines: a bundle's graph, compiled once for this device and kept in the cache with a record beside it.

An engine's key covers all that it depends on: the bundle, the graph, the target and its version, the device, driver
and processor, the precision. What no longer fits is never found, and what is damaged is compiled again.

What is asked of a plan (`PlanOptions`) is no part of the key: there is one plan of a kind, and it is the one that was
last asked for. Whoever asks for nothing, as `edgevtx.load` does, gets that one, and where it has to be compiled again,
such as after an update of the driver, it is compiled as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from edgevtx import cache, disk
from edgevtx.archive import digest_file
from edgevtx.bundle import Bundle
from edgevtx.errors import CompileError, InputError
from edgevtx.manifest import Graph, Verdict
from edgevtx.runtimes import get_backend, known_bad
from edgevtx.runtimes.base import BuildReport, Engine, EngineOptions, PlanOptions

log = logging.getLogger(__name__)

CompileMode = Literal["auto", "never", "force"]

Build = Callable[[Path, Path, EngineOptions], BuildReport]
"""Makes an engine: `Backend.build`, or what puts a finished one in its place."""

RECORD = "engine.json"
FILES = "engine"  # the folder that belongs to the backend
FORMAT = "1"  # a new one makes every older engine unfindable


class EngineFile(msgspec.Struct, frozen=True):
    """A file of an engine: size in bytes, modification time in ns, SHA-256 in hex."""

    path: str
    size: int
    modified: int
    sha256: str


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON beside an engine: what it was made of, what came out, and whether it passed the golden sample here.

    `fingerprint` is the backend's: versions, device, driver, processor. `asked` is what was asked of a plan. `verdict`
    is None until it was verified; it counts at the `place` (see `Backend.place`) where that was done.
    """

    name: str
    bundle: str
    graph: str
    precision: str
    fingerprint: dict[str, str]
    report: BuildReport
    files: tuple[EngineFile, ...]
    asked: PlanOptions = msgspec.field(default_factory=PlanOptions)
    verdict: Verdict | None = None
    place: dict[str, str] = {}


@dataclass
class PreparedEngine:
    """An engine's files, ready to be opened. `seconds` is what preparing took, next to nothing on a cache hit.

    `options` are those that it was made with, in the precision that the bundle has for this network; `place` is where
    it would run, as far as its fingerprint does not say.
    """

    folder: Path
    graph: Graph
    graph_path: Path
    record: EngineRecord
    options: EngineOptions
    cache_hit: bool
    seconds: float
    place: dict[str, str]
    again: Callable[[], PreparedEngine] | None = None
    """Compiles it anew; None where compiling is not allowed."""


def prepare_engine(
    bundle: Bundle,
    target: str,
    options: EngineOptions,
    *,
    part: str = "",
    compile: CompileMode = "auto",  # noqa: A002 -- the word that users know
    progress: Callable[[str], None] | None = None,
    made: Build | None = None,
) -> PreparedEngine:
    """Find the engine of a bundle's network for this device in the cache, or compile it into the cache.

    `part` names the network; "" is the one that takes frames. Its precision is the one of `options`, or what the
    bundle's verdict has in its place (see `edgevtx.manifest.Verdict`).
    `compile`: "auto" compiles on a miss, and where something else is asked of the plan than of the one that is there;
    "never" raises `CompileError` instead, "force" compiles in any case. `made` is called in place of the compiler.
    Raises `RuntimeUnavailableError` (package, device, provider or precision are not to be had here), `CompileError`
    (no graph serves, the compiler refused, or another precision came out) and `OutputError` (full disk).
    """
    if compile not in ("auto", "never", "force"):
        raise InputError(f"compile must be auto, never or force, but got {compile!r}")
    started = time.perf_counter()
    backend = get_backend(target)
    wanted = bundle.manifest.precision_of(part, target, options.precision)
    asked, options = options, replace(options, precision=wanted, progress=progress)
    fingerprint, place = backend.fingerprint(options), backend.place(options)
    version, gpu = backend.probe().version, fingerprint.get("gpu", "")
    graph = bundle.select_graph(target, version, options.precision, part, gpu)
    key = _key(bundle, graph, target, fingerprint)

    def build(folder: Path) -> None:
        settled = options
        if compile == "auto" and not options.plan:
            settled = replace(options, plan=_asked_before(bundle, graph, target, gpu))
        if made is None:
            if progress:
                progress(f"compile for {target} in {options.precision}")
            _announce(bundle, target, settled, gpu or options.device)
            _announce_known(graph, target, version, options.precision, gpu)
        record = _compile(made or backend.build, bundle, graph, folder, settled, fingerprint)
        (folder / RECORD).write_bytes(_encode(record))

    if compile == "never":
        entry, hit = _find_only(key, bundle, target, asked), True
    else:
        other = bool(options.plan) and not _is_as_asked(cache.find("engines", key, _check), options.plan)
        force = compile == "force" or other
        entry, hit = cache.obtain("engines", key, check=_check, build=build, force=force)
    record = read_record(entry)

    def again() -> PreparedEngine:
        as_before = replace(asked, plan=record.asked)
        return prepare_engine(bundle, target, as_before, part=part, compile="force", progress=progress)

    return PreparedEngine(
        folder=entry / FILES,
        graph=graph,
        graph_path=bundle.graph_path(graph),
        record=record if record.place == place else msgspec.structs.replace(record, verdict=None),
        options=options,
        cache_hit=hit,
        seconds=time.perf_counter() - started,
        place=place,
        again=None if compile == "never" else again,
    )


def open_prepared(prepared: PreparedEngine) -> Engine:
    """Open an engine. One out of the cache that its runtime refuses is compiled again, once, and `prepared` updated."""
    backend = get_backend(prepared.record.report.target)
    try:
        return backend.open(prepared.graph_path, prepared.folder, prepared.options)
    except CompileError as error:
        if not prepared.cache_hit or prepared.again is None:
            raise
        log.warning("the cached engine %s does not open (%s); it is compiled again", prepared.folder, error)
        fresh = prepared.again()
        prepared.folder, prepared.record = fresh.folder, fresh.record
        prepared.cache_hit, prepared.seconds = False, prepared.seconds + fresh.seconds
        return backend.open(prepared.graph_path, prepared.folder, prepared.options)


def record_verdict(prepared: PreparedEngine, verdict: Verdict) -> None:
    """Keep what verification found beside the engine; a cache that cannot be written forgets it.

    An engine that another process has compiled in its place meanwhile proves itself.
    """
    before = prepared.record.files
    prepared.record = msgspec.structs.replace(prepared.record, verdict=verdict, place=prepared.place)
    try:
        if read_record(prepared.folder.parent).files != before:
            return
        disk.write_atomic(prepared.folder.parent / RECORD, _encode(prepared.record))
    except msgspec.DecodeError as error:  # whoever asks for it next compiles it again
        log.info("the verdict is not kept beside %s: its record cannot be read (%s)", prepared.folder, error)
    except OSError as error:
        log.info("the verdict is not kept beside %s: %s", prepared.folder, disk.explain(error))


def read_record(entry: Path) -> EngineRecord:
    """The record of a cache entry of the kind "engines"; raises `OSError` or `msgspec.DecodeError`."""
    return msgspec.json.decode((entry / RECORD).read_bytes(), type=EngineRecord)


def _encode(record: EngineRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def _is_as_asked(entry: Path | None, asked: PlanOptions) -> bool:
    """Whether an engine is what is asked for; where there is none yet, nothing speaks against it."""
    return entry is None or not asked or read_record(entry).asked == asked


def _find_only(key: str, bundle: Bundle, target: str, options: EngineOptions) -> Path:
    entry = cache.find("engines", key, _check)
    if entry is not None and _is_as_asked(entry, options.plan):
        return entry
    raise CompileError(
        f"{bundle.manifest.name} is not compiled for {target} on this device in {options.precision}, and "
        f"compile='never' was asked; compile it ahead with: edgevtx compile {shlex.quote(str(bundle.path))} "
        f"--target {target} --device {options.device} --precision {options.precision}"
    )


def _key(bundle: Bundle, graph: Graph, target: str, fingerprint: dict[str, str]) -> str:
    hashes = {item.path: item.sha256 for item in bundle.manifest.files}
    facts = {
        "format": FORMAT,
        "bundle": bundle.digest,
        "graph": hashes[graph.file],
        "part": graph.part,  # of two that are alike each has its own golden sample, and so its own verdict
        "target": target,
        "fingerprint": fingerprint,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _compile(
    build: Build,
    bundle: Bundle,
    graph: Graph,
    folder: Path,
    options: EngineOptions,
    fingerprint: dict[str, str],
) -> EngineRecord:
    content = folder / FILES
    content.mkdir()
    report = build(bundle.graph_path(graph), content, options)
    log.info("compiled %s in %.1f s: %s", bundle.manifest.name, report.compile_seconds, asdict(report))
    paths = sorted(path for path in content.rglob("*") if path.is_file())
    files = [
        EngineFile(
            path=path.relative_to(content).as_posix(),
            size=path.stat().st_size,
            modified=path.stat().st_mtime_ns,
            sha256=digest_file(path),
        )
        for path in paths
    ]
    return EngineRecord(
        name=bundle.manifest.name,
        bundle=bundle.digest,
        graph=graph.file,
        precision=options.precision,
        fingerprint=fingerprint,
        report=report,
        files=tuple(files),
        asked=options.plan,
    )


def _check(entry: Path) -> str | None:
    """What is wrong with an engine in the cache, or None. Changed times are forgiven where the hashes still hold."""
    try:
        record = read_record(entry)
        for item in record.files:
            path = entry / FILES / item.path
            stat = path.stat()
            if stat.st_size != item.size:
                return f"{item.path} has {stat.st_size} bytes instead of {item.size}"
            if stat.st_mtime_ns != item.modified and digest_file(path) != item.sha256:
                return f"{item.path} was changed"
    except OSError as error:
        return f"{Path(error.filename or entry).name}: {error.strerror}"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"{RECORD} cannot be read: {error}"
    return None


def _announce(bundle: Bundle, target: str, options: EngineOptions, device: str) -> None:
    """Say on the log that a cold start compiles, and about how long: as the last time, or by the weights' size."""
    megabytes = sum(item.size for item in bundle.manifest.files) / 1e6
    # measured on 2 server cores: 1.5 to 2.5 s for 100 MB of weights, both runtimes
    expected = next((item.report.compile_seconds for item in _earlier(bundle, target)), 1 + megabytes / 40)
    log.info(
        "%s is compiled for %s on %s in %s, once on this device: about %.0f s (longer on a small board)",
        bundle.manifest.name, target, device, options.precision, max(expected, 1),
    )  # fmt: skip
    if options.plan:
        log.info("asked of the plan: %s", options.plan)


def _announce_known(graph: Graph, target: str, version: str, precision: str, gpu: str) -> None:
    """Say on the log which faults of this compiler the graph avoids, and which may still concern it."""
    for row in known_bad.find(target, version, precision, gpu):
        if row.id in graph.avoids:
            log.info("%s was rewritten, since in %s %s %s", graph.file, target, version, row)
        elif row.pattern in graph.patterns:
            log.warning("%s may be wrong in %s %s: %s; %s", graph.file, target, version, row, row.advice)


def _asked_before(bundle: Bundle, graph: Graph, target: str, gpu: str) -> PlanOptions:
    """What was asked of the last plan of a graph for a GPU, by whichever version or driver."""
    for item in _earlier(bundle, target):
        if (item.graph, item.fingerprint.get("gpu", "")) == (graph.file, gpu):
            return item.asked
    return PlanOptions()


def _earlier(bundle: Bundle, target: str) -> Iterator[EngineRecord]:
    """The records of a bundle's engines for a target, the most recently used first."""
    for entry in cache.entries():
        with contextlib.suppress(OSError, msgspec.DecodeError):
            record = read_record(entry.path)
            if (record.bundle, record.report.target) == (bundle.digest, target):
                yield record
