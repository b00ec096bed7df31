"""Any number of frames is answered, as many at once as an engine takes: `Predictor.batch`.

TensorRT is a stand-in here (`fake_gpu`), whose engine adds up each row of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import edgevtx
from edgevtx import predictor
from edgevtx.bundle import write_bundle
from edgevtx.manifest import TensorInfo
from edgevtx.rules import Exact, Preprocess, PyramidDecode
from edgevtx.runtimes import probe
from edgevtx.runtimes.base import Engine, TensorSpec
from tests.runtimes.fake_gpu import Machine, crashes, make_record

RULE = Preprocess(size=Exact(height=4, width=4), interpolation="bilinear", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def record(batch: int | None) -> Any:
    """A plan whose profiles take 2 frames, or one of fixed shapes."""
    if batch is None:
        return make_record()
    inputs = (TensorSpec("pixels", (batch, 4, 4, 3), "uint8"), TensorSpec("valid_size", (batch, 2), "int32"))
    return make_record(inputs=inputs, outputs=(TensorSpec("scores", (batch,), "float32"),), profiles=())


@pytest.fixture(autouse=True)
def _decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are each frame's scores: the tiny networks have no task that could be decoded."""

    def decode(outputs: Any, geometries: Any, *_: Any, **__: Any) -> list[Any]:
        return list(outputs["scores"][: len(geometries)])  # a short batch was filled up

    monkeypatch.setattr(predictor, "decode", decode)


def frames(number: int, height: int = 4, width: int = 4) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (number, height, width, 3), np.uint8))


@pytest.mark.parametrize("resize", ["host", "gpu"])
@pytest.mark.parametrize(("batch", "rows"), [(2, [2, 2, 2]), (None, [2, 2, 1])], ids=["fixed batch", "profiles"])
def test_more_frames_than_an_engine_takes_are_answered_in_turns(
    machine: Machine,
    open_plan: Callable[..., Engine],
    tiny_parts: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    batch: int | None,
    rows: list[int],
    resize: Any,
) -> None:
    inputs = (
        TensorInfo(name="pixels", shape=(batch, None if batch is None else 4, 4, 3), dtype="uint8"),
        TensorInfo(name="valid_size", shape=(batch, 2), dtype="int32"),
    )
    manifest = msgspec.structs.replace(tiny_parts().manifest, inputs=inputs, preprocess=RULE)
    info: Any = SimpleNamespace(name="tiny")
    model = predictor.Predictor(manifest, info, open_plan(record=record(batch)), resize=resize)
    run, taken, spent = model._runtime.run, list[int](), list[float]()

    def counted(feeds: Any) -> Any:
        taken.append(len(feeds["pixels"]))
        return run(feeds)

    def infer(prepared: Any, **options: Any) -> Any:
        outputs = predictor.Predictor.infer(model, prepared, **options)
        spent.append(model.stages["engine"])
        return outputs

    monkeypatch.setattr(model._runtime, "run", counted)
    monkeypatch.setattr(model, "infer", infer)
    given = frames(5)
    assert model.batch(given) == [frame.sum() + 8 for frame in given]
    assert taken == rows and len(spent) == 3
    assert model.stages["engine"] == pytest.approx(sum(spent))
    assert model.batch(given[:1]) == [given[0].sum() + 8]
    assert model.batch([]) == []
    model.close()
    assert not crashes(machine)


def test_the_batch_of_the_smallest_profile_counts(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    assert open_plan().most_rows == 2
    small, large = make_record().profiles
    larger = {name: msgspec.structs.replace(span, max=(3, *span.max[1:])) for name, span in large.items()}
    assert open_plan(record=make_record(profiles=(small, larger))).most_rows == 2
    assert open_plan(record=record(2)).most_rows is None  # its shape says it


@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_runtime_answers_any_number(tiny_parts: Callable[..., Any], tmp_path: Any, dynamic: bool) -> None:
    if not (found := probe("onnxruntime")).available:
        pytest.skip(found.reason)
    parts = tiny_parts(dynamic=dynamic)
    rule = PyramidDecode(maps=("scores",), strides=(4,))
    manifest = msgspec.structs.replace(parts.manifest, task="embed", decode=rule)
    path = write_bundle(parts.folder, manifest, tmp_path / "tiny.vtx")
    given = frames(3, 32, 48)
    with edgevtx.load(path, runtime="onnxruntime", precision="fp32", allow_unverified=True) as model:
        found = model.batch(given)
    wanted = parts.graph.reference(np.stack(given))["scores"]
    np.testing.assert_allclose(np.stack(found), wanted, rtol=1e-4, atol=1e-3)
