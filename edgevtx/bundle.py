"""The bundle on disk: a folder, or the same folder as one zip file, NAME.vtx.

    manifest.json   graph.TARGET[.VARIANT].onnx ...   weights.bin   golden.npz

A zip is for transport. It is unpacked once into the cache, since no runtime reads weights out of an archive, and
every hash is checked on the way. What was checked is remembered with its size and modification time, so that later
loads hash nothing but the manifest; `check_hashes` always hashes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgevtx import archive, cache, disk
from edgevtx.archive import MANIFEST
from edgevtx.decode.knn import Bank, read_bank
from edgevtx.errors import BundleError, CompileError, InputError, OutputError
from edgevtx.golden import GOLDEN, Golden, read_golden
from edgevtx.manifest import File, Graph, Manifest, decode, encode
from edgevtx.rules import BANK, KnnDecode
from edgevtx.runtimes import known_bad
from edgevtx.versions import in_range

SUFFIX = ".vtx"

# path below the bundle -> (size in bytes, modification time in ns)
Stamps = dict[str, tuple[int, int]]


class _Checked(msgspec.Struct, frozen=True):
    """What was hashed and found right: a manifest's digest, and the stamps of the files that it speaks of."""

    digest: str
    stamps: Stamps


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: real files under `root`, whose hashes were right when they were last changed.

    `digest` is the SHA-256 of manifest.json in hex; since the manifest holds every file's, it names the content.
    `path` is what was opened: `root` itself, or the zip that `root` was unpacked from.
    """

    root: Path
    manifest: Manifest
    digest: str
    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle's folder or zip file.

        Raises `InputError` where there is no such path, `BundleError` with the reason for what is damaged, unsafe,
        foreign or from a newer schema, and `OutputError` where a zip cannot be unpacked for want of space.
        """
        path = Path(path)
        try:
            if path.is_dir():
                return _open_folder(path)
            if path.is_file():
                return _open_zip(path)
        except OSError as error:
            raise BundleError(f"cannot read the bundle {path}: {disk.explain(error)}") from error
        raise InputError(f"there is no bundle {path}; export one with edgevtx export, or correct the path")

    def graph_path(self, graph: Graph) -> Path:
        """The path of a graph, with its weights beside it."""
        return self.root / graph.file

    def golden(self) -> Golden:
        """The golden sample."""
        return read_golden(self.root / GOLDEN)

    def bank(self) -> Bank | None:
        """The vectors of a bundle that was fitted, None of any other; `BundleError` where they are damaged."""
        rule = self.manifest.decode
        if not isinstance(rule, KnnDecode):
            return None
        channels = next((item.shape[-1] for item in self.manifest.outputs if item.name == "cls"), None)
        return read_bank(self.root / BANK, rule, channels, len(self.manifest.labels))

    def select_graph(self, target: str, version: str, precision: str, part: str = "", gpu: str = "") -> Graph:
        """The first graph of a network ("" takes frames) that serves a version of a target at a precision.

        The manifest lists each target's graphs from the one for the newest versions, and fastest, to the oldest. One
        that has what this version, or the `gpu` ("sm89"; "" is not known), is known to fail at is passed over.
        The `null` target takes any graph. Raises `CompileError` with the command that makes a fitting one.
        """
        of_part = [graph for graph in self.manifest.graphs if graph.part == part]
        if target == "null" and of_part:
            return of_part[0]
        graphs = [graph for graph in of_part if graph.target == target]
        serving = [item for item in graphs if precision in item.precisions and in_range(version, item.versions)]
        rows = [row for row in known_bad.find(target, version, precision, gpu) if row.remedy != known_bad.WARN]
        for graph in serving:
            if not any(row.pattern in graph.patterns for row in rows):
                return graph
        for row in rows if serving else ():
            if row.pattern in serving[0].patterns:
                raise CompileError(
                    f"{self.manifest.name} is not compiled for {target} {version} in {precision}: {row}; "
                    f"{row.advice or 'export it again with this edgevtx, or choose another precision or runtime'}"
                )
        served = "; ".join(f"{target}{item.versions} in {', '.join(item.precisions)}" for item in graphs)
        raise CompileError(
            f"{self.manifest.name} has no graph for {target} {version} in {precision} (it has: {served or 'none'}); "
            f"make one with: edgevtx export {self.manifest.family} --checkpoint PATH "
            f"--out {shlex.quote(self.manifest.name + SUFFIX)} --targets {target} --precisions {precision}"
        )

    def check_hashes(self, progress: archive.Progress | None = None) -> None:
        """Hash every file anew; `BundleError` names the first that is not what the manifest states."""
        for item in self.manifest.files:
            if progress:
                progress(f"hash {item.path}")
            archive.check_digest(item, archive.digest_file(self.root / item.path))


