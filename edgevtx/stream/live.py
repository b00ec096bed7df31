"""Live sources: which of their frames are taken where the model, or a sink, is slower than the camera."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

from edgevtx.stream.sources import Frame

_CAPTURE_SECONDS = 1.0  # how long a camera's last read is waited for: less than a stopped run's whole grace


class Waiting(queue.Queue[Any]):
    """What waits for the engine, first in, first out; of a live clip's frames at most `most`, each with its image.

    Where one more comes, the oldest is dropped and counted in `dropped`, but never the clip that is due. A clip that
    becomes due takes the turn of one that still waits, whose frame is then one like the others. `most` is at least 2.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most, self.dropped = most, 0

    def _put(self, item: Any) -> None:  # called under the queue's lock
        if self.most is not None and item is not None:
            if _is_due(item):
                for older in filter(_is_due, self.queue):
                    older.prepared = replace(older.prepared, inputs={})
            if len(self.queue) == self.most:
                del self.queue[next(place for place, older in enumerate(self.queue) if not _is_due(older))]
                self.dropped += 1
        self.queue.append(item)


def _is_due(item: Any) -> bool:
    prepared = getattr(item, "prepared", None)  # a source may also say what it skipped
    return prepared is not None and not prepared.pending


def newest(frames: Iterator[Frame], finished: threading.Event) -> Generator[Frame, None, None]:
    """The frames of a live source, each the newest when it is asked for.

    A thread keeps reading, so that neither the driver's nor the network's buffer fills with old frames. Closing
    the generator ends the thread, unless the camera keeps it in a read.
    """
    changed = threading.Condition()
    closed = threading.Event()
    slot: list[Frame] = []
    ended: list[BaseException | None] = []

    def read() -> None:
        error: BaseException | None = None
        try:
            for frame in frames:
                with changed:
                    slot[:] = [frame]
                    changed.notify()
                if closed.is_set() or finished.is_set():
                    break
        except BaseException as problem:
            error = problem
        with changed:
            ended.append(error)
            changed.notify()

    thread = threading.Thread(target=read, name="edgevtx-capture", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: slot or ended or finished.is_set(), timeout=0.5)
                frame = slot.pop() if slot else None
                if frame is None and (ended or finished.is_set()):
                    if ended and ended[0] is not None:
                        raise ended[0]
                    return
            if frame is not None:
                yield frame
    finally:
        closed.set()
        thread.join(_CAPTURE_SECONDS)
