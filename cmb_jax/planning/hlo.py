"""Reading the text of a compiled XLA program (HLO): computations, their instructions, shapes."""

from __future__ import annotations

import dataclasses
import math
import re

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's element type and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Without the padding of a device's layout."""
        return math.prod(self.sizes) * _bits(self.dtype) / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    results: tuple[Shape, ...]  # several where the result is a tuple
    operands: tuple[str, ...]  # names of instructions of the same computation
    attributes: str  # the rest of the line
    is_root: bool

    @property
    def result_bytes(self) -> float:
        """Of all results."""
        return sum(shape.bytes for shape in self.results)

    def called(self, role: str) -> str | None:
        """Name of the computation that an attribute such as `body` or `calls` names."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction]

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Shapes of all operands in turn, tuples flattened."""
        return [shape for name in instruction.operands for shape in self.instructions[name].results]

    def users(self, name: str) -> list[Instruction]:
        """Instructions that take the result of another."""
        return [other for other in self.instructions.values() if name in other.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: what one device of a partitioned program runs."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Read what `jax.stages.Compiled.as_text()` gives.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name = None, None
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name is not None:
            computations[name] = Computation(lines)
            name = None
        elif name is not None and (found := _INSTRUCTION.match(line)):
            lines[found[2]] = _instruction(found[2], found[3], is_root=found[1] is not None)
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no entry computation")
    return Program(computations, entry)


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, call = text[:end], text[end:].lstrip()
    opening = call.index("(")
    closing = _closing(call, opening)
    return Instruction(
        name=name,
        opcode=call[:opening],
        results=tuple(
            Shape(dtype, tuple(int(n) for n in sizes.split(",") if n))
            for dtype, sizes in _SHAPE.findall(kind)
        ),
        operands=tuple(_NAME.findall(call[opening:closing])),
        attributes=call[closing + 1 :],
        is_root=is_root,
    )


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens at `opening` is closed."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return _BITS[dtype] if dtype in _BITS else int(digits[0]) if digits else 0
