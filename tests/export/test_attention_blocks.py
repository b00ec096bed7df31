"""Attention inside convolutional networks, against the papers' formulas in loops over pixels."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnxscript = pytest.importorskip("onnxscript")

from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.export.models.global_attention import NonLocalBlock, SaganAttention  # noqa: E402
from edgevtx.export.models.local_attention import (  # noqa: E402
    COMPOSE,
    LocalRelation,
    StandaloneAttention,
    surroundings,
    tile_edge,
    tiles,
    untile,
    windows,
)
from edgevtx.export.rewrite import lower  # noqa: E402
from edgevtx.export.trace import OPSET, simplify  # noqa: E402
from edgevtx.export.trial import seed_weights  # noqa: E402

# what windows must not become: loops, and gathering by index
FORBIDDEN = {"Loop", "Scan", "If", "Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements"}


def seeded(module, seed=0):
    seed_weights(module.eval(), seed)
    return module.requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product_of(convolution, x):
    """A 1x1 convolution as numpy: x (C,...) float64 -> (D,...)."""
    weight = convolution.weight.double().numpy()
    groups = convolution.groups
    parts = np.split(x.reshape(len(x), -1), groups)
    kernels = np.split(weight.reshape(len(weight), -1), groups)
    found = np.concatenate([kernel @ part for kernel, part in zip(kernels, parts, strict=True)])
    if convolution.bias is not None:
        found = found + convolution.bias.double().numpy()[:, None]
    return found.reshape(-1, *x.shape[1:])


def softmax(values):
    raised = np.exp(values - np.max(values))
    return raised / raised.sum()


def sagan_in_loops(block, x):
    """Zhang et al. (2019): s_ij = f(x_i)' g(x_j); beta_ji its softmax over i; o_j = v(sum_i beta_ji h(x_i))."""
    f, g, h = (product_of(part, x).reshape(-1, x[0].size) for part in (block.key, block.query, block.value))
    mixed = np.zeros_like(h)
    for j in range(g.shape[1]):
        beta = softmax(np.array([f[:, i] @ g[:, j] for i in range(f.shape[1])]))
        mixed[:, j] = sum(beta[i] * h[:, i] for i in range(f.shape[1]))
    return float(block.gamma) * product_of(block.output, mixed).reshape(x.shape) + x


