"""One way from a frame to an answer, served over standard input and output for `bench/peers.py`.

    python bench/peer.py KIND MODEL FOLDER       KIND: edgevtx, transformers, model-api or optimum

Each line of input is the index of a frame in FOLDER/frames.npy; each line of output a JSON object with the call's
milliseconds and its answer. `KIND` may need packages that edgevtx does not: this file runs under an interpreter of
theirs, so it imports nothing of the benchmark's own before it knows that it may.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

THRESHOLD = 0.5
TOP_K = 5
CONFIG = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}

Answer = dict[str, list[Any]]  # class_ids, scores and, for detections, boxes xyxy in px
Call = Callable[[np.ndarray], Answer]


def answer(class_ids: Any, scores: Any, boxes: Any = None) -> Answer:
    found = {"class_ids": np.asarray(class_ids).tolist(), "scores": np.asarray(scores, float).tolist()}
    if boxes is not None:
        found["boxes"] = np.asarray(boxes, float).reshape(-1, 4).tolist()
    return found


def edgevtx_call(name: str, folder: Path) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], Answer]]:
    """Our predictor; exact resize, OpenVINO fp32."""
    from models import bundle

    import edgevtx

    model = edgevtx.load(bundle(name), runtime="openvino", precision="fp32", allow_unverified=True)

    def read(found: Any) -> Answer:
        boxes = getattr(found, "boxes", None)
        return answer(found.class_ids[:TOP_K] if boxes is None else found.class_ids, found.scores, boxes)

    options = {} if model.manifest.task == "classify" else {"threshold": THRESHOLD}
    return lambda frame: model(frame, **options), read


def transformers_call(name: str, folder: Path) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], Answer]]:
    """transformers' processor and post-processing around an OpenVINO engine of the same weights."""
    import openvino
    import torch
    from models import MODELS, open_checkpoint
    from transformers.modeling_outputs import ModelOutput

    from edgevtx.export.processor import load_processor

    processor = load_processor(open_checkpoint(MODELS[name]), "ViT")
    compiled = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", CONFIG)
    detects = len(compiled.outputs) == 2

    def call(frame: np.ndarray) -> Any:
        inputs = processor(images=frame[..., ::-1], return_tensors="np", input_data_format="channels_last")
        outputs = compiled(inputs["pixel_values"])
        if not detects:
            return torch.from_numpy(outputs[0]).softmax(-1)[0].topk(TOP_K)
        raw = ModelOutput(logits=torch.from_numpy(outputs[0]), pred_boxes=torch.from_numpy(outputs[1]))
        sizes = [frame.shape[:2]]
        return processor.post_process_object_detection(raw, threshold=THRESHOLD, target_sizes=sizes)[0]

    def read(found: Any) -> Answer:
        if detects:
            return answer(found["labels"], found["scores"], found["boxes"])
        return answer(found.indices, found.values)

    return call, read


def model_api_call(name: str, folder: Path) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], Answer]]:
    """OpenVINO Model API, preprocessing embedded in its graph, fixed to the frame's size (its fastest form)."""
    import openvino
    from model_api.adapters import OpenvinoAdapter
    from model_api.models import SSD, ClassificationModel

    frames = np.load(folder / "frames.npy", mmap_mode="r")
    adapter = OpenvinoAdapter(
        openvino.Core(), str(folder / f"{name}.model_api.xml"), device="CPU", plugin_config=CONFIG, max_num_requests=1
    )
    settings: dict[str, Any] = json.loads((folder / f"{name}.model_api.json").read_text())
    settings |= {"input_frame_height": frames.shape[1], "input_frame_width": frames.shape[2]}
    settings |= {"reverse_input_channels": True, "resize_type": "standard"}
    if settings.pop("detects"):
        model = SSD(adapter, settings | {"confidence_threshold": THRESHOLD}, preload=True)
        return model, lambda found: answer(found.labels, found.scores, found.bboxes)
    model = ClassificationModel(adapter, settings | {"topk": TOP_K}, preload=True)
    return model, lambda found: answer(
        [label.id for label in found.top_labels], [label.confidence for label in found.top_labels]
    )


