"""What TensorRT says while it works: collected, instead of printed."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgevtx.runtimes import host

log = logging.getLogger(__name__)

_ERRORS = ("ERROR", "INTERNAL_ERROR")
_KEPT = 40  # warnings of a build that are kept: some networks give one for each layer

_MEMORY = re.compile(r"Peak memory usage of TRT CPU/GPU memory allocators: .*GPU (\d+) MiB")

# what a reader of a message cannot use: places in the vendor's sources, and that there is no driver here
_NOISE = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[checkMacros\.cpp::catchCudaError::\d+\] Error Code 1: Cuda Runtime \(.*?cudaError 35:.*?\)\)",
        r" In \S+ at /\S+?:\d+",
        r"\[\w+\.(?:cpp|h)::[^\]]*::\d+\]",
        r"^\w+\.cpp:\d+: ",
        r"\bInvalid Node - \S+",
        r"\b\w+::\w+: Error Code \d+: ",
    )
)


@dataclass
class Messages:
    """What was said: warnings and errors without repeats, in order.

    `gpu_mb` is the most that compiling took of the device, as the builder tells it, 0 where it does not.
    """

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    gpu_mb: int = 0

    def add(self, severity: str, message: str) -> None:
        """Take a message of TensorRT's with the name of its severity."""
        text = tidy(message)
        if severity in _ERRORS and text and text not in self.errors:
            self.errors.append(text)
        elif severity == "WARNING" and text not in self.warnings and len(self.warnings) < _KEPT:
            self.warnings.append(text)
        elif found := _MEMORY.search(text):
            self.gpu_mb = int(found[1])


def tidy(message: str) -> str:
    """A message on one line, without its noise."""
    for noise in _NOISE:
        message = noise.sub("", message)
    return " ".join(message.split())


def make_logger(trt: Any, messages: Messages, tell: Callable[[str], None]) -> Any:
    """An `ILogger` that collects messages, and tells those that are not verbose."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity.name != "VERBOSE":
                messages.add(severity.name, msg)
                tell(f"{severity.name}: {msg}")

    return Logger()


# -- of engines that run ---------------------------------------------------------------------------------------

_loggers: dict[str, Any] = {}
_here = threading.local()  # TensorRT speaks on the thread that called it


class _LastError(Messages):
    """Keeps one error of each thread alone: an engine may run for months.

    It is the last one, or that of a lack of memory, from which the others after it follow.
    """

    def add(self, severity: str, message: str) -> None:
        if severity in _ERRORS and not host.lacks_memory(getattr(_here, "error", "")):
            _here.error = tidy(message)


def logger(trt: Any) -> Any:
    """The logger of a package's engines: TensorRT keeps the first that a process gives it."""
    if trt.__name__ not in _loggers:  # of several threads that come here at once the first one's is everyone's
        _loggers.setdefault(trt.__name__, make_logger(trt, _LastError(), log.debug))
    return _loggers[trt.__name__]


def last_error() -> str:
    """The last error that was said on this thread, or nothing; it is told once."""
    error: str = getattr(_here, "error", "")
    _here.error = ""
    return error
