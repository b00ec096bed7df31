"""Bundles: written reproducibly and atomically, read with suspicion."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevtx import archive, bundle, cache
from edgevtx.bundle import Bundle, write_bundle
from edgevtx.errors import BundleError, CompileError, InputError, OutputError
from edgevtx.golden import Golden, npy, write_golden
from edgevtx.manifest import decode, encode
from edgevtx.rules import Clip, DetectDecode, Windows


@pytest.fixture(autouse=True)
def _fresh(empty_cache: Path) -> None:
    """Every test begins with an empty cache."""


@pytest.fixture
def parts(tiny_parts: Callable[..., Any]) -> Any:
    return tiny_parts()


@pytest.fixture
def zipped(parts: Any, tmp_path: Path) -> Path:
    return write_bundle(parts.folder, parts.manifest, tmp_path / "tiny.vtx")


@pytest.fixture
def folder(parts: Any, tmp_path: Path) -> Path:
    return write_bundle(parts.folder, parts.manifest, tmp_path / "tiny")


FILES = ["golden.npz", "graph.onnxruntime.onnx", "graph.openvino.onnx", "weights.bin"]


# -- writing and reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zipped", "folder"])
def test_round_trip(form: str, parts: Any, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(form)
    opened = Bundle.open(path)
    assert [item.path for item in opened.manifest.files] == FILES
    assert msgspec.structs.replace(opened.manifest, files=()) == parts.manifest
    assert opened.digest == hashlib.sha256((opened.root / "manifest.json").read_bytes()).hexdigest()
    assert opened.graph_path(opened.manifest.graphs[0]).read_bytes() == parts.graph.path.read_bytes()
    golden = opened.golden()
    np.testing.assert_array_equal(golden.inputs["pixels"], parts.graph.pixels)
    np.testing.assert_array_equal(golden.outputs["scores"], parts.graph.reference(parts.graph.pixels)["scores"])
    np.testing.assert_array_equal(golden.frame, parts.graph.pixels[0])
    opened.check_hashes()


def test_equal_parts_give_equal_bytes(parts: Any, tmp_path: Path) -> None:
    first = write_bundle(parts.folder, parts.manifest, tmp_path / "a.vtx").read_bytes()
    for path in parts.folder.iterdir():
        os.utime(path, (1, 1))
    assert write_bundle(parts.folder, parts.manifest, tmp_path / "b.vtx").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "b.vtx") as archived:
        assert archived.namelist() == sorted([*FILES, "manifest.json"])
        assert {info.compress_type for info in archived.infolist()} == {zipfile.ZIP_STORED}


def test_golden_bytes_are_reproducible(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3), "a": np.ones((2, 2), np.float32)}
    write_golden(tmp_path / "1.npz", Golden(np.zeros((2, 2, 3), np.uint8), arrays, arrays))
    write_golden(tmp_path / "2.npz", Golden(np.zeros((2, 2, 3), np.uint8), dict(reversed(arrays.items())), arrays))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    with np.load(tmp_path / "1.npz") as stored:
        assert set(stored.files) == {"frame", "input.a", "input.b", "output.a", "output.b"}


def test_a_golden_sample_with_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", frame=np.array([{}], dtype=object))
    with pytest.raises(BundleError, match=r"no golden sample.*pickle"):
        bundle.read_golden(tmp_path / "golden.npz")


@pytest.mark.parametrize("name", ["pixels", "inputs.pixels", "decoder.outputs.masks", ""])
def test_a_golden_sample_with_other_names_is_refused(tmp_path: Path, name: str) -> None:
    with (tmp_path / "golden.npz").open("wb") as out:
        frame = np.zeros((2, 2, 3), np.uint8)
        archive.write_archive(out, [("frame.npy", npy(frame)), (f"{name}.npy", npy(frame))])
    with pytest.raises(BundleError, match=r"is no golden sample .*; the bundle is damaged"):
        bundle.read_golden(tmp_path / "golden.npz")


def test_a_golden_sample_without_a_network_says_so() -> None:
    arrays = {"pixels": np.zeros((1, 2, 2, 3), np.uint8)}
    with pytest.raises(BundleError, match="nothing of the network 'decoder'"):
        Golden(arrays["pixels"][0], arrays, arrays).exchange("decoder")


def test_a_zip_beyond_2_gb_is_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # as if 2 GB were 1 kB
    (tmp_path / "big").write_bytes(bytes(5000))
    with (tmp_path / "big.zip").open("wb") as out:
        archive.write_archive(out, [("big", tmp_path / "big")])
    with zipfile.ZipFile(tmp_path / "big.zip") as written:
        assert written.read("big") == bytes(5000)
        assert written.infolist()[0].extract_version == zipfile.ZIP64_VERSION


# -- the cache of what was unpacked and hashed -----------------------------------------------------------------


def _count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = archive.digest_stream

    def counted(*args: Any) -> str:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(archive, "digest_stream", counted)
    return calls


@pytest.mark.parametrize("form", ["zipped", "folder"])
def test_a_second_load_hashes_nothing(
    form: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request.getfixturevalue(form)
    calls = _count_hashes(monkeypatch)
    first = Bundle.open(path)
    assert len(calls) == len(FILES)
    assert Bundle.open(path) == first
    assert len(calls) == len(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["zipped", "folder"])
def test_a_flipped_bit_is_refused_even_after_a_good_load(form: str, name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(form)
    Bundle.open(path)
    target, at = path / name, 30
    if form == "zipped":
        with zipfile.ZipFile(path) as archived:
            target, at = path, archived.getinfo(name).header_offset + 30 + len(name) + 10
    data = bytearray(target.read_bytes())
    data[at] ^= 4
    target.write_bytes(data)
    with pytest.raises(BundleError, match=r"SHA-256|no whole zip"):
        Bundle.open(path)


def test_a_damaged_unpacked_copy_is_made_again(zipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = Bundle.open(zipped).root / "weights.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + b"?")
    with caplog.at_level(logging.WARNING, "edgevtx"):
        assert (Bundle.open(zipped).root / "weights.bin").read_bytes() == data
    assert "is damaged" in caplog.text


def test_a_touched_unpacked_copy_is_hashed_and_kept(zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Bundle.open(zipped).root / "weights.bin"
    os.utime(weights, (1, 1))  # as a restored backup or a container layer has it
    calls = _count_hashes(monkeypatch)
    Bundle.open(zipped)
    assert (len(calls), weights.stat().st_mtime) == (len(FILES), 1)


def test_check_hashes_always_hashes(folder: Path) -> None:
    opened = Bundle.open(folder)
    stat = (folder / "weights.bin").stat()
    (folder / "weights.bin").write_bytes(bytes(stat.st_size))
    os.utime(folder / "weights.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    Bundle.open(folder)  # size and time are right
    with pytest.raises(BundleError, match=r"weights.bin in the bundle has the SHA-256"):
        opened.check_hashes()


# -- what is refused -------------------------------------------------------------------------------------------


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.vtx").write_text("hello")
    with pytest.raises(BundleError, match="no whole zip file"):
        Bundle.open(tmp_path / "a.vtx")
    (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match=r"has no manifest.json"):
        Bundle.open(tmp_path / "b")
    with pytest.raises(InputError, match="there is no bundle"):
        Bundle.open(tmp_path / "c.vtx")


def _edit_manifest(folder: Path, **changes: Any) -> None:
    manifest = decode((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, **changes)))


def _seal(data: bytes) -> bytes:
    """Put a changed manifest's own digest right, by the words of docs/bundle.md."""
    blank = data.replace(json.loads(data)["sha256"].encode() or b"\0", b"")
    return blank.replace(b'"sha256": ""', b'"sha256": "%s"' % hashlib.sha256(blank).hexdigest().encode())


