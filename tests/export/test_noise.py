"""What rounding alone does to a network is measured, and only as much is allowed for."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevtx.compare import compare  # noqa: E402
from edgevtx.compare.tolerance import NOISE, TOLERANCES  # noqa: E402
from edgevtx.export.noise import rounding_noise  # noqa: E402
from edgevtx.export.recipe import TraceablePart  # noqa: E402
from edgevtx.export.verify import run_module  # noqa: E402
from edgevtx.golden import Exchange  # noqa: E402
from edgevtx.manifest import TensorInfo  # noqa: E402
from edgevtx.rules import DetectDecode  # noqa: E402


class Amplifying(torch.nn.Module):
    """x (N,8) float32 -> `rough`, of whose digits few are left, and `fine`; float32 is asked for as models do."""

    def forward(self, x):
        x = x.to(torch.float32) + torch.zeros(1, dtype=torch.float32).float()
        return (x + 1e4) - 1e4, 2 * x


def network(module):
    outputs = tuple(TensorInfo(name=name, shape=(None, 8), dtype="float32") for name in ("rough", "fine"))
    inputs = (TensorInfo(name="x", shape=(None, 8), dtype="float32"),)
    return TraceablePart(module=module, inputs=inputs, outputs=outputs, dynamic={}, examples=lambda outputs: [])


def exchange(part):
    inputs = {"x": np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)}
    return Exchange(inputs, run_module(part, inputs))


def test_only_outputs_that_rounding_moves_have_noise():
    part = network(Amplifying())
    found = rounding_noise(part, [exchange(part)], None)
    assert list(found) == ["rough"]
    assert found["rough"] == pytest.approx(1e4 * 2**-24 / np.sqrt(3), rel=0.3)  # half a unit in the last place of 1e4
    assert torch.get_default_dtype() == torch.float32 and not list(part.module.parameters())


def test_noise_widens_the_limit_of_its_output_alone_and_by_a_bounded_amount():
    tight, half = TOLERANCES["fp32"], TOLERANCES["bf16"]
    base = tight.values
    for noise, limit in ((0.0, base), (base / 10, base), (base, NOISE * base), (1.0, 10 * base)):
        reference = {name: np.random.default_rng(1).standard_normal((50, 4)) for name in ("rough", "fine")}
        for name, widened in (("rough", True), ("fine", False)):
            found = {**reference, name: reference[name] + 0.99 * limit * reference[name].std()}
            checks = compare(reference, found, None, "fp32", {"rough": noise})
            assert all(check.passed for check in checks) == (widened or limit == base)
            found[name] = reference[name] + 1.02 * limit * reference[name].std()
            assert not all(check.passed for check in compare(reference, found, None, "fp32", {"rough": noise}))
    assert half.limit("rough") == half.values


def test_a_row_that_float64_does_not_find_is_no_noise():
    class Detections(torch.nn.Module):
        def forward(self, x):
            wrong = x.dtype == torch.float64
            boxes = torch.tensor([[[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]]], dtype=x.dtype) + 0.4 * wrong
            return boxes, torch.tensor([[0.9, 0.8]], dtype=x.dtype), torch.tensor([[1, 2]])

    names = ("boxes", "scores", "class_ids")
    part = network(Detections())
    part.outputs = tuple(TensorInfo(name=name, shape=(1, None), dtype="float32") for name in names)
    pair = exchange(part)
    assert rounding_noise(part, [pair], DetectDecode(top_k=2, threshold=0.3)) == {}
