"""The cache: whole entries or none, one builder at a time, least recently used first out."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevtx import cache
from edgevtx.errors import InputError, OutputError


@pytest.fixture(autouse=True)
def home(empty_cache: Path) -> Path:
    return empty_cache


def _whole(entry: Path) -> str | None:
    return None if (entry / "data").is_file() else "data is missing"


def _maker(size: int = 10) -> Callable[[Path], None]:
    return lambda folder: (folder / "data").write_bytes(bytes(size)) and None


def _put(key: str, size: int = 10, **options: Any) -> tuple[Path, bool]:
    return cache.obtain("engines", key, check=_whole, build=_maker(size), **options)


def _let_go() -> None:
    """Give up this process's use of its entries, as its end would."""
    for file in cache._in_use.values():
        file.close()
    cache._in_use.clear()


def _keys() -> set[str]:
    return {entry.key for entry in cache.entries()}


def test_built_once(home: Path) -> None:
    path, hit = _put("a")
    assert (hit, path) == (False, home / "engines" / "a")
    assert _put("a") == (path, True)
    assert _put("a", force=True) == (path, False)
    assert not list((home / "tmp").iterdir())


def test_find_builds_nothing() -> None:
    assert cache.find("engines", "a", _whole) is None
    path, _ = _put("a")
    assert cache.find("engines", "a", _whole) == path


def test_a_damaged_entry_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    path, _ = _put("a")
    (path / "data").unlink()
    with caplog.at_level(logging.WARNING, "edgevtx"):
        assert _put("a") == (path, False)
    assert [record.getMessage() for record in caplog.records] == [
        f"cache: {path} is damaged (data is missing); it is made again"
    ]
    assert (path / "data").is_file()


def test_a_builder_that_fails_leaves_nothing(home: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        cache.obtain("engines", "a", check=_whole, build=fail)
    assert cache.entries() == []
    assert not list((home / "tmp").iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(home: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full; free space, run edgevtx cache clear"):
        cache.obtain("engines", "a", check=_whole, build=fail)
    assert not list((home / "tmp").iterdir())


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE_MAX", "250")
    for age, key in ((30, "old"), (20, "older"), (10, "young")):
        path, _ = _put(key, 100) if key != "young" else (None, None)
        if path:
            os.utime(path, (time.time() - age, time.time() - age))
    _put("old", 100)  # a hit makes it the youngest
    _let_go()
    _put("young", 100)
    assert _keys() == {"old", "young"}


def test_what_is_in_use_or_just_made_is_kept(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    _put("used", 100)
    monkeypatch.setenv("EDGEVTX_CACHE_MAX", "50")
    _put("made", 100)
    assert _keys() == {"used", "made"}
    _let_go()
    cache.evict(keep=home / "engines" / "made")
    assert _keys() == {"made"}


def test_what_another_process_uses_is_kept(home: Path) -> None:
    script = """
        import sys
        from edgevtx import cache
        cache.obtain("engines", "theirs", check=lambda e: None, build=lambda f: (f / "data").write_bytes(b"x") and None)
        print("ready", flush=True)
        sys.stdin.read()
    """
    with _process(script) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        _put("ours")
        _let_go()
        assert [entry.key for entry in cache.clear()] == ["ours"]
        assert _keys() == {"theirs"}
        other.communicate("", timeout=20)
    assert [entry.key for entry in cache.clear()] == ["theirs"]


def test_two_processes_build_once(home: Path, tmp_path: Path) -> None:
    script = f"""
        import time
        from pathlib import Path
        from edgevtx import cache
        def build(folder):
            with open({str(tmp_path / "log")!r}, "a") as log:
                log.write("built\\n")
            time.sleep(0.5)
            (folder / "data").write_bytes(b"x")
        check = lambda entry: None if (entry / "data").is_file() else "half"
        print(cache.obtain("engines", "a", check=check, build=build)[1])
    """
    others = [_process(script) for _ in range(3)]
    answers = sorted(other.communicate(timeout=30)[0].strip() for other in others)
    assert answers == ["False", "True", "True"]
    assert (tmp_path / "log").read_text() == "built\n"


def test_two_threads_build_once() -> None:
    built: list[int] = []

    def build(folder: Path) -> None:
        built.append(1)
        time.sleep(0.1)
        _maker()(folder)

    def work() -> None:
        cache.obtain("engines", "a", check=_whole, build=build)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_what_a_dead_builder_left_is_swept(home: Path) -> None:
    (home / "tmp" / "engines-dead").mkdir(parents=True)
    (home / "tmp" / "engines-dead" / "data").write_bytes(b"half")
    _put("a")
    assert not list((home / "tmp").iterdir())


def test_an_unwritable_folder_works_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, "edgevtx"):
        path, hit = _put("a")
        assert not hit
        assert _whole(path) is None
        assert _put("a") == (path, True)
        _put("b")
    assert caplog.text.count("cannot be written") == 1
    assert "set EDGEVTX_CACHE to a folder that can be written" in caplog.text
    assert tmp_path not in path.parents or "file" not in path.parts


def test_a_read_only_cache_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = _put("a")
    _let_go()
    monkeypatch.setattr(cache, "_use", lambda *args: None)
    monkeypatch.setattr(os, "utime", _refuse)
    monkeypatch.setattr(cache, "_writable", _refuse)
    assert _put("a") == (path, True)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.EROFS, "Read-only file system")


def test_notes_are_kept_and_cleared(home: Path) -> None:
    assert cache.recall("x") is None
    cache.remember("x", b"fact")
    assert cache.recall("x") == b"fact"
    cache.clear("engines")
    assert cache.recall("x") == b"fact"
    cache.clear()
    assert cache.recall("x") is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", cache.DEFAULT_MAX), ("none", None), ("0", 0), ("123", 123), ("20GB", 20_000_000_000),
        ("500 mb", 500_000_000),
        ("1.5GiB", 3 << 29), ("2T", 2_000_000_000_000),
    ],
)  # fmt: skip
def test_limits(text: str, size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE_MAX", text)
    assert cache.limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "10XB", "GB"])
def test_a_bad_limit_is_said_before_the_work(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE_MAX", text)
    with pytest.raises(InputError, match="EDGEVTX_CACHE_MAX must be"):
        cache.obtain("engines", "a", check=_whole, build=lambda folder: pytest.fail("built"))


def test_the_default_folder_is_the_platform_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEVTX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root().name == "edgevtx"


def _process(script: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", textwrap.dedent(script)]
    root = Path(__file__).parent.parent
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root, env=os.environ.copy())
