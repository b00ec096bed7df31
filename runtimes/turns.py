"""Who may capture a stream, and who may wait for all of a GPU's context: CUDA forbids the second during the first.

It refuses to wait for a context while any of its streams is captured, whichever thread captures it and in whichever
mode, and ends that capture (CUDA C++ Programming Guide, "Prohibited and Unhandled Operations" of stream capture). One
pair of locks serves all GPUs of the process. Nor may the thread that captures free memory meanwhile, which the garbage
collector would have it do for an engine that was forgotten; so no garbage is collected until nothing is captured.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_door = threading.RLock()  # held by who waits: no further capture begins, so that busy threads do not keep it waiting
_turns = threading.Condition()
_captures = 0
_collects = False  # whether the garbage collector was on when the first of them began


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Have no thread wait for a context meanwhile, and no garbage collected; several may capture at once.

    Each captures its own stream. Not to be nested.
    """
    global _captures, _collects
    with _door, _turns:
        if not _captures:
            _collects = gc.isenabled()
            gc.disable()
        _captures += 1
    try:
        yield
    finally:
        with _turns:
            _captures -= 1
            if _collects and not _captures:
                gc.enable()
            _turns.notify_all()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Once nothing is captured, have no capture begin meanwhile. Not to be asked for within `capturing`."""
    with _door, _turns:
        _turns.wait_for(lambda: not _captures)
        yield
