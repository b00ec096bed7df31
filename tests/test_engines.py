"""Engines: compiled once, found again, rebuilt when damaged, never found when something they depend on changed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevtx import cache, engines
from edgevtx.bundle import Bundle, write_bundle
from edgevtx.engines import open_prepared, prepare_engine, read_record, record_verdict
from edgevtx.errors import CompileError, InputError
from edgevtx.manifest import Verdict
from edgevtx.runtimes import BACKENDS, get_backend, known_bad, ort, probe
from edgevtx.runtimes.base import EngineOptions

OPTIONS = EngineOptions()


@pytest.fixture(autouse=True)
def _fresh(empty_cache: Path) -> None:
    """Every test begins with an empty cache."""


@pytest.fixture
def parts(tiny_parts: Callable[..., Any]) -> Any:
    return tiny_parts()


@pytest.fixture
def opened(parts: Any, tmp_path: Path) -> Bundle:
    return Bundle.open(write_bundle(parts.folder, parts.manifest, tmp_path / "tiny"))


@pytest.fixture(params=BACKENDS)
def target(request: pytest.FixtureRequest) -> str:
    if not probe(request.param).available:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def _run(prepared: engines.PreparedEngine, parts: Any) -> Any:
    with open_prepared(prepared).new_runtime() as runtime:
        return runtime.run({"pixels": parts.graph.pixels})["scores"]


def _forbid_building(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(get_backend(target), "build", lambda *args: pytest.fail("compiled again"))


def test_compiled_once_and_found_again(
    opened: Bundle, parts: Any, target: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgevtx"):
        first = prepare_engine(opened, target, OPTIONS)
    assert not first.cache_hit
    assert f"tiny is compiled for {target} on CPU in fp32, once on this device: about" in caplog.text
    _forbid_building(monkeypatch, target)
    second = prepare_engine(opened, target, OPTIONS)
    assert (second.cache_hit, second.record, second.folder) == (True, first.record, first.folder)
    wanted = parts.graph.reference(parts.graph.pixels)["scores"]
    np.testing.assert_allclose(_run(second, parts), wanted, rtol=1e-4, atol=1e-3)
    assert second.record.report.target == target
    assert second.record.precision == "fp32"
    assert second.record.bundle == opened.digest


def test_what_a_graph_avoids_and_what_may_concern_it_is_said_when_it_is_compiled(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = known_bad.KnownBad("a", "onnxruntime", ">=1.0", "one", "owner/repository#1", "one is wrong", "mend-one")
    other = replace(row, id="b", pattern="two", what="two may be wrong", remedy=known_bad.WARN, advice="look at it")
    monkeypatch.setattr(known_bad, "TABLE", (row, other, replace(other, id="c", pattern="three")))
    graphs = tuple(msgspec.structs.replace(graph, avoids=("a",), patterns=("two",)) for graph in parts.manifest.graphs)
    manifest = msgspec.structs.replace(parts.manifest, graphs=graphs)
    opened = Bundle.open(write_bundle(parts.folder, manifest, tmp_path / "known"))
    with caplog.at_level(logging.INFO, "edgevtx"):
        prepare_engine(opened, "onnxruntime", OPTIONS)
    version = probe("onnxruntime").version
    said = f"graph.onnxruntime.onnx was rewritten, since in onnxruntime {version} one is wrong (owner/repository#1)"
    assert said in caplog.text
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.endswith(f"may be wrong in onnxruntime {version}: two may be wrong (owner/repository#1); look at it")


def test_never_compiling(opened: Bundle, target: str) -> None:
    with pytest.raises(CompileError, match=f"edgevtx compile {opened.path} --target {target} --device CPU --precision"):
        prepare_engine(opened, target, OPTIONS, compile="never")
    assert cache.entries() == []
    prepare_engine(opened, target, OPTIONS)
    assert prepare_engine(opened, target, OPTIONS, compile="never").cache_hit


def test_forced_compiling(opened: Bundle, parts: Any, target: str) -> None:
    first = prepare_engine(opened, target, OPTIONS)
    running = open_prepared(first).new_runtime()
    said: list[str] = []
    again = prepare_engine(opened, target, OPTIONS, compile="force", progress=said.append)
    assert not again.cache_hit
    assert said == [f"compile for {target} in fp32"]
    # what runs on the replaced files goes on
    np.testing.assert_array_equal(running.run({"pixels": parts.graph.pixels})["scores"], _run(again, parts))


def test_a_word_that_is_none(opened: Bundle) -> None:
    with pytest.raises(InputError, match="compile must be auto, never or force"):
        prepare_engine(opened, "null", OPTIONS, compile="always")  # type: ignore[arg-type]


def test_the_key_covers_bundle_precision_and_fingerprint(
    opened: Bundle, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare_engine(opened, "onnxruntime", OPTIONS).folder
    other = msgspec.structs.replace(parts.manifest, notes=("another",))
    changed = Bundle.open(write_bundle(parts.folder, other, tmp_path / "other"))
    assert prepare_engine(changed, "onnxruntime", OPTIONS).folder != folder
    assert prepare_engine(opened, "onnxruntime", EngineOptions(threads=1)).folder == folder  # not baked in
    real = ort.fingerprint
    monkeypatch.setattr(ort, "fingerprint", lambda options: {**real(options), "processor": "another"})
    assert prepare_engine(opened, "onnxruntime", OPTIONS).folder != folder


def _largest(folder: Path) -> Path:
    return max((path for path in folder.iterdir()), key=lambda path: path.stat().st_size)


def _same_size(path: Path) -> None:
    """Damage that neither size nor time shows."""
    stat = path.stat()
    path.write_bytes(b"\xff" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _truncate_unseen(path: Path) -> None:
    """Cut short with its time kept, as an interrupted copy of the cache leaves it."""
    stat = path.stat()
    os.truncate(path, stat.st_size // 2)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing file": lambda folder: _largest(folder).unlink(),
    "truncated file": lambda folder: os.truncate(_largest(folder), 7),
    "truncated file of the same time": lambda folder: _truncate_unseen(_largest(folder)),
    "changed file": lambda folder: _largest(folder).write_bytes(b"\0" * _largest(folder).stat().st_size),
    "missing record": lambda folder: (folder.parent / engines.RECORD).unlink(),
    "bad record": lambda folder: (folder.parent / engines.RECORD).write_bytes(b'{"name": '),
    "binary record": lambda folder: (folder.parent / engines.RECORD).write_bytes(b"\xff\xfe\0"),
    "foreign record": lambda folder: (folder.parent / engines.RECORD).write_text(json.dumps({"name": 3})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_engine_is_compiled_again(
    opened: Bundle, parts: Any, target: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare_engine(opened, target, OPTIONS)
    wanted = _run(first, parts)
    DAMAGE[damage](first.folder)
    with caplog.at_level(logging.WARNING, "edgevtx"):
        again = prepare_engine(opened, target, OPTIONS)
    assert not again.cache_hit
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(_run(again, parts), wanted)


def test_an_engine_that_does_not_open_is_compiled_again(
    opened: Bundle, parts: Any, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare_engine(opened, target, OPTIONS)
    wanted = _run(first, parts)
    for path in first.folder.iterdir():
        _same_size(path)
    prepared = prepare_engine(opened, target, OPTIONS)
    assert prepared.cache_hit
    with caplog.at_level(logging.WARNING, "edgevtx"):
        np.testing.assert_array_equal(_run(prepared, parts), wanted)
    assert "does not open" in caplog.text
    assert not prepared.cache_hit
    assert prepare_engine(opened, target, OPTIONS).cache_hit


def test_an_engine_that_does_not_open_is_refused_where_compiling_is(opened: Bundle, target: str) -> None:
    first = prepare_engine(opened, target, OPTIONS)
    for path in first.folder.iterdir():
        _same_size(path)
    with pytest.raises(CompileError, match="cannot open"):
        open_prepared(prepare_engine(opened, target, OPTIONS, compile="never"))


def test_a_touched_engine_is_hashed_and_kept(opened: Bundle, target: str) -> None:
    for path in prepare_engine(opened, target, OPTIONS).folder.iterdir():
        os.utime(path, (1, 1))  # as a container layer has it
    assert prepare_engine(opened, target, OPTIONS).cache_hit


def test_a_verdict_is_kept_beside_the_engine_until_it_is_compiled_again(opened: Bundle) -> None:
    prepared = prepare_engine(opened, "null", OPTIONS)
    assert prepared.record.verdict is None
    verdict = Verdict(target="null", precision="fp32", status="passed-here")
    record_verdict(prepared, verdict)
    assert prepared.record.verdict == verdict
    found = prepare_engine(opened, "null", OPTIONS)
    assert (found.cache_hit, found.record.verdict) == (True, verdict)
    assert read_record(found.folder.parent) == found.record
    assert prepare_engine(opened, "null", OPTIONS, compile="force").record.verdict is None


def test_a_verdict_is_not_kept_beside_an_engine_that_took_the_place(opened: Bundle) -> None:
    first = prepare_engine(opened, "null", OPTIONS)
    entry = first.folder.parent
    newer = read_record(entry)
    newer = msgspec.structs.replace(newer, files=(engines.EngineFile("other", 1, 1, "ab"),))
    (entry / engines.RECORD).write_bytes(engines._encode(newer))  # as another process compiled it, with --batch 4
    record_verdict(first, Verdict(target="null", precision="fp32", status="passed-here", graph=""))
    assert read_record(entry) == newer
    assert first.record.verdict is not None


def test_a_verdict_that_cannot_be_kept_is_still_known(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_engine(opened, "null", OPTIONS)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("edgevtx.disk.write_atomic", refuse)
    record_verdict(prepared, Verdict(target="null", precision="fp32", status="failed"))
    assert prepared.record.verdict is not None


def test_a_failing_build_leaves_nothing(opened: Bundle, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    def fail(graph: Path, folder: Path, options: EngineOptions) -> None:
        (folder / "half").write_bytes(b"half")
        raise CompileError("refused")

    monkeypatch.setattr(get_backend(target), "build", fail)
    with pytest.raises(CompileError, match="refused"):
        prepare_engine(opened, target, OPTIONS)
    assert cache.entries() == []