def test_a_newer_major_schema_is_refused_and_a_newer_minor_read(folder: Path) -> None:
    _edit_manifest(folder, schema="1.9")
    data = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(_seal(data.replace(b"{", b'{"novelty": 1,', 1)))
    assert Bundle.open(folder).manifest.schema == "1.9"
    _edit_manifest(folder, schema="2.0")
    with pytest.raises(BundleError, match=r"schema 2\.0, this edgevtx reads 1\.x"):
        Bundle.open(folder)


@pytest.mark.parametrize("schema", ["", "1", "one", "1.x", "10.0", "0.9", "1.0.1", "-1.0"])
def test_a_schema_that_is_no_known_number_is_refused(folder: Path, schema: str) -> None:
    _edit_manifest(folder, schema=schema)
    with pytest.raises(BundleError, match=r"this edgevtx reads 1\.x; update edgevtx, or export"):
        Bundle.open(folder)


def test_what_a_newer_minor_schema_brought_is_refused_where_it_is_needed(folder: Path) -> None:
    _edit_manifest(folder, schema="1.9")
    data = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(_seal(data.replace(b'"type": "classify"', b'"type": "caption"')))
    with pytest.raises(BundleError, match=r"schema 1\.9, this edgevtx knows 1\.0, .*'caption'.*; update edgevtx"):
        Bundle.open(folder)


