"""Writing so that a power cut or a full disk leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_WORDS = {
    errno.ENOSPC: "the disk is full; free space",
    errno.EDQUOT: "the quota is used up; free space",
    errno.EACCES: "permission is denied; choose a folder that you may write to",
    errno.EPERM: "permission is denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.ENOENT: "the folder does not exist; make it first",
}


def explain(error: OSError) -> str:
    """What went wrong with a file, and what to do, for the end of a sentence."""
    return _WORDS.get(error.errno or 0, str(error.strerror or error))


def file_name(words: str) -> str:
    """A name in a manifest as that of one file: without separators, and not hidden."""
    return re.sub(r"[/\\\0]+", "-", words).lstrip(".-") or "unnamed"


def sync_file(path: Path) -> None:
    """Have a file's content reach the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a folder's entries reach the disk; file systems that cannot sync folders are left at that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """Have every file below a folder, and the folder itself, reach the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file beside its place, sync it and rename it into place; raises `OSError`."""
    with _renamed(path) as temporary:
        temporary.write_bytes(data)


def copy_atomic(source: Path, path: Path) -> None:
    """Copy a file beside its place, sync it and rename it into place; raises `OSError`."""
    with _renamed(path) as temporary:
        shutil.copyfile(source, temporary)


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written, which takes that place when the block ends and goes if it fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync_file(temporary)
        temporary.chmod(0o644)  # mkstemp gives 0600
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
