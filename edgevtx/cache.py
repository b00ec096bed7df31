"""The cache of unpacked bundles and compiled engines.

    EDGEVTX_CACHE/              default: the platform's cache folder for edgevtx
      bundles/KEY/  engines/KEY/    entries; an entry appears whole, by a rename, or not at all
      notes/                        small facts, such as which bundle folders were hashed and when
      locks/  tmp/

Beyond EDGEVTX_CACHE_MAX (bytes, or "500MB", "20GB", "none"; default 20GB) the least recently used entries go, but
none that a living process has obtained. A folder that cannot be written is still read; what it lacks is then built
in a temporary folder that goes with the process, and a warning on the log says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from edgevtx import disk
from edgevtx.errors import InputError, OutputError

log = logging.getLogger(__name__)

Kind = Literal["bundles", "engines"]
KINDS: tuple[Kind, ...] = ("bundles", "engines")

DEFAULT_MAX = 20 * 1000**3

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS |= {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}

# lock file -> the open file whose shared lock says that this process uses the entry; held until the process ends
_in_use: dict[Path, IO[bytes]] = {}
# unwritable cache folder -> what stands in for it in this process
_stand_ins: dict[Path, tempfile.TemporaryDirectory[str]] = {}
_kept_only = False  # see `kept_only`


@dataclass(frozen=True)
class Entry:
    """One cached thing: its size in bytes, and when it was last used in seconds since 1970."""

    kind: Kind
    key: str
    path: Path
    size: int
    used: float


def root() -> Path:
    """The cache folder; it may not exist yet."""
    if named := os.environ.get("EDGEVTX_CACHE"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgevtx", appauthor=False))


def limit() -> int | None:
    """The size in bytes beyond which entries are evicted, None for no limit; `InputError` for a bad setting."""
    text = os.environ.get("EDGEVTX_CACHE_MAX", "").strip()
    if not text:
        return DEFAULT_MAX
    if text.lower() == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.upper())
    if not found or found.group(2) not in _UNITS:
        raise InputError(f"EDGEVTX_CACHE_MAX must be bytes, a size such as 500MB or 20GB, or none, but is {text!r}")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def find(kind: Kind, key: str, check: Callable[[Path], str | None]) -> Path | None:
    """The entry of that key if it is there and whole; it is then marked as used, and kept while this process lives.

    `check` looks at the entry's folder and says what is wrong with it, or None.
    """
    return _find(root(), kind, key, check) or _find_stand_in(kind, key, check)


def obtain(
    kind: Kind,
    key: str,
    *,
    check: Callable[[Path], str | None],
    build: Callable[[Path], None],
    force: bool = False,
) -> tuple[Path, bool]:
    """The entry of that key, and whether it was there. A missing, damaged or `force`d one is made by `build`.

    `build` gets an empty folder, which becomes the entry when it returns; if it raises, nothing is left. Of several
    processes that want the same entry, one builds it and the others wait. Raises `OutputError` on a full disk.
    """
    limit()  # a bad setting is said before the work, not after it
    if not force and (found := find(kind, key, check)):
        return found, True
    home = _writable()
    with _locked(home / "locks" / f"{kind}-{key}.build"):
        if not force and (found := _find(home, kind, key, check, again=True)):
            return found, True  # another process built it meanwhile
        path = _build(home, kind, key, build)
    evict(keep=path)
    return path, False


@contextlib.contextmanager
def kept_only(asked: bool = True) -> Iterator[None]:
    """Within, what would go with this process is not made: `obtain` raises `OutputError` instead."""
    global _kept_only
    before, _kept_only = _kept_only, asked
    try:
        yield
    finally:
        _kept_only = before


def entries() -> list[Entry]:
    """Everything cached, the most recently used first."""
    found = []
    for kind in KINDS:
        with contextlib.suppress(OSError):
            for path in (root() / kind).iterdir():
                found.append(Entry(kind, path.name, path, _size(path), path.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear(kind: Kind | None = None) -> list[Entry]:
    """Remove all entries (of one kind), but those that another process uses; returns what was removed."""
    removed = [entry for entry in entries() if kind in (None, entry.kind) and _remove(entry)]
    if kind in (None, "bundles"):
        shutil.rmtree(root() / "notes", ignore_errors=True)
    _sweep()
    return removed


def evict(keep: Path | None = None) -> list[Entry]:
    """Remove the least recently used entries until the cache is within its limit; returns what was removed."""
    most, present, removed = limit(), entries(), list[Entry]()
    _sweep()
    total = sum(entry.size for entry in present)
    for entry in reversed(present):
        if most is None or total <= most:
            break
        if entry.path != keep and _remove(entry):
            log.info("cache: removed %s %s (%d bytes), the least recently used", entry.kind, entry.key, entry.size)
            removed.append(entry)
            total -= entry.size
    return removed


def remember(subject: str, fact: bytes) -> None:
    """Keep a small fact about a subject (any text); an unwritable cache forgets it."""
    with contextlib.suppress(OSError):
        path = _note(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_atomic(path, fact)


def recall(subject: str) -> bytes | None:
    """The fact kept about a subject, or None."""
    with contextlib.suppress(OSError):
        return _note(subject).read_bytes()
    return None


def _note(subject: str) -> Path:
    return root() / "notes" / f"{hashlib.sha256(subject.encode()).hexdigest()[:32]}.json"


def _find(home: Path, kind: Kind, key: str, check: Callable[[Path], str | None], *, again: bool = False) -> Path | None:
    path = home / kind / key
    if not path.is_dir():
        return None
    _use(home, kind, key)  # before the check: from here on nobody evicts it
    if not path.is_dir():
        return None
    if wrong := check(path):
        log.log(logging.DEBUG if again else logging.WARNING, "cache: %s is damaged (%s); it is made again", path, wrong)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


def _find_stand_in(kind: Kind, key: str, check: Callable[[Path], str | None]) -> Path | None:
    stand_in = _stand_ins.get(root())
    return _find(Path(stand_in.name), kind, key, check) if stand_in else None


def _build(home: Path, kind: Kind, key: str, build: Callable[[Path], None]) -> Path:
    path, temporary, old = home / kind / key, home / "tmp" / f"{kind}-{key}", home / "tmp" / f"{kind}-{key}.old"
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        build(temporary)
        disk.sync_tree(temporary)
        path.parent.mkdir(parents=True, exist_ok=True)
        _use(home, kind, key)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        disk.sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write the cache folder {home}: {disk.explain(error)}, run edgevtx cache clear, or set "
            "EDGEVTX_CACHE to another folder"
        ) from error
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return path


def _writable() -> Path:
    """The cache folder if it can be written, otherwise a temporary one that goes with this process."""
    home = root()
    if home in _stand_ins and not _kept_only:
        return Path(_stand_ins[home].name)
    try:
        for name in ("locks", "tmp"):
            (home / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home / "tmp"):
            return home
    except OSError as error:
        if _kept_only:
            raise OutputError(
                f"the cache folder {home} cannot be written ({disk.explain(error)}), so what is compiled would be "
                "lost; set EDGEVTX_CACHE to a folder that can be written"
            ) from None
        _stand_ins[home] = tempfile.TemporaryDirectory(prefix="edgevtx-cache-")
        instead = Path(_stand_ins[home].name)
        for name in ("locks", "tmp"):
            (instead / name).mkdir()
        log.warning(
            "the cache folder %s cannot be written (%s); working in %s, which goes with this process, so that every "
            "start compiles anew: set EDGEVTX_CACHE to a folder that can be written",
            home, disk.explain(error), instead,
        )  # fmt: skip
        return instead


def _use(home: Path, kind: Kind, key: str) -> None:
    """Hold a shared lock on an entry for as long as this process lives: `_remove` then leaves it alone."""
    name = home / "locks" / f"{kind}-{key}.use"
    if name in _in_use:
        return
    with contextlib.suppress(OSError):  # a read-only cache, a file system without locks
        file = name.open("ab")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[name] = file


@contextlib.contextmanager
def _locked(name: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a file's exclusive lock; gives whether it was got, which is always so with `wait`."""
    with name.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True


def _remove(entry: Entry) -> bool:
    gone = root() / "tmp" / f"{entry.kind}-{entry.key}.gone"
    try:
        with _locked(root() / "locks" / f"{entry.kind}-{entry.key}.use", wait=False) as got:
            if not got:
                return False
            entry.path.replace(gone)  # at once, so that nobody finds half of it
            shutil.rmtree(gone, ignore_errors=True)
            return True
    except OSError:
        return False


def _sweep() -> None:
    """Remove what processes that died while building have left."""
    with contextlib.suppress(OSError):
        for path in (root() / "tmp").iterdir():
            stem = path.name.removesuffix(".old").removesuffix(".gone")
            with _locked(root() / "locks" / f"{stem}.build", wait=False) as got:
                if got:
                    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