# -- settings that make no sense -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (Clip, {"frames": 0, "fps": 25.0, "stride": 1}, "a clip's frames must be 1 or more"),
        (Clip, {"frames": 2.5, "fps": 25.0, "stride": 1}, "a clip's frames must be .* a whole number, but got 2.5"),
        (Clip, {"frames": True, "fps": 25.0, "stride": 1}, "a whole number, but got True"),
        (Clip, {"frames": 4, "fps": 0.0, "stride": 1}, "a clip's frames a second must be above 0"),
        (Clip, {"frames": 4, "fps": -5, "stride": 1}, "above 0 and at most 1000, but got -5"),
        (Clip, {"frames": 4, "fps": float("nan"), "stride": 1}, "above 0 .* got nan"),
        (Clip, {"frames": 4, "fps": float("inf"), "stride": 1}, "above 0 .* got inf"),
        (Clip, {"frames": 4, "fps": 1e9, "stride": 1}, "at most 1000"),
        (Clip, {"frames": 4, "fps": "25", "stride": 1}, "above 0 .* got '25'"),
        (Clip, {"frames": 4, "fps": 25.0, "stride": 0}, "a clip's stride in frames must be 1 or more"),
        (Windows, {"size": (0, 8), "stride": (1, 8)}, "a window's size in px must be 1 or more"),
        (Windows, {"size": (8, 8), "stride": (8, 0)}, "the windows' stride in px must be 1 to 8"),
        (Windows, {"size": (8, 8), "stride": (8, 9)}, "must be 1 to 8, a whole number, but got 9"),
        (Windows, {"size": (8, 8.5), "stride": (8, 8)}, "a whole number, but got 8.5"),
        (Windows, {"size": (8, 8), "stride": (8, 8), "fill": (0, 0, 256)}, "fill must be 0 to 255"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_made_and_when_loaded(
    folder: Path, make: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(**values)
    data = (folder / "manifest.json").read_bytes()
    field = make.__name__.lower()
    spoiled = data.replace(b'"%s": null' % field.encode(), f'"{field}": {json.dumps(values)}'.encode())
    assert spoiled != data
    (folder / "manifest.json").write_bytes(_seal(spoiled))
    with pytest.raises(BundleError, match=r"not of schema 1\.0|no JSON"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "extra.txt").write_text("x"), "extra.txt, which its manifest does not list"),
        (lambda folder: (folder / "weights.bin").unlink(), "lacks weights.bin"),
        (lambda folder: (folder / "run.sh").write_text("x"), "a program or a pickle"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link is a link|link in .* is a link"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"short"), "weights.bin in .* has 5 bytes"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is no JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": "1.0"}'), "not state its own sha256"),
        (
            lambda folder: (folder / "manifest.json").write_bytes(_seal(b'{"schema": "1.0", "sha256": ""}')),
            "not of schema",
        ),
    ],
)
def test_unsafe_folders_are_refused(folder: Path, change: Any, message: str) -> None:
    change(folder)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


def test_any_flipped_bit_of_a_manifest_is_refused(folder: Path) -> None:
    data = (folder / "manifest.json").read_bytes()
    decode(data)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(BundleError):
                decode(bytes(flipped))


@pytest.mark.parametrize("form", ["folder", "zip", "repacked"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"smoke"', b'"smokd"'),  # a label
        (b'"threshold": 0.25', b'"threshold": 0.35'),
        (b'"recommended": {\n    "onnxruntime": "fp32"', b'"recommended": {\n    "onnxruntime": "fp3r"'),
        (b'"notes"', b'"nodes"'),  # a field that is then unknown, and ignored
        (b'"sha256": "', b'"sha257": "'),  # the digest itself
    ],
)
def test_a_changed_manifest_is_refused_even_after_a_good_load(
    parts: Any, tmp_path: Path, form: str, old: bytes, new: bytes
) -> None:
    decode_rule = DetectDecode(top_k=5, threshold=0.25)
    manifest = msgspec.structs.replace(parts.manifest, task="detect", decode=decode_rule, labels=("fire", "smoke"))
    path = write_bundle(parts.folder, manifest, tmp_path / ("made" if form == "folder" else "made.vtx"))
    data = (Bundle.open(path).root / "manifest.json").read_bytes()
    at = data.rindex(old)
    changed = data[:at] + new + data[at + len(old) :]
    if form == "folder":
        (path / "manifest.json").write_bytes(changed)
    elif form == "zip":
        path.write_bytes(path.read_bytes().replace(data, changed))
    else:  # the zip's own sums agree
        with zipfile.ZipFile(path) as archived:
            entries = {info.filename: archived.read(info) for info in archived.infolist()}
        with zipfile.ZipFile(path, "w") as archived:
            for name, content in {**entries, "manifest.json": changed}.items():
                archived.writestr(name, content)
    with pytest.raises(BundleError, match="no whole zip" if form == "zip" else r"own SHA-256|its own sha256"):
        Bundle.open(path)


