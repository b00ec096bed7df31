"""Plans on the command line: compiled for GPUs that are not here, written out, and read without one."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevtx.cli.plans import Made, write_plans
from edgevtx.runtimes.plan import read_plan
from edgevtx.runtimes.trt_inspect import executed_path

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")

RTX = ("--target", "tensorrt-rtx")


@pytest.fixture(scope="module")
def plans(
    rtx_bundle: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory, edgevtx_cli: Any
) -> tuple[Path, Any]:
    """The folder of the bundle's plans for two GPUs, and what the command that made them said."""
    folder = tmp_path_factory.mktemp("plans") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVTX_CACHE", str(cache))
        patch.setenv("COLUMNS", "200")
        return folder, edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86,sm120", "--out", folder)


def test_plans_for_gpus_that_are_not_here(plans: tuple[Path, Any], rtx_bundle: Path, edgevtx_cli: Any) -> None:
    folder, found = plans
    assert found.exit_code == 0, found.stderr
    names = [f"colours.tensorrt-rtx.{gpu}.fp32{suffix}" for gpu in ("sm86", "sm120") for suffix in (".plan", ".json")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert "not replayed here, but on the device with an sm86" in found.stdout
    assert "f32 100%" in found.stdout and "miss: compiled in" in found.stdout
    assert found.stdout.count("rewritten for tensorrt-rtx >=1.3: Attention as one operator") == 2  # one a plan
    assert "NVIDIA/TensorRT-RTX#26" in found.stdout
    again = json.loads(edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm120", "--json").stdout)
    assert [(plan["gpu"], plan["cache_hit"]) for plan in again["plans"]] == [("sm120", True)]


def test_info_reads_a_plan(plans: tuple[Path, Any], rtx_bundle: Path, edgevtx_cli: Any) -> None:
    path = plans[0] / "colours.tensorrt-rtx.sm86.fp32.plan"
    text = edgevtx_cli("info", path).stdout
    for word in ("colours", "sm86", "tensorrt-rtx 1.", "pixels uint8[1,32,48,3]", "f32 100%", "matrix multiply"):
        assert word in text
    facts = json.loads(edgevtx_cli("info", path, "--json").stdout)
    bundle = json.loads(edgevtx_cli("info", rtx_bundle, "--json").stdout)
    assert (facts["gpu"], facts["bundle"], facts["size"]) == ("sm86", bundle["digest"], path.stat().st_size)
    assert any(layer["work"] for layer in facts["layers"])


def test_info_shows_what_an_opened_plan_executes(plans: tuple[Path, Any], tmp_path: Path, edgevtx_cli: Any) -> None:
    source = plans[0] / "colours.tensorrt-rtx.sm86.fp32.plan"
    assert "not opened on its GPU yet" in edgevtx_cli("info", source).stdout
    opened = tmp_path / "engine.plan"
    opened.write_bytes(source.read_bytes())
    opened.with_suffix(".json").write_bytes(source.with_suffix(".json").read_bytes())
    made = [Made(opened, read_plan(opened), cache_hit=True)]
    kernel = {"name": "n", "kind": "gemm", "type": "f32", "tactic": "ampere_sgemm_64x64_tn", "multiplies": True}
    executed = {"share": {"f32": 1.0}, "kernels": [kernel], "plan": made[0].record.sha256}
    executed_path(opened).write_text(json.dumps(executed))
    (tmp_path / "out").mkdir()
    write_plans(made, tmp_path / "out", overwrite=False)
    copied = tmp_path / "out" / source.name
    text = edgevtx_cli("info", copied).stdout
    assert "kind of kernel" in text and "gemm" in text and "not opened" not in text
    facts = json.loads(edgevtx_cli("info", copied, "--json").stdout)
    assert facts["executed"]["share"] == {"f32": 1.0}
    executed_path(opened).unlink()
    write_plans(made, tmp_path / "out", overwrite=True)
    assert "not opened on its GPU yet" in edgevtx_cli("info", copied).stdout


def test_info_refuses_a_damaged_plan(plans: tuple[Path, Any], tmp_path: Path, edgevtx_cli: Any) -> None:
    for source in plans[0].glob("*sm86*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    path = tmp_path / "colours.tensorrt-rtx.sm86.fp32.plan"
    path.write_bytes(path.read_bytes()[:-1])
    found = edgevtx_cli("info", path)
    assert found.exit_code == 1 and "it was damaged or replaced; compile the bundle again" in found.stderr
    path.with_suffix(".json").write_text('{"schema": "1.0"')
    found = edgevtx_cli("info", path)
    assert found.exit_code == 1 and "is no record of a plan" in found.stderr
    path.with_suffix(".json").unlink()
    found = edgevtx_cli("info", path)
    assert found.exit_code == 2 and "keep the two together" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([*RTX, "--gpu", "sm87"], 1, "compiles for sm75, sm80"),
        ([*RTX, "--gpu", "sm86", "--precision", "fp16"], 3, "was never verified on tensorrt-rtx at fp16"),
        (["--target", "openvino", "--gpu", "sm86"], 2, "--memory-mb and --adopt are for tensorrt and tensorrt-rtx"),
        (["--target", "onnxruntime", "--workspace-mb", "64"], 2, "--memory-mb and --adopt are for"),
        (["--target", "openvino", "--frame", "64x48"], 2, "--memory-mb and --adopt are for"),
        (["--target", "tensorrt", "--gpu", "sm86"], 1, "no graph for tensorrt"),
        ([*RTX, "--gpu", "sm86", "--batch", "4"], 2, "exported for batches of 1, so --batch chooses nothing"),
        ([*RTX, "--gpu", "sm86", "--frame", "640x480"], 2, "takes one size, 48x32, so --frame chooses nothing"),
        ([*RTX, "--gpu", "sm86", "--frame", "640"], 2, "write it as WIDTHxHEIGHT"),
        ([*RTX, "--gpu", "sm86", "--precision", "fp8"], 2, "offered in fp32, fp16, bf16, int8, and 'fp8' was asked"),
        ([*RTX, "--gpu", "sm86", "--workspace-mb", "17592186044416"], 2, "is not in the range 1<=x<="),
        ([*RTX, "--gpu", "sm86", "--batch", "99999999999999999999999"], 2, "is not in the range 1<=x<="),
        ([*RTX, "--gpu", "sm86", "--threads", "3"], 2, "leave out --device, --threads and --providers"),
        ([*RTX, "--gpu", "sm86", "--device", "GPU.7"], 2, "leave out --device, --threads and --providers"),
        ([*RTX, "--preflight", "--out", "x"], 2, "--preflight compiles nothing"),
        ([*RTX, "--preflight", "--threads", "3"], 2, "--preflight compiles nothing"),
    ],
    ids=[
        "gpu",
        "precision",
        "openvino",
        "onnxruntime",
        "frames",
        "no graph",
        "batch",
        "size",
        "no size",
        "no precision",
        "huge workspace",
        "huge batch",
        "threads",
        "device",
        "preflight",
        "preflight beside threads",
    ],
)
def test_what_cannot_be_compiled_is_said(
    arguments: list[str], code: int, words: str, rtx_bundle: Path, edgevtx_cli: Any
) -> None:
    found = edgevtx_cli("compile", rtx_bundle, *arguments)
    assert found.exit_code == code and words in found.stderr


def test_a_precision_that_has_no_graph_is_not_had_by_insisting(rtx_bundle: Path, edgevtx_cli: Any) -> None:
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--precision", "int8")
    assert found.exit_code == 3 and "export it with --precisions int8" in found.stderr
    assert "allow" not in found.stderr


def test_plans_that_are_there_are_told_before_anything_is_compiled(
    plans: tuple[Path, Any], rtx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgevtx_cli: Any
) -> None:
    def compile_nothing(*arguments: Any, **options: Any) -> Any:
        pytest.fail("it compiles")

    monkeypatch.setattr("edgevtx.cli.plans.prepare_engine", compile_nothing)
    record = "colours.tensorrt-rtx.sm86.fp32.json"
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / record).write_bytes((plans[0] / record).read_bytes())
    for folder, name in ((plans[0], "sm86.fp32.plan"), (tmp_path / "record", "sm86.fp32.json")):
        found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--force", "--out", folder)
        assert found.exit_code == 1 and f"{name} exists" in found.stderr


