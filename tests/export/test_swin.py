"""Swin v1 and v2 are what transformers computes, at any size, and their windows are constants of the graph."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.errors import CheckpointError, InputError  # noqa: E402
from edgevtx.export import swin  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.models import swin as network  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.export.rewrite import lower  # noqa: E402
from edgevtx.export.rewrite.edit import tensor_of  # noqa: E402
from edgevtx.export.trace import trace  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402

NAMES = {"swin": "Swin", "swinv2": "Swinv2"}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# height, width in px; of windows of 4 over patches of 4 px: whole ones, padded ones, odd grids, patches cut off
SIZES = {
    "whole": (64, 128),
    "padded": (72, 104),
    "odd": (68, 76),
    "cut off": (70, 99),
    "smaller than a window": (48, 40),
}


@pytest.fixture
def build(tmp_path):
    """(kind, end of the architecture's name, size of the processor, changes of the config, **options) -> Traceable."""

    def make(kind, architecture, size=(64, 64), changes=None, processor=None, **options):
        config = {**swin.RECIPE.tiny_config()[kind], "architectures": [NAMES[kind] + architecture], "window_size": 4}
        if architecture == "Backbone":
            config["out_features"] = STAGES
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, **(changes or {})}))
        rule = {"size": {"height": size[0], "width": size[1]}, "resample": 3, **(processor or {})}
        (folder / "preprocessor_config.json").write_text(json.dumps(rule))
        return swin.RECIPE.build(Checkpoint.open(folder, seed=0), BuildOptions(**options))

    return make


def differences(traceable, frame):
    """`error_of` of every output against transformers' own: maps, and cls where there is one."""
    image, _ = prepare(frame, traceable.preprocess)
    reference = traceable.reference(frame)
    if traceable.task == "classify":
        wanted = [reference.scores, reference.class_ids]
    else:
        wanted = [*([] if reference.cls is None else [reference.cls]), *reference.maps]
    with torch.no_grad():
        found = [output[0].numpy() for output in traceable.module(torch.from_numpy(image[None]))]
    assert [array.shape for array in found] == [array.shape for array in wanted]
    return [error_of(want, got) for want, got in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("kind", "architecture"), [(kind, end) for kind in NAMES for end in ("Backbone", "Model")])
def test_feature_maps_of_any_size_are_those_of_transformers(kind, architecture, size, build, photos):
    window = 2 if architecture == "Model" and kind == "swin" else 4  # that one cannot have fewer tokens than a window
    traceable = build(kind, architecture, size, {"window_size": window})
    assert [spec.shape[1:3] for spec in traceable.outputs if len(spec.shape) == 4] == [
        (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)
    ]
    for name in ("coffee", "portrait"):
        assert max(differences(traceable, photos[name])) < 3e-5


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
@pytest.mark.parametrize("kind", NAMES)
def test_classes_at_another_size_are_those_of_transformers(kind, size, build, photos):
    traceable = build(kind, "ForImageClassification", size, {"window_size": 2})
    assert max(differences(traceable, photos["chelsea"])) < 3e-5


def test_a_camera_size_gives_the_whole_frame_at_the_processors_scale(build, photos):
    traceable = build("swin", "Backbone", (64, 64), frame=(400, 600))
    assert traceable.trace_size == (64, 96)
    assert max(differences(traceable, photos["coffee"])) < 3e-5
    classes = build("swin", "ForImageClassification", (64, 64), frame=(400, 600), changes={"window_size": 2})
    assert classes.trace_size == (64, 64) and "600x400 changes nothing" in classes.notes[0]


@pytest.mark.parametrize("off", [-1, 1])
def test_a_mask_that_is_off_by_one_is_noticed(off, build, photos, monkeypatch):
    right = network.shift_mask
    monkeypatch.setattr(network, "shift_mask", lambda grid, window, shift: right(grid, window, shift + off))
    assert max(differences(build("swin", "Backbone"), photos["coffee"])) > 1e-3


def test_a_wrong_corner_in_patch_merging_is_noticed(build, photos, monkeypatch):
    right = network.merge_order
    swapped = lambda grid, coarse: right(grid, coarse).reshape(-1, 4)[:, [0, 2, 1, 3]].flatten()  # noqa: E731
    monkeypatch.setattr(network, "merge_order", swapped)
    assert max(differences(build("swinv2", "Backbone"), photos["coffee"])) > 1e-3


def test_maps_that_the_checkpoint_names_and_no_others(build, photos):
    traceable = build("swin", "Backbone", changes={"out_features": ["stage2", "stage4"]})
    assert [spec.name for spec in traceable.outputs] == ["stage2", "stage4"]
    assert traceable.decode.strides == (8, 32)
    assert max(differences(traceable, photos["coffee"])) < 3e-5


# -- absolute positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_absolute_positions_are_folded_for_the_size(size, build, photos):
    traceable = build("swin", "Backbone", size, {"use_absolute_embeddings": True})
    assert max(differences(traceable, photos["coffee"])) < 3e-5


def test_absolute_positions_that_cannot_be_had_are_refused(build):
    with pytest.raises(CheckpointError, match=r"absolute positions, .* choose a size of whole patches"):
        build("swin", "Backbone", (70, 99), {"use_absolute_embeddings": True})
    with pytest.raises(CheckpointError, match="v2 with absolute positions"):
        build("swinv2", "Backbone", changes={"use_absolute_embeddings": True})


