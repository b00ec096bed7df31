"""What every family keeps, over the registry: a tiny model of each type that its recipe reads."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from edgevtx.archive import MANIFEST  # noqa: E402
from edgevtx.compare.tolerance import error_of  # noqa: E402
from edgevtx.decode import decode, takes  # noqa: E402
from edgevtx.errors import InputError  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.pack import write_graphs  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.rewrite import lower  # noqa: E402
from edgevtx.export.samples import move_over  # noqa: E402
from edgevtx.export.trace import trace, trace_all  # noqa: E402
from edgevtx.prepared import collate  # noqa: E402
from edgevtx.preprocess import prepare_item, state_valid  # noqa: E402
from edgevtx.rules import EmbedDecode  # noqa: E402
from edgevtx.runtimes.base import EngineOptions, PlanOptions  # noqa: E402
from edgevtx.runtimes.plan import PLAN, ShapeRange, read_plan  # noqa: E402
from edgevtx.runtimes.trt_build import build_plan  # noqa: E402
from tests.export.kinds import CONFIGURED, each, each_configured  # noqa: E402
from tests.export.onnx_files import SIZE, STYLES, Written, network  # noqa: E402

# the family onnx reads no config but graphs, which are written here: a type is a layout of outputs
TYPES = [*CONFIGURED, *(("onnx", style) for style in STYLES)]
# attention to the window around each position: products of tiles, not the operator
WINDOWED = ("sasa_resnet", "local_relation_resnet")
CLASSLESS = ("embed", "prompt")


each_type = each(TYPES)


def task_of(family, kind):
    if family == "onnx":
        return "classify" if kind == "classify" else "detect"
    return kind.partition(" ")[2] or get_recipe(family).task


@pytest.fixture(scope="module")
def build(config_folder, another_size, tmp_path_factory):
    """(family, kind, seed=, another=, **options) -> Traceable with seeded weights, `another` of a second input size.

    The same one for the same arguments.
    """

    @cache
    def make(family, kind, *, seed=0, another=False, **options):
        kind, _, task = kind.partition(" ")
        if family == "onnx":
            size = (128, 64) if another else SIZE
            file = tmp_path_factory.mktemp("onnx") / "x.onnx"
            path = network(file, kind, Written(size, shape=("batch", 3, *size)), seed=seed)
            return get_recipe(family).build(OnnxFile.open(path, STYLES[kind]), BuildOptions(**options))
        changes = another_size(family) if another else {}
        checkpoint = Checkpoint.open(config_folder(family, kind, **changes), seed=seed)
        return get_recipe(family).build(checkpoint, BuildOptions(**{"task": task or None, **options}))

    return make


def taken(traceable, photo):
    """What a family takes for a photograph: the frame itself, or a clip of a camera that moves over it."""
    clip = traceable.preprocess.clip
    return photo if clip is None else move_over(photo, clip.frames)


def run(traceable, frames):
    """Our outputs for a batch of frames by name, and the frames' geometries."""
    items = [taken(traceable, frame) for frame in frames]
    arrays, geometries = zip(*(prepare_item(item, traceable.preprocess) for item in items), strict=True)
    feeds = state_valid(collate(list(arrays), traceable.inputs), geometries)
    outputs = traceable.module(*(torch.from_numpy(feeds[spec.name]) for spec in traceable.inputs))
    names = [spec.name for spec in traceable.outputs]
    return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}, geometries


def answers(traceable, frames):
    """Our results for a batch of frames, no score threshold applied."""
    outputs, geometries = run(traceable, frames)
    if traceable.answer is not None:
        rows = [{name: array[i : i + 1] for name, array in outputs.items()} for i in range(len(frames))]
        return [traceable.answer(row, geometry) for row, geometry in zip(rows, geometries, strict=True)]
    manifest = SimpleNamespace(decode=traceable.decode, labels=traceable.labels, preprocess=traceable.preprocess)
    threshold = 0.0 if takes(traceable.decode, "top_k") else None
    return decode(outputs, geometries, manifest, threshold=threshold)


def assert_shape(array, spec):
    assert array.shape == tuple(
        got if want is None else want for got, want in zip(array.shape, spec.shape, strict=True)
    )
    assert array.dtype == np.dtype(spec.dtype)


