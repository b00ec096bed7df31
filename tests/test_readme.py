"""What README and docs show works: the Python block runs, every command parses, every link and picture is there."""

from __future__ import annotations

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
    pictures = list((ROOT / "docs" / "images").iterdir())
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
