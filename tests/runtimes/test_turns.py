"""Captures of streams go together, and none with waiting for all of a context."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from edgevtx.runtimes.turns import capturing, uncollected, waiting


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


def test_garbage_is_collected_again_when_the_last_is_done_and_only_if_it_was() -> None:
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_in_the_midst_of_it_collects_garbage() -> None:
    with uncollected():
        child = os.fork()
        if not child:
            os._exit(0 if gc.isenabled() else 1)
    assert os.waitpid(child, 0)[1] == 0
