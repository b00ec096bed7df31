"""What every benchmark shares: the machine, interleaved timing, ratios with their confidence, tables and files.

A benchmark is a script that prints its tables and writes them to `bench/results/NAME.json` and `NAME.md`. Where two
things are compared they are interleaved in one run and the ratio of pairs is reported, since a machine's speed drifts
by more than the differences that matter.

Bundles, engines, checkpoints and clips go to `EDGEVTX_BENCH_DIR` (default: a folder under the system's temporary one).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
FOLDER = Path(os.environ.get("EDGEVTX_BENCH_DIR") or Path(tempfile.gettempdir()) / "edgevtx-bench")

sys.path.insert(0, str(ROOT))  # benchmarks run from a checkout, installed or not
os.environ.setdefault("EDGEVTX_CACHE", str(FOLDER / "cache"))  # the user's own cache stays as it is

Times = NDArray[np.float64]

# -- timing ----------------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object]) -> float:
    """How long one call took."""
    start = perf_counter()
    work()
    return 1e3 * (perf_counter() - start)


def interleave(
    work: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3, seconds: float | None = None
) -> dict[str, Times]:
    """Time each of `work` once a round: milliseconds (rounds,) by name; row i of all names is one moment's pair.

    Every second round goes backwards, so that no name always follows the same other one. Once `seconds` are over no
    further round begins, except for the first seven.
    """
    names = list(work)
    for _ in range(warmup):
        for name in names:
            work[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    start = perf_counter()
    for index in range(rounds):
        if seconds is not None and index >= 7 and perf_counter() - start > seconds:
            break
        for name in names if index % 2 == 0 else reversed(names):
            found[name].append(milliseconds(work[name]))
    return {name: np.array(times) for name, times in found.items()}


@dataclass(frozen=True)
class Ratio:
    """The median of the pairs' ratios and its 95% confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(numerator: Sequence[float] | Times, denominator: Sequence[float] | Times, samples: int = 4000) -> Ratio:
    """Median of numerator[i] / denominator[i], with the percentile bootstrap over the pairs (Efron, 1979)."""
    pairs = np.asarray(numerator, float) / np.asarray(denominator, float)
    return Ratio(float(np.median(pairs)), *_interval(pairs, samples))


def _interval(values: Times, samples: int) -> tuple[float, float]:
    random = np.random.default_rng(0)
    medians = np.median(values[random.integers(0, len(values), (samples, len(values)))], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)


def quantiles(times: Sequence[float] | Times) -> dict[str, float]:
    """Median, 95th percentile, smallest and largest: no outlier is dropped."""
    median, p95 = np.percentile(times, (50, 95))
    return {"median": float(median), "p95": float(p95), "min": float(np.min(times)), "max": float(np.max(times))}


