"""Who may capture a stream, and who may wait for all of a GPU's context: CUDA forbids the second during the first.

It refuses to wait for a context while any of its streams is captured, whichever thread captures it and in whichever
mode, and ends that capture (CUDA C++ Programming Guide, "Prohibited and Unhandled Operations" of stream capture). One
pair of locks serves all GPUs of the process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

_door = threading.RLock()  # held by who waits: no further capture begins, so that busy threads do not keep it waiting
_turns = threading.Condition()
_captures = 0


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Have no thread wait for a context meanwhile; several may capture at once, each its own stream.

    Not to be nested.
    """
    global _captures
    with _door, _turns:
        _captures += 1
    try:
        yield
    finally:
        with _turns:
            _captures -= 1
            _turns.notify_all()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Once nothing is captured, have no capture begin meanwhile. Not to be asked for within `capturing`."""
    with _door, _turns:
        _turns.wait_for(lambda: not _captures)
        yield


# -- garbage ---------------------------------------------------------------------------------------------------

_littering = threading.Lock()
_litterers = 0
_collects = False  # whether the garbage collector was on when the first of them began


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Have no garbage collected meanwhile, by any thread. For moments alone."""
    global _litterers, _collects
    with _littering:
        if not _litterers:
            _collects = gc.isenabled()
            gc.disable()
        _litterers += 1
    try:
        yield
    finally:
        with _littering:
            _litterers -= 1
            if _collects and not _litterers:
                gc.enable()


def _collect_again() -> None:
    if _litterers and _collects:  # who would have done it is in the parent alone
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_collect_again)