# -- reading ---------------------------------------------------------------------------------------------------


def is_bundle(path: Path) -> bool:
    """Whether a path looks like a bundle: a folder or a zip file with a manifest of a schema that is known."""
    try:
        if path.is_dir():
            decode((path / MANIFEST).read_bytes())
        else:
            with archive.open_archive(path) as (opened, entries):
                decode(archive.read_manifest(opened, entries, path))
    except (OSError, BundleError):
        return False
    return True


def _open_folder(path: Path) -> Bundle:
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} has no {MANIFEST}, so it is no bundle; export one with edgevtx export")
    bundle = _read(path)
    stamps = _stamps(path)
    archive.check_listing((archive.safe_name(name) for name in stamps), bundle.manifest.files)
    checked = _Checked(bundle.digest, stamps)
    subject = f"folder {path.resolve()}"
    if _recall(subject) != checked:
        _check_sizes(bundle, stamps)
        bundle.check_hashes()
        cache.remember(subject, msgspec.json.encode(checked))
    return bundle


def _open_zip(path: Path) -> Bundle:
    stat = path.stat()
    with archive.open_archive(path) as (opened, entries):
        data = archive.read_manifest(opened, entries, path)
        manifest, digest = _decode(data), hashlib.sha256(data).hexdigest()
        archive.check_listing(entries, manifest.files)

        def unpack(folder: Path) -> None:
            content = folder / "bundle"
            content.mkdir()
            _check_space(manifest.files, folder)
            archive.verify_entries(opened, entries, manifest.files, content)
            (content / MANIFEST).write_bytes(data)
            checked = _Checked(digest, _stamps(content))
            (folder / "checked.json").write_bytes(msgspec.json.encode(checked))

        entry, hit = cache.obtain("bundles", digest[:32], check=_check_unpacked, build=unpack)
        # the cached copy is whole, but this file may be another one under the same manifest, damaged on its way
        checked = _Checked(digest, {path.name: (stat.st_size, stat.st_mtime_ns)})
        subject = f"zip {path.resolve()}"
        if _recall(subject) != checked:
            if hit:
                archive.verify_entries(opened, entries, manifest.files, None)
            cache.remember(subject, msgspec.json.encode(checked))
    return Bundle(entry / "bundle", manifest, digest, path)


def _check_unpacked(entry: Path) -> str | None:
    """What is wrong with an unpacked bundle, or None. Changed times are forgiven where the hashes still hold."""
    try:
        checked = msgspec.json.decode((entry / "checked.json").read_bytes(), type=_Checked)
        bundle, stamps = _read(entry / "bundle"), _stamps(entry / "bundle")
        if bundle.digest != checked.digest:
            return f"{MANIFEST} was changed"
        if stamps != checked.stamps:
            archive.check_listing(stamps, bundle.manifest.files)
            bundle.check_hashes()
    except (OSError, BundleError, msgspec.DecodeError) as error:
        return str(error)
    return None


def _read(folder: Path) -> Bundle:
    data = (folder / MANIFEST).read_bytes()
    return Bundle(folder, _decode(data), hashlib.sha256(data).hexdigest(), folder)


def _decode(data: bytes) -> Manifest:
    """The manifest, whose paths are safe and whose graphs are among its files."""
    manifest = decode(data)
    names = [archive.safe_name(item.path) for item in manifest.files]
    if len(set(names)) != len(names):
        raise BundleError(f"{MANIFEST} lists a file twice; the bundle is damaged, export it again")
    if absent := sorted({graph.file for graph in manifest.graphs} - set(names)):
        raise BundleError(f"{MANIFEST} names the graph {absent[0]} without listing its file; export the bundle again")
    if isinstance(manifest.decode, KnnDecode) and manifest.files and BANK not in names:
        raise BundleError(f"{MANIFEST} speaks of fitted vectors without listing {BANK}; fit the bundle again")
    text = getattr(manifest.decode, "text", None)
    if text is not None and text.file not in names:
        raise BundleError(f"{MANIFEST} names the tokenizer {text.file} without listing its file; export it again")
    return manifest


