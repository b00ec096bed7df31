"""Captures of streams go together, and none with waiting for all of a context."""

from __future__ import annotations

import threading

from edgevtx.runtimes.turns import capturing, waiting


def test_several_capture_at_once() -> None:
    both = threading.Barrier(2)

    def work() -> None:
        with capturing():
            both.wait(10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken


def test_a_capture_begins_after_what_is_waited_for_and_the_other_way_round() -> None:
    for first, then in ((waiting, capturing), (capturing, waiting)):
        done: list[str] = []

        def work(turn=then, done=done) -> None:
            with turn():
                done.append("then")

        thread = threading.Thread(target=work)
        with first():
            thread.start()
            thread.join(0.1)
            done.append("first")
        thread.join(10)
        assert done == ["first", "then"]


def test_what_fails_in_its_turn_leaves_it() -> None:
    for turn in (capturing, waiting):
        try:
            with turn():
                raise KeyError
        except KeyError:
            pass

    def both() -> None:
        with capturing():
            pass
        with waiting():
            pass

    thread = threading.Thread(target=both, daemon=True)  # another one, for which no lock is its own already
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_busy_threads_do_not_keep_one_waiting() -> None:
    over, served = threading.Event(), threading.Event()

    def capture() -> None:
        while not over.is_set():
            with capturing():
                over.wait(0.004)

    def wait() -> None:
        with waiting():
            served.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (capture, capture, wait)]
    for thread in threads:
        thread.start()
    found = served.wait(10)
    over.set()
    for thread in threads:
        thread.join(10)
    assert found