# -- windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("grid", [(8, 12), (9, 14), (3, 2)])
def test_windows_hold_what_rolling_and_partitioning_gives(grid, shift):
    from transformers.models.swin.modeling_swin import window_partition

    tokens = torch.randn(1, grid[0] * grid[1], 5)
    order = network.window_order(grid, 4, shift)
    padded = torch.nn.functional.pad(tokens.reshape(1, *grid, 5), (0, 0, 0, -grid[1] % 4, 0, -grid[0] % 4))
    expected = window_partition(padded.roll((-shift, -shift), (1, 2)), 4).reshape(1, -1, 5)
    raster, count = network.raster(grid), grid[0] * grid[1]
    found = network.Reorder(raster, order, count)(tokens)
    assert torch.equal(found, expected)
    assert torch.equal(network.Reorder(order, raster, count)(found), tokens)


def test_what_a_mask_hides_leaves_no_denormal_number():
    mask = network.shift_mask((8, 8), 4, 2)
    hidden = torch.softmax(mask + torch.randn(mask.shape) * 20, -1)
    assert (hidden[mask != 0] == 0).all()
    assert float(np.finfo(np.float32).tiny) > float(torch.tensor(-100.0).exp()) > 0  # the reference's does


# -- graphs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 128), (68, 76)], ids=["whole windows", "padded"])
@pytest.mark.parametrize("kind", NAMES)
def test_masks_and_orders_are_constants(kind, size, build):
    model = trace(build(kind, "Backbone", size))
    kinds = {node.op_type for node in model.graph}
    assert not kinds & {"Loop", "Scan", "If", "Slice", "Concat", "ScatterND", "Where", "Range", "Mod", "Equal"}
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attentions) == 8 and all(tensor_of(node.inputs[3]) is not None for node in attentions)
    gathers = [node for node in model.graph if node.op_type == "Gather"]
    assert gathers and all(tensor_of(node.inputs[1]) is not None for node in gathers)
    if size == (128, 128) and kind == "swin":
        # one at the start, one between two blocks (a lone window is shifted as well), one a merging, one a map
        assert len(gathers) == 1 + 4 + 3 + 4
        (graph,) = lower(model, "onnxruntime")
        assert [node.op_type for node in graph.model.graph].count("MultiHeadAttention") == 8


@pytest.mark.parametrize("batch", [3, None])
def test_graphs_of_many_frames_compute_what_the_module_does(batch, build, photos, tmp_path):
    from edgevtx.export.pack import write_graphs

    traceable = build("swin", "Backbone", batch=batch)
    model = trace(traceable)
    frames = [photos[name] for name in ("coffee", "chelsea", "astronaut")]
    pixels = np.stack([prepare(frame, traceable.preprocess)[0] for frame in frames])
    with torch.no_grad():
        expected = [output.numpy() for output in traceable.module(torch.from_numpy(pixels))]
    graphs = [graph for target in ("onnxruntime", "openvino") for graph in lower(model, target)]
    for graph in write_graphs({"": graphs}, tmp_path):
        path = tmp_path / graph.file
        if graph.target == "onnxruntime":
            found = pytest.importorskip("onnxruntime").InferenceSession(path).run(None, {"pixels": pixels})
        else:
            openvino = pytest.importorskip("openvino")
            compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            found = compiled([pixels]).to_tuple()
        assert max(error_of(want, got) for want, got in zip(expected, found, strict=True)) < 3e-5, graph.file


# -- a bundle --------------------------------------------------------------------------------------------------


def test_a_pyramid_goes_through_a_bundle(tmp_path, photos):
    pytest.importorskip("openvino")
    import edgevtx
    from edgevtx.export.pipeline import ExportOptions, export

    config = swin.RECIPE.tiny_config()["swin"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ExportOptions(
        targets=("openvino",), build=BuildOptions(task="embed", frame=(400, 600)), precisions=("fp32", "bf16")
    )
    report = export("swin", Checkpoint.open(tmp_path / "config.json", seed=0), tmp_path / "pyramid.vtx", options)
    assert not report.refused and report.manifest.task == "embed"
    assert {graph.file for graph in report.manifest.graphs} == {"graph.openvino.onnx"}
    with edgevtx.load(tmp_path / "pyramid.vtx", precision="fp32") as model:
        found = model(photos["coffee"])
        assert [one.shape for one in found.maps] == [(24, 36, 16), (12, 18, 32), (6, 9, 64), (3, 5, 128)]
        assert found.cls.shape == (128,)
        assert found.draw(photos["coffee"]).shape == photos["coffee"].shape
        with pytest.raises(InputError, match="take no threshold"):
            model(photos["coffee"], threshold=0.5)


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"architecture": "Model", "size": (40, 64)},
            CheckpointError,
            "fewer than its windows of 4",
        ),
        ({"architecture": "Model", "task": "classify"}, CheckpointError, "no classes; export its features"),
        ({"architecture": "Model", "task": "detect"}, InputError, "no task 'detect'; choose one of: classify, embed"),
        ({"architecture": "Model", "top_k": 3}, InputError, "has no classes"),
        ({"changes": {"out_features": ["stem", "stage1"]}}, CheckpointError, "name the stem"),
        ({"changes": {"num_channels": 4}}, CheckpointError, "images of 4 channels, but frames have 3"),
        ({"changes": {"patch_size": [4, 2]}}, CheckpointError, "square ones are expected"),
        ({"processor": {"size": {"shortest_edge": 64}}}, CheckpointError, "--frame 1920x1080"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_exported_is_refused(arguments, error, said, build):
    with pytest.raises(error, match=said):
        build("swin", **{"architecture": "Backbone", **arguments})
