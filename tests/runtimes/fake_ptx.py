"""Executes a kernel's text in PTX over the fake memory: those instructions that ours have, all threads in step.

It holds what the text says. What a GPU's compiler makes of it is shown by tests/gpu alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def _wrapped(value: Any) -> Any:
    """A sum or product of 32 bits."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


_COMPUTED: dict[str, Callable[..., Any]] = {
    "mov.u32": lambda a: a,
    "cvt.u64.u32": lambda a: a,
    "cvt.s64.s32": lambda a: a,
    "cvta.to.global.u64": lambda a: a,
    "mad.lo.u32": lambda a, b, c: _wrapped(a * b + c),
    "mad.lo.s32": lambda a, b, c: _wrapped(a * b + c),
    "mad.lo.s64": lambda a, b, c: a * b + c,
    "mul.wide.u32": lambda a, b: a * b,
    "rem.u32": lambda a, b: a % b,
    "div.u32": lambda a, b: a // b,
    "sub.u32": lambda a, b: a - b,
    "add.s64": lambda a, b: a + b,
    "shl.b64": lambda a, b: a << b,
    "shr.s32": lambda a, b: a >> b,
    "max.s32": np.maximum,
    "min.s32": np.minimum,
    "setp.ge.u32": lambda a, b: a >= b,
    "setp.ne.u32": lambda a, b: a != b,
    "fma.rn.f32": lambda a, b, c: (a * b + c).astype(np.float32),
}
_READ = {"ld.global.u8": np.uint8, "ld.global.s32": np.int32, "ld.global.f32": np.float32}
_WRITTEN = {"st.global.u8": np.uint8, "st.global.f32": np.float32}


class Text:
    """The one kernel of a text."""

    def __init__(self, text: str) -> None:
        head, body = re.sub(r"//.*", "", text).split("{", 1)
        self.name = re.findall(r"\.entry (\w+)", head)[0]
        self.parameters: list[tuple[str, str]] = re.findall(r"\.param \.(u32|u64) (\w+)", head)
        self.steps: list[tuple[str, str, list[str]]] = []
        self.labels: dict[str, int] = {}
        for label, guard, name, operands in re.findall(r"(?:(\w+):\s*)?(?:@(%\w+)\s+)?([\w.]+)([^;{}:]*);", body):
            if label:
                self.labels[label] = len(self.steps)
            if not name.startswith(".reg"):
                self.steps.append((guard, name, [word.strip() for word in operands.split(",") if word.strip()]))

    def run(self, arguments: Sequence[Any], blocks: int, threads: int, at: Callable[[int, int], Any]) -> None:
        """Run all threads; `at(address, size)` gives bytes of the memory."""
        kinds = {"u32": np.uint32, "u64": np.int64}  # as `struct` packs them: by size, and signed where strides are
        assert [type(value) for value in arguments] == [kinds[kind] for kind, _ in self.parameters]
        given = {name: int(value) for (_, name), value in zip(self.parameters, arguments, strict=True)}
        lane = np.arange(blocks * threads)
        registers: dict[str, Any] = {
            "%ctaid.x": lane // threads, "%ntid.x": np.full_like(lane, threads), "%tid.x": lane % threads,
        }  # fmt: skip

        def value(word: str) -> Any:
            if word.startswith("0f"):
                return np.frombuffer(bytes.fromhex(word[2:]), ">f4")[0]
            return registers[word] if word.startswith("%") else np.int64(word)

        step = 0
        while self.steps[step][1] != "ret":
            guard, name, words = self.steps[step]
            step += 1
            if name == "bra":
                taken = registers[guard]
                if taken.all():
                    step = self.labels[words[0]]
                elif taken.any():  # some go, and only to the end
                    assert self.steps[self.labels[words[0]]][1] == "ret"
                    registers = {key: held[~taken] for key, held in registers.items()}
            elif name.startswith("ld.param"):
                registers[words[0]] = np.full(len(registers["%tid.x"]), given[words[1].strip("[]")])
            elif name in _READ:
                registers[words[0]] = _read(at, value(words[1].strip("[]")), _READ[name])
            elif name in _WRITTEN:
                _write(at, value(words[0].strip("[]")), value(words[1]).astype(_WRITTEN[name]))
            else:
                registers[words[0]] = np.broadcast_to(
                    _COMPUTED[name](*(value(word) for word in words[1:])), registers["%tid.x"].shape
                )


def _read(at: Callable[[int, int], Any], addresses: Any, dtype: Any) -> Any:
    size = np.dtype(dtype).itemsize
    low = int(addresses.min())
    data = at(low, int(addresses.max()) - low + size)
    each = np.ascontiguousarray(data[(addresses - low)[:, None] + np.arange(size)])
    read = each.view(dtype)[:, 0]
    return read if read.dtype == np.float32 else read.astype(np.int64)


def _write(at: Callable[[int, int], Any], addresses: Any, values: Any) -> None:
    low, size = int(addresses.min()), values.itemsize
    data = at(low, int(addresses.max()) - low + size)
    data[(addresses - low)[:, None] + np.arange(size)] = values.view(np.uint8).reshape(-1, size)