@each_type
@pytest.mark.parametrize("another", [False, True], ids=["one size", "another size"])
def test_the_outputs_are_as_specified_and_the_answer_is_the_references(family, kind, another, build, photos):
    traceable = build(family, kind, another=another)
    compared = 0
    for name in ("coffee", "portrait"):
        outputs, _ = run(traceable, [photos[name]])
        assert list(outputs) == [spec.name for spec in traceable.outputs]
        for spec in traceable.outputs:
            assert_shape(outputs[spec.name], spec)
        check = compare_results(
            traceable.reference(taken(traceable, photos[name])), answers(traceable, [photos[name]])[0]
        )
        assert check.passed, check
        compared += check.compared
    # every score, detection above 0.3 (both ways), feature vector, mask, or pixel not of the most common class
    least = {"classify": 10, "detect": 80, "embed": 34, "panoptic": 80, "prompt": 12, "segment": 30_000}
    assert compared >= (40 if (family, traceable.task) == ("onnx", "detect") else least[traceable.task])  # 24 queries


@each_configured
def test_a_saved_directory_gives_the_same_as_the_seeded_config(family, kind, build, config_folder, photos):
    seeded = build(family, kind)
    folder = config_folder(family, kind.partition(" ")[0])
    publish(seeded.reference.args[0], folder)
    loaded = get_recipe(family).build(Checkpoint.open(folder), BuildOptions())
    expected, found = (run(traceable, [photos["chelsea"]])[0] for traceable in (seeded, loaded))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert loaded.labels == seeded.labels


def publish(model, folder):
    """Write a recipe's reference model as its authors would."""
    published = json.loads((folder / "config.json").read_text())
    if getattr(getattr(model, "config", None), "model_type", "") == published["model_type"]:
        model.save_pretrained(folder)
    elif hasattr(getattr(model, "backbone", None), "save_pretrained"):  # a decoder beside a backbone's tensors
        model.backbone.save_pretrained(folder / "backbone")
        decoder = {f"decoder.{name}": tensor for name, tensor in model.decoder.state_dict().items()}
        save_file({**load_file(folder / "backbone" / "model.safetensors"), **decoder}, folder / "model.safetensors")
    else:  # a module of ours, which leaves the config to its author
        save_file(model.state_dict(), folder / "model.safetensors")


@each_type
def test_a_batch_gives_what_its_frames_give_alone(family, kind, build, photos):
    single, double = build(family, kind), build(family, kind, batch=2)
    frames = [photos["coffee"], photos["coffee"][:, ::-1].copy()]
    together, _ = run(double, frames)
    for index, frame in enumerate(frames):
        alone, _ = run(single, [frame])
        for name, array in alone.items():
            assert error_of(array[0], together[name][index]) < 1e-4, name


@each_type
def test_there_is_a_second_input_size(family, kind, build):
    built = build(family, kind), build(family, kind, another=True)
    assert len({size for item in built for size in (item.trace_size, item.other_size)}) == 2


# an imported graph is not traced: its own checks are in test_trace
@each_configured
def test_exported_with_dynamic_sizes_it_specialises_none(family, kind, build):
    traceable = build(family, kind, batch=None, another=True)
    smallest = {"batch": 1, "height": 33, "width": 33}  # more than one cell of DETR's stride 32
    names = {name for sizes in traceable.dynamic.values() for name in sizes.values()}
    dimensions = {name: torch.export.Dim(name, min=smallest[name]) for name in names}
    shapes = tuple(
        {axis: dimensions[name] for axis, name in traceable.dynamic[spec.name].items()} for spec in traceable.inputs
    )
    exported = torch.export.export(
        traceable.module, feeds(traceable, 2, traceable.trace_size), dynamic_shapes=shapes, strict=False
    )
    other = feeds(traceable, 3, traceable.other_size)
    for expected, found in zip(traceable.module(*other), exported.module()(*other), strict=True):
        assert expected.shape == found.shape
        assert error_of(expected.numpy(), found.numpy()) < 1e-5

    nodes = exported.graph.nodes
    pixels = next(node for node in nodes if node.op == "placeholder" and node.name == "pixels")
    users = {str(node.target) for node in pixels.users} - {
        "aten._assert_tensor_metadata.default",
        "aten.sym_size.int",
    }
    assert users == {"aten.to.dtype"}  # nothing else may touch uint8
    attentions = [node for node in nodes if "scaled_dot_product_attention" in str(node.target)]
    masked = [node for node in attentions if len(node.args) > 3 and node.args[3] is not None]
    # only cells of padding are masked: DETR's encoder layer and its two cross-attentions; Swin's and
    # SAM's masks are their biases
    assert bool(attentions) != (kind in WINDOWED)
    assert len(masked) == (len(attentions) if family in ("swin", "sam") else 3 if len(traceable.inputs) == 2 else 0)


