"""Loading: bundles of several networks are as good as the worst of them, and what fails leaves nothing open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgevtx
from edgevtx import selftest
from edgevtx.bundle import Bundle, write_bundle
from edgevtx.cli.verify import replay_one
from edgevtx.errors import BundleError, VerificationError
from edgevtx.golden import Exchange, Golden, write_golden
from edgevtx.manifest import Part, badness
from edgevtx.predictor import Predictor, load
from edgevtx.rules import PyramidDecode
from edgevtx.runtimes import probe

RUNTIMES = ("openvino", "onnxruntime")


@pytest.fixture
def make_two(tiny_parts: Callable[..., Any], tmp_path: Path) -> Callable[[float, float], Path]:
    """make_two(first, second) -> a bundle of two networks; so much is added to their golden scores."""

    def make(first: float, second: float) -> Path:
        parts = tiny_parts()
        graph, manifest = parts.graph, parts.manifest
        reference = graph.reference(graph.pixels)
        spoiled = [{**reference, "scores": reference["scores"] + np.float32(extra)} for extra in (first, second)]
        inputs = {"pixels": graph.pixels}
        write_golden(
            parts.folder / "golden.npz",
            Golden(graph.pixels[0], inputs, spoiled[0], {"again": Exchange(inputs, spoiled[1])}),
        )
        more = []
        for item in manifest.graphs:
            file = f"graph.again.{item.target}.onnx"
            (parts.folder / file).write_bytes((parts.folder / item.file).read_bytes())
            more.append(msgspec.structs.replace(item, file=file, part="again"))
        manifest = msgspec.structs.replace(
            manifest,
            task="embed",
            decode=PyramidDecode(maps=("scores",), strides=(4,)),
            graphs=(*manifest.graphs, *more),
            parts={"again": Part(inputs=manifest.inputs, outputs=manifest.outputs)},
        )
        return write_bundle(parts.folder, manifest, tmp_path / f"two{first}{second}.vtx")

    return make


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if not probe(request.param).available:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (0.0, 5.0), (5.0, 0.0)])
def test_the_verdict_is_that_of_the_worst_network(make_two: Any, runtime: str, first: float, second: float) -> None:
    path = make_two(first, second)
    wanted = "failed" if first or second else "passed-here"
    with load(path, runtime=runtime, allow_unverified=True) as model:
        assert model.info.verdict == wanted
    verdict = replay_one(Bundle.open(path), runtime, "fp32", "CPU")
    assert verdict.status == wanted
    assert verdict.reason.startswith("again: values: scores" if second else "values: scores" if first else "")
    names = {check.name: check.passed for check in verdict.checks}
    assert names["values: scores"] == (not first) and names["again values: scores"] == (not second)
    if wanted == "failed":
        with pytest.raises(VerificationError):
            load(path, runtime=runtime)


def test_statuses_are_ordered_and_what_is_none_is_the_worst() -> None:
    order = ["passed-here", "passed-elsewhere", "graph-only", "insensitive", "failed", "not verified"]
    assert [badness(status) for status in order] == list(range(6))


def test_of_the_null_runtime_nothing_is_said(make_two: Any) -> None:
    with load(make_two(0.0, 0.0), runtime="null") as model:
        assert model.info.verdict.startswith("not verified")


def damaged(*args: object, **options: object) -> None:
    raise BundleError("damaged")


@pytest.mark.parametrize("step", ["bank", "class"])
def test_engines_are_closed_where_loading_fails_after_them(
    make_two: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    opened, closed = [], []
    real = selftest.open_prepared

    class Watched:
        def __init__(self, engine: Any) -> None:
            self.engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self.engine, name)

        def close(self) -> None:
            closed.append(self.engine)
            self.engine.close()

    def watch(*args: Any) -> Any:
        opened.append(Watched(real(*args)))
        return opened[-1]

    monkeypatch.setattr(selftest, "open_prepared", watch)
    if step == "bank":
        monkeypatch.setattr(Bundle, "bank", damaged)
    else:
        monkeypatch.setattr(Predictor, "__post_init__", damaged)
    with pytest.raises(BundleError, match="damaged"):
        edgevtx.load(make_two(0.0, 0.0), runtime="null")
    assert len(opened) == 2 and {id(item) for item in closed} == {id(item.engine) for item in opened}
