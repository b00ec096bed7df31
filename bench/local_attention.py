"""Attention to the window around each position: unfolded as exporters have it, against the forms of slices.

Demand: in graphs the tiles of `edgevtx.export.models.local_attention` take no longer than unfolding, on ONNX Runtime
and OpenVINO: the median ratio of pairs is 1 at most, for 7x7 windows on maps of a ResNet at 224 px.
Prediction, before the first measurement: tiles take 0.25 to 0.5 of unfolding's time for stand-alone self-attention,
since the unfolded copies of keys and values (49 times the map) are bound by memory and the products of tiles, four
times as many multiplications as needed, are not; 0.5 to 0.8 for local relation, whose logits are no products.
Accumulating over 49 shifted slices, without a copy, lies between.

Forms: `unfold` is the module's plain form, traced by the same exporter; `stack` puts the 49 shifted slices of a padded
map on a new axis; `accumulate` adds them up one by one; `tiles` is what families export.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import Report, Table, interleave, quantiles, ratio

PAIRS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
HINTS = {"fp32": "f32", "bf16": "bf16"}
WINDOW = 7
MAPS = {"64x56x56": (64, 56), "256x14x14": (256, 14)}  # the first and the third stage of a ResNet-50
FORMS = ("unfold", "stack", "accumulate", "tiles")
LAYERS = ("sasa", "local_relation")

Call = Callable[[], object]


def make_layer(name: str, form: str, channels: int) -> Any:
    """A layer with seeded weights in one of `FORMS`."""
    import torch

    from edgevtx.export.models.local_attention import LocalRelation, StandaloneAttention
    from edgevtx.export.trial import seed_weights

    layer: Any
    if name == "sasa":
        layer = StandaloneAttention(channels, channels, heads=8, window=WINDOW)
    else:
        layer = LocalRelation(channels, share=8, window=WINDOW)
    seed_weights(layer.eval(), 0)
    layer.tiled = form == "tiles"
    if form in ("stack", "accumulate"):
        plain = shifted_sasa if name == "sasa" else shifted_relation
        layer._plain = lambda *parts: plain(layer, *parts, stacked=form == "stack")
    assert isinstance(layer, torch.nn.Module)
    return layer.requires_grad_(False)


def shifts(x: Any) -> list[Any]:
    """(B,d,H,W) -> what each position sees at each of the window's places: slices of the padded map."""
    import torch.nn.functional as F

    height, width = x.shape[2:]
    padded = F.pad(x, (WINDOW // 2,) * 4)
    return [padded[:, :, i : i + height, j : j + width] for i, j in product(range(WINDOW), repeat=2)]


def shifted_sasa(layer: Any, query: Any, key: Any, value: Any, *, stacked: bool) -> Any:
    """Stand-alone self-attention over shifted slices."""
    import torch

    half = layer.rows.shape[1]
    row = torch.einsum("bdyx,kd->bkyx", query[:, :half], layer.rows)
    column = torch.einsum("bdyx,kd->bkyx", query[:, half:], layer.columns)
    relative = (row[:, :, None] + column[:, None]).flatten(1, 2)
    if stacked:
        logits = (query[:, None] * torch.stack(shifts(key), 1)).sum(2)
    else:
        logits = torch.stack([(query * keys).sum(1) for keys in shifts(key)], 1)
    return weighted((logits + relative).softmax(1)[:, :, None], shifts(value), stacked=stacked)


def shifted_relation(layer: Any, x: Any, query: Any, key: Any, *, stacked: bool) -> Any:
    """The local relation layer over shifted slices."""
    import torch

    prior = layer.prior(layer.positions)[0].flatten(1)[..., None, None]
    logits = torch.stack([layer.compose(query, keys) for keys in shifts(key)], 2) + prior
    weights = logits.softmax(2).transpose(1, 2)[:, :, :, None]
    values = [part.unflatten(1, (layer.groups, -1)) for part in shifts(x)]
    return weighted(weights, values, stacked=stacked).reshape(x.shape)


def weighted(weights: Any, values: list[Any], *, stacked: bool) -> Any:
    """The sum of values, each times its weights (axis 1 of `weights`)."""
    import torch

    if stacked:
        return (weights * torch.stack(values, 1)).sum(1)
    return sum(weights[:, index] * value for index, value in enumerate(values))


def graphs(layer: Any, x: Any, path: Path) -> dict[str, Path]:
    """The layer's graph of each target, lowered as families are."""
    import onnx_ir as ir
    import torch

    from edgevtx.export.rewrite import lower
    from edgevtx.export.trace import OPSET, simplify

    with torch.no_grad():
        program = torch.onnx.export(layer, (x,), dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    simplify(program.model)
    found = {}
    for target in ("onnxruntime", "openvino"):
        found[target] = path / f"{target}.onnx"
        ir.save(lower(program.model, target)[0].model, found[target])
    return found


def engine(path: Path, target: str, precision: str, x: Any) -> Call:
    """Compile a file and return a call that runs it once."""
    if target == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, feeds)
    import openvino

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    request = openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=False)


def measure(
    name: str, size: str, forms: tuple[str, ...], rounds: int, warmup: int, report: Report, table: Table, folder: Path
) -> None:
    """A layer on a map, in each of `forms` on every runtime."""
    import torch

    channels, edge = MAPS[size]
    x = torch.randn(1, channels, edge, edge, generator=torch.Generator().manual_seed(0))
    files, expected = {}, make_layer(name, "unfold", channels)(x)
    for form in forms:
        layer = make_layer(name, form, channels)
        error = float((layer(x) - expected).abs().max() / expected.std())
        assert error < 1e-4, f"{name} {form} differs by {error}"
        (folder / f"{name}-{size}-{form}").mkdir()
        files[form] = graphs(layer, x, folder / f"{name}-{size}-{form}")
    for target, precision in PAIRS:
        calls = {form: engine(files[form][target], target, precision, x.numpy()) for form in forms}
        times = interleave(calls, rounds, warmup)
        found = ratio(times["tiles"], times["unfold"])
        medians = [quantiles(times[form])["median"] if form in times else None for form in FORMS]
        best = min(forms, key=lambda form: float(np.median(times[form])))
        table.add(name, size, target, precision, *medians, best, str(found))
        print(f"{name} {size} {target} {precision}: tiles / unfold {found}", flush=True)
        report.demand(f"{name} {size} {target} {precision}: tiles / unfold", "<= 1", found)
        report.raw[f"{name} {size} {target} {precision}"] = times


@click.command()
@click.option("--layer", "names", multiple=True, type=click.Choice(LAYERS), default=LAYERS)
@click.option("--map", "sizes", multiple=True, type=click.Choice(list(MAPS)), default=list(MAPS))
@click.option("--shifted/--no-shifted", default=True, show_default=True, help="Also time the forms of shifted slices.")
@click.option("--rounds", default=31, show_default=True, help="Timed calls of each engine.")
@click.option("--warmup", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Another folder than bench/results.")
def main(
    names: tuple[str, ...], sizes: tuple[str, ...], shifted: bool, rounds: int, warmup: int, out: Path | None
) -> None:
    """Compare the forms in which attention to a window can be exported."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    settings = {"rounds": rounds, "warm-up": warmup, "batch": 1, "window": WINDOW, "heads": 8, "share": 8}
    report = Report("local_attention", "Attention to a window: the forms of its graph", settings)
    columns = ("layer", "map", "runtime", "precision", *FORMS, "fastest", "tiles / unfold")
    table = report.table("Medians in ms of one layer; ratio of pairs with its 95% interval", *columns)
    with tempfile.TemporaryDirectory() as folder:
        for name, size in product(names, sizes):
            print(f"{name} {size} ...", flush=True)
            measure(name, size, FORMS if shifted else ("unfold", "tiles"), rounds, warmup, report, table, Path(folder))
    report.finish(*([out] if out else []))


if __name__ == "__main__":
    main()
