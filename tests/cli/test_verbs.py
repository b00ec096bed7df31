"""Every verb on a small bundle: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.cli import VERBS


def sentence(text: str) -> str:
    """Standard error, checked to be one line without a traceback; `run` says before it what it runs on."""
    assert "Traceback" not in text
    lines = [line for line in text.strip().splitlines() if not line.startswith("colours: ")]
    assert len(lines) == 1 and lines[0].startswith("edgevtx: "), text
    return lines[0]


# -- help and usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(edgevtx_cli: Any, verb: str) -> None:
    found = edgevtx_cli(verb, "--help")
    assert found.exit_code == 0
    assert f"  edgevtx {verb}" in found.stdout.split("Example:")[1]


def test_the_help_lists_every_verb_with_a_whole_line(edgevtx_cli: Any) -> None:
    found = edgevtx_cli("--help")
    rows = found.stdout.split("Commands:\n")[1].splitlines()
    assert [row.split()[0] for row in rows] == list(VERBS)
    assert all(row.endswith(".") and not row.endswith("...") for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run"],
        ["run", "a.vtx"],
        ["info"],
        ["info", "a.vtx", "--nonsense"],
        ["export", "vit"],
        ["export", "vit", "--out", "a.vtx"],
        ["export", "vit", "--out", "a.vtx", "--config", "b", "--allow-partial"],
        ["export", "vit", "--out", "a.vtx", "--config", "b", "--batch", "2", "--dynamic-batch"],
        ["export", "vit", "--out", "a.vtx", "--config", "b", "--frame", "1920"],
        ["export", "vit", "--out", "a.vtx", "--config", "b", "--batch", "0"],
        ["run", "a.vtx", "b.jpg", "--roi", "1,2,3"],
        ["run", "a.vtx", "b.jpg", "--rotation", "45"],
        ["run", "a.vtx", "b.jpg", "--threshold", "2"],
        ["profile", "a.vtx", "--size", "axb"],
        ["cache"],
    ],
)
def test_wrong_usage_is_exit_code_2_with_help(edgevtx_cli: Any, arguments: list[str]) -> None:
    found = edgevtx_cli(*arguments)
    assert found.exit_code == 2
    assert "Usage: edgevtx" in found.stderr and "Traceback" not in found.stderr


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["info", "missing.vtx"], 2, "missing.vtx"),
        (["info", "{photo}"], 1, "green.png"),
        (["verify", "missing.vtx"], 2, "missing.vtx"),
        (["compile", "missing.vtx"], 2, "missing.vtx"),
        (["run", "missing.vtx", "{photo}"], 2, "missing.vtx"),
        (["run", "{bundle}", "missing.jpg"], 1, "missing.jpg does not exist"),
        (["run", "{bundle}", "{bundle}"], 1, "no image or video"),
        (["run", "{bundle}", "{photo}", "--runtime", "nonsense"], 2, "nonsense"),
        (["run", "{bundle}", "{photo}", "--precision", "fp64"], 2, "is offered in fp32, bf16"),
        (["run", "{bundle}", "{photo}", "--top-k", "99"], 2, "99"),
        (["run", "{bundle}", "{photo}", "--roi", "500,0,600,50"], 2, "roi"),
        (["run", "{bundle}", "{photo}", "--out", "{photo}"], 1, "cannot write"),
        (["run", "{bundle}", "{huge}"], 1, "possible decompression bomb"),
        (["run", "{failed}", "{photo}"], 3, "failed"),
        (["run", "{wrong}", "{photo}"], 3, "is 'failed' against the reference"),
        (["compile", "{wrong}"], 3, "is 'failed' against the reference"),
        (["compile", "{bundle}", "--target", "onnxruntime", "--out", "ir"], 2, "OpenVINO IR"),
        (["profile", "missing.vtx"], 2, "missing.vtx"),
        (["profile", "{bundle}", "missing.mp4"], 1, "missing.mp4 does not exist"),
        (["profile", "missing.vtx", "--out", "{photo}/p.json"], 1, "choose another --out"),
        (["profile", "missing.vtx", "--out", "missing/p.json"], 1, "there is no folder missing"),
        (["profile", "missing.vtx", "--out", "."], 1, "it is a folder"),
        (["families", "nonsense"], 2, "unknown family"),
        (["export", "nonsense", "--config", "x.json", "--out", "x.vtx"], 2, "unknown family"),
        (["export", "vit", "--checkpoint", "missing", "--out", "x.vtx"], 1, "missing"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    edgevtx_cli: Any,
    bundle: Path,
    wrong_bundle: Path,
    failed_bundle: Path,
    photo: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    huge = tmp_path / "huge.png"
    huge.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT")
    places = {"bundle": bundle, "wrong": wrong_bundle, "failed": failed_bundle, "photo": photo, "huge": huge}
    found = edgevtx_cli(*(item.format(**places) for item in arguments))
    assert words in sentence(found.stderr)
    assert found.exit_code == code, found.stderr
    assert found.stdout == ""


def test_debug_shows_the_traceback(edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevtx.errors import EdgevtxError

    with pytest.raises(EdgevtxError):
        edgevtx_cli("--debug", "info", "missing.vtx")
    monkeypatch.setenv("EDGEVTX_DEBUG", "1")
    with pytest.raises(EdgevtxError):
        edgevtx_cli("info", "missing.vtx")


def test_a_fault_of_ours_is_said_to_be_one(edgevtx_cli: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("edgevtx.bundle.Bundle.open", broken)
    found = edgevtx_cli("info", bundle)
    assert found.exit_code == 1
    assert "unexpected KeyError: 'surprise'" in sentence(found.stderr)


# -- info, verify, compile, cache ------------------------------------------------------------------------------


def test_info(edgevtx_cli: Any, bundle: Path) -> None:
    text = edgevtx_cli("info", bundle)
    assert text.exit_code == 0
    for words in ("colours", "toy (classify)", "exactly 48x32, bilinear", "3: blue, green, red", "Apache-2.0"):
        assert words in text.stdout
    facts = json.loads(edgevtx_cli("info", bundle, "--json").stdout)
    assert facts["labels"] == ["blue", "green", "red"] and len(facts["digest"]) == 64


def test_what_was_done_to_graphs_for_their_compilers_is_said_once() -> None:
    from io import StringIO

    from rich.console import Console

    from edgevtx.cli.common import graph_notes, print_notes
    from edgevtx.manifest import Graph

    facts: dict[str, Any] = {"target": "tensorrt", "variant": "", "versions": ">=10.3", "opset": 18}
    facts |= {"avoids": ("grid-sample-deformable",), "patterns": ("parallel-products",)}
    graphs = [
        Graph(file="graph.tensorrt.onnx", precisions=("fp32",), **facts),
        Graph(file="graph.tensorrt.fp16.onnx", precisions=("fp16",), kept_fp32=("decoder.1", "head"), **facts),
        Graph(file="graph.tensorrt.int8.onnx", precisions=("int8",), unquantised=("decoder.0", "neck"), **facts),
    ]
    out = StringIO()
    print_notes(Console(file=out, width=80), (note for graph in graphs for note in graph_notes(graph)))
    avoided, left, kept, unquantised = out.getvalue().splitlines()
    assert avoided.startswith("rewritten for tensorrt >=10.14: GridSample") and "NVIDIA/TensorRT#4813" in avoided
    assert left.startswith("may be wrong in tensorrt ==10.13.* on sm110: ") and left.endswith("golden sample fails")
    assert kept == "graph.tensorrt.fp16.onnx: keeps fp32 in decoder.1, head"
    assert unquantised == "graph.tensorrt.int8.onnx: keeps fp16 in decoder.0, neck"
    assert [*graph_notes(graphs[0], "10.14", "sm110")] == [avoided]
    assert [*graph_notes(graphs[0], "10.13", "sm110")] == [left] and not [*graph_notes(graphs[0], "10.13", "sm87")]


def test_verify_replays_the_golden_sample_on_every_runtime(edgevtx_cli: Any, bundle: Path) -> None:
    found = edgevtx_cli("verify", bundle)
    assert found.exit_code == 0, found.stderr
    assert "every hash is right" in found.stdout
    facts = json.loads(edgevtx_cli("verify", bundle, "--json").stdout)
    assert [(item["target"], item["status"]) for item in facts["verdicts"]] == [
        ("openvino", "passed-here"),
        ("onnxruntime", "passed-here"),
    ]
    one = json.loads(edgevtx_cli("verify", bundle, "--json", "--runtime", "onnxruntime").stdout)
    assert [item["target"] for item in one["verdicts"]] == ["onnxruntime"]


def test_verify_refuses_an_answer_that_differs(edgevtx_cli: Any, wrong_bundle: Path) -> None:
    found = edgevtx_cli("verify", wrong_bundle)
    assert found.exit_code == 3
    assert "failed" in found.stdout
    assert "openvino fp32, onnxruntime fp32" in sentence(found.stderr)


def test_verify_refuses_an_engine_in_another_precision(
    edgevtx_cli: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevtx.runtimes import ov

    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ov, "_work", lambda model: iter([("bf16", 1)]))  # what it says that it computed in
    found = edgevtx_cli("verify", bundle, "--json")
    assert found.exit_code == 3
    assert sentence(found.stderr).endswith("failed verification here on openvino fp32")
    facts = json.loads(found.stdout)
    verdicts = {item["target"]: item for item in facts["verdicts"]}
    assert {name: item["status"] for name, item in verdicts.items()} == {
        "openvino": "failed",
        "onnxruntime": "passed-here",
    }
    assert "computes 100% bf16" in verdicts["openvino"]["reason"] and not facts["skipped"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 0, ""),  # nobody named the runtime that is not installed
        (["--precision", "fp32"], 0, ""),
        (["--runtime", "openvino"], 1, "openvino was asked for and could not be run here"),
        (["--runtime", "openvino,onnxruntime"], 1, "openvino was asked for and could not be run here"),
        (["--runtime", "tensorrt"], 1, "no graph for tensorrt"),
        (["--precision", "bf16"], 1, "bf16 was asked for and could not be run here"),
        (["--precision", "fp32,bf16"], 1, "bf16 was asked for and could not be run here"),
        (["--runtime", "onnxruntime", "--precision", "bf16"], 1, "onnxruntime, bf16 was asked for"),
    ],
)
def test_verify_runs_what_is_named_or_fails(
    edgevtx_cli: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, words: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    found = edgevtx_cli("verify", bundle, *options)
    assert found.exit_code == code, found.stderr
    assert words in sentence(found.stderr) if words else "openvino was not run" in found.stdout


def test_verify_refuses_a_file_that_differs(edgevtx_cli: Any, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    assert edgevtx_cli("verify", folder).exit_code == 0
    graph = folder / "graph.openvino.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    found = edgevtx_cli("verify", folder)
    assert found.exit_code == 3
    assert "graph.openvino.onnx" in sentence(found.stderr)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_compile_fills_the_cache(
    edgevtx_cli: Any, bundle: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    refused = edgevtx_cli("run", bundle, bundle, "--runtime", target, "--compile", "never")
    assert refused.exit_code == 1
    first = json.loads(edgevtx_cli("compile", bundle, "--target", target, "--json").stdout)
    again = json.loads(edgevtx_cli("compile", bundle, "--target", target, "--json").stdout)
    forced = json.loads(edgevtx_cli("compile", bundle, "--target", target, "--json", "--force").stdout)
    assert [item["cache_hit"] for item in (first, again, forced)] == [False, True, False]
    assert first["runtime"] == target and first["verdict"] == "passed-here"
    assert sum(first["precision_share"].values()) == pytest.approx(1)
    text = edgevtx_cli("compile", bundle, "--target", target).stdout
    assert "hit: opened in" in text and "f32 100%" in text

    listed = json.loads(edgevtx_cli("cache", "list", "--json").stdout)
    assert {entry["kind"] for entry in listed["entries"]} == {"bundles", "engines"}
    assert "engines" in edgevtx_cli("cache", "list").stdout


def test_compile_writes_openvino_ir(edgevtx_cli: Any, bundle: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    found = edgevtx_cli("compile", bundle, "--target", "openvino", "--out", tmp_path / "ir")
    assert found.exit_code == 0, found.stderr
    model = openvino.Core().compile_model(tmp_path / "ir" / "colours.xml", "CPU")
    red = np.zeros((1, 32, 48, 3), np.uint8)
    red[..., 2] = 200
    assert model({"pixels": red})["class_ids"][0, 0] == 2
    refused = edgevtx_cli("compile", bundle, "--target", "openvino", "--out", tmp_path / "ir")
    assert refused.exit_code == 1 and "--overwrite" in sentence(refused.stderr)


def test_cache_clear(edgevtx_cli: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    assert "0 B" in edgevtx_cli("cache", "list").stdout
    assert edgevtx_cli("cache", "clear").exit_code == 0


# -- run -------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer(edgevtx_cli: Any, bundle: Path, photo: Path) -> None:
    found = edgevtx_cli("run", bundle, photo)
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith(f"{photo}  green ")
    assert "1 frame in" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--points", "5,5"], "takes no prompts; leave them out", 2),
        (["--points", "5"], "'5' is no point; write it as X,Y or X,Y,LABEL", 2),
        (["--boxes", "1,2,3"], "'1,2,3' is no box; write it as X0,Y0,X1,Y1", 2),
    ],
)
def test_run_refuses_prompts_that_it_cannot_use(
    edgevtx_cli: Any, bundle: Path, photo: Path, arguments: list[str], words: str, code: int
) -> None:
    found = edgevtx_cli("run", bundle, photo, *arguments)
    assert found.exit_code == code
    assert words in " ".join(found.stderr.replace("│", " ").split())


def test_run_says_what_it_runs_on(edgevtx_cli: Any, bundle: Path, photo: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    found = edgevtx_cli("run", bundle, photo, "--runtime", "onnxruntime", "--json")
    assert found.stderr.splitlines()[0] == f"colours: onnxruntime {onnxruntime.__version__} on CPU, fp32"
    assert edgevtx_cli("run", bundle, photo).stderr.startswith("colours: openvino ")


def test_run_names_every_file_of_a_folder_that_it_skipped(
    edgevtx_cli: Any, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    from edgevtx.images import write_image

    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photo, folder / "large.png")
    write_image(folder / "small.png", np.zeros((40, 40, 3), np.uint8))
    texts = [folder / f"{name}.txt" for name in ("a", "b", "c", "d")]
    for path in texts:
        path.write_text("hello")
    found = edgevtx_cli("run", bundle, folder, "--roi", "50,0,100,50", "--json")
    assert found.exit_code == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(row["frame"], row["source"], "result" in row) for row in rows] == [
        *((index, str(path), False) for index, path in enumerate(texts)),
        (4, str(folder / "large.png"), True),
        (5, str(folder / "small.png"), False),
    ]
    assert "roi" in rows[5]["error"] and "is not an image" in rows[0]["error"]
    assert "skipped 5 files" in found.stderr
    for path in [*texts, folder / "small.png"]:
        assert found.stderr.count(str(path)) == 1
    refused = edgevtx_cli("run", bundle, folder, "--roi", "500,0,600,50")
    assert refused.exit_code == 2 and "none of the 6 files" in sentence(refused.stderr)


def test_run_prints_json_lines(edgevtx_cli: Any, bundle: Path, clip: Path) -> None:
    found = edgevtx_cli("run", bundle, clip, "--json", "--limit", 20)
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [row["frame"] for row in rows] == list(range(20))
    best = [row["result"]["classes"][0]["label"] for row in rows]
    assert best == ["green"] * 15 + ["red"] * 5
    assert rows[10]["position_seconds"] == 1.0
    assert {"read", "preprocess", "engine", "decode"} == set(rows[0]["stages_ms"])


def test_run_writes_an_annotated_video_and_json_lines(
    edgevtx_cli: Any, bundle: Path, clip: Path, tmp_path: Path
) -> None:
    cv2 = pytest.importorskip("cv2")
    out = tmp_path / "out"
    found = edgevtx_cli("run", bundle, clip, "--out", out)
    assert found.exit_code == 0, found.stderr
    assert sorted(path.name for path in out.iterdir()) == ["annotated.mp4", "results.jsonl"]
    assert len((out / "results.jsonl").read_text().splitlines()) == 30
    capture = cv2.VideoCapture(str(out / "annotated.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 30
    assert f"wrote {out / 'results.jsonl'}" in found.stderr

    before = (out / "results.jsonl").read_bytes()
    refused = edgevtx_cli("run", bundle, clip, "--out", out)
    assert refused.exit_code == 1 and "--overwrite" in sentence(refused.stderr)
    assert (out / "results.jsonl").read_bytes() == before
    assert edgevtx_cli("run", bundle, clip, "--out", out, "--overwrite", "--limit", 3).exit_code == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 3


def test_run_writes_annotated_images(edgevtx_cli: Any, bundle: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(photo, folder / name)
    (folder / "readme.txt").write_text("hello")
    found = edgevtx_cli("run", bundle, folder, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "annotated").iterdir()) == ["a.png", "b.png"]
    assert f"skipped 1 file that could not be used:\n  {folder / 'readme.txt'} is not an image" in found.stderr
    lines = edgevtx_cli("run", bundle, folder, "--out", tmp_path / "lines", "--jsonl-only")
    assert lines.exit_code == 0
    assert [path.name for path in (tmp_path / "lines").iterdir()] == ["results.jsonl"]


def test_a_run_that_fails_to_load_leaves_nothing_in_the_way(
    edgevtx_cli: Any, failed_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    assert edgevtx_cli("run", failed_bundle, photo, "--out", tmp_path / "out").exit_code == 3
    again = edgevtx_cli("run", failed_bundle, photo, "--out", tmp_path / "out", "--allow-unverified")
    assert again.exit_code == 0, again.stderr


# -- profile, doctor, families, export -------------------------------------------------------------------------


def test_profile(edgevtx_cli: Any, bundle: Path, clip: Path, photo: Path, tmp_path: Path) -> None:
    sizes = ("--frames", 6, "--warmup", 2, "--size", "320x240")
    text = edgevtx_cli("profile", bundle, *sizes)
    assert text.exit_code == 0, text.stderr
    for words in ("preprocess", "engine", "decode", "p99", "cold start", "synthetic 320x240", "6 frames after 2"):
        assert words in text.stdout
    found = json.loads(edgevtx_cli("profile", bundle, *sizes, "--json", "--out", tmp_path / "p.json").stdout)
    assert found == json.loads((tmp_path / "p.json").read_text())
    assert {stage: times["n"] for stage, times in found["stages"].items()} == dict.fromkeys(
        ("preprocess", "engine", "decode", "total"), 6
    )
    video = json.loads(edgevtx_cli("profile", bundle, clip, "--frames", 50, "--warmup", 5, "--json").stdout)
    assert video["stages"]["read"]["n"] == 25  # the clip has 30 frames
    image = json.loads(edgevtx_cli("profile", bundle, photo, "--frames", 5, "--warmup", 1, "--json").stdout)
    assert image["stages"]["total"]["n"] == 5 and image["frame_size"] == [72, 108]


def test_profile_of_a_video_that_is_shorter_than_a_clip_says_so() -> None:
    from edgevtx.cli.profile import _in_clips
    from edgevtx.errors import InputError

    assert list(_in_clips(iter(range(7)), 3, "a.mp4")) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(InputError, match=r"a\.mp4 gave 2 frames, and the model takes clips of 3; give a longer video"):
        next(_in_clips(iter(range(2)), 3, "a.mp4"))


def test_profile_gives_its_source_back(
    edgevtx_cli: Any, bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevtx.stream.sources import Capture

    closed: list[str] = []
    monkeypatch.setattr(Capture, "close", lambda self: closed.append(self.name))
    assert edgevtx_cli("profile", bundle, clip, "--frames", 2, "--warmup", 1).exit_code == 0
    assert closed == [str(clip)]


def test_doctor(edgevtx_cli: Any, cache: Path) -> None:
    found = edgevtx_cli("doctor")
    assert found.exit_code == 0, found.stdout
    rows = json.loads(edgevtx_cli("doctor", "--json").stdout)
    names = {(row["area"], row["name"]): row for row in rows}
    assert names["runtimes", "openvino"]["level"] == "ok"
    assert "GStreamer" in names["video", "opencv"]["value"]
    assert names["base", "numpy"]["value"] == np.__version__
    assert names["cache", "folder"]["value"].startswith(str(cache))


def test_doctor_says_what_is_missing_and_what_helps(
    edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    from edgevtx.cli import doctor

    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = {(row.area, row.name): row for row in doctor.examine()}
    for place in (("video", "opencv"), ("runtimes", "openvino")):
        assert rows[place].level == "unusable" and "pip install" in rows[place].help
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    broken = edgevtx_cli("doctor")
    assert broken.exit_code == 1 and "no runtime is usable" in broken.stdout

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "file"))
    assert [row.level for row in doctor.examine() if row.area == "cache"] == ["broken"]


def test_doctor_refuses_versions_below_what_the_package_asks_for(
    edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevtx.cli import doctor

    asked = ["numpy>=99", 'openvino>=2999.0; extra == "openvino"', 'torch>=99; extra == "export"', "click>=8.1"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    rows = {(row.area, row.name): row for row in doctor.examine()}
    assert rows["base", "numpy"].level == "broken" and "needs >=99" in rows["base", "numpy"].value
    assert rows["runtimes", "openvino"].level == "unusable" and "pip install" in rows["runtimes", "openvino"].help
    assert rows["export", "torch"].level == "unusable"
    assert rows["base", "click"].level == rows["runtimes", "onnxruntime"].level == "ok"
    assert edgevtx_cli("doctor").exit_code == 1


def test_doctor_on_a_jetson(edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Programs that answer as a Jetson's do: no claim about a real one."""
    import sys

    from edgevtx.runtimes import host

    answers = {
        "dpkg-query": "6.2+b77",
        "nvpmodel": "NV Power Mode: 15W\n0",
        "nvcc": "Cuda compilation tools, release 12.6, V12.6.68\nBuild cuda_12.6",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3\nmore\n")
    monkeypatch.setattr(host, "TEGRA", tmp_path / "release")
    for package in ("pycuda", "tensorrt"):
        monkeypatch.setitem(sys.modules, package, None)
    found = json.loads(edgevtx_cli("doctor", "--json").stdout)
    rows = {row["name"]: row for row in found if row["area"] in ("nvidia", "runtimes")}
    assert rows["L4T"]["value"] == "# R36 (release), REVISION: 4.3"
    assert rows["CUDA"]["value"] == f"12.6, {tmp_path / 'nvcc'}"
    # JetPack's TensorRT, and no wheel that would hide it
    assert rows["tensorrt"]["level"] == "unusable" and "nvidia-jetpack" in rows["tensorrt"]["help"]
    assert "pip install" not in rows["tensorrt"]["help"]
    assert rows["JetPack"]["value"] == "6.2+b77"
    assert rows["power mode"]["value"] == "NV Power Mode: 15W 0"
    assert rows["pycuda"]["level"] == "unusable" and "nvcc" in rows["pycuda"]["help"]


def test_without_torch_the_export_verbs_name_the_extra(edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("edgevtx.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for arguments in (["families"], ["export", "vit", "--config", "x.json", "--out", "x.vtx"]):
        found = edgevtx_cli(*arguments)
        assert found.exit_code == 1
        assert 'pip install "edgevtx[export]"' in sentence(found.stderr)


def test_export_to_run(edgevtx_cli: Any, tmp_path: Path, photo: Path) -> None:
    from edgevtx.export.recipe import get_recipe

    (tmp_path / "config.json").write_text(json.dumps(next(iter(get_recipe("vit").tiny_config().values()))))
    out = tmp_path / "vit.vtx"
    arguments = ["export", "vit", "--config", tmp_path / "config.json", "--out", out, "--targets", "onnxruntime"]
    found = edgevtx_cli(*arguments, "--name", "tiny", "--licence", "MIT", "--intended-use", "tests")
    assert found.exit_code == 0, found.stderr
    assert found.stdout.count("passed-here") == 1 and str(out) in found.stdout
    facts = json.loads(edgevtx_cli("info", out, "--json").stdout)
    assert (facts["name"], facts["provenance"]["licence"]) == ("tiny", "MIT")
    assert edgevtx_cli("run", out, photo).exit_code == 0


def test_export_of_a_file_as_its_authors_publish_it(edgevtx_cli: Any, tmp_path: Path, photo: Path) -> None:
    import hashlib

    import torch

    from tests.export.replicas.vit import ViT
    from tests.export.replicas.weights import randomise

    tensors = randomise(ViT(width=192, heads=3, classes=5)).state_dict()
    file, out, labels = tmp_path / "vit.pth", tmp_path / "vit.vtx", tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    torch.save({"model": {**tensors, "adapter.weight": tensors["cls_token"]}}, file)
    arguments = ["export", "vit", "--checkpoint", file, "--out", out, "--targets", "onnxruntime", "--labels", labels]
    refused = edgevtx_cli(*arguments)
    assert refused.exit_code == 1 and "adapter.weight" in sentence(refused.stderr)
    found = edgevtx_cli(*arguments, "--allow-partial")
    assert found.exit_code == 0, found.stderr
    facts = json.loads(edgevtx_cli("info", out, "--json").stdout)
    assert facts["provenance"]["checkpoint"] == "vit.pth"
    assert facts["provenance"]["checkpoint_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert any("read as timm ViT and DeiT, from model" in note for note in facts["notes"])
    assert any("left out: adapter.weight" in note for note in facts["notes"])
    assert edgevtx_cli("run", out, photo).exit_code == 0


def test_an_export_that_is_refused_is_exit_code_3(
    edgevtx_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevtx.export import pipeline
    from edgevtx.export.recipe import get_recipe

    monkeypatch.setattr(pipeline, "measure_sensitivity", lambda *arguments: 0.0)
    (tmp_path / "config.json").write_text(json.dumps(next(iter(get_recipe("vit").tiny_config().values()))))
    arguments = ("export", "vit", "--config", tmp_path / "config.json", "--out", tmp_path / "vit.vtx")
    found = edgevtx_cli(*arguments, "--targets", "onnxruntime")
    assert found.exit_code == 3
    assert "insensitive" in found.stdout and "nothing was packed" in sentence(found.stderr)
    assert not (tmp_path / "vit.vtx").exists()
    kept = edgevtx_cli(*arguments, "--targets", "onnxruntime", "--keep-failed", "--json")
    assert kept.exit_code == 3 and (tmp_path / "vit.vtx").exists()
    assert "marked as failed in" in sentence(kept.stderr)
    report = json.loads(kept.stdout)
    assert report["bundle"] == str(tmp_path / "vit.vtx")
    assert report["refused"] == ["onnxruntime fp32"] and report["seconds"]
    assert [graph["file"] for graph in report["graphs"]] == ["graph.onnxruntime.onnx"]


@pytest.fixture
def onnx_graph(tmp_path: Path) -> Path:
    """A classifier of three classes by mean colour, as others publish theirs: float32 in, logits out."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    # unlike for every colour, or swapped ones could not be told
    weights = numpy_helper.from_array(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 1]], np.float32), "weights")
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", (1, 3, 32, 48)), ("logits", (1, 3)))
    ]
    graph = helper.make_graph(nodes, "colours", infos[:1], infos[1:], [weights])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "x.onnx")
    return tmp_path / "x.onnx"


def test_an_onnx_graph_is_exported_and_denoised(
    edgevtx_cli: Any, tmp_path: Path, photo: Path, onnx_graph: Path
) -> None:
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    out = tmp_path / "x.vtx"
    arguments = ["export", "onnx", "--graph", onnx_graph, "--decode", "classify", "--out", out, "--denoise", "lark"]
    numbers = ["--mean", "0", "--std", "0.3,0.3,0.3", "--scale", 1 / 255, "--labels", tmp_path / "labels.txt"]
    found = edgevtx_cli(*arguments, *numbers, "--targets", "onnxruntime")
    assert found.exit_code == 0, found.stdout
    facts = json.loads(edgevtx_cli("info", out, "--json").stdout)
    assert facts["preprocess"]["denoise"]["type"] == "lark" and facts["preprocess"]["std"] == [0.3, 0.3, 0.3]
    assert "denoised by lark (smoothing 1.8, window 5" in edgevtx_cli("info", out).stdout.replace("\n", " ")
    ran = edgevtx_cli("run", out, photo)
    assert ran.exit_code == 0 and "green" in ran.stdout.split()
    assert "denoise" in ran.stderr  # among the mean times of the stages
    assert "denoise" in edgevtx_cli("profile", out, "--frames", 2, "--warmup", 1).stdout
    record = json.loads(edgevtx_cli("run", out, photo, "--json").stdout)
    assert list(record["stages_ms"])[:4] == ["read", "preprocess", "denoise", "engine"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["onnx"], 2, "needs --graph FILE and --decode yolox|yolov5"),
        (["onnx", "--graph", "x.onnx"], 2, "needs --graph FILE and --decode"),
        (["onnx", "--graph", "x.onnx", "--decode", "detr", "--config", "c.json"], 2, "in place of --checkpoint"),
        (["vit", "--graph", "x.onnx", "--config", "c.json"], 2, "--graph belongs to the family onnx"),
        (["vit", "--shortest-edge", "9", "--config", "c.json"], 2, "--shortest-edge belongs to the family onnx"),
        (["onnx", "--graph", "absent.onnx", "--decode", "detr"], 1, "absent.onnx is no file"),
        (["onnx", "--graph", "x.onnx", "--decode", "detr", "--mean", "1,2"], 2, "neither one number nor three"),
        (["onnx", "--graph", "x.onnx", "--decode", "detr", "--size", "9"], 2, "is no size"),
        (["onnx", "--graph", "x.onnx", "--decode", "yolov5", "--anchors", "1,2,3"], 2, "a width and a height in px"),
        (["onnx", "--graph", "x.onnx", "--decode", "yolov5", "--anchors", "P5"], 2, "neither the word published nor"),
        (
            ["onnx", "--graph", "GRAPH", "--decode", "yolov5", "--anchors", "1,2/3,4"],
            2,
            "add --decode yolov5 --boxes raw",
        ),
        (["vit", "--anchors", "published", "--config", "c.json"], 2, "--anchors belongs to the family onnx"),
        (["onnx", "--graph", "GRAPH", "--decode", "yolox", "--resize", "pillow"], 2, "--resize pillow does not apply"),
        (["onnx", "--graph", "GRAPH", "--decode", "yolox"], 1, "gives logits [1, 3]; expected one output"),
        (["onnx", "--graph", "GRAPH", "--decode", "classify", "--labels", "coco"], 2, "80 labels were given"),
        (["onnx", "--graph", "GRAPH", "--decode", "classify", "--denoise", "blur"], 2, "unknown denoising 'blur'"),
        (["onnx", "--graph", "GRAPH", "--decode", "classify", "--denoise", "lark:window=2"], 2, "odd number of px"),
    ],
)
def test_wrong_options_of_an_onnx_graph(
    options: list[str], code: int, words: str, edgevtx_cli: Any, tmp_path: Path, onnx_graph: Path
) -> None:
    options = [str(onnx_graph) if item == "GRAPH" else item for item in options]
    found = edgevtx_cli("export", *options, "--out", tmp_path / "x.vtx")
    assert found.exit_code == code
    assert words in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "x.vtx").exists()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("published", "published"),
        ("10,13, 16,30.5/30,61,62,45", (((10, 13), (16, 30.5)), ((30, 61), (62, 45)))),
    ],
)
def test_anchors_are_read_level_by_level(given: str, read: Any) -> None:
    from edgevtx.cli.export import command

    context = command.make_context("export", ["onnx", "--anchors", given, "--out", "x.vtx"])
    assert context.params["anchors"] == read


def test_labels_file(tmp_path: Path) -> None:
    from edgevtx.cli.export import read_labels
    from edgevtx.errors import InputError

    path = tmp_path / "labels.txt"
    path.write_text("fire\nsmoke \n\n", encoding="utf-8")
    assert read_labels(path) == ("fire", "smoke")
    assert read_labels("coco")[5] == "bus" and len(set(read_labels("coco"))) == 80
    for text in ("", "a\n\nb\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="one class name a line"):
            read_labels(path)
    with pytest.raises(InputError, match="cannot read"):
        read_labels(tmp_path / "missing.txt")
