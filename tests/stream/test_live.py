"""What waits for the engine while a live clip's model is slower than the camera."""

from __future__ import annotations

import queue
from dataclasses import dataclass

import pytest

from edgevtx.prepared import Prepared
from edgevtx.stream.live import Waiting


@dataclass
class Item:
    number: int
    prepared: Prepared


def item(number: int, *, due: bool = False) -> Item:
    return Item(number, Prepared({"pixels": 0} if due else {}, ()))  # type: ignore[dict-item]


def drain(waiting: Waiting) -> list[tuple[int, bool]]:
    """(number, whether a clip is due) of all that waits."""
    found = []
    while not waiting.empty():
        one = waiting.get(timeout=0)
        found.append((one.number, not one.prepared.pending))
    return found


def test_the_oldest_frame_is_dropped_and_counted() -> None:
    waiting = Waiting(3)
    for number in range(5):
        waiting.put(item(number))
    waiting.put(None)  # the end is no frame
    assert waiting.dropped == 2 and waiting.qsize() == 4
    assert [waiting.get(timeout=0).number for _ in range(3)] == [2, 3, 4]
    assert waiting.get(timeout=0) is None
    with pytest.raises(queue.Empty):
        waiting.get(timeout=0)


def test_a_clip_that_is_due_stays_until_another_one_takes_its_turn() -> None:
    waiting = Waiting(3)
    for number in range(7):
        waiting.put(item(number, due=number == 1))
    assert drain(waiting) == [(1, True), (5, False), (6, False)] and waiting.dropped == 4
    for number in range(7):
        waiting.put(item(number, due=number in (1, 4)))
    assert drain(waiting) == [(4, True), (5, False), (6, False)]
    for number in range(9):
        waiting.put(item(number, due=True))
    assert drain(waiting) == [(6, False), (7, False), (8, True)]


def test_without_a_limit_nothing_is_dropped_or_changed() -> None:
    waiting = Waiting()
    for number in range(100):
        waiting.put(item(number, due=True))
    assert drain(waiting) == [(number, True) for number in range(100)] and waiting.dropped == 0
