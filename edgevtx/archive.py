"""Files of a bundle in and out of a zip: what is refused when one is read, and how one is written reproducibly.

A zip that came over a network is not to be trusted. Every entry must be a plain data file inside the folder, named
once, of the size and hash that the manifest states.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgevtx.errors import BundleError
from edgevtx.manifest import File

MANIFEST = "manifest.json"

CHUNK = 1 << 20

# manifests are some kB; one that is larger is read by nobody
MANIFEST_LIMIT = 32 << 20

# what runs, or runs when it is loaded: pickles do
_FORBIDDEN = {
    ".bash", ".bat", ".ckpt", ".class", ".cmd", ".com", ".dll", ".dylib", ".exe", ".jar", ".joblib", ".js", ".msi",
    ".pickle", ".pkl", ".ps1", ".pt", ".pth", ".ptl", ".py", ".pyc", ".pyd", ".pyo", ".pyz", ".sh", ".so",
    ".torchscript", ".vbs", ".whl",
}  # fmt: skip
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DATE = (1980, 1, 1, 0, 0, 0)

Progress = Callable[[str], None]


def safe_name(name: str) -> str:
    """`name` if it is a relative path that stays inside the bundle and no program; otherwise `BundleError`."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name
    if outside or name != str(path) or not name or name == ".":
        raise BundleError(f"the bundle holds the path {name!r}, which leaves its directory; it is refused as unsafe")
    if any(suffix.lower() in _FORBIDDEN for suffix in path.suffixes):
        raise BundleError(f"the bundle holds {name!r}, a program or a pickle; bundles hold data alone, it is refused")
    return name


def check_listing(names: Iterable[str], files: tuple[File, ...]) -> None:
    """Raise `BundleError` unless exactly the manifest's files are there."""
    there, listed = set(names) - {MANIFEST}, {item.path for item in files}
    if missing := sorted(listed - there):
        raise BundleError(f"the bundle lacks {', '.join(missing)}, which its manifest lists; copy it again")
    if unknown := sorted(there - listed):
        raise BundleError(f"the bundle holds {', '.join(unknown)}, which its manifest does not list; it is refused")


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """A bundle's zip and its entries by name, each one checked; `BundleError` with the reason otherwise."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, _entries(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BundleError(f"{path} is no whole zip file ({error}); it is damaged or no bundle, copy it again") from None


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.is_dir() and info.file_size == 0:
            safe_name(info.filename.rstrip("/"))
            continue
        name, mode = safe_name(info.filename), info.external_attr >> 16
        if name in entries:
            raise BundleError(f"the bundle holds {name} twice; it is refused as unsafe")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise BundleError(f"{name} in the bundle is a link or a device, not a file; it is refused as unsafe")
        if mode & 0o111:
            raise BundleError(f"{name} in the bundle is marked executable; bundles hold data alone, it is refused")
        if info.flag_bits & 0x1 or info.compress_type not in _COMPRESSIONS:
            raise BundleError(f"{name} in the bundle is encrypted or compressed in an unknown way; export it again")
        entries[name] = info
    return entries


def read_manifest(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: Path) -> bytes:
    """The bytes of `manifest.json`."""
    if MANIFEST not in entries:  # of a truncated bundle, what is found is the directory of its golden.npz
        raise BundleError(
            f"{path} is a zip file without {MANIFEST}: it is no bundle, or no whole zip file; copy it again, or export "
            "one with edgevtx export"
        )
    if entries[MANIFEST].file_size > MANIFEST_LIMIT:
        raise BundleError(f"{MANIFEST} in {path} is larger than {MANIFEST_LIMIT} bytes; it is refused as unsafe")
    return archive.read(entries[MANIFEST])


def verify_entries(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], files: tuple[File, ...], into: Path | None
) -> None:
    """Hash every entry against the manifest, and write it under `into` on the way, synced to the disk."""
    check_listing(entries, files)
    for item in files:
        if entries[item.path].file_size != item.size:
            raise BundleError(
                f"{item.path} in the bundle expands to {entries[item.path].file_size} bytes, but its manifest states "
                f"{item.size}; it is refused"
            )
        with archive.open(entries[item.path]) as source:
            if into is None:
                found = digest_stream(source, item.size)
            else:
                target = into / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    found = digest_stream(source, item.size, copy)
                    copy.flush()
                    os.fsync(copy.fileno())
        check_digest(item, found)


def digest_stream(source: IO[bytes], limit: int, copy: IO[bytes] | None = None) -> str:
    """SHA-256 of a stream in hex, copied to `copy` on the way; `BundleError` beyond `limit` bytes."""
    digest, count = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        count += len(chunk)
        if count > limit:
            raise BundleError(f"a file of the bundle expands beyond the {limit} bytes that its manifest states")
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return digest.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as source:
        return digest_stream(source, path.stat().st_size)


def check_digest(item: File, found: str) -> None:
    """Raise `BundleError` unless `found` is the manifest's hash."""
    if found != item.sha256:
        raise BundleError(
            f"{item.path} in the bundle has the SHA-256 {found[:12]}..., but its manifest states "
            f"{item.sha256[:12]}...; it was damaged or changed, copy or export it again"
        )


def write_archive(out: IO[bytes], members: Iterable[tuple[str, Path | bytes]]) -> None:
    """Write members in the order given, stored, with fixed dates and rights: equal members give equal bytes.

    Stored, since weights do not compress, and zlib's bytes differ between its versions.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with archive.open(info, "w") as entry:
                _copy(content, entry)


def _copy(content: Path | bytes, entry: Any) -> None:
    if isinstance(content, bytes):
        entry.write(content)
        return
    with content.open("rb") as source:
        while chunk := source.read(CHUNK):
            entry.write(chunk)
