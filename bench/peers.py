"""The same work with the tools that users have today: a 1080p frame to classes (ViT-B) and to boxes (RT-DETR-R18).

Demand: none of its own; it says where a whole call of ours stands, and whether the answers agree.
Prediction: beside equal engines, 30 ms less than transformers' processors, and within a few ms of OpenVINO Model API,
which resizes inside the graph (not with antialiasing, so its answers differ where a frame is reduced).

Each peer is a process of its own with its own interpreter; their calls are interleaved, one at a time. All run the
same weights on OpenVINO in fp32. "Agrees" compares with transformers' processor and post-processing: the same best
class; boxes above 0.5 that have a partner of the same class with an IoU of 0.9.

Model API and Optimum Intel live in virtual environments that this script makes with pip (`--offline` leaves them out).
Not run: Ultralytics (AGPL, needs torchvision, which has no build for this torch); Optimum with RT-DETR (no class).
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import FOLDER, Ratio, Report, photographs, quantiles, ratio
from models import bundle

PEER = Path(__file__).with_name("peer.py")
ENVIRONMENTS = {"model-api": "openvino-model-api==0.4.7", "optimum": "optimum-intel==2.2.0"}
CLASSIFY_ONLY = ("optimum",)


class Peer:
    """A running `peer.py`."""

    def __init__(self, python: Path, kind: str, name: str, folder: Path) -> None:
        self.kind = kind
        self.errors = (folder / f"{kind}.log").open("w")
        command = [str(python), str(PEER), kind, name, str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, bufsize=1)
        while (line := self._line()) != "ready\n":
            if not line:
                raise RuntimeError(f"{kind} did not start; see {self.errors.name}")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def call(self, frame: int) -> dict[str, Any]:
        """The milliseconds and the answer for a frame."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{frame}\n")
        line = self._line()
        if not line:
            raise RuntimeError(f"{self.kind} ended; see {self.errors.name}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def make_environment(kind: str) -> Path:
    """The interpreter of a virtual environment with a peer's packages and the versions that we run with."""
    venv = FOLDER / kind
    python = venv / "bin" / "python"
    if not (venv / "done").is_file():
        names = ("openvino", "numpy", "torch") if kind == "optimum" else ("openvino", "numpy")
        packages = [ENVIRONMENTS[kind], *(f"{name}=={version(name).split('+')[0]}" for name in names)]
        pip = [str(python), "-m", "pip", "--quiet"]
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([*pip, "install", *packages], check=True)
        # it comes along, fails at import beside a CPU build of torch, and is not needed
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        (venv / "done").write_text(" ".join(packages))
    return python


def agreement(reference: dict[str, Any], found: dict[str, Any]) -> tuple[int, int, float]:
    """(items of the reference that agree, items, largest difference in score or px of the agreeing ones)."""
    if "boxes" not in reference:
        same = reference["class_ids"][0] == found["class_ids"][0]
        return int(same), 1, abs(reference["scores"][0] - found["scores"][0]) if same else 0.0
    boxes, others = (np.array(item["boxes"], float).reshape(-1, 4) for item in (reference, found))
    kinds, other_kinds = (np.array(item["class_ids"]) for item in (reference, found))
    agreed, worst = 0, 0.0
    for box, kind in zip(boxes, kinds, strict=True):
        candidates = others[other_kinds == kind] if len(others) else others
        if len(candidates):
            overlaps = iou(box, candidates)
            best = int(overlaps.argmax())
            if overlaps[best] >= 0.9:
                agreed += 1
                worst = max(worst, float(np.abs(candidates[best] - box).max()))
    return agreed, len(boxes), worst


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with boxes (N,4), all xyxy."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=1)
    area, areas = np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1)
    return inter / (area + areas - inter)


def compare(name: str, pythons: dict[str, Path], rounds: int, warmup: int) -> dict[str, list[dict[str, Any]]]:
    """The calls of every peer, interleaved over the photographs."""
    folder = FOLDER / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    frames = photographs()
    np.save(folder / "frames.npy", np.stack(frames))
    bundle(name)
    with (folder / "prepare.log").open("w") as log:
        subprocess.run([sys.executable, str(PEER), "prepare", name, str(folder)], check=True, stderr=log)
    detects = "detr" in name
    kinds = [kind for kind in pythons if not (detects and kind in CLASSIFY_ONLY)]
    peers = []
    for kind in kinds:
        try:
            peers.append(Peer(pythons[kind], kind, name, folder))
        except RuntimeError as error:
            print(error, flush=True)  # a peer that cannot be run here is a row without a time
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for index in range(-warmup, rounds):
        for peer in peers if index % 2 else reversed(peers):
            call = peer.call(index % len(frames))
            if index >= 0:
                found[peer.kind].append(call)
    for peer in peers:
        peer.close()
    return found


@click.command()
@click.option("--rounds", default=40, show_default=True)
@click.option("--warmup", default=4, show_default=True)
@click.option("--model", "names", multiple=True, default=["vit_b16_224", "rtdetr_r18_640"], show_default=True)
@click.option("--offline", is_flag=True, help="Make no environments; leave Model API and Optimum out.")
def main(rounds: int, warmup: int, names: tuple[str, ...], offline: bool) -> None:
    """Compare whole calls with transformers, OpenVINO Model API and Optimum Intel."""
    pythons = {"edgevtx": Path(sys.executable), "transformers": Path(sys.executable)}
    settings: dict[str, Any] = {"rounds": rounds, "warm-up": warmup, "frame": "1920x1080", "precision": "fp32"}
    if not offline:
        pythons |= {kind: make_environment(kind) for kind in ENVIRONMENTS}
        settings["peers"] = " ".join(ENVIRONMENTS.values())
    report = Report("peers", "Whole calls beside today's tools", settings)
    table = report.table(
        "From a 1080p frame to the answer, ms", "model", "way", "median", "p95", "over edgevtx [95%]", "agrees", "worst"
    )
    for name in names:
        found = compare(name, pythons, rounds, warmup)
        times = {kind: [call["ms"] for call in calls] for kind, calls in found.items()}
        for kind, calls in found.items():
            if not calls:
                table.add(name, kind, *[None] * 5)
                continue
            over: Ratio = ratio(times[kind], times["edgevtx"])
            pairs = zip(found["transformers"], calls, strict=True)
            agreed, items, worst = zip(*(agreement(a["answer"], b["answer"]) for a, b in pairs), strict=True)
            spread = quantiles(times[kind])
            share = f"{sum(agreed)} of {sum(items)}"
            table.add(name, kind, spread["median"], spread["p95"], str(over), share, max(worst))
        report.raw[name] = times
    report.notes += [
        "agrees: same best class, or boxes above 0.5 matched at IoU 0.9, against transformers' pipeline; worst: the "
        "largest difference among them, in score (ViT) or px of the frame (RT-DETR)",
        "weights are random, which exaggerates what another resize does to the answers",
        "Model API has no RT-DETR: its decoding was added to the graph for it, in OpenVINO's operations",
        "not run: Ultralytics (AGPL; needs torchvision, which has no build for this torch); Optimum with RT-DETR (it "
        "has no class for detection)",
    ]
    if offline:
        report.notes.append("not run: OpenVINO Model API and Optimum Intel (--offline)")
    report.finish()


if __name__ == "__main__":
    main()
