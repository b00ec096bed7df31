"""What the export tests share: tiny checkpoints of every family on disk, and photographs of unlike shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.runtimes.base import Array

# processors small enough for tests; families that are not named use their default, which is as small as the config
SMALL = {
    "detr": {"size": {"shortest_edge": 128, "longest_edge": 213}},
    "detr_panoptic": {"size": {"shortest_edge": 128, "longest_edge": 213}},
    "rtdetr": {"size": {"height": 128, "width": 192}},
}


def _sized(height: int, width: int) -> dict[str, Any]:
    return {"processor": {"size": {"height": height, "width": width}, "do_center_crop": False}}


# a second input size for the families whose graphs have one size: the processor's where the model follows it (position
# tables are interpolated, windows padded), else the config's
ANOTHER_SIZE: dict[str, dict[str, Any]] = {
    "vit": _sized(80, 96),
    "dino": _sized(70, 84),
    "rtdetr": _sized(96, 160),
    "setr": _sized(96, 128),
    "swin": _sized(72, 104),
    "dinoseg": {"input_size": [70, 84]},
    "vivit": {"image_size": 48},
    "attention_cnn": {"image_size": 64},
    "sam": {"vision_config": {"image_size": 160}, "prompt_encoder_config": {"image_size": 160}},
}


@pytest.fixture(scope="session")
def another_size() -> Callable[[str], dict[str, Any]]:
    """What `config_folder` is to change of a family for a second input size; nothing where sizes are dynamic."""

    def changes(family: str) -> dict[str, Any]:
        from edgevtx.export.recipe import get_recipe

        config = next(iter(get_recipe(family).tiny_config().values()))
        found = ANOTHER_SIZE.get(family, {})
        nested = {key: {**config[key], **value} for key, value in found.items() if key.endswith("_config")}
        return {**found, **nested}

    return changes


@pytest.fixture(scope="session")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder of config.json and preprocessor_config.json: (family, model_type, processor=, **changes)."""

    def make(
        family: str, model_type: str | None = None, *, processor: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        from edgevtx.export.recipe import get_recipe

        configs = get_recipe(family).tiny_config()
        config = {**configs[model_type or next(iter(configs))], **changes}
        folder = tmp_path_factory.mktemp(f"{family}-{config['model_type']}-")
        (folder / "config.json").write_text(json.dumps(config))
        processor = SMALL.get(family) if processor is None else processor
        if processor:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder

    return make


@cache
def photographs() -> dict[str, Array]:
    """Photographs as BGR frames (H,W,3) uint8, each of another size: from scikit-image and scikit-learn."""
    data = pytest.importorskip("skimage.data")
    datasets = pytest.importorskip("sklearn.datasets")
    found = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    found["portrait"] = np.rot90(datasets.load_sample_image("china.jpg"))[:, :360]
    found["flower"] = datasets.load_sample_image("flower.jpg")
    return {name: np.ascontiguousarray(image[..., 2::-1]) for name, image in found.items()}


@pytest.fixture(scope="session")
def photos() -> dict[str, Array]:
    """See `photographs`."""
    return photographs()


@pytest.fixture
def graph() -> Callable[..., Any]:
    """Makes an onnx_ir model of one graph in ONNX's text form; what is given as an array becomes a constant, whether
    the text declares it or not."""

    def make(text: str, *, opset: int = 23, **constants: Any) -> Any:
        ir = pytest.importorskip("onnx_ir")
        declared = set(re.findall(r"\w+", text[: text.index(")")]))
        kinds = {"float32": "float", "int64": "int64", "int8": "int8"}
        for name, array in constants.items():
            if name not in declared:
                size = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
                text = text.replace(")", f", {kinds[array.dtype.name]}{size} {name})", 1)
        model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> tiny {text}')
        for value in [value for value in model.graph.inputs if value.name in constants]:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            model.graph.register_initializer(value)
        return pytest.importorskip("onnx_ir.passes.common").ShapeInferencePass()(model).model

    return make


@pytest.fixture
def rewritten() -> Callable[..., Any]:
    """Rewrites a model, asserts that the named runtimes still compute what ONNX's reference did, returns the count.

    Feeds are seeded noise of the inputs' shapes; symbolic dimensions take the odd size 7, or `sizes`.
    """

    def check(
        model: Any,
        rewrite: Callable[[Any], int],
        *,
        runtimes: tuple[str, ...] = ("onnxruntime", "openvino"),
        tolerance: float = 2e-5,
        **sizes: int,
    ) -> int:
        ir = pytest.importorskip("onnx_ir")
        random = np.random.default_rng(0)
        feeds = {}
        for value in model.graph.inputs:
            shape = [size if isinstance(size, int) else sizes.get(str(size), 7) for size in value.shape]
            noise = random.standard_normal(shape)
            feeds[value.name] = noise > -1 if value.dtype == ir.DataType.BOOL else noise.astype(np.float32)
        expected = reference_outputs(model, feeds)
        count = rewrite(model)
        for runtime in runtimes:
            for name, array in run_graph(model, runtime, feeds).items():
                np.testing.assert_allclose(array, expected[name], rtol=tolerance, atol=tolerance, err_msg=runtime)
        return count

    return check


def reference_outputs(model: Any, feeds: dict[str, Array]) -> dict[str, Array]:
    """What ONNX's own reference implementation computes, by the names of the outputs."""
    ir = pytest.importorskip("onnx_ir")
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator(ir.to_proto(model))
    return dict(zip(reference.output_names, reference.run(None, feeds), strict=True))


def run_graph(model: Any, runtime: str, feeds: dict[str, Array]) -> dict[str, Array]:
    """What a runtime computes, by the names of the outputs."""
    ir = pytest.importorskip("onnx_ir")
    data = ir.to_proto(model).SerializeToString()
    names = [value.name for value in model.graph.outputs]
    if runtime == "onnxruntime":
        session = pytest.importorskip("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, feeds), strict=True))
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(openvino.Core().read_model(data, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled([feeds[port.any_name] for port in compiled.inputs])
    return {name: results[index] for index, name in enumerate(names)}


@pytest.fixture
def graph_runner() -> Callable[..., dict[str, Array]]:
    """See `run_graph`."""
    return run_graph


@pytest.fixture
def constant_graph(tmp_path: Path) -> Callable[..., Path]:
    """constant_graph({name: array}, Written()) -> a graph that gives these arrays whatever it is shown."""
    from tests.export.onnx_files import write_constants

    return partial(write_constants, tmp_path / "constant.onnx")