def in_fresh_process(script: Path | str, *arguments: str, code: bool = False) -> Any:
    """Run a script (or `code`) with this interpreter and return the JSON value on its last line of output."""
    command = [sys.executable, "-c", str(script)] if code else [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# -- reports ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demand:
    """A figure that the project holds itself to, and what was found. `limit` reads "<= 8" or ">= 0.93".

    `interval` is the 95% interval of a figure that has one: a limit inside it is neither met nor missed for sure.
    """

    what: str
    limit: str
    found: float
    interval: tuple[float, float] | None = None

    def allows(self, value: float) -> bool:
        """Whether a figure keeps to the limit."""
        sign, limit = self.limit.split()
        return value <= float(limit) if sign == "<=" else value >= float(limit)

    @property
    def verdict(self) -> str:
        """ "met" or "missed", by the figure; and whether its interval says so too: "met, within noise"."""
        word = "met" if self.allows(self.found) else "missed"
        sure = all(self.allows(end) == self.allows(self.found) for end in self.interval or ())
        return word if sure else f"{word}, within noise"


@dataclass
class Table:
    """Rows under named columns; cells are numbers or text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)


@dataclass
class Report:
    """A benchmark's outcome. `settings` holds rounds, warm-up and whatever else shaped the figures; `raw` the times."""

    name: str
    title: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    load_before: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))

    def table(self, title: str, *columns: str) -> Table:
        """A new table of this report."""
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def demand(self, what: str, limit: str, found: float | Ratio) -> None:
        """Record a demand and what was found."""
        if isinstance(found, Ratio):
            self.demands.append(
                Demand(what, limit, round(found.median, 4), (round(found.low, 4), round(found.high, 4)))
            )
        else:
            self.demands.append(Demand(what, limit, round(found, 4)))

    def keep_others(self, names: Sequence[str], folder: Path) -> None:
        """Take over what an earlier run in `folder` found for others than `names`, if machine and versions are equal.

        What a row, a demand, a note or raw times are about is in their first words: names are one ("vit_b16_224") or
        more of them ("vit_b16_224 openvino fp32"). The earlier come first.
        """
        file = folder / f"{self.name}.json"
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if earlier.get("machine") != machine() or earlier.get("versions") != versions():
            return

        def other(text: str) -> bool:
            return not any(re.match(rf"{re.escape(name)}(?![\w.-])", text) for name in names)

        for table, old in zip(self.tables, earlier["tables"], strict=True):
            table.rows = [tuple(row) for row in old["rows"] if other(" ".join(map(str, row)))] + table.rows
        keep = [{**item} for item in earlier["demands"] if other(item["what"])]
        for item in keep:
            item.pop("verdict", None)
        self.demands = [Demand(**item) for item in keep] + self.demands
        self.raw = {**{key: value for key, value in earlier["raw"].items() if other(key)}, **self.raw}
        self.notes = [note for note in earlier["notes"] if other(note)] + self.notes
        if keep:
            self.settings["date"] = f"some rows are of an earlier run, last {earlier['date']}"

    def finish(self, folder: Path = RESULTS) -> None:
        """Print the tables and write them."""
        self.write(folder)
        self._print()

    def write(self, folder: Path = RESULTS) -> None:
        """Write what there is so far as NAME.json and NAME.md."""
        folder.mkdir(parents=True, exist_ok=True)
        data = {**asdict(self), "machine": machine(), "versions": versions(), "date": _today()}
        data["demands"] = [{**asdict(item), "verdict": item.verdict} for item in self.demands]
        (folder / f"{self.name}.json").write_text(json.dumps(_plain(data), indent=1) + "\n", encoding="utf-8")
        (folder / f"{self.name}.md").write_text(self._markdown(), encoding="utf-8")

    def _print(self) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        console = Console()
        for table in self.tables:
            shown = RichTable(title=table.title, title_justify="left")
            for index, column in enumerate(table.columns):
                shown.add_column(column, justify="left" if index == 0 else "right")
            for row in table.rows:
                shown.add_row(*map(_cell, row))
            console.print(shown)
        for item in self.demands:
            colour = {"met": "green", "missed": "red"}.get(item.verdict, "yellow")
            console.print(
                f"[{colour}]{item.verdict}[/]: {item.what}: {_cell(item.found)} ({item.limit})", highlight=False
            )
        for note in self.notes:
            console.print(f"- {note}", highlight=False, markup=False)

    def _markdown(self) -> str:
        lines = [f"# {self.title}", "", _facts(self.load_before), ""]
        lines += ["Settings: " + ", ".join(f"{key} {value}" for key, value in self.settings.items()) + ".", ""]
        for table in self.tables:
            lines += [f"## {table.title}", "", _row(table.columns), _row(["---"] * len(table.columns))]
            lines += [_row(map(_cell, row)) for row in table.rows] + [""]
        if self.demands:
            lines += ["## Held to", "", _row(["demand", "limit", "found", ""]), _row(["---"] * 4)]
            for item in self.demands:
                word = item.verdict if item.verdict.startswith("met") else f"**{item.verdict}**"
                lines.append(_row([item.what, item.limit, _cell(item.found), word]))
            lines.append("")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"


def machine() -> dict[str, Any]:
    """System, processor, cores and memory; of the kernel's name the number alone, the rest is its builder's."""
    from edgevtx.profile.machine import describe

    found = describe()
    return {**found, "system": re.sub(r"(\d)[-+]\S*", r"\1", found["system"])}


def versions() -> dict[str, str]:
    """The installed versions of everything that a benchmark may use."""
    from importlib import metadata

    from edgevtx.profile.machine import versions as runtime_versions

    found = runtime_versions()
    for name in ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "openvino-model-api"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _facts(load: float) -> str:
    here = machine()
    parts = [str(here.get(key)) for key in ("processor", "cpu_features", "system") if here.get(key)]
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"{_today()}: {parts[0]}, {here['cores']} cores, {here.get('memory_gb', '?')} GB ({'; '.join(parts[1:])}); "
        f"Python {here['python']}, {packages}. Load average before the run: {load}."
    )


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "–" if value is None else str(value)


def _plain(value: Any) -> Any:
    """JSON-ready: numpy arrays and scalars as lists and numbers, long fractions cut."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}")
    return value.item() if isinstance(value, np.generic) else str(value) if isinstance(value, Path) else value


# -- pictures --------------------------------------------------------------------------------------------------


def photographs(size: tuple[int, int] = (1080, 1920)) -> list[NDArray[np.uint8]]:
    """scikit-image's photographs, cut and scaled to `size` (height, width): frames (H,W,3) uint8 BGR."""
    from PIL import Image, ImageOps
    from skimage import data

    found = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)())
        fitted = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
        found.append(np.ascontiguousarray(np.asarray(fitted)[..., ::-1]))
    return found


def threshold_for(predictor: Any, frames: list[NDArray[np.uint8]], count: int) -> float:
    """The threshold at which a detector keeps about `count` results a frame.

    Random weights score hundreds of queries above 0.5, which no trained detector does: their decoding and their JSON
    would be timed for a scene that does not occur.
    """
    found = [np.sort(predictor(frame, threshold=0.0).scores)[::-1] for frame in frames]
    return float(np.median([scores[min(count, len(scores)) - 1] for scores in found if len(scores)] or [0.5]))