def test_a_manifest_that_names_paths_outside_is_refused(folder: Path) -> None:
    files = Bundle.open(folder).manifest.files
    _edit_manifest(folder, files=(msgspec.structs.replace(files[0], path="../golden.npz"), *files[1:]))
    with pytest.raises(BundleError, match="leaves its directory"):
        Bundle.open(folder)


def test_unpacking_without_space_says_so(zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match="10 left; free space"):
        Bundle.open(zipped)


# -- writing that fails ----------------------------------------------------------------------------------------


def _full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("name", "patch"), [("new.vtx", (archive, "_copy")), ("new", (shutil, "copyfile"))])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_no_half_bundle(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, patch: Any, existing: bool
) -> None:
    out = tmp_path / "out" / name
    if existing:
        write_bundle(parts.folder, parts.manifest, out)
    monkeypatch.setattr(*patch, _full)
    with pytest.raises(OutputError, match=r"cannot write the bundle .*the disk is full; free space"):
        write_bundle(parts.folder, parts.manifest, out)
    assert [path.name for path in out.parent.iterdir()] == ([name] if existing else [])
    if existing:
        Bundle.open(out)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(errno.ENOSPC, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_folder_that_cannot_be_renamed_into_place_leaves_the_old_one(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, seen: Any
) -> None:
    out = write_bundle(parts.folder, parts.manifest, tmp_path / "tiny")
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "bundle":
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(seen):
        write_bundle(parts.folder, msgspec.structs.replace(parts.manifest, name="other"), out)
    assert Bundle.open(out).manifest.name == "tiny"


def test_an_unwritable_place_is_said(parts: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"is a file, not a folder|exists"):
        write_bundle(parts.folder, parts.manifest, tmp_path / "file" / "a.vtx")


def test_what_is_replaced(parts: Any, tmp_path: Path) -> None:
    out = write_bundle(parts.folder, parts.manifest, tmp_path / "a.vtx")
    renamed = msgspec.structs.replace(parts.manifest, name="other")
    write_bundle(parts.folder, renamed, out)  # a bundle is
    assert Bundle.open(out).manifest.name == "other"
    out.write_text("something else")
    with pytest.raises(OutputError, match="is no bundle"):
        write_bundle(parts.folder, renamed, out)
    write_bundle(parts.folder, renamed, out, overwrite=True)
    home = tmp_path / "home"
    home.mkdir()
    write_bundle(parts.folder, renamed, home)  # an empty folder is
    write_bundle(parts.folder, parts.manifest, home)
    assert Bundle.open(home).manifest.name == "tiny"
    (home / "manifest.json").write_text("damaged")
    with pytest.raises(OutputError, match="a folder with other things in it"):  # never, whatever is asked
        write_bundle(parts.folder, renamed, home, overwrite=True)


def test_programs_are_not_written_into_bundles(parts: Any, tmp_path: Path) -> None:
    (parts.folder / "model.pth").write_text("x")
    with pytest.raises(BundleError, match="a program or a pickle"):
        write_bundle(parts.folder, parts.manifest, tmp_path / "a.vtx")


# -- choosing a graph ------------------------------------------------------------------------------------------


def test_the_first_graph_that_serves_is_selected(parts: Any, folder: Path) -> None:
    opened = Bundle.open(folder)
    old, new = (
        msgspec.structs.replace(opened.manifest.graphs[1], variant=variant, versions=versions)
        for variant, versions in (("old", ">=1.23"), ("new", ">=1.30"))
    )
    manifest = msgspec.structs.replace(opened.manifest, graphs=(new, old))
    chosen = Bundle(opened.root, manifest, opened.digest, opened.path).select_graph
    assert chosen("onnxruntime", "1.32.0", "fp32").variant == "new"
    assert chosen("onnxruntime", "1.23.2", "fp32").variant == "old"
    assert chosen("null", "1", "bf16").variant == "new"


@pytest.mark.parametrize(
    ("target", "version", "precision"),
    [("onnxruntime", "1.22.1", "fp32"), ("onnxruntime", "1.30", "bf16"), ("tensorrt", "10.3", "fp32")],
)
def test_no_graph_is_a_compile_error_with_the_command(folder: Path, target: str, version: str, precision: str) -> None:
    with pytest.raises(CompileError, match=f"no graph for {target} {version}.*--targets {target} --precisions"):
        Bundle.open(folder).select_graph(target, version, precision)


def test_an_unwritable_cache_still_opens_folders_and_zips(
    zipped: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "file" / "cache"))
    assert Bundle.open(folder).digest == Bundle.open(zipped).digest
    root = Bundle.open(zipped).root
    assert root.is_dir()
    assert root == Bundle.open(zipped).root  # not unpacked twice in one process
    assert cache.entries() == []
