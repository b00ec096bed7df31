"""What the tests on a GPU share. Each is marked `gpu`, and skipped with the reason where there is none."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes import probe
from edgevtx.runtimes.cuda import Device

NVIDIA = ("tensorrt", "tensorrt-rtx")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> Iterator[Device]:
    """The first GPU, its context current on this thread."""
    try:
        made = Device(0, "tensorrt")
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    with made.current():
        yield made
    made.release()


@pytest.fixture(params=NVIDIA)
def target(request: pytest.FixtureRequest) -> str:
    """A target whose package and GPU are here."""
    found = probe(request.param)
    if not found.available:
        pytest.skip(f"{request.param}: {found.reason}")
    return str(request.param)


@pytest.fixture
def captured(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test in which an engine could not be captured as a CUDA graph: it runs without, and only the log says so.

    TensorRT-RTX captures by itself and says nothing.
    """
    caplog.set_level(logging.INFO, "edgevtx")
    yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    assert not [text for text in said if "runs without a CUDA graph" in text]


@pytest.fixture
def resident() -> Callable[[], int]:
    """resident() -> this process's largest memory so far, in bytes."""
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