def _stamps(folder: Path) -> Stamps:
    """Every file below a folder with its stamp; links are refused, since runtimes refuse to read through them.

    Rights are not looked at here: file systems such as FAT mark everything executable.
    """
    stamps = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{name} in {folder} is a link or a device, not a file; put the file itself there")
        if path.is_file():
            stat = path.stat()
            stamps[name] = (stat.st_size, stat.st_mtime_ns)
    return stamps


def _check_sizes(bundle: Bundle, stamps: Stamps) -> None:
    for item in bundle.manifest.files:
        if stamps[item.path][0] != item.size:
            raise BundleError(
                f"{item.path} in {bundle.root} has {stamps[item.path][0]} bytes, but its manifest states {item.size}; "
                "it was cut short or changed, copy or export it again"
            )


def _check_space(files: tuple[File, ...], folder: Path) -> None:
    need, free = sum(item.size for item in files), shutil.disk_usage(folder).free
    if need > free:
        raise OutputError(
            f"unpacking this bundle takes {need} bytes, but {folder.parent.parent} has {free} left; free space, or set "
            "EDGEVTX_CACHE to another disk"
        )


def _recall(subject: str) -> _Checked | None:
    try:
        return msgspec.json.decode(cache.recall(subject) or b"", type=_Checked)
    except msgspec.DecodeError:
        return None


# -- writing ---------------------------------------------------------------------------------------------------


def write_bundle(folder: Path, manifest: Manifest, out: str | Path, *, overwrite: bool = False) -> Path:
    """Make a bundle of the files in `folder`, of which `manifest` lists none yet; returns its path.

    A name with a suffix, such as fire.vtx, becomes one zip file; one without, or an existing folder, a folder. Equal
    files and manifests give equal bytes. The bundle is written beside `out` and renamed, so that there is never half
    of one. An `out` that exists is replaced if it is a bundle; another file only with `overwrite`, another folder
    never. Raises `OutputError` for that, for a full disk and for a folder that cannot be written.
    """
    out = Path(out)
    as_folder = out.is_dir() or not out.suffix
    try:
        members = _members(folder, manifest)
        check_out(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            made = Path(temporary) / "bundle"
            (_write_folder if as_folder else _write_zip)(made, members)
            _replace(out, made, Path(temporary) / "old")
        disk.sync_folder(out.parent)
    except (OSError, zipfile.LargeZipFile) as error:
        why = disk.explain(error) if isinstance(error, OSError) else str(error)
        raise OutputError(f"cannot write the bundle {out}: {why}") from error
    return out


def _members(folder: Path, manifest: Manifest) -> list[tuple[str, Path | bytes]]:
    """The bundle's files in order, manifest.json with their hashes among them."""
    paths = {name: folder / archive.safe_name(name) for name in _stamps(folder) if name != MANIFEST}
    files = tuple(
        File(path=name, size=path.stat().st_size, sha256=archive.digest_file(path)) for name, path in paths.items()
    )
    data = encode(msgspec.structs.replace(manifest, files=tuple(sorted(files, key=lambda item: item.path))))
    _decode(data)
    members: dict[str, Path | bytes] = {**paths, MANIFEST: data}
    return sorted(members.items())


def check_out(out: Path, overwrite: bool) -> None:
    """Raise `OutputError` where `write_bundle` would refuse to replace what is at `out`."""
    if not out.exists() or is_bundle(out):
        return
    if out.is_dir():
        if any(out.iterdir()):
            raise OutputError(f"{out} is a folder with other things in it; choose another name for the bundle")
    elif not overwrite:
        raise OutputError(f"{out} exists and is no bundle; remove it, choose another name, or pass --overwrite")


def _replace(out: Path, made: Path, old: Path) -> None:
    if not out.is_dir():
        made.replace(out)
        return
    try:
        out.replace(old)  # no folder can be renamed over another
        made.replace(out)
    except BaseException:  # Ctrl-C too: `old` goes with the temporary folder
        if old.exists() and not out.exists():
            old.replace(out)
        raise


def _write_zip(made: Path, members: list[tuple[str, Path | bytes]]) -> None:
    with made.open("wb") as file:
        archive.write_archive(file, members)
        file.flush()
        os.fsync(file.fileno())


def _write_folder(made: Path, members: list[tuple[str, Path | bytes]]) -> None:
    for name, content in members:
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
    disk.sync_tree(made)
