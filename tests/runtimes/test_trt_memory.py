"""What compiling may take of the host's memory, and that it ends where it takes more. The compiler is a stand-in."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgevtx.errors import CompileError
from edgevtx.runtimes import host, trt_build, trt_memory
from edgevtx.runtimes.base import EngineOptions
from edgevtx.runtimes.trt_memory import Limit, Watch, free_mb, host_limit, left_mb, process_mb, watched

TAKE = "import time; print('ready', flush=True); kept = b'x' * ({} << 20); print('taken', flush=True); time.sleep(60)"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(total, available, swaps) makes this machine one of so many MiB; `swaps` are lines of /proc/swaps."""

    def make(total: int, available: int, *swaps: str, anonymous: int = 0) -> None:
        (tmp_path / "meminfo").write_text(
            f"MemTotal: {total << 10} kB\nMemFree: 1 kB\nMemAvailable: {available << 10} kB\n"
            f"AnonPages: {anonymous << 10} kB\n"
        )
        (tmp_path / "swaps").write_text("\n".join(("Filename Type Size Used Priority", *swaps)) + "\n")
        monkeypatch.setattr(trt_memory, "_MEMORY", tmp_path / "meminfo")
        monkeypatch.setattr(trt_memory, "_SWAPS", tmp_path / "swaps")

    return make


def test_a_reserve_is_left_to_others(machine: Callable[..., None]) -> None:
    machine(8000, 6000)
    assert host_limit(None) == Limit(5200, 400)
    machine(1000, 800)
    assert host_limit(None) == Limit(544, 128)  # at least 256 MiB
    machine(1000, 100)
    assert host_limit(None) == Limit(1, 128)
    machine(512 << 10, 40 << 10)  # a server that others use too
    assert host_limit(None) == Limit(39 << 10, 512)
    assert host_limit(64) == Limit(64)  # who asks knows what the machine can bear


def test_swap_space_counts_but_not_where_it_is_memory(machine: Callable[..., None]) -> None:
    machine(8000, 6000, f"/swapfile file {4 << 20} {1 << 20} -2", f"/dev/zram0 partition {2 << 20} 0 5")
    assert free_mb() == 6000 + 3 * 1024


def test_swap_space_is_left_to_others_as_far_as_something_can_be_moved_there(machine: Callable[..., None]) -> None:
    swap = f"/swapfile file {16 << 20} 0 -2"
    machine(8000, 300, swap, anonymous=2000)
    assert left_mb() == 2300
    machine(8000, 300, swap, anonymous=50)  # a Jetson, whose GPU has the rest
    assert left_mb() == 350 < host_limit(None).least


def test_without_a_list_of_swap_space_there_is_none(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8000, 6000)
    monkeypatch.setattr(trt_memory, "_SWAPS", Path("/nowhere"))
    assert free_mb() == 6000


def test_on_a_jetson_the_workspace_is_half_of_what_is_free(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8000, 4000)
    assert trt_memory.unified_workspace_mb() is None
    (tmp_path / "tegra").touch()
    monkeypatch.setattr(host, "TEGRA", tmp_path / "tegra")
    assert trt_memory.unified_workspace_mb() == 2000


def taking(megabytes: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", TAKE.format(megabytes)], stdout=subprocess.PIPE, text=True)


def test_a_process_is_ended_when_it_has_more_than_its_limit() -> None:
    with taking(300) as process, watched(process, Limit(150)) as watch:
        started = time.perf_counter()
        assert process.wait(timeout=30) == -9
    assert time.perf_counter() - started < 20
    assert watch.ended and 150 < watch.had < 400 and watch.most == watch.had


def test_pages_of_files_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(200 << 20))
    read = "import mmap, sys, time; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
    read += "sum(m[::4096]); print('read', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", read, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "read\n"
        assert 0 < process_mb(process.pid) < 150
        process.kill()


def test_a_process_within_its_limit_is_left_alone() -> None:
    with taking(100) as process:
        with watched(process, Limit(400)) as watch:
            assert process.stdout is not None
            assert [process.stdout.readline(), process.stdout.readline()] == ["ready\n", "taken\n"]
            assert 100 <= process_mb(process.pid) < 400
            time.sleep(0.2)
        assert not watch.ended and process.poll() is None
        assert 100 <= watch.most < 400  # counted as the limit is
        process.kill()
    assert process_mb(process.pid) == 0


def test_a_process_is_ended_when_too_little_is_left_to_others(machine: Callable[..., None]) -> None:
    machine(8000, 6000)
    with taking(10) as process, watched(process, Limit(5000, 400)) as watch:
        time.sleep(0.2)
        assert not watch.ended
        machine(8000, 399)  # the GPU took it, or somebody else
        assert process.wait(timeout=30) == -9
    assert watch.ended and watch.left == 399


def test_a_compiler_that_was_done_is_not_told_to_have_been_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def watched(process: subprocess.Popen[str], limit: Limit) -> Iterator[Watch]:
        yield Watch(ended=True, had=2)  # as it exited

    monkeypatch.setattr(trt_memory, "watched", watched)
    for code in (0, 1):
        worker = f"import sys; sys.stdin.read(); sys.exit({code})"
        monkeypatch.setattr(trt_build, "_WORKER", worker)
        request = {"graph": "a.onnx", "options": {"gpu": "sm87", "precision": "fp16"}}
        with contextlib.ExitStack() as expected:
            if code:
                expected.enter_context(pytest.raises(CompileError, match="was ended at"))
            trt_build._work("tensorrt 10.3.0", request, EngineOptions(), Limit(1))


def test_a_compiler_that_takes_too_much_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = 'print(\'{"progress": "Building engine 3/6"}\', flush=True); '
    worker = f"import sys, time; sys.stdin.read(); {told}kept = b'x' * (300 << 20); time.sleep(60)"
    monkeypatch.setattr(trt_build, "_WORKER", worker.replace("{", "{{").replace("}", "}}"))
    package: Any = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr(trt_build.host, "import_package", lambda *names, **options: package)
    graph = tmp_path / "graph.tensorrt.onnx"
    with pytest.raises(CompileError) as caught:
        trt_build.build_plan("tensorrt", graph, tmp_path, EngineOptions("fp16", gpu="sm87", memory_mb=150))
    text = str(caught.value)
    assert text.startswith("tensorrt 10.3.0, compiling graph.tensorrt.onnx for sm87 in fp16, was ended at: Building")
    assert "of which it may have 150, and" in text and "allow more with --memory-mb" in text
    assert not list(tmp_path.iterdir())