def test_a_plan_that_a_cache_for_reading_has_is_not_compiled_again(
    plans: tuple[Path, Any], rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch, edgevtx_cli: Any
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr("edgevtx.cache.tempfile.TemporaryFile", refuse)
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86")
    assert found.exit_code == 0 and "hit" in found.stdout
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--force")
    assert found.exit_code == 1 and "the file system is read-only" in found.stderr


def test_a_name_never_leads_out_of_the_folder(plans: tuple[Path, Any], tmp_path: Path) -> None:
    source = plans[0] / "colours.tensorrt-rtx.sm86.fp32.plan"
    record = msgspec.structs.replace(read_plan(source), name="../../evil")
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    written = write_plans([Made(source, record, cache_hit=True)], folder, overwrite=False)
    assert [path.parent for path in written] == [folder, folder] and all(path.is_file() for path in written)
    assert sorted(tmp_path.rglob("*evil*")) == sorted(written)


def test_brackets_in_a_path_are_no_markup(rtx_bundle: Path, tmp_path: Path, edgevtx_cli: Any) -> None:
    folder = tmp_path / "mk[red]up[" / "x]"
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--out", folder)
    assert found.exit_code == 0 and f"wrote {folder}/colours" in found.stdout.replace("\n", "")


@pytest.mark.parametrize("more", [(), ("--adopt", "PLAN")], ids=["compile", "adopt"])
def test_what_nothing_would_keep_is_not_compiled(
    more: tuple[str, ...], shipped: Path, rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch, edgevtx_cli: Any
) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE", "/proc/edgevtx")
    more = tuple(str(shipped) if word == "PLAN" else word for word in more)
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", *more)
    assert found.exit_code == 1 and "what is compiled would be lost; set EDGEVTX_CACHE" in found.stderr
    assert "Traceback" not in found.stderr and "goes with this process" not in found.stderr
    if not more:  # what --out has is kept
        assert edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--out", shipped.parent / "o").exit_code == 0


def test_what_is_asked_of_a_plan_is_in_its_record(
    rtx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgevtx_cli: Any
) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    command = ("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--json")
    first, other, again = (
        json.loads(edgevtx_cli(*command, *more).stdout)["plans"][0]
        for more in ((), ("--workspace-mb", "64", "--memory-mb", "4000"), ())
    )
    assert [item["cache_hit"] for item in (first, other, again)] == [False, False, True]
    assert again["asked"] == {"batch": None, "frames": [], "workspace_mb": 64}
    assert (again["workspace_mb"], again["memory_mb"]) == (64, 4000)
    assert 0 < again["builder_host_mb"] <= 4000


# -- from one machine to another -------------------------------------------------------------------------------


@pytest.fixture
def shipped(plans: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan for sm86 with its record, on a machine whose cache is empty."""
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    for source in plans[0].glob("*sm86*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / "colours.tensorrt-rtx.sm86.fp32.plan"


def test_a_plan_from_another_machine_is_adopted(shipped: Path, rtx_bundle: Path, edgevtx_cli: Any) -> None:
    found = edgevtx_cli("compile", rtx_bundle, "--adopt", shipped, "--gpu", "sm86")
    assert found.exit_code == 0, found.stderr
    assert "not replayed here, but on the device with an sm86" in found.stdout
    (plan,) = json.loads(edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--json").stdout)["plans"]
    assert plan["cache_hit"] and Path(plan["path"]).read_bytes() == shipped.read_bytes()


def change(plan: Path, **facts: Any) -> None:
    path = plan.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.mark.parametrize(
    ("harm", "gpu", "code", "words"),
    [
        (lambda plan: plan.write_bytes(plan.read_bytes()[:-1]), "sm86", 1, "it was damaged or replaced"),
        (lambda plan: plan.with_suffix(".json").unlink(), "sm86", 2, "keep the two together"),
        (lambda plan: plan.with_suffix(".json").write_text("{"), "sm86", 1, "is no record of a plan"),
        (lambda plan: None, "sm120", 1, "was compiled for sm86, and the GPU here is sm120; compile it for this one"),
        (lambda plan: change(plan, target_version="1.6.0"), "sm86", 1, "compiled by tensorrt-rtx 1.6.0, and 1."),
        (lambda plan: change(plan, bundle="ab" * 32), "sm86", 1, "from the bundle abababababab, and this one is"),
        (lambda plan: change(plan, graph="graph.other.onnx"), "sm86", 1, "was compiled from graph.other.onnx"),
        (lambda plan: change(plan, target="tensorrt"), "sm86", 1, "is for tensorrt, but tensorrt-rtx was to"),
        (lambda plan: change(plan, name="../else"), "sm86", 1, "does not say of the model what the bundle says"),
        (lambda plan: change(plan, part="decoder"), "sm86", 1, "does not say of the network what the bundle says"),
        (lambda plan: change(plan, graph_sha256="ab"), "sm86", 1, "does not say of the graph what the bundle says"),
        (lambda plan: change(plan, inputs=[]), "sm86", 1, "does not say of inputs what the bundle says"),
        (lambda plan: change(plan, outputs=[]), "sm86", 1, "does not say of outputs what the bundle says"),
        (lambda plan: change(plan, asked={"batch": -1}), "sm86", 1, "at least 1, and not: --batch -1"),
    ],
    ids=[
        "damaged",
        "no record",
        "half a record",
        "gpu",
        "version",
        "bundle",
        "graph",
        "target",
        "name",
        "part",
        "graph's hash",
        "inputs",
        "outputs",
        "asked",
    ],
)
def test_a_plan_that_does_not_belong_here_is_not_adopted(
    harm: Any, gpu: str, code: int, words: str, shipped: Path, rtx_bundle: Path, edgevtx_cli: Any
) -> None:
    harm(shipped)
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--adopt", shipped, "--gpu", gpu)
    assert found.exit_code == code and words in found.stderr
    assert not list((shipped.parent / "cache").glob("engines/*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "2"), "--adopt takes plans as they are and compiles nothing"),
        (("--precision", "fp32"), "--adopt takes plans as they are and compiles nothing"),
        (("--gpu", "sm86,sm120"), "a plan is for one GPU, and --gpu names 2"),
        (("--target", "openvino"), "--adopt are for tensorrt and tensorrt-rtx, and --target is openvino"),
    ],
    ids=["batch", "precision", "gpus", "target"],
)
def test_what_does_not_go_with_adopting(
    options: tuple[str, ...], words: str, shipped: Path, rtx_bundle: Path, edgevtx_cli: Any
) -> None:
    found = edgevtx_cli("compile", rtx_bundle, "--adopt", shipped, *options)
    assert found.exit_code == 2 and words in found.stderr


def test_info_says_whether_a_plan_is_of_a_bundle(
    shipped: Path, rtx_bundle: Path, bundle: Path, edgevtx_cli: Any
) -> None:
    assert edgevtx_cli("info", shipped, "--bundle", rtx_bundle).exit_code == 0
    found = edgevtx_cli("info", shipped, "--bundle", bundle)
    assert found.exit_code == 1 and "the plan of colours was compiled from the bundle" in found.stderr
    found = edgevtx_cli("info", rtx_bundle, "--bundle", bundle)
    assert found.exit_code == 2 and "--bundle is for plans" in found.stderr


def test_plans_are_not_overwritten_unasked(plans: tuple[Path, Any], rtx_bundle: Path, edgevtx_cli: Any) -> None:
    command = ("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--out", plans[0])
    found = edgevtx_cli(*command)
    assert found.exit_code == 1 and "--overwrite" in found.stderr
    assert edgevtx_cli(*command, "--overwrite").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(rtx_bundle: Path, tmp_path: Path, edgevtx_cli: Any) -> None:
    tmp_path.chmod(0o500)
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--out", tmp_path / "plans")
    assert found.exit_code == 1 and "permission" in found.stderr


def test_a_folder_that_is_a_file(rtx_bundle: Path, tmp_path: Path, edgevtx_cli: Any) -> None:
    (tmp_path / "plans").write_text("in the way")
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--out", tmp_path / "plans")
    assert found.exit_code == 1 and "cannot write" in found.stderr


@pytest.mark.parametrize("gpu", ["sm_86", "8.6", "SM86", "rtx4090", "sm999"])
def test_an_architecture_by_another_name_is_refused_with_the_names_there_are(
    gpu: str, rtx_bundle: Path, edgevtx_cli: Any
) -> None:
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", gpu)
    assert (found.exit_code, found.stdout) == (1, "")
    assert f"compiles for sm75, sm80, sm86, sm89, sm120, sm121, but {gpu} was asked for; choose one" in found.stderr


def test_of_several_architectures_none_is_compiled_where_one_is_unknown(
    rtx_bundle: Path, tmp_path: Path, edgevtx_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    found = edgevtx_cli("compile", rtx_bundle, *RTX, "--gpu", "sm86,sm87", "--out", tmp_path / "plans")
    assert found.exit_code == 1 and "sm87 was asked for" in found.stderr
    assert nothing_was_made(tmp_path)


def nothing_was_made(folder: Path) -> bool:
    """Whether neither `folder`/plans nor the cache, `folder`/cache, holds a plan."""
    from edgevtx import cache

    return not list((folder / "plans").iterdir()) and not [item for item in cache.entries() if item.kind == "engines"]


def test_ctrl_c_ends_the_compiler_too(
    rtx_bundle: Path, edgevtx_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    process = edgevtx_process("compile", rtx_bundle, *RTX, "--gpu", "sm86", "--out", tmp_path / "plans")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (workers := children.read_text().split()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and output == b""
    assert errors.decode().strip().endswith("edgevtx: stopped") and b"Traceback" not in errors
    until = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert nothing_was_made(tmp_path)