def non_local_in_loops(block, x):
    """Wang et al. (2018): y_i = sum_j f(x_i,x_j) g(x_j) / C(x), f = exp(theta' phi); z = W_z y + x with a norm."""
    theta, phi, g = (product_of(part, x) for part in (block.theta, block.phi, block.g))
    if not isinstance(block.pool, torch.nn.Identity):
        phi, g = (halved(part) for part in (phi, g))
    queries, keys, values = (part.reshape(len(part), -1) for part in (theta, phi, g))
    y = np.zeros((len(values), queries.shape[1]))
    for i in range(queries.shape[1]):
        similarity = [np.exp(block.scale * queries[:, i] @ keys[:, j]) for j in range(keys.shape[1])]
        y[:, i] = sum(weight * values[:, j] for j, weight in enumerate(similarity)) / sum(similarity)
    z = product_of(block.z, y.reshape(-1, *x.shape[1:]))
    norm = block.normalization
    mean, variance, weight, bias = (
        tensor.double().numpy().reshape(-1, *[1] * (x.ndim - 1))
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (z - mean) / np.sqrt(variance + norm.eps) * weight + bias + x


def in_space_time(clips, x):
    """The formula knows no frames: its positions are those of all of them."""
    return non_local_in_loops(clips.block, x)


class OfClips(torch.nn.Module):
    """A block for x (N,C,T,H,W), whose frames it gets side by side."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        found = self.block(x.transpose(1, 2).flatten(0, 1))
        return found.unflatten(0, (-1, x.shape[2])).transpose(1, 2)


def halved(x):
    """The largest of every 2x2 pixels of the last two axes; a last odd row or column is left out."""
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    found = np.zeros((*x.shape[:-2], height, width))
    for i, j in product(range(height), range(width)):
        found[..., i, j] = x[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((-1, -2))
    return found


def at(x, i, j):
    """The vector at a pixel, zeros outside the map."""
    inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
    return x[:, i, j] if inside else np.zeros(len(x))


def sasa_in_loops(layer, x):
    """Ramachandran et al. (2019), equation 3, a head at a time: softmax(q'k + q'r) v over the neighbourhood."""
    q, k, v = (product_of(part, x) for part in (layer.query, layer.key, layer.value))
    rows, columns = layer.rows.double().numpy(), layer.columns.double().numpy()
    reach, found = layer.window // 2, np.zeros_like(q)
    steps = list(product(range(-reach, reach + 1), repeat=2))
    depth = len(q) // layer.heads
    for head in range(layer.heads):
        mine = slice(head * depth, (head + 1) * depth)
        for i, j in product(range(x.shape[1]), range(x.shape[2])):
            logits = []
            for a, b in steps:
                relative = np.concatenate([rows[a + reach], columns[b + reach]])
                logits.append(q[mine, i, j] @ at(k[mine], i + a, j + b) + q[mine, i, j] @ relative)
            weights = softmax(np.array(logits))
            found[mine, i, j] = sum(w * at(v[mine], i + a, j + b) for w, (a, b) in zip(weights, steps, strict=True))
    return averaged(found, layer.stride)


def local_relation_in_loops(layer, x):
    """Hu et al. (2019), equations 3 to 5: weights softmax(phi(query, key) + prior(p - p')), shared by channels."""
    query, key = product_of(layer.query, x), product_of(layer.key, x)
    reach, found = layer.window // 2, np.zeros_like(x)
    steps = list(product(range(-reach, reach + 1), repeat=2))
    phi = {
        "squared": lambda q, k: -((q - k) ** 2),
        "absolute": lambda q, k: -abs(q - k),
        "product": lambda q, k: q * k,
    }[next(name for name, function in COMPOSE.items() if function is layer.compose)]
    priors = []
    for a, b in steps:
        place = np.array([a, b], np.float64).reshape(2, 1) / reach
        priors.append(product_of(layer.prior[2], np.maximum(product_of(layer.prior[0], place), 0))[:, 0])
    share = len(x) // layer.groups
    for group, i, j in product(range(layer.groups), range(x.shape[1]), range(x.shape[2])):
        logits = [
            phi(query[group, i, j], at(key, i + a, j + b)[group]) + prior[group]
            for (a, b), prior in zip(steps, priors, strict=True)
        ]
        mine = slice(group * share, (group + 1) * share)
        weights = softmax(np.array(logits))
        found[mine, i, j] = sum(w * at(x[mine], i + a, j + b) for w, (a, b) in zip(weights, steps, strict=True))
    return averaged(found, layer.stride)


def averaged(x, stride):
    """The mean of every 2x2 pixels, of those that there are at an odd edge."""
    if stride == 1:
        return x
    height, width = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    found = np.zeros((len(x), height, width))
    for i, j in product(range(height), range(width)):
        found[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    return found


CASES = {
    "sagan": (lambda: SaganAttention(16), sagan_in_loops, (16, 5, 7)),
    "sagan, half the channels": (lambda: SaganAttention(8, reduction=2), sagan_in_loops, (8, 6, 4)),
    "non-local": (lambda: NonLocalBlock(8), non_local_in_loops, (8, 5, 7)),
    "non-local, whole": (lambda: NonLocalBlock(8, subsample=False, scaled=True), non_local_in_loops, (8, 4, 6)),
    "non-local in space-time": (lambda: OfClips(NonLocalBlock(8, times=3)), in_space_time, (8, 3, 5, 6)),
    "non-local in space-time, whole": (
        lambda: OfClips(NonLocalBlock(8, times=3, subsample=False)),
        in_space_time,
        (8, 3, 4, 3),
    ),
    "sasa": (lambda: StandaloneAttention(8, 8, heads=2, window=3), sasa_in_loops, (8, 7, 5)),
    "sasa, stride 2": (lambda: StandaloneAttention(8, 12, heads=2, window=5, stride=2), sasa_in_loops, (8, 9, 11)),
    "sasa, window over all": (lambda: StandaloneAttention(8, 8, heads=1, window=7), sasa_in_loops, (8, 3, 4)),
    "local relation": (lambda: LocalRelation(8, share=4, window=3), local_relation_in_loops, (8, 7, 5)),
    "local relation, absolute": (
        lambda: LocalRelation(8, share=2, window=5, composability="absolute"),
        local_relation_in_loops,
        (8, 6, 11),
    ),
    "local relation, product, stride 2": (
        lambda: LocalRelation(8, share=8, window=3, composability="product", stride=2),
        local_relation_in_loops,
        (8, 5, 7),
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_a_block_computes_its_papers_formula(name):
    make, loops, shape = CASES[name]
    block, x = seeded(make()), noise(2, *shape)
    found = block(x).double().numpy()
    for frame, one in zip(x.double().numpy(), found, strict=True):
        expected = loops(block, frame)
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@each_case
def test_tiles_compute_what_windows_do_and_both_runtimes_run_the_graph(name, run_graph_of):
    make, _, shape = CASES[name]
    block, x = seeded(make(), seed=1), noise(2, *shape, seed=1)
    plain = block(x).numpy()
    block.tiled = True
    assert error_of(plain, block(x).numpy()) < 2e-6
    for target, array in run_graph_of(block, x).items():
        assert error_of(plain, array) < 1e-5, target


@pytest.fixture
def run_graph_of(graph_runner):
    """Export a block as families are, lower it for each target, look at its operators and run it."""

    def run(block, x):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(block, (x,), dynamo=True, opset_version=OPSET, verbose=False)
        model = program.model
        simplify(model)
        found = {}
        for target in ("onnxruntime", "openvino"):
            graph = lower(model, target)[0].model
            assert not FORBIDDEN & {node.op_type for node in graph.graph}, target
            feeds = {graph.graph.inputs[0].name: x.numpy()}
            found[target] = next(iter(graph_runner(graph, target, feeds).values()))
        return found

    return run


def test_unfolding_would_gather_by_index():
    """What the tiles are for: the exporter's own form of an unfolded window."""
    layer = seeded(StandaloneAttention(8, 8, heads=2, window=3))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(layer, (noise(1, 8, 7, 5),), dynamo=True, opset_version=OPSET, verbose=False)
    simplify(program.model)
    assert FORBIDDEN & {node.op_type for node in program.model.graph}


@pytest.mark.parametrize(("size", "window"), [((14, 14), 7), ((15, 9), 7), ((5, 3), 7), ((8, 20), 3)])
def test_tiles_cover_a_map_and_their_surroundings_hold_every_window(size, window):
    x = noise(2, 3, *size)
    edge = tile_edge(size, window)
    assert max(edge) <= window
    cut = tiles(x, edge)
    assert torch.equal(untile(cut.flatten(2, 3), edge, size), x)
    around = surroundings(x, edge, window).unflatten(3, (edge[0] + window - 1, -1))
    unfolded = windows(x, window).reshape(2, 3, window, window, *size)
    columns = -(-size[1] // edge[1])
    for i, j in product(range(size[0]), range(size[1])):
        tile, row, column = i // edge[0] * columns + j // edge[1], i % edge[0], j % edge[1]
        seen = around[:, tile, :, row : row + window, column : column + window]
        assert torch.equal(seen, unfolded[..., i, j])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="window is 4; an odd number"):
        StandaloneAttention(8, 8, heads=2, window=4)
    with pytest.raises(ValueError, match="do not divide into 3 heads"):
        StandaloneAttention(8, 8, heads=3)
    with pytest.raises(ValueError, match="do not divide into 8 heads of even width"):
        StandaloneAttention(8, 8, heads=8)
    with pytest.raises(ValueError, match="do not divide into groups of 3"):
        LocalRelation(8, share=3)
