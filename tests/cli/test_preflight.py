"""`edgevtx compile --preflight`: a bundle against the tables of its target's versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from edgevtx.bundle import Bundle, write_bundle  # noqa: E402
from edgevtx.export.operators import versions  # noqa: E402

RTX = ("--target", "tensorrt-rtx", "--preflight")


@pytest.fixture
def faulty(rtx_bundle: Path, tmp_path: Path) -> Path:
    """The bundle with a graph that transposes its frames before it casts them."""
    opened = Bundle.open(rtx_bundle)
    folder = tmp_path / "files"
    folder.mkdir()
    for item in opened.manifest.files:
        (folder / item.path).write_bytes((opened.root / item.path).read_bytes())
    path = folder / opened.manifest.graphs[0].file
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].input[0] = "turned"
    model.graph.node.insert(
        0, onnx.helper.make_node("Transpose", ["pixels"], ["turned"], "stem/turn", perm=[0, 1, 2, 3])
    )
    onnx.save(model, path)
    return write_bundle(folder, msgspec.structs.replace(opened.manifest, files=()), tmp_path / "faulty.vtx")


def test_a_sound_bundle(edgevtx_cli: Any, rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevtx.runtimes.get_backend", lambda name: pytest.fail("no runtime is asked"))
    found = edgevtx_cli("compile", rtx_bundle, *RTX)
    assert found.exit_code == 0, found.stderr
    assert f"nothing found for tensorrt-rtx {', '.join(versions('tensorrt-rtx'))}" in found.stdout
    facts = json.loads(edgevtx_cli("compile", rtx_bundle, *RTX, "--json").stdout)
    assert facts == {"target": "tensorrt-rtx", "graphs": ["graph.tensorrt-rtx.onnx"], "findings": []}


def test_a_fault_is_said_by_node_and_the_command_fails(edgevtx_cli: Any, faulty: Path) -> None:
    found = edgevtx_cli("compile", faulty, *RTX)
    assert found.exit_code == 1
    assert "stem/turn in stem: a uint8 tensor is read by something else than a Cast" in found.stdout
    assert "graph.tensorrt-rtx.onnx would fail in tensorrt-rtx 1.0, 1.3, 1.7" in " ".join(found.stderr.split())
    found = edgevtx_cli("compile", faulty, *RTX, "--json")
    assert found.exit_code == 1
    (row,) = json.loads(found.stdout)["findings"]
    assert (row["node"], row["module"], row["level"]) == ("stem/turn", "stem", "error")
    assert row["versions"] == list(versions("tensorrt-rtx"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "tensorrt"), "no graph for tensorrt; make one with: edgevtx export"),
        (("--target", "tensorrt-rtx", "--precision", "bf16"), "no graph for tensorrt-rtx in bf16"),
        (("--target", "openvino"), "--preflight is for tensorrt and tensorrt-rtx, and --target is openvino"),
    ],
)
def test_what_cannot_be_looked_at(options: tuple[str, ...], words: str, edgevtx_cli: Any, rtx_bundle: Path) -> None:
    found = edgevtx_cli("compile", rtx_bundle, *options, "--preflight")
    assert found.exit_code == 2 and words in " ".join(found.stderr.split())
