"""Which runtime `load` takes, and what the golden sample says of a device's preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevtx import predictor
from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.golden import Golden
from edgevtx.manifest import Manifest, Verdict
from edgevtx.predictor import choose_runtime
from edgevtx.preprocess import prepare
from edgevtx.rules import Exact, Preprocess
from edgevtx.runtimes.base import Probe
from edgevtx.selftest import check_preprocess

NEW = {"openvino": "2026.4.1-22982-e213a", "onnxruntime": "1.30.0"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """A function that makes this machine one with these runtimes in these versions."""

    def make(versions: dict[str, str]) -> None:
        def probe(target: str) -> Probe:
            version = versions.get(target, "")
            return Probe(target, bool(version), version, reason="not installed", install=f"pip install {target}")

        monkeypatch.setattr(predictor, "probe", probe)

    make(NEW)
    return make


@pytest.fixture
def manifest(tiny_parts: Any) -> Callable[..., Manifest]:
    """A function status of each target at fp32 -> manifest."""

    def make(openvino: str = "passed-here", onnxruntime: str = "passed-here") -> Manifest:
        statuses = {"openvino": openvino, "onnxruntime": onnxruntime}
        verdicts = tuple(
            Verdict(target=target, precision="fp32", status=status, reason="told so")  # type: ignore[arg-type]
            for target, status in statuses.items()
        )
        return msgspec.structs.replace(tiny_parts().manifest, verdicts=verdicts)

    return make


def test_auto_takes_the_first_that_can_run_the_bundle(manifest, here):
    assert choose_runtime(manifest(), "auto") == "openvino"
    here({"onnxruntime": "1.30.0"})
    assert choose_runtime(manifest(), "auto") == "onnxruntime"


def test_auto_passes_over_a_version_that_no_graph_serves(manifest, here):
    here({**NEW, "openvino": "2024.6.0"})
    assert choose_runtime(manifest(), "auto") == "onnxruntime"


@pytest.mark.parametrize("status", ["failed", "insensitive"])
def test_auto_passes_over_a_runtime_whose_verdict_refuses_it(manifest, here, status):
    assert choose_runtime(manifest(openvino=status), "auto") == "onnxruntime"
    assert choose_runtime(manifest(openvino=status), "auto", allow_unverified=True) == "openvino"
    # nothing is left: the first is taken, and `load` gives its reason
    assert choose_runtime(manifest(openvino=status, onnxruntime=status), "auto") == "openvino"


def test_auto_passes_over_a_runtime_without_the_precision_asked_for(manifest, here):
    found = manifest()
    bf16 = Verdict(target="openvino", precision="bf16", status="passed-here")
    found = msgspec.structs.replace(found, verdicts=(*found.verdicts, bf16))
    assert choose_runtime(found, "auto", "bf16") == "openvino"
    swapped = msgspec.structs.replace(found, verdicts=(msgspec.structs.replace(bf16, target="onnxruntime"),))
    assert choose_runtime(swapped, "auto", "bf16") == "onnxruntime"
    here({"onnxruntime": "1.30.0"})
    # it is all there is: `load` says that it was never verified in bf16
    assert choose_runtime(found, "auto", "bf16") == "onnxruntime"


def test_where_nothing_can_run_every_reason_is_given(manifest, here):
    here({"openvino": "2024.6.0"})
    with pytest.raises(RuntimeUnavailableError) as caught:
        choose_runtime(manifest(), "auto")
    assert "openvino: no graph serves version 2024.6.0" in str(caught.value)
    assert "onnxruntime: not installed (pip install onnxruntime)" in str(caught.value)


def test_a_runtime_that_is_named_is_not_replaced(manifest, here):
    here({"onnxruntime": "1.30.0"})
    assert choose_runtime(manifest(), "openvino") == "openvino"
    with pytest.raises(InputError, match="runtime must be one of"):
        choose_runtime(manifest(), "tensorflow")


# -- the golden frame ------------------------------------------------------------------------------------------


def golden(preprocess: Preprocess) -> Golden:
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    return Golden(frame, {"pixels": prepare(frame, preprocess)[0][None]}, {})


RULE = Preprocess(size=Exact(height=32, width=48), interpolation="bilinear", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def test_the_same_preprocessing_passes():
    check = check_preprocess(golden(RULE), RULE)
    assert check.passed and check.error == 0 and check.compared == 32 * 48 * 3


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "bicubic"}, {"interpolation": "nearest"}, {"size": Exact(height=48, width=32)}],
    ids=["filter", "no antialiasing", "size"],
)
def test_another_preprocessing_on_the_device_fails(change):
    check = check_preprocess(golden(RULE), msgspec.structs.replace(RULE, **change))
    assert not check.passed


def test_swapped_colours_on_the_device_fail():
    sample = golden(RULE)
    assert not check_preprocess(Golden(sample.frame[..., ::-1].copy(), sample.inputs, {}), RULE).passed
