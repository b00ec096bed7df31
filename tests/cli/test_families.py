"""`edgevtx families`: every architecture of the project's scope can be found in it, by people and by programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevtx.export.recipe import FAMILIES

# family -> its tasks with their results, some of its layouts, and what its variants must name
ROWS: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    "vit": ({"classify": "Classification"}, ["Hugging Face", "timm ViT"], ["ViT", "DeiT", "hybrid ViT", "1x1 patches"]),
    "swin": (
        {"classify": "Classification", "embed": "Features"},
        ["Hugging Face", "microsoft Swin", "timm Swin"],
        ["Swin v1", "Swin v2", "four scales"],
    ),
    "detr": ({"detect": "Detections"}, ["Hugging Face", "facebookresearch DETR"], ["DETR", "DC5"]),
    "detr_panoptic": (
        {"panoptic": "PanopticSegmentation"},
        ["Hugging Face", "facebookresearch DETR panoptic"],
        ["panoptic", "DC5"],
    ),
    "rtdetr": ({"detect": "Detections"}, ["Hugging Face", "lyuwenyu RT-DETR"], ["RT-DETR", "RT-DETRv2"]),
    "setr": ({"segment": "SemanticSegmentation"}, ["MMSegmentation SETR"], ["naive", "PUP", "MLA", "sliding windows"]),
    "dinoseg": ({"segment": "SemanticSegmentation"}, ["safetensors"], ["saliency"]),
    "sam": (
        {"prompt": "Masks"},
        ["Hugging Face", "facebookresearch segment-anything"],
        ["ViT-B", "ViT-L", "ViT-H", "points", "boxes", "masks", "texts", "everything"],
    ),
    "dino": (
        {"embed": "Features"},
        ["Hugging Face", "facebookresearch DINO", "facebookresearch DINOv2", "timm DINO"],
        ["DINO", "DINOv2", "registers", "attention", "k-NN"],
    ),
    "vivit": (
        {"classify": "Classification"},
        ["Hugging Face", "a ViT image checkpoint by central frame or filter inflation: scripts/vivit_from_vit.py"],
        [
            "1: spatio-temporal attention",
            "2: factorised encoder",
            "3: factorised self-attention",
            "4: factorised dot-product attention",
        ],
    ),
    "attention_cnn": (
        {"classify": "Classification"},
        ["safetensors"],
        ["SAGAN", "non-local block", "non-local block in space-time", "stand-alone self-attention", "local relation"],
    ),
    "onnx": (
        {"detect": "Detections", "classify": "Classification"},
        ["--graph"],
        [f"--decode {style}:" for style in ("yolox", "yolov5", "yolov8", "detr", "rtdetr", "classify")],
    ),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    from click.testing import CliRunner

    from edgevtx.cli import cli

    facts = json.loads(CliRunner().invoke(cli, ["families", "--json"], prog_name="edgevtx").stdout)
    return {row["family"]: row for row in facts}


def test_the_listing_is_the_registry(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == list(FAMILIES)
    assert set(ROWS) == set(FAMILIES)


@pytest.mark.parametrize("family", ROWS)
def test_a_row_has_its_tasks_results_layouts_and_variants(family: str, rows: dict[str, dict[str, Any]]) -> None:
    results, layouts, variants = ROWS[family]
    row = rows[family]
    assert row["results"] == results
    assert all(any(layout in item for item in row["layouts"]) for layout in layouts), row["layouts"]
    assert all(any(word in item for item in row["variants"]) for word in variants), row["variants"]
    assert row["fit"] == ({"classify": "Classification"} if family == "dino" else {})
    assert row["denoise"] == ["bilateral", "nlmeans", "lark"]


@pytest.mark.parametrize("family", ROWS)
def test_a_family_is_described_with_all_of_it(family: str, rows: dict[str, dict[str, Any]], edgevtx_cli: Any) -> None:
    text = " ".join(edgevtx_cli("families", family).stdout.split())
    row = rows[family]
    for words in (*row["variants"], *row["layouts"], *row["model_types"], row["paper"], row["title"]):
        assert " ".join(words.split()) in text
    assert all(f"{task}: {result}" in text for task, result in row["results"].items())
    assert ("by edgevtx fit classify: Classification" in text) == (family == "dino")
    assert "--denoise bilateral, nlmeans or lark" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_its_terminal(
    columns: int, edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch, rows: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = edgevtx_cli("families").stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert {line.split()[0] for line in lines if line and not line.startswith(" ")} > set(rows)  # names are whole
    for row in rows.values():
        for task, result in row["results"].items():
            assert any(f"{task}: {result}" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "edgevtx fit gives dino classes" in text and "--denoise bilateral, nlmeans or lark" in text