def optimum_call(name: str, folder: Path) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], Answer]]:
    """Optimum Intel: transformers' processor and a model class over OpenVINO. It has none for RT-DETR."""
    import torch
    from optimum.intel import OVModelForImageClassification
    from transformers import ViTImageProcessorPil  # its AutoImageProcessor needs torchvision

    checkpoint = folder / f"{name}.checkpoint"
    processor = ViTImageProcessorPil.from_pretrained(checkpoint)
    model = OVModelForImageClassification.from_pretrained(checkpoint, export=True, device="CPU", ov_config=CONFIG)

    def call(frame: np.ndarray) -> Any:
        inputs = processor(images=frame[..., ::-1], return_tensors="pt", input_data_format="channels_last")
        return torch.as_tensor(model(**inputs).logits).softmax(-1)[0].topk(TOP_K)

    return call, lambda found: answer(found.indices, found.values)


def prepare(name: str, folder: Path) -> None:
    """Write NAME.xml (pixels -> logits[, boxes]), and NAME.model_api.xml in the form that Model API reads."""
    import openvino
    import torch
    from models import MODELS, build_options, open_checkpoint

    from edgevtx.export.recipe import get_recipe

    # the very weights of the bundle: seeded ones depend on which modules the recipe leaves out
    recipe = get_recipe(MODELS[name].family)
    reference: Any = recipe.build(open_checkpoint(MODELS[name]), build_options(MODELS[name])).reference
    model, processor = reference.args[:2]
    height, width = processor.size["height"], processor.size["width"]

    class Plain(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            found = model(pixel_values=pixel_values)
            return (found.logits, found.pred_boxes) if "pred_boxes" in found else found.logits

    example = torch.rand(1, 3, height, width)
    with torch.no_grad():
        graph = openvino.convert_model(Plain().eval(), example_input=example, input=[1, 3, height, width])
    openvino.save_model(graph, folder / f"{name}.xml", compress_to_fp16=False)
    detects = len(graph.outputs) == 2
    if detects:
        graph = with_boxes_and_labels(graph, (height, width))
    else:  # Optimum exports from a checkpoint with weights
        model.save_pretrained(folder / f"{name}.checkpoint")
        processor.save_pretrained(folder / f"{name}.checkpoint")
    openvino.save_model(graph, folder / f"{name}.model_api.xml", compress_to_fp16=False)
    scale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    settings = {"mean_values": [scale * value for value in mean], "scale_values": [scale * value for value in std]}
    (folder / f"{name}.model_api.json").write_text(json.dumps(settings | {"detects": detects}))


def with_boxes_and_labels(graph: Any, size: tuple[int, int]) -> Any:
    """RT-DETR's decoding in OpenVINO's operations, since Model API knows no RT-DETR: boxes (1,K,5) px, labels (1,K)."""
    import openvino
    from openvino import opset13 as op

    logits, boxes = (output.get_node().input_value(0) for output in graph.outputs)
    queries, classes = graph.outputs[0].shape[1:]
    flat = op.reshape(op.sigmoid(logits), np.array([1, -1]), False)
    best = op.topk(flat, op.constant(np.int32(queries)), 1, "max", "value", index_element_type="i64")
    labels = op.floor_mod(best.output(1), op.constant(np.int64(classes)))
    rows = op.gather(boxes, op.squeeze(op.divide(best.output(1), op.constant(np.int64(classes))), 0), 1)
    centre, extent = op.split(rows, 2, 2).outputs()
    half = op.multiply(extent, op.constant(np.float32(0.5)))
    height, width = size
    corners = op.concat([op.subtract(centre, half), op.add(centre, half)], 2)
    corners = op.multiply(corners, op.constant(np.array([width, height, width, height], np.float32)))
    scored = op.concat([corners, op.unsqueeze(best.output(0), 2)], 2)
    scored.output(0).set_names({"boxes"})
    labels.output(0).set_names({"labels"})
    return openvino.Model([scored.output(0), labels.output(0)], graph.get_parameters(), "rtdetr")


CALLS = {
    "edgevtx": edgevtx_call,
    "transformers": transformers_call,
    "model-api": model_api_call,
    "optimum": optimum_call,
}


def main(kind: str, name: str, folder: Path) -> None:
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    if kind == "prepare":
        prepare(name, folder)
        return
    call, read = CALLS[kind](name, folder)
    frames = np.load(folder / "frames.npy")
    print("ready", flush=True)
    for line in sys.stdin:
        frame = frames[int(line)]
        start = perf_counter()
        found = call(frame)
        milliseconds = 1e3 * (perf_counter() - start)
        print(json.dumps({"ms": milliseconds, "answer": read(found)}), flush=True)


if __name__ == "__main__" and len(sys.argv) == 4:
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
