"""Every family's engine on this GPU against the reference in fp32, at every precision that its bundle offers.

The bundles are those that `scripts/export_tiny_bundles.py FOLDER tensorrt tensorrt-rtx` makes; `scripts/gpu_check.sh`
does, or takes them along.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

import edgevtx
from edgevtx.bundle import Bundle
from edgevtx.compare import compare
from edgevtx.manifest import REFUSED
from edgevtx.runtimes import cuda
from edgevtx.runtimes.cuda import Gpu
from tests.floor.test_floor_bundles import samples_of

FOLDER = os.environ.get("EDGEVTX_GPU_BUNDLES", "")
BUNDLES = sorted(Path(FOLDER).glob("*.vtx")) if FOLDER else []

pytestmark = [
    pytest.mark.skipif(
        not FOLDER, reason="EDGEVTX_GPU_BUNDLES names no folder of bundles; scripts/gpu_check.sh sets it"
    ),
    pytest.mark.usefixtures("captured"),
]


def test_there_are_bundles_to_test() -> None:
    assert len(BUNDLES) >= 8


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.stem)
def test_an_engine_agrees_with_the_reference(bundle: Path, target: str, precision: str) -> None:
    manifest = Bundle.open(bundle).manifest
    verdict = manifest.verdict(target, precision)
    if verdict is None:
        pytest.skip(f"{target} {precision} was not exported")
    if verdict.status in REFUSED:  # random weights, which some low precisions do not bear: counted, and not passed over
        pytest.xfail(f"{target} {precision} is {verdict.status}: {verdict.reason}")
    check(bundle, target, precision)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.stem)
def test_an_engine_agrees_with_a_jetson_s_buffers(bundle: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and GPU share one memory there; elsewhere the same calls have the GPU reach over the bus."""
    if Bundle.open(bundle).manifest.verdict(target, "fp32") is None:
        pytest.skip(f"{target} fp32 was not exported")
    describe = cuda._describe

    def integrated(*arguments: Any) -> Gpu:
        return dataclasses.replace(describe(*arguments), integrated=True)

    monkeypatch.setattr(cuda, "_describe", integrated)
    check(bundle, target, "fp32")


def check(bundle: Path, target: str, precision: str) -> None:
    manifest = Bundle.open(bundle).manifest
    golden = Bundle.open(bundle).golden()
    with edgevtx.load(bundle, runtime=target, precision=precision) as model:  # which replays the golden sample
        assert model.info.precision_share
        assert model.info.executed_share or target != "tensorrt"  # its plans are compiled with the details
        assert "tf32" not in model.info.executed_share  # as far as the engine inspector tells
        runs = {part: model.info.part_precisions.get(part, precision) for part in model.parts}
        runs[""] = manifest.precision_of("", target, precision)
        samples = [("", name, *sample) for name, sample in samples_of(bundle).items()]
        for part in model.parts:
            exchange = golden.exchange(part)
            samples.append((part, "golden", exchange.inputs, exchange.outputs))
        for part, name, inputs, outputs in samples:
            with (model.parts[part] if part else model.engine).new_runtime() as context:
                for _ in range(4):  # up to a CUDA graph
                    found = context.run(inputs)
            checks = compare(outputs, found, manifest.decode_of(part), runs[part], manifest.noise.get(part))
            assert not [(part, name, check) for check in checks if not check.passed]
