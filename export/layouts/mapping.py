"""What a layout is made of: a table of rules for tensor names, and what is read off a state dict's shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from edgevtx.errors import CheckpointError

Tensors = dict[str, torch.Tensor]

# how many tensors an error names before it stops
NAMED = 8


@dataclass(frozen=True)
class Rule:
    """Where an author's tensor goes: one row of a layout's table.

    `pattern` is the author's name, matched whole: `#` stands for a number, `~` for one that the target does not
    repeat, `@` for a word such as weight or bias. `targets` are the published names, in which `#` and `@` repeat what
    was found, in order. Several targets cut the tensor into as many equal parts along its first dimension (a fused
    query, key and value); none leaves it out. `change` is applied first.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    change: Callable[[torch.Tensor], torch.Tensor] | None = None

    @classmethod
    def table(cls, names: Mapping[str, str], *, prefix: str = "", target: str = "") -> tuple[Rule, ...]:
        """One rule for each pair of names, all behind a common `prefix` and `target`."""
        return tuple(cls(prefix + pattern, (target + name,)) for pattern, name in names.items())


def translate(rules: Sequence[Rule], tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors under their published names, and the names that no rule knows; the first rule that fits is taken."""
    patterns = [(_expression(rule.pattern), rule) for rule in rules]
    mapped: Tensors = {}
    unmapped = []
    for name, tensor in tensors.items():
        for pattern, rule in patterns:
            found = pattern.fullmatch(name)
            if found:
                _place(mapped, rule, found.groups(), tensor, name)
                break
        else:
            unmapped.append(name)
    return mapped, tuple(unmapped)


def _expression(pattern: str) -> re.Pattern[str]:
    marks = {r"\#": r"(\d+)", r"\~": r"\d+", "@": r"([A-Za-z_]\w*)"}
    return re.compile(re.sub(r"\\[#~]|@", lambda mark: marks[mark[0]], re.escape(pattern)))


def _place(mapped: Tensors, rule: Rule, found: Sequence[str], tensor: torch.Tensor, name: str) -> None:
    if not rule.targets:
        return
    tensor = tensor if rule.change is None else rule.change(tensor)
    parts = len(rule.targets)
    if parts > 1 and (tensor.ndim == 0 or tensor.shape[0] % parts):
        raise CheckpointError(
            f"the tensor {name} has the shape {list(tensor.shape)}, expected {parts} equal parts along its first "
            "dimension; the file is damaged or from another model"
        )
    for target, part in zip(rule.targets, tensor.chunk(parts) if parts > 1 else (tensor,), strict=True):
        numbers, words = (iter([text for text in found if text.isdigit() == kind]) for kind in (True, False))
        mapped[re.sub("[#@]", lambda mark: next(numbers if mark[0] == "#" else words), target)] = part  # noqa: B023


def listed(names: Collection[str]) -> str:
    """The first names of a collection in order, with dots where there are more."""
    return ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")


@dataclass(frozen=True)
class Source:
    """A state dict as its author published it, and what is known beside its tensors.

    `file` is the file's name, which tells variants apart that differ in no tensor; `wrapper` the key it was found
    under; `timm` the `config.json` that timm writes beside it; `config` what the user gave with `--config`; `classes`
    the names of its classes, where the file has them.
    """

    file: str
    tensors: Tensors = field(repr=False)
    wrapper: str = ""
    timm: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; raises `CheckpointError` where it is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.file} has no tensor {name}, which its layout needs; copy the file again")
        return tuple(self.tensors[name].shape)

    def count(self, prefix: str) -> int:
        """How many numbered members a list has: one more than the highest number that follows `prefix`."""
        numbers = [re.match(r"\d+", name[len(prefix) :]) for name in self.tensors if name.startswith(prefix)]
        return max((int(number[0]) + 1 for number in numbers if number), default=0)

    def told(self, key: str, value: int | None, why: str) -> int:
        """A number that no shape tells: the user's config, else the published variants' `value`.

        Raises `CheckpointError` where there is neither; `why` says what is unknown.
        """
        given = self.config.get(key, value)
        if given is None:
            raise CheckpointError(
                f"{self.file} {why}, so its {key} is unknown; give a config.json that has it with --config"
            )
        return int(given)


@dataclass(frozen=True)
class Reading:
    """What a layout reads off a source: the config and image processor as Hugging Face publishes them, and the rules.

    `added` are tensors that Hugging Face publishes and the author does not, because inference never reads them.
    """

    config: dict[str, Any]
    processor: dict[str, Any]
    rules: tuple[Rule, ...]
    notes: tuple[str, ...] = ()
    added: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A way of naming a family's tensors: `name` and where it comes from, the families that export it, how it is known.

    `matches` sees the names and tensors and nothing else; `read` may raise `CheckpointError`. `timm`: that timm
    publishes it, with a `config.json`; others may use the same names.
    """

    name: str
    families: tuple[str, ...]
    source: str
    matches: Callable[[Mapping[str, torch.Tensor]], bool]
    read: Callable[[Source], Reading]
    timm: bool = False


def has_all(*names: str, but: tuple[str, ...] = ()) -> Callable[[Mapping[str, torch.Tensor]], bool]:
    """Recognises a state dict that has all these names and none of `but`."""
    return lambda tensors: all(name in tensors for name in names) and not any(name in tensors for name in but)


def numbered(count: int) -> dict[str, str]:
    """`id2label` of classes without names: their numbers."""
    return {str(index): str(index) for index in range(count)}
