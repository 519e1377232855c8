"""What one device of a compiled program does in one call, loops counted as often as they run.

The text of the compiled program (HLO) is read into computations, instructions and shapes; floating-point
operations are counted instruction by instruction, a multiply-add being two.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from cmb_jax.ops.cpu import library

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


def operations(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Of convolutions, matrix products and our own kernels, those inside a fusion included; else 0."""
    shapes = computation.operand_shapes(instruction)
    if instruction.opcode == "fusion":
        inside = program.computations[instruction.called("calls") or ""]
        return sum(operations(part, inside, program) for part in inside.instructions.values())
    if instruction.opcode == "convolution":
        return _convolution(instruction, shapes[0], shapes[1])
    if instruction.opcode == "dot":
        contracted = _integers(instruction, "lhs_contracting_dims")
        return 2 * math.prod(instruction.results[0].sizes) * math.prod(shapes[0].sizes[d] for d in contracted)
    if instruction.opcode == "custom-call":
        return _own_kernel(instruction, shapes)
    return 0.0


def _own_kernel(instruction: Instruction, shapes: list[Shape]) -> float:
    """Operands and results as in `ops.conv`; their kernels take zeros at the border like other values."""
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    target = found[1] if found else ""
    result = instruction.results[0].sizes
    if target == library.CONVOLUTION:
        return 2 * math.prod(result[:4]) * math.prod(shapes[2].sizes)
    if target == library.KERNEL_GRADIENT:
        return 2 * math.prod(shapes[1].sizes[:4]) * math.prod(result)
    return 0.0


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """Products of values, not of padding or of holes."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"{instruction.name}: a convolution without dim_labels")
    lhs, rhs, out = labels[1], labels[2], labels[3]
    result = instruction.results[0].sizes
    space = sorted(label for label in lhs if label.isdigit())
    size = _window(instruction, "size", len(space), 1)
    stride = _window(instruction, "stride", len(space), 1)
    holes_left = _window(instruction, "lhs_dilate", len(space), 1)
    holes_right = _window(instruction, "rhs_dilate", len(space), 1)
    before = _window(instruction, "pad", len(space), 0)
    pairs = 1
    for axis, label in enumerate(space):
        outputs = np.arange(result[out.index(label)])[:, None] * stride[axis]
        place = outputs + np.arange(size[axis])[None] * holes_right[axis] - before[axis]
        last = (left.sizes[lhs.index(label)] - 1) * holes_left[axis]
        pairs *= int(((place >= 0) & (place <= last) & (place % holes_left[axis] == 0)).sum())
    channels = right.sizes[rhs.index("i")] * result[out.index("f")]
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = left.sizes[lhs.index("b")] / (int(groups[1]) if groups else 1)
    return 2.0 * batch * channels * pairs


def _window(instruction: Instruction, field: str, axes: int, default: int) -> list[int]:
    """A field of `window={size=3x3x3 pad=1_1x1_1x1_1}`: the first number of each axis."""
    found = re.search(rf"window={{[^}}]*\b{field}=([\dx_\-]+)", instruction.attributes)
    return [int(part.split("_")[0]) for part in found[1].split("x")] if found else [default] * axes


def _integers(instruction: Instruction, field: str) -> list[int]:
    found = re.search(rf"{field}={{([\d,]*)}}", instruction.attributes)
    return [int(n) for n in found[1].split(",") if n] if found else []


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Nothing is computed or moved by these.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """An instruction that computes or moves."""

    name: str
    times: int  # how often it runs
    flops: float  # each time
    bytes: float  # read and written, each time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """A message between devices."""

    kind: str  # one of COLLECTIVES
    times: int
    bytes: float  # that a device holds of it before, each time
    devices: int  # in a group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """All that a device does in one call."""

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: int  # whose length depends on the data; counted once

    @property
    def flops(self) -> float:
        """Of convolutions and matrix products."""
        return sum(o.times * o.flops for o in self.operations)

    @property
    def bytes(self) -> float:
        """Read from and written to memory, were there no caches."""
        return sum(o.times * o.bytes for o in self.operations)


def costs_of(program: Program, devices: int = 1) -> Costs:
    """Walk through a program of so many devices."""
    walk = list(_walk(program, program.entry, 1))
    return Costs(
        operations=tuple(
            Operation(
                name=instruction.name,
                times=times,
                flops=operations(instruction, computation, program),
                bytes=_bytes(instruction, computation, program),
            )
            for instruction, computation, times in walk
            if _collective(instruction) is None
        ),
        collectives=tuple(
            Collective(
                kind=kind,
                times=times,
                bytes=sum(shape.bytes for shape in computation.operand_shapes(instruction)),
                devices=group,
            )
            for instruction, computation, times in walk
            # a group of one sends nothing
            if (kind := _collective(instruction)) is not None and (group := _group(instruction, devices)) > 1
        ),
        unknown_loops=sum(
            instruction.opcode == "while" and _trips(instruction) is None
            for computation in program.computations.values()
            for instruction in computation.instructions.values()
        ),
    )


def _walk(program: Program, name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
    """Instructions that compute or move something, with how often they run."""
    computation = program.computations[name]
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            yield from _walk(program, instruction.called("body") or "", times * (_trips(instruction) or 1))
        elif opcode in ("call", "async-start"):
            inner = instruction.called("to_apply") or instruction.called("calls") or ""
            yield from _walk(program, inner, times)
        elif opcode == "conditional":
            for branch in _branches(instruction):
                yield from _walk(program, branch, times)
        else:
            yield instruction, computation, times


def _trips(loop: Instruction) -> int | None:
    """How often a loop runs; None if that depends on the data."""
    known = re.search(r'"known_trip_count":{"n":"(\d+)"', loop.attributes)
    return int(known[1]) if known else None


def _branches(instruction: Instruction) -> list[str]:
    found = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
    if found:
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    return [name for role in ("true_computation", "false_computation") if (name := instruction.called(role))]


def _collective(instruction: Instruction) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _group(instruction: Instruction, devices: int) -> int:
    """Devices in one group of a collective, in any of XLA's three notations."""
    text = instruction.attributes
    if instruction.opcode.startswith("collective-permute"):
        return 2
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] {([^}]*)}", text):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups={{([\d,]+)}", text):
        return found[1].count(",") + 1
    return devices


def _bytes(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Read and written; of an array that is only cut into or written to in part, that part."""
    shapes = computation.operand_shapes(instruction)
    opcode = instruction.opcode
    if opcode in _SLICES:
        return 2 * instruction.result_bytes
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * shapes[-1 if opcode == "scatter" else 1].bytes
    if opcode == "fusion":
        return _fusion_bytes(instruction, computation, program)
    return instruction.result_bytes + sum(shape.bytes for shape in shapes)


def _fusion_bytes(instruction: Instruction, computation: Computation, program: Program) -> float:
    inside = program.computations[instruction.called("calls") or ""]
    total = 0.0
    for part in inside.instructions.values():
        if part.opcode == "parameter":
            total += _read(part, inside)
        elif part.is_root:
            updated = part.opcode == "dynamic-update-slice"
            total += inside.operand_shapes(part)[1].bytes if updated else part.result_bytes
    return total


def _read(parameter: Instruction, inside: Computation) -> float:
    """Bytes of a fusion's input that are read."""
    users = inside.users(parameter.name)
    if users and all(user.opcode in _SLICES and user.operands[0] == parameter.name for user in users):
        return sum(user.result_bytes for user in users)
    if users and all(
        user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name for user in users
    ):
        return 0.0
    return parameter.result_bytes
