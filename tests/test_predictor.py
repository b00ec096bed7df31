"""Which runtime `load` takes, and what the golden sample says of a device's preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edgevtx import choose
from edgevtx.choose import choose_precision, choose_runtime
from edgevtx.errors import InputError, RuntimeUnavailableError, VerificationError
from edgevtx.golden import Golden
from edgevtx.manifest import Graph, Manifest, Verdict
from edgevtx.preprocess import prepare
from edgevtx.rules import Exact, Preprocess
from edgevtx.runtimes.base import EngineOptions, Probe
from edgevtx.selftest import check_preprocess

NEW = {"openvino": "2026.4.1-22982-e213a", "onnxruntime": "1.30.0"}
OPTIONS = EngineOptions()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """here(versions, lacking) makes this machine one with these runtimes in these versions.

    `lacking` are pairs of a runtime and a precision, or a device, that it has not.
    """
    real = choose.get_backend

    def make(versions: dict[str, str], lacking: Collection[tuple[str, str]] = ()) -> None:
        def probe(target: str) -> Probe:
            version = versions.get(target, "")
            return Probe(target, bool(version), version, reason="not installed", install=f"pip install {target}")

        def get_backend(target: str) -> Any:
            backend = real(target)

            def fingerprint(options: EngineOptions) -> dict[str, str]:
                for what in (options.precision, options.device):
                    if (target, what) in lacking:
                        raise RuntimeUnavailableError(f"{target} has no {what} here")
                return {}

            return SimpleNamespace(fingerprint=fingerprint, PRECISIONS=backend.PRECISIONS)

        monkeypatch.setattr(choose, "probe", probe)
        monkeypatch.setattr(choose, "get_backend", get_backend)

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


@pytest.fixture
def typed(manifest: Callable[..., Manifest]) -> Manifest:
    """A bundle for TensorRT in bf16, which it recommends, fp16, which failed, and fp32; and for the others in fp32."""
    found = manifest()
    row = Graph(
        file="g", target="tensorrt", variant="", versions=">=10.3", precisions=("bf16", "fp16", "fp32"), opset=17
    )
    statuses = {"bf16": "graph-only", "fp16": "failed", "fp32": "graph-only"}
    verdicts = tuple(
        Verdict(target="tensorrt", precision=precision, status=status)  # type: ignore[arg-type]
        for precision, status in statuses.items()
    )
    return msgspec.structs.replace(
        found,
        graphs=(*found.graphs, row),
        verdicts=(*verdicts, *found.verdicts),
        recommended={**found.recommended, "tensorrt": "bf16"},
    )


def test_auto_takes_the_first_that_can_run_the_bundle(manifest, here):
    assert choose_runtime(manifest(), "auto", None, OPTIONS) == "openvino"
    here({"onnxruntime": "1.30.0"})
    assert choose_runtime(manifest(), "auto", None, OPTIONS) == "onnxruntime"


def test_auto_passes_over_a_version_that_no_graph_serves(manifest, here):
    here({**NEW, "openvino": "2024.6.0"})
    assert choose_runtime(manifest(), "auto", None, OPTIONS) == "onnxruntime"


@pytest.mark.parametrize("status", ["failed", "insensitive"])
def test_auto_passes_over_a_runtime_whose_verdict_refuses_it(manifest, here, status):
    assert choose_runtime(manifest(openvino=status), "auto", None, OPTIONS) == "onnxruntime"
    assert choose_runtime(manifest(openvino=status), "auto", None, OPTIONS, allow_unverified=True) == "openvino"
    # nothing is left: the first is taken, and `load` gives its reason
    assert choose_runtime(manifest(openvino=status, onnxruntime=status), "auto", None, OPTIONS) == "openvino"


def test_auto_passes_over_a_runtime_without_the_precision_asked_for(manifest, here):
    found = manifest()
    bf16 = Verdict(target="openvino", precision="bf16", status="passed-here")
    found = msgspec.structs.replace(found, verdicts=(*found.verdicts, bf16))
    assert choose_runtime(found, "auto", "bf16", OPTIONS) == "openvino"
    swapped = msgspec.structs.replace(found, verdicts=(msgspec.structs.replace(bf16, target="onnxruntime"),))
    assert choose_runtime(swapped, "auto", "bf16", OPTIONS) == "onnxruntime"
    here({"onnxruntime": "1.30.0"})
    # it is all there is: `load` says that it was never verified in bf16
    assert choose_runtime(found, "auto", "bf16", OPTIONS) == "onnxruntime"


def test_where_nothing_can_run_every_reason_is_given(manifest, here):
    here({"openvino": "2024.6.0"})
    with pytest.raises(RuntimeUnavailableError) as caught:
        choose_runtime(manifest(), "auto", None, OPTIONS)
    assert "openvino: no graph serves version 2024.6.0" in str(caught.value)
    assert "onnxruntime: not installed (pip install onnxruntime)" in str(caught.value)


def test_a_runtime_that_is_named_is_not_replaced(manifest, here):
    here({"onnxruntime": "1.30.0"})
    assert choose_runtime(manifest(), "openvino", None, OPTIONS) == "openvino"
    with pytest.raises(InputError, match="runtime must be one of"):
        choose_runtime(manifest(), "tensorflow", None, OPTIONS)


def test_auto_passes_over_a_runtime_without_the_device(manifest, here, caplog):
    options = EngineOptions(device="NPU")
    here(NEW, [("openvino", "NPU")])
    with caplog.at_level("INFO", "edgevtx"):
        assert choose_runtime(manifest(), "auto", None, options) == "onnxruntime"
    assert "passed over: openvino: openvino has no NPU here" in caplog.text
    assert choose_runtime(manifest(), "openvino", None, options) == "openvino"  # `load` says what it has not
    here(NEW, [("openvino", "NPU"), ("onnxruntime", "NPU")])
    with pytest.raises(RuntimeUnavailableError, match=r"openvino: openvino has no NPU.*onnxruntime has no NPU"):
        choose_runtime(manifest(), "auto", None, options)


@pytest.mark.parametrize("asked", ["auto", "tensorrt"])
def test_a_precision_that_the_gpu_has_not_gives_way_to_the_next_that_passed(typed, here, asked, caplog):
    here({**NEW, "tensorrt": "10.13"})
    assert choose_precision(typed, "tensorrt", None, OPTIONS) == "bf16"
    here({**NEW, "tensorrt": "10.13"}, [("tensorrt", "bf16")])  # older than Ampere
    assert choose_runtime(typed, asked, None, OPTIONS) == "tensorrt"
    assert choose_precision(typed, "tensorrt", None, OPTIONS) == "fp32"  # fp16 failed when it was exported
    assert "tiny runs in fp32 on tensorrt: tensorrt has no bf16 here" in caplog.text
    assert choose_precision(typed, "tensorrt", "bf16", OPTIONS) == "bf16"  # what is asked for is not replaced
    assert choose_runtime(typed, "auto", "bf16", OPTIONS, allow_unverified=True) == "openvino"
    with pytest.raises(VerificationError, match="failed"):
        choose_precision(typed, "tensorrt", "fp16", OPTIONS)


def test_int8_is_no_way_out(typed, here):
    int8 = Verdict(target="tensorrt", precision="int8", status="graph-only")
    found = msgspec.structs.replace(typed, verdicts=(*typed.verdicts, int8))
    lacking = [("tensorrt", "bf16"), ("tensorrt", "fp32")]
    here({**NEW, "tensorrt": "10.13"}, lacking)
    assert choose_runtime(found, "auto", None, OPTIONS) == "openvino"
    assert choose_precision(found, "tensorrt", None, OPTIONS) == "bf16"  # `load` says why it cannot be
    assert choose_precision(found, "tensorrt", "int8", OPTIONS) == "int8"
    named_first = msgspec.structs.replace(found, recommended={**found.recommended, "tensorrt": "int8"})
    assert choose_precision(named_first, "tensorrt", None, OPTIONS) == "int8"
    here({**NEW, "tensorrt": "10.13"}, [("tensorrt", "int8"), *lacking[:1]])
    assert choose_precision(named_first, "tensorrt", None, OPTIONS) == "fp32"


def test_int8_is_not_taken_where_nothing_is_recommended(typed, here):
    here({**NEW, "tensorrt": "10.13"})
    int8 = Verdict(target="tensorrt", precision="int8", status="graph-only")
    others = tuple(item for item in typed.verdicts if item.target != "tensorrt")
    found = msgspec.structs.replace(typed, verdicts=(int8, *others), recommended={})
    assert choose_runtime(found, "auto", None, OPTIONS) == "openvino"
    with pytest.raises(VerificationError, match=r"never verified on tensorrt at fp32 \(verified: tensorrt int8"):
        choose_precision(found, "tensorrt", None, OPTIONS)


def test_a_runtime_that_has_no_precision_here_gives_way_to_the_next(typed, here):
    here({**NEW, "tensorrt": "10.13"}, [("tensorrt", "bf16"), ("tensorrt", "fp32")])
    assert choose_runtime(typed, "auto", None, OPTIONS) == "openvino"
    assert choose_precision(typed, "tensorrt", None, OPTIONS) == "bf16"  # named: `load` says why it cannot be


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
