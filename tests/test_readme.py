"""What README, docs and error messages show works: Python blocks run, commands parse, links and pictures are there."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from edgevtx.cli import VERBS, cli
from edgevtx.images import write_image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "samples").glob("*/README.md"))]
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> Iterator[tuple[str, str]]:
    """(page, arguments) of every `edgevtx ...` line in a block or between backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in FENCED.findall(text):
            for line in re.findall(r"^(?:\S*/)?edgevtx +(.+)$", block, re.M):
                yield page.name, line.split("  #")[0].split("|")[0]
        for line in re.findall(r"`edgevtx ([^`]+)`", FENCED.sub("", text)):
            yield page.name, " ".join(line.split())


def parse(arguments: str) -> None:
    """Parse a command without running it; click's own error says what is wrong."""
    words = shlex.split(arguments)
    if any(word in ("...", "--help") for word in words):
        return
    command: click.Command | None = cli
    context = click.Context(cli, info_name="edgevtx")
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        command = command.get_command(context, name)
        assert command is not None, f"there is no `edgevtx {name}`"
        context = click.Context(command, info_name=name, parent=context)
    assert command is not None
    if words:
        command.make_context(context.info_name, words, parent=context.parent)


@pytest.mark.parametrize(("page", "arguments"), sorted(set(commands())))
def test_every_command_shown_parses(page, arguments):
    parse(arguments)


def messages() -> Iterator[tuple[str, str]]:
    """(file, text) of every string in the sources but docstrings, with NAME for what a format string fills in."""
    for path in sorted({path.resolve() for folder in SOURCES for path in (ROOT / folder).resolve().rglob("*.py")}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "NAME" for part in node.values)
                yield path.name, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | prose:
                yield path.name, node.value


SOURCES = ("edgevtx", "edgevtx/export", "edgevtx/runtimes")  # the last two may be links
# pip's, apt's, docker's, nvidia-smi's, venv's
OTHERS = {"--force-reinstall", "--no-cache-dir", "--no-deps", "--upgrade", "--reinstall", "--runtime", "--query-gpu"}
OTHERS |= {"--format", "--system-site-packages"}
COMMAND = re.compile(r"(?:with|with:|by|run|`) ?edgevtx ([a-z]+(?: [^;,`()]*--[^;,`()]*| [a-z]+(?=[;,`)]|$))?)")


def suggested() -> list[tuple[str, str]]:
    """(file, arguments) of every command that a message suggests: to the end of the clause where options follow."""
    return sorted({(name, found.strip()) for name, text in messages() for found in COMMAND.findall(text)})


@pytest.mark.parametrize(("source", "arguments"), suggested())
def test_every_command_suggested_parses(source, arguments):
    parse(arguments)


def test_commands_are_found_in_messages():
    found = [arguments for _, arguments in suggested()]
    assert "compile NAME --target NAME --device NAME --precision NAME" in found
    assert any(arguments.startswith("export NAME --checkpoint PATH --out NAME --targets") for arguments in found)


def test_every_option_that_a_message_names_exists():
    commands = [cli, *(cli.get_command(click.Context(cli), verb) for verb in VERBS)]
    known = {"--help", *OTHERS, *(name for command in commands for option in command.params for name in option.opts)}
    for source, text in messages():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            assert option in known, f"{source} names {option}: {text}"


def test_the_check_of_commands_can_fail():
    with pytest.raises(click.UsageError):
        parse("run fire.vtx clip.mp4 --no-such-option")
    with pytest.raises(AssertionError):
        parse("fly fire.vtx")


def test_the_readme_shows_every_verb_of_daily_use():
    shown = {arguments.split()[0] for page, arguments in commands() if page == "README.md"}
    assert shown >= set(VERBS) - {"cache"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").rglob("*.jpg"))
    assert pictures and all(path.stat().st_size <= 150_000 for path in pictures)


@pytest.fixture
def workplace(tmp_path: Path, fire_bundle: Path) -> Path:
    """A folder with the files that the pages' examples name."""
    from edgevtx.export.samples import load_photos

    shutil.copyfile(fire_bundle, tmp_path / "fire.vtx")
    write_image(tmp_path / "photo.jpg", load_photos(None)[0].frame)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (page.name, code)
        for page in (ROOT / "README.md", ROOT / "docs" / "bundle.md")
        for code in blocks(page, "python")
    ],
)
def test_python_examples_run(page, code, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    exec(compile(code, page, "exec"), {"__name__": "__main__", "np": np})
    assert capsys.readouterr().out.count("\n") >= 2


def test_the_readmes_example_is_short():
    (example,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


def test_counts_of_the_routes_are_those_of_the_file():
    report = json.loads((ROOT / "bench" / "results" / "routes.json").read_text(encoding="utf-8"))
    verdicts = [item["verdict"] for item in report["demands"]]
    row = next(line for line in PAGES[0].read_text(encoding="utf-8").splitlines() if line.endswith("(`routes`) |"))
    sure, open_ = verdicts.count("met"), verdicts.count("met, within noise")
    assert f"{len(verdicts)} pairs" in row
    assert f"{sure + open_} meet it, {sure} of them with their whole interval" in row