def feeds(traceable, batch, size):
    """Random inputs for every input of the module, the valid sizes smaller than `size`."""
    rng = np.random.default_rng(0)
    times = [count for count in traceable.inputs[0].shape[1:-3] if count is not None]  # of a clip
    pixels = torch.from_numpy(rng.integers(0, 256, (batch, *times, *size, 3), dtype=np.uint8))
    valid = torch.tensor([[size[0] - 9 * index, size[1] - 5 * index] for index in range(batch)], dtype=torch.int32)
    return (pixels, valid)[: len(traceable.inputs)]


@each_configured
@pytest.mark.parametrize("seed", [0, 1])
def test_seeded_weights_show_the_image_and_its_colours(family, kind, seed, build, photos):
    traceable = build(family, kind, seed=seed)
    first, second = photos["astronaut"], photos["chelsea"]
    mine, other, swapped = (run(traceable, [frame])[0] for frame in (first, second, first[..., ::-1].copy()))
    for name, array in mine.items():
        if array.dtype == np.float32 and array.shape == other[name].shape:
            assert min(error_of(array, other[name]), error_of(array, swapped[name])) > 0.01, name
    if traceable.task in ("detect", "panoptic"):
        assert (mine["scores"] > 0.3).sum() >= 20
        assert mine["scores"].std() > 0.02
        assert mine["boxes"].std(axis=1).min() > 0.05


@each_type
def test_numbers_of_labels_and_rows_that_do_not_fit_are_refused(family, kind, build):
    with pytest.raises(InputError, match="batch is 0"):
        build(family, kind, batch=0)
    with pytest.raises(
        InputError, match=r"resize is 'nearest'; choose pillow or opencv|--resize nearest does not apply"
    ):
        build(family, kind, resize="nearest")
    if task_of(family, kind) in CLASSLESS:
        with pytest.raises(InputError, match="has no classes"):
            build(family, kind, top_k=3)
        return
    count = len(build(family, kind).labels)
    names = tuple(f"thing {index}" for index in range(count))
    assert build(family, kind, labels=names).labels == names
    with pytest.raises(InputError, match=f"1 labels were given, but the (checkpoint|graph) has {count} classes"):
        build(family, kind, labels=("fire",))
    if get_recipe(family).task == "segment":
        with pytest.raises(InputError, match="top_k is 3, but each pixel has one class"):
            build(family, kind, top_k=3)
        return
    for top_k in (0, 1000):
        with pytest.raises(InputError, match=f"top_k is {top_k}, .* choose 1 to"):
            build(family, kind, top_k=top_k)


# where boxes are suppressed the rows that are kept are candidates
@each([case for case in TYPES if task_of(*case) in ("classify", "detect") and "yolo" not in case[1]])
def test_a_smaller_top_k_keeps_the_best_rows(family, kind, build, photos):
    whole, few = build(family, kind), build(family, kind, top_k=3)
    everything, three = answers(whole, [photos["coffee"]])[0], answers(few, [photos["coffee"]])[0]
    assert len(three) == 3 == len(few.reference(taken(few, photos["coffee"])))
    np.testing.assert_array_equal(three.class_ids, everything.class_ids[:3])
    np.testing.assert_allclose(three.scores, everything.scores[:3], rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        case
        for case in TYPES
        if case[0] in ("vit", "rtdetr", "setr", "dinoseg", "vivit", "onnx") or case == ("swin", "swin")
    ],
)
def test_a_camera_size_is_noted_as_needless_where_the_input_has_one_size(family, kind, build):
    traceable = build(family, kind, frame=(1080, 1920))
    assert "1920x1080 changes nothing" in traceable.notes[-1]
    assert len(build(family, kind).notes) == len(traceable.notes) - 1


