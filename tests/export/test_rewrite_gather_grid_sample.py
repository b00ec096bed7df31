"""GridSample as gathers gives what GridSample gives."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.gather_grid_sample import gather_grid_sample

SHAPES = ["2,3,9,11", "n,3,9,11", "2,3,h,w", "n,3,h,w", "1,5,1,7", "3,2,6,1"]


def sample(graph, x, *, mode="linear", padding="zeros", aligned=0, opset=20, kind="float"):
    batch, channels = x.split(",")[:2]
    attributes = f'mode = "{mode}", padding_mode = "{padding}", align_corners = {aligned}'
    return graph(
        f"""({kind}[{x}] x, {kind}[{batch},p,q,2] grid) => ({kind}[{batch},{channels},p,q] y)
        {{ ["m/sample"] y = GridSample <{attributes}> (x, grid) }}""",
        opset=opset,
    )


def feeds(x, *, points=(5, 4), scale=1.0, **sizes):
    """Maps of noise, and places of which a third lies outside, some by far."""
    random = np.random.default_rng(1)
    shape = [int(size) if size.isdigit() else sizes[size] for size in x.split(",")]
    grid = random.normal(0, scale, (shape[0], *points, 2)).astype(np.float32)
    grid[:, 0] *= 30
    return {"x": random.standard_normal(shape).astype(np.float32), "grid": grid}


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("x", SHAPES)
def test_it_computes_the_same(x, aligned, graph, graph_runner):
    model, given = sample(graph, x, aligned=aligned), feeds(x, n=3, h=7, w=12)
    expected = graph_runner(model, "onnxruntime", given)["y"]
    assert gather_grid_sample(model) == 1
    found = graph_runner(model, "onnxruntime", given)["y"]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert "GridSample" not in [node.op_type for node in model.graph]
    assert ("Shape" in [node.op_type for node in model.graph]) == (not x.replace(",", "").isdigit())
    assert gather_grid_sample(model) == 0


@pytest.mark.parametrize("aligned", [0, 1])
def test_exact_places_of_pixels_and_of_the_border(aligned, graph, graph_runner):
    """Centres, edges, half a pixel outside, and the last pixel, which has no neighbour on one side."""
    height, width = 5, 8
    model = sample(graph, f"1,2,{height},{width}", aligned=aligned)
    x = np.random.default_rng(0).standard_normal((1, 2, height, width)).astype(np.float32)
    edge = 1 + 1 / width
    places = [-edge, -1, -1 + 1 / width, 0, 1 - 1 / width, 1, edge, 2]
    grid = np.array([[[(u, v) for u in places] for v in places]], np.float32)
    expected = graph_runner(model, "onnxruntime", {"x": x, "grid": grid})["y"]
    gather_grid_sample(model)
    found = graph_runner(model, "onnxruntime", {"x": x, "grid": grid})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not found[..., -1].any()  # outside the map there is nothing


@pytest.mark.parametrize("opset", [16, 20])
def test_both_names_of_linear_and_the_default_are_known(opset, graph):
    name = "linear" if opset == 20 else "bilinear"
    assert gather_grid_sample(sample(graph, "1,2,5,7", mode=name, opset=opset)) == 1


@pytest.mark.parametrize(
    "changes", [{"mode": "nearest"}, {"mode": "cubic"}, {"padding": "border"}, {"kind": "double"}], ids=str
)
def test_other_samplings_are_left_alone(changes, graph):
    assert gather_grid_sample(sample(graph, "1,2,5,7", **changes)) == 0


def test_nodes_are_named_after_the_one_they_replace(graph):
    model = sample(graph, "n,3,h,w")
    gather_grid_sample(model)
    names = [node.name for node in model.graph]
    assert all(name.startswith("m/sample") for name in names) and len(set(names)) == len(names)
    values = [value.name for node in model.graph for value in node.outputs]
    assert len({*values, *model.graph.initializers}) == len(values) + len(model.graph.initializers)
