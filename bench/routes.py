"""The engine in the bundle against the engines of the usual export routes, interleaved.

Demand: for each model, runtime and precision the bundle's engine is no slower than the fastest route's: the median
ratio of pairs is 1.02 at most. The bundle's graph takes uint8 frames and decodes its outputs
itself; the routes' graphs are the bare float model from normalised pixels to logits, so they do less.
Prediction: ratios of 0.93 to 1.00; the casts, the normalisation and the decoding cost less than 1% of an engine.

Routes: TorchScript tracer at opset 17; `torch.export` at opset 18 and 23; `openvino.convert_model` straight from torch.
A route that fails is a row without a time. The dynamic DETR graph is measured too, without a demand.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import FOLDER, RESULTS, Report, Table, interleave, quantiles, ratio, versions
from models import MODELS, build_options, open_checkpoint, sources_digest

SIZES = {
    "vit_b16_224": (224, 224),
    "dino_s16_224": (224, 224),
    "dinov2_s14_518": (518, 518),
    "rtdetr_r18_640": (640, 640),
    "detr_r50_800": (800, 1066),
    "swin_t_224": (224, 224),
    "swinv2_t_256": (256, 256),
    "vivit_b_32x224": (224, 224),
    "sam_b_enc_1024": (1024, 1024),
    "setr_pup_l_512": (512, 512),
    "detr_panoptic_r50_800": (800, 1066),
    "dinoseg_s14_224": (224, 224),
    "sagan_r50_224": (224, 224),
    "nonlocal_r50_224": (224, 224),
    "sasa_r50_224": (224, 224),
    "local_relation_r50_224": (224, 224),
    "vivit_b_encoder_32x224": (224, 224),
    "vivit_b_self_attention_32x224": (224, 224),
    "vivit_b_dot_product_32x224": (224, 224),
    "nonlocal_video_r50_32x224": (224, 224),
    "sam_b_decoder": (1024, 1024),
}
PARTS = {"sam_b_decoder": ("sam_b_enc_1024", "decoder")}  # the model whose bundle has the network, and its name there
HEAVY = ("detr_panoptic_r50_800", "setr_pup_l_512")  # two engines at a time: each takes gigabytes
TARGETS = ("onnxruntime", "openvino")
PAIRS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
OURS, DYNAMIC = "edgevtx", "edgevtx dynamic"
HINTS = {"fp32": "f32", "bf16": "bf16"}
LIMIT = 1.02

Call = Callable[[], object]
Inputs = tuple[Any, ...]
"""Of a network, in their order: torch tensors, or numpy arrays."""


# -- the routes: a bare torch module and its input to an ONNX file, or to an OpenVINO model -----------------------


def script17(module: Any, inputs: Inputs, path: Path) -> None:
    """The TorchScript tracer at opset 17."""
    import torch

    torch.onnx.export(module, inputs, path, dynamo=False, opset_version=17)


def export18(module: Any, inputs: Inputs, path: Path) -> None:
    """`torch.export` at opset 18."""
    _dynamo(module, inputs, path, 18)


def export23(module: Any, inputs: Inputs, path: Path) -> None:
    """`torch.export` at opset 23."""
    _dynamo(module, inputs, path, 23)


def direct(module: Any, inputs: Inputs, path: Path) -> None:
    """`openvino.convert_model` straight from torch, saved as IR in fp32."""
    import openvino

    shapes = [tuple(item.shape) for item in inputs]
    openvino.save_model(openvino.convert_model(module, example_input=inputs, input=shapes), path, False)


ROUTES: dict[str, tuple[str, Callable[[Any, Inputs, Path], None]]] = {
    "script17": ("script17.onnx", script17),
    "export18": ("export18.onnx", export18),
    "export23": ("export23.onnx", export23),
    "direct": ("direct.xml", direct),
}


def _dynamo(module: Any, inputs: Inputs, path: Path, opset: int) -> None:
    import torch

    torch.onnx.export(module, inputs, path, dynamo=True, opset_version=opset, verbose=False, external_data=False)


def _setr(checkpoint: Any) -> Any:
    from edgevtx.export.models.setr import Setr, Settings

    return checkpoint.load_module(partial(Setr, checkpoint.settings(Settings)))


def _attention_cnn(checkpoint: Any) -> Any:
    from edgevtx.export.models.attention_resnet import AttentionResNet, AttentionResNetSettings
    from edgevtx.export.models.video_resnet import VideoResNet

    settings = checkpoint.settings(AttentionResNetSettings)
    return checkpoint.load_module(partial(VideoResNet if "video" in settings.model_type else AttentionResNet, settings))


def _vivit(checkpoint: Any) -> Any:
    """Models 2 to 4; the library has the first."""
    from edgevtx.export.models.vivit import make
    from edgevtx.export.vivit import read_settings

    return (
        checkpoint.load_module(partial(make, read_settings(checkpoint))) if "attention" in checkpoint.config else None
    )


def _dinoseg(checkpoint: Any) -> Any:
    from edgevtx.export import dinoseg

    return dinoseg.load(checkpoint, dinoseg.read_settings(checkpoint))


# what no library has: this project's modules, as the papers have them
OWN = {"setr": _setr, "attention_cnn": _attention_cnn, "dinoseg": _dinoseg, "vivit": _vivit}
OUTPUTS = {
    "dino": ("last_hidden_state",),
    "sam": ("last_hidden_state",),
    "detr": ("logits", "pred_boxes"),
    "rtdetr": ("logits", "pred_boxes"),
    "detr_panoptic": ("logits", "pred_boxes", "pred_masks"),
}


def bare(name: str) -> Any:
    """The model of `bench/models.py` as the library has it, with seeded weights: its inputs -> its output tensors."""
    import torch
    import transformers

    from edgevtx.export.trial import seed_weights

    whole = MODELS[PARTS.get(name, (name,))[0]]
    family, checkpoint = whole.family, open_checkpoint(whole)
    model = OWN[family](checkpoint) if family in OWN else None
    if model is None:
        config = transformers.AutoConfig.for_model(**checkpoint.config)
        model = getattr(transformers, checkpoint.architecture)(config).eval()
        seed_weights(model, whole.seed)
    if family == "sam" and name not in PARTS:
        model = model.vision_encoder

    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = self.model(pixel_values)
            if isinstance(output, torch.Tensor):
                return (output,)
            return tuple(output[key] for key in OUTPUTS.get(family, ("logits",)))

    class Decoder(Bare):
        def forward(
            self, embedding: torch.Tensor, points: torch.Tensor, labels: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            output = self.model(image_embeddings=embedding, input_points=points, input_labels=labels)
            return output.pred_masks, output.iou_scores

    return (Decoder if name in PARTS else Bare)().eval()


def inputs_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that the routes' networks take, and those that ours takes, by name and in order."""
    height, width = SIZES[name]
    random = np.random.default_rng(0)
    if name in PARTS:  # one point; ours is given the padding point that transformers adds
        embedding = random.standard_normal((1, 256, height // 16, width // 16), dtype=np.float32)
        point = np.array([[[[500.0, 375.0]]]], np.float32)
        padded = {"points": np.pad(point[0], ((0, 0), (0, 1), (0, 0))), "point_labels": np.array([[1, -1]], np.int32)}
        mask = {
            "mask_prompt": np.zeros((1, 1, height // 4, width // 4), np.float32),
            "has_mask": np.zeros(1, np.float32),
        }
        theirs = {"embedding": embedding, "points": point, "labels": np.ones((1, 1, 1), np.int64)}
        return theirs, {"embedding": embedding, **padded, **mask}
    times = tuple(MODELS[name].config[key] for key in ("num_frames",) if key in MODELS[name].config)  # of a clip
    theirs = {"pixel_values": random.standard_normal((1, *times, 3, height, width), dtype=np.float32)}
    ours = {"pixels": random.integers(0, 256, (1, *times, height, width, 3), dtype=np.uint8)}
    if MODELS[name].family == "sam":
        ours["valid_size"] = np.array([[height, width]], np.int32)
    return theirs, ours


def route_files(name: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The exported file of each route that works, made once for each set of versions; and why others do not."""
    import torch

    key = hashlib.sha256(repr((versions(), MODELS[PARTS.get(name, (name,))[0]])).encode()).hexdigest()[:12]
    folder = FOLDER / "routes" / f"{name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = tuple(torch.from_numpy(value) for value in inputs_of(name)[0].values())
    found, failed, module = {}, {}, None
    for route, (file, export) in ROUTES.items():
        done, refused = folder / file, folder / f"{route}.failed"
        if not done.is_file() and not refused.is_file():
            print(f"{name}: exporting by {route} ...", flush=True)
            module = module or bare(name)
            try:
                with torch.no_grad():
                    export(module, inputs, done)
            except Exception as error:  # a route that does not serve the model is a result
                done.unlink(missing_ok=True)
                refused.write_text((str(error).strip() or type(error).__name__).splitlines()[0], encoding="utf-8")
        if done.is_file():
            found[route] = done
        else:
            failed[route] = refused.read_text(encoding="utf-8")
    return found, failed


# -- ours ------------------------------------------------------------------------------------------------------


def our_graph(name: str, target: str, precision: str, *, dynamic: bool = False) -> Path:
    """The lowered graph for a target and precision, made once for each state of the exporter's sources."""
    from edgevtx.export.pack import write_graphs
    from edgevtx.export.recipe import get_recipe
    from edgevtx.export.rewrite import lower
    from edgevtx.export.trace import trace, trace_all
    from edgevtx.golden import GOLDEN, Golden, write_golden

    whole, part = PARTS.get(name, (name, ""))
    model = replace(MODELS[whole], frame=None if dynamic else SIZES[name])
    folder = FOLDER / "routes" / f"{name}-{'dynamic' if dynamic else 'ours'}"
    stamp = f"{model!r} {sources_digest()} {versions()}"
    mark = folder / "stamp"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != stamp:
        print(f"{name}: exporting ours ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        built = get_recipe(model.family).build(open_checkpoint(model), build_options(model))
        traced = trace_all(built)[part] if part else trace(built)
        write_graphs({"": [graph for target in TARGETS for graph in lower(traced, target)]}, folder)
        # a bundle's golden sample says which shapes are usual
        frame = np.zeros((1, 1, 3), np.uint8)
        write_golden(folder / GOLDEN, Golden(frame, inputs_of(name)[1], {}))
        mark.write_text(stamp, encoding="utf-8")
    special = folder / f"graph.{target}.{precision}.onnx"
    return special if special.is_file() else folder / f"graph.{target}.onnx"


# -- engines ---------------------------------------------------------------------------------------------------


def engine(path: Path, target: str, precision: str, feeds: dict[str, Any]) -> Call:
    """Compile a file and return a call that runs it once."""
    if target == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        named = dict(zip((item.name for item in session.get_inputs()), feeds.values(), strict=True))
        return lambda: session.run(None, named)
    import openvino

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    request = openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()
    values = list(feeds.values())
    return lambda: request.infer(values, share_inputs=True, share_outputs=False)


def our_engine(graph: Path, target: str, precision: str, feeds: dict[str, Any]) -> Call:
    """The engine as `edgevtx.load` opens it, from what the backend built into the cache."""
    from edgevtx.runtimes import get_backend
    from edgevtx.runtimes.base import EngineOptions

    backend, options = get_backend(target), EngineOptions(precision=precision)
    folder = graph.parent / f"engine-{target}-{precision}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    backend.build(graph, folder, options)
    runtime = backend.open(graph, folder, options).new_runtime()
    return lambda: runtime.run(feeds)


def engines(name: str, target: str, precision: str, files: dict[str, Path]) -> tuple[dict[str, Call], dict[str, str]]:
    """A call for each route and for ours; and why a route has none."""
    theirs, ours = inputs_of(name)
    calls, failed = {}, {}
    for route, path in files.items():
        if target == "onnxruntime" and path.suffix != ".onnx":
            continue
        try:
            calls[route] = engine(path, target, precision, theirs)
            calls[route]()
        except Exception as error:
            calls.pop(route, None)
            failed[route] = str(error).strip().splitlines()[0]
    calls[OURS] = our_engine(our_graph(name, target, precision), target, precision, ours)
    if name == "detr_r50_800":
        calls[DYNAMIC] = our_engine(our_graph(name, target, precision, dynamic=True), target, precision, ours)
    return calls, failed


def measure(
    name: str, target: str, precision: str, report: Report, table: Table, *, rounds: int, warmup: int, seconds: float
) -> None:
    """One model on one runtime at one precision into the report."""
    files, failed = route_files(name)
    times: dict[str, list[float]] = {}  # by route; the dynamic graph is one of them
    ours: dict[str, list[float]] = {}  # in the same rounds as the route's
    for group in [{route: path} for route, path in files.items()] if name in HEAVY else [files]:
        calls, refused = engines(name, target, precision, group)
        failed.update(refused)
        if set(calls) == {OURS}:
            continue
        found = interleave(calls, rounds, warmup, seconds)
        ours.update(dict.fromkeys(found, found[OURS]))
        times.update(found)
        del calls
        gc.collect()
    # the fastest by its median beside ours in the same rounds; the pairs with it, and not with each round's fastest,
    # which noise would choose
    best = max(
        (route for route in ROUTES if route in times),
        key=lambda route: float(np.median(ours[route]) / np.median(times[route])),
    )
    found_ratio = ratio(ours[best], times[best])
    times[OURS] = ours[best]
    medians = {key: quantiles(value)["median"] for key, value in times.items()}
    shown = (medians.get(key) for key in (*ROUTES, OURS, DYNAMIC))
    table.add(name, target, precision, len(times[OURS]), *shown, best, str(found_ratio))
    report.demand(f"{name} {target} {precision}: ours / {best}", f"<= {LIMIT}", found_ratio)
    others = {f"{OURS} beside {route}": ours[route] for route in times if name in HEAVY and route in ROUTES}
    report.raw[f"{name} {target} {precision}"] = {**times, **others}
    for route, reason in failed.items():
        plain = re.sub(r"\x1b\[[0-9]*m", "", reason)  # torch's messages are coloured
        note = f"{name} {target}: {route} fails: {plain[:200]}"
        if note not in report.notes:
            report.notes.append(note)


@click.command()
@click.option("--model", "names", multiple=True, type=click.Choice(list(SIZES)), default=list(SIZES))
@click.option("--runtime", "targets", multiple=True, default=TARGETS, show_default=True)
@click.option("--precision", "precisions", multiple=True, default=["fp32", "bf16"], show_default=True)
@click.option("--rounds", default=31, show_default=True, help="Timed calls of each engine.")
@click.option("--seconds", default=60.0, show_default=True, help="Rounds of a cell end after this time; 7 at least.")
@click.option("--warmup", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Another folder than bench/results.")
def main(
    names: tuple[str, ...],
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    rounds: int,
    seconds: float,
    warmup: int,
    out: Path | None,
) -> None:
    """Compare the bundle's engine with the engines of the usual export routes."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    settings = {"rounds": rounds, "seconds a cell": seconds, "warm-up": warmup, "batch": 1, "weights": "random, seeded"}
    report = Report("routes", "The bundle's engine against the usual export routes", settings)
    columns = ("model", "runtime", "precision", "rounds", *ROUTES, OURS, DYNAMIC, "fastest route", "ours / fastest")
    table = report.table("Medians in ms; ratio of pairs with its 95% interval", *columns)
    pairs = [pair for pair in PAIRS if pair[0] in targets and pair[1] in precisions]
    report.keep_others([" ".join((name, *pair)) for name in names for pair in pairs], out or RESULTS)
    for name in names:
        for target, precision in pairs:
            print(f"{name} {target} {precision} ...", flush=True)
            measure(name, target, precision, report, table, rounds=rounds, warmup=warmup, seconds=seconds)
            gc.collect()
        report.write(out or RESULTS)  # a large model that the machine cannot hold must not cost the others
    report.finish(out or RESULTS)


if __name__ == "__main__":
    main()