@each_type
def test_edgevtx_fit_takes_what_the_registry_says(family, kind, build):
    traceable = build(family, kind)
    vectors = isinstance(traceable.decode, EmbedDecode) and "cls" in {info.name for info in traceable.outputs}
    assert vectors == (get_recipe(family).fit == {"classify": "Classification"})


@each_configured
def test_the_registry_says_who_takes_clips(family, kind, build):
    of_clips = get_recipe(family).tiny_config()[kind.partition(" ")[0]]["model_type"] in get_recipe(family).clips
    assert (build(family, kind).preprocess.clip is not None) == of_clips


def test_the_registry_names_what_it_reads():
    for family in FAMILIES:
        recipe = get_recipe(family)
        assert recipe.family == family
        assert recipe.variants and recipe.layouts and recipe.paper.startswith("https://")
        assert set(recipe.clips) <= set(recipe.model_types)
        assert {config["model_type"] for config in recipe.tiny_config().values()} == set(recipe.model_types)
        assert all(kind.startswith(config["model_type"]) for kind, config in recipe.tiny_config().items())
    with pytest.raises(InputError, match=r"choose one of: vit, dino, detr, "):
        get_recipe("yolo")


# the first type of each family is compiled in every precision, for two generations of GPUs, in test_typed_graphs;
# these are all whose graphs have other operators than those
FURTHER = [
    ("vit", "vit_hybrid"),
    ("dino", "dinov2_with_registers"),
    ("swin", "swinv2"),
    ("rtdetr", "rt_detr_v2"),
    *(("vivit", kind) for kind in get_recipe("vivit").tiny_config() if kind != "vivit"),
    *(("attention_cnn", kind) for kind in ("nonlocal_video_resnet", *WINDOWED)),
    ("onnx", "yolov5-raw"),
    ("onnx", "yolov8"),
]


@each(FURTHER)
def test_further_types_compile_with_tensorrt_rtx_in_half_precision(family, kind, build, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    networks = trace_all(build(family, kind))
    lowered = {part: lower(model, "tensorrt-rtx", ("fp16",)) for part, model in networks.items()}
    for graph in write_graphs(lowered, tmp_path):
        build_plan("tensorrt_rtx", tmp_path / graph.file, tmp_path, EngineOptions("fp16", gpu="sm89"))
        assert read_plan(tmp_path / PLAN).precision_share["f16"] > 0.5


# the first type of each family; of SAM the encoder, as its decoder takes one frame's answer. Panoptic DETR, which takes
# as long as all others, has DETR's own batch and sizes
BATCHES = [(family, kind) for family, kind in dict(CONFIGURED[::-1]).items() if family != "detr_panoptic"]
BATCHES += [("onnx", "detr")]


@each(BATCHES)
def test_a_graph_of_dynamic_batch_compiles_with_tensorrt_rtx_for_one_to_four_frames(family, kind, build, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    traceable = build(family, kind, batch=None, another=True)
    (row,) = write_graphs({"": lower(trace(traceable), "tensorrt-rtx", ("fp16",))}, tmp_path)
    beside = {"name": family, "graphs": [{"file": row.file}], "preprocess": {"size": traceable.preprocess.size}}
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(beside))
    options = EngineOptions("fp16", gpu="sm86", plan=PlanOptions(batch=4))
    build_plan("tensorrt_rtx", tmp_path / row.file, tmp_path, options)
    record = read_plan(tmp_path / PLAN)
    for found, specs in ((record.inputs, traceable.inputs), (record.outputs, traceable.outputs)):
        assert [(item.name, item.shape) for item in found] == [(item.name, item.shape) for item in specs]
    (profile,) = record.profiles
    sides = {"detr": (89, 89, 213)}  # a shorter side of 128, a longer one of 213, frames of up to 2.4:1
    for spec in traceable.inputs:
        spans = [(1, 4, 4), *((size,) * 3 if size else sides[family] for size in spec.shape[1:])]
        assert profile[spec.name] == ShapeRange(*zip(*spans, strict=True))
    assert len(profile) == len(traceable.inputs)
    assert record.precision_share["f16"] > 0.5
