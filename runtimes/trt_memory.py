"""How much memory compiling may take, how much it took, and its end where it takes more.

A compiler that takes all of a small board's memory takes down more than itself: the kernel ends what it likes. CUDA
reserves more addresses than any machine has memory, so that limits of address space (RLIMIT_AS) say nothing; what a
process really has, and what is left, is read from /proc while it works.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgevtx.runtimes import host

_MEMORY = Path("/proc/meminfo")
_SWAPS = Path("/proc/swaps")
_PROCESSES = Path("/proc")

_PERIOD = 0.05  # seconds between two looks: some 100 MB of fresh memory at the most

# of the machine's memory, what is left to others: a share, and no less and no more than so many MiB
_RESERVE, _LEAST_RESERVE_MB, _MOST_RESERVE_MB = 0.1, 256, 1024


@dataclass(frozen=True)
class Limit:
    """What compiling may take of the host, in MiB: `most` itself, as long as `least` is left to all others.

    The second is for memory that is not seen in the process, such as what the GPU has of a Jetson's.
    """

    most: int
    least: int = 0


@dataclass
class Watch:
    """What a process had, and what was left, in MiB, when it was ended; `ended` says whether it was.

    `most` is the most that it had at any look.
    """

    ended: bool = False
    had: int = 0
    most: int = 0
    left: int = 0


@contextlib.contextmanager
def watched(process: subprocess.Popen[str], limit: Limit) -> Iterator[Watch]:
    """End a process with SIGKILL as soon as it goes beyond its limit."""
    watch, done = Watch(), threading.Event()

    def look() -> None:
        while not done.wait(_PERIOD):
            watch.had, watch.left = process_mb(process.pid), left_mb()
            watch.most = max(watch.most, watch.had)
            if watch.had > limit.most or watch.left < limit.least:
                watch.ended = True
                process.kill()
                return

    thread = threading.Thread(target=look, name="edgevtx-compile-memory", daemon=True)
    thread.start()
    try:
        yield watch
    finally:  # while the process is not waited for, its number is no other's
        done.set()
        thread.join()


def host_limit(asked_mb: int | None) -> Limit:
    """The limit that was asked for, or what is free but a reserve, half of which must stay free.

    The reserve is a tenth of the memory, at least 256 and at most 1024 MiB.
    """
    if asked_mb:
        return Limit(asked_mb)
    total = _field(_MEMORY.read_text(), "MemTotal") // 1024
    reserve = min(max(int(_RESERVE * total), _LEAST_RESERVE_MB), _MOST_RESERVE_MB)
    return Limit(max(free_mb() - reserve, 1), reserve // 2)


def free_mb() -> int:
    """What is free of the host's memory and of its swap space on disks, in MiB."""
    return (_field(_MEMORY.read_text(), "MemAvailable") + _free_swap()) // 1024


def left_mb() -> int:
    """What can be made free for others, in MiB: swap space helps no further than there is what can be moved there.

    What the GPU has of a Jetson's memory cannot.
    """
    text = _MEMORY.read_text()
    return (_field(text, "MemAvailable") + min(_free_swap(), _field(text, "AnonPages"))) // 1024


def _free_swap() -> int:
    """In KiB, on disks alone: zram is in the memory itself."""
    try:
        rows = [line.split() for line in _SWAPS.read_text().splitlines()[1:]]
    except OSError:
        return 0
    return sum(int(row[2]) - int(row[3]) for row in rows if not row[0].startswith("/dev/zram"))


def process_mb(pid: int) -> int:
    """What a process has of the memory and of the swap space, in MiB; 0 once it ended.

    Without pages of files, such as its libraries and weights: these are free as soon as others need them.
    """
    try:
        text = (_PROCESSES / str(pid) / "status").read_text()
    except OSError:
        return 0
    return sum(_field(text, name) for name in ("RssAnon", "RssShmem", "VmSwap")) // 1024


def unified_workspace_mb() -> int | None:
    """Half of a Jetson's free memory, which host and GPU share and the builder would take all of; None elsewhere."""
    return _field(_MEMORY.read_text(), "MemAvailable") // 2048 if host.TEGRA.is_file() else None


def _field(text: str, name: str) -> int:
    """A field of /proc in KiB, 0 where it is missing."""
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
