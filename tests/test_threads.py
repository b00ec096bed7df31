"""A few shared threads: order, failures, one core, a forked child."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from edgevtx import threads


@pytest.fixture(params=[1, 2, 6])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(threads, "cores", lambda: request.param)
    monkeypatch.setattr(threads, "_pool", None)
    return int(request.param)


def test_results_come_in_the_order_of_the_jobs(cores: int) -> None:
    assert threads.run_all([partial(pow, i, 2) for i in range(50)]) == [i * i for i in range(50)]
    for count in (0, 1, 2, 15, 16, 17, 40, 100):
        assert threads.each(lambda i: i + 1, range(count)) == list(range(1, count + 1))


def test_jobs_run_beside_one_another_where_there_are_cores(cores: int) -> None:
    meet = threading.Barrier(2 if cores > 1 else 1, timeout=20)  # broken, and an error, where they do not
    assert len(threads.run_all([meet.wait, meet.wait])) == 2


def test_the_first_failure_is_raised_once_no_job_runs_any_more(cores: int) -> None:
    running, done = threading.Event(), []

    def fail() -> None:
        if cores > 1:
            assert running.wait(20)
        raise ValueError("the first")

    def slow() -> None:
        running.set()
        done.append(1)

    with pytest.raises(ValueError, match="the first"):
        threads.run_all([fail, slow])
    assert cores == 1 or done == [1]


def test_a_pool_that_takes_no_more_jobs_leaves_them_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """As once the main thread has ended, while another one still works."""
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(threads, "_pool", None)
    threads._threads().shutdown()
    assert threads.run_all([partial(pow, i, 2) for i in range(5)]) == [0, 1, 4, 9, 16]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_makes_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    threads.run_all([int, int])
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.run_all([int, int, int]) == [0, 0, 0] else 1)
    assert os.waitpid(child, 0)[1] == 0
