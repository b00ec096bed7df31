"""What TensorRT says while it works: collected, and told to the log at levels of ours, instead of printed.

TensorRT keeps one logger for the whole process, the first that it was given. So there is one for each package, which
hands every message to whoever collects at that time.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

_KEPT = 40  # warnings of a build that are kept: some networks give one for each layer

_MEMORY = re.compile(r"Peak memory usage during Engine building and serialization: CPU: (\d+) MiB")


@dataclass
class Messages:
    """What was said: warnings and errors without repeats, in order.

    `memory_mb` is the most that a build took of the host, as the builder tells it, 0 where it does not.
    """

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory_mb: int = 0

    def add(self, severity: str, message: str) -> None:
        """Take a message of TensorRT's with the name of its severity."""
        text = " ".join(message.split())
        if severity in _ERRORS:
            self.errors.append(text)
        elif severity == "WARNING" and text not in self.warnings and len(self.warnings) < _KEPT:
            self.warnings.append(text)
        elif found := _MEMORY.search(text):
            self.memory_mb = int(found[1])


_ERRORS = ("ERROR", "INTERNAL_ERROR")

_loggers: dict[str, Any] = {}
_listeners: list[Messages] = []
_lock = threading.Lock()
_here = threading.local()  # TensorRT speaks on the thread that called it


def logger(trt: Any) -> Any:
    """The process's one logger for a package, an `ILogger`."""
    if trt.__name__ not in _loggers:

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                log.debug("%s %s: %s", trt.__name__, severity.name, msg)
                if severity.name in _ERRORS:
                    _here.error = " ".join(msg.split())
                for listener in tuple(_listeners):
                    listener.add(severity.name, msg)

        _loggers[trt.__name__] = Logger()
    return _loggers[trt.__name__]


def last_error() -> str:
    """The last error that was said on this thread, or nothing; it is told once."""
    error: str = getattr(_here, "error", "")
    _here.error = ""
    return error


@contextmanager
def collect() -> Iterator[Messages]:
    """Collect what is said within; one block at a time in a process, since nobody can tell who a message is about."""
    with _lock:
        messages = Messages()
        _listeners.append(messages)
        try:
            yield messages
        finally:
            _listeners.remove(messages)
