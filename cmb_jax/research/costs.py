"""What one device of a compiled program does in one call, loops counted as often as they run.

XLA's own `cost_analysis()` is not enough here: it counts the body of a loop once however often it runs (a
step that accumulates is such a loop), counts nothing for our own kernels on CPUs, and gives only sums, which
show neither the time of each instruction nor the messages between devices. So the text of the
compiled program (HLO) is read; `tests/research/test_costs.py` holds the counts to XLA's where both count.
"""

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
# ROOT %name = shapes opcode(operands), attributes
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's element type and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Without the padding of a device's layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.prod(self.sizes) * bits / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation."""

    opcode: str
    results: tuple[Shape, ...]  # several where the result is a tuple
    operands: tuple[str, ...]  # names of instructions of the same computation
    operand_shapes: tuple[Shape, ...]  # of all operands in turn, tuples flattened
    attributes: str  # the rest of the line
    is_root: bool

    @property
    def result_bytes(self) -> float:
        """Of all results."""
        return sum(shape.bytes for shape in self.results)

    def found(self, pattern: str) -> str:
        """What the first group of a pattern matches among the attributes; empty if nothing does."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""

    def called(self, role: str) -> str:
        """Name of the computation that an attribute such as `body` or `calls` names; empty without one."""
        return self.found(rf"\b{role}=%?([\w.\-]+)")


Computation = dict[str, Instruction]  # by name, in order


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
    entry = None
    lines: Computation = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line)):
            root, name, results, opcode, arguments, attributes = found.groups()
            operands = tuple(_NAME.findall(arguments))  # each stands in a line above
            lines[name] = Instruction(
                opcode=opcode,
                results=tuple(
                    Shape(dtype, tuple(int(n) for n in sizes.split(",") if n))
                    for dtype, sizes in _SHAPE.findall(results)
                ),
                operands=operands,
                operand_shapes=tuple(shape for operand in operands for shape in lines[operand].results),
                attributes=attributes,
                is_root=root is not None,
            )
    if entry is None:
        raise ValueError("this is not the text of a compiled program: it has no entry computation")
    return Program(computations, entry)


def operations(instruction: Instruction, program: Program) -> float:
    """Of convolutions, matrix products and our own kernels, also those inside a fusion; else 0."""
    shapes, opcode = instruction.operand_shapes, instruction.opcode
    if opcode == "fusion":
        inside = program.computations[instruction.called("calls")]
        return sum(operations(part, program) for part in inside.values())
    if opcode == "convolution":
        return _convolution(instruction)
    if opcode == "dot":
        contracted = instruction.found(r"lhs_contracting_dims={([\d,]*)}").split(",")
        summed = math.prod(shapes[0].sizes[int(axis)] for axis in contracted if axis)
        return 2 * math.prod(instruction.results[0].sizes) * summed
    # operands and results as in `ops.conv`; the kernels multiply the zeros at the border like other values
    target = instruction.found(r'custom_call_target="([^"]*)"')
    if target == library.CONVOLUTION:
        return 2 * math.prod(instruction.results[0].sizes[:4]) * math.prod(shapes[2].sizes)
    if target == library.KERNEL_GRADIENT:
        return 2 * math.prod(shapes[1].sizes[:4]) * math.prod(instruction.results[0].sizes)
    return 0.0


def _convolution(instruction: Instruction) -> float:
    """Products of values, not of padding or of holes.

    Along each axis of space an output and a tap of the kernel meet a value of the input where their place, in
    the input with holes between its values (lhs_dilate), is inside it and no hole; such pairs are counted.
    The gradients of a convolution are convolutions with holes or with a kernel as large as an image, for
    which outputs times kernel size would be far too many.
    """
    left, right = instruction.operand_shapes[:2]
    lhs, rhs, out = re.split("_|->", instruction.found(r"dim_labels=(\w+_\w+->\w+)"))
    result = instruction.results[0].sizes
    space = sorted(label for label in lhs if label.isdigit())
    size, stride, holes_left, holes_right, before = (
        _window(instruction, field, len(space), default)
        for field, default in (("size", 1), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1), ("pad", 0))
    )
    pairs = 1
    for axis, label in enumerate(space):
        outputs = np.arange(result[out.index(label)])[:, None] * stride[axis]
        place = outputs + np.arange(size[axis])[None] * holes_right[axis] - before[axis]
        last = (left.sizes[lhs.index(label)] - 1) * holes_left[axis]
        pairs *= int(((place >= 0) & (place <= last) & (place % holes_left[axis] == 0)).sum())
    channels = right.sizes[rhs.index("i")] * result[out.index("f")]
    batch = left.sizes[lhs.index("b")] / int(instruction.found(r"batch_group_count=(\d+)") or 1)
    return 2.0 * batch * channels * pairs


def _window(instruction: Instruction, field: str, axes: int, default: int) -> list[int]:
    """A field of `window={size=3x3x3 pad=1_1x1_1x1_1}`: the first number of each axis."""
    text = instruction.found(rf"window={{[^}}]*\b{field}=([\dx_\-]+)")
    return [int(part.split("_")[0]) for part in text.split("x")] if text else [default] * axes


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
    """Walk through a program that runs on this many devices."""
    found: list[Operation] = []
    messages: list[Collective] = []
    for instruction, times in _walk(program, program.entry, 1):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            flops, moved = operations(instruction, program), _bytes(instruction, program)
            found.append(Operation(times=times, flops=flops, bytes=moved))
        elif (group := _group(instruction, devices)) > 1:  # a group of one sends nothing
            held = sum(shape.bytes for shape in instruction.operand_shapes)
            messages.append(Collective(kind=kind, times=times, bytes=held, devices=group))
    return Costs(
        operations=tuple(found),
        collectives=tuple(messages),
        unknown_loops=sum(
            instruction.opcode == "while" and not _trips(instruction)
            for computation in program.computations.values()
            for instruction in computation.values()
        ),
    )


def _walk(program: Program, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
    """Instructions that compute or move something, with how often they run."""
    for instruction in program.computations[name].values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            trips = int(_trips(instruction) or 1)
            yield from _walk(program, instruction.called("body"), times * trips)
        elif opcode in ("call", "async-start"):
            inner = instruction.called("to_apply") or instruction.called("calls")
            yield from _walk(program, inner, times)
        elif opcode == "conditional":
            for branch in _branches(instruction):
                yield from _walk(program, branch, times)
        else:
            yield instruction, times


def _trips(loop: Instruction) -> str:
    """How often a loop runs; empty if that depends on the data."""
    return loop.found(r'"known_trip_count":{"n":"(\d+)"')


def _branches(instruction: Instruction) -> list[str]:
    listed = instruction.found(r"branch_computations={([^}]*)}")
    if listed:
        return [name.strip().lstrip("%") for name in listed.split(",")]
    return [name for role in ("true_computation", "false_computation") if (name := instruction.called(role))]


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


def _bytes(instruction: Instruction, program: Program) -> float:
    """Read and written; of an array that is only cut into or written to in part, that part."""
    shapes, opcode = instruction.operand_shapes, instruction.opcode
    if opcode in _SLICES:
        return 2 * instruction.result_bytes
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * shapes[-1 if opcode == "scatter" else 1].bytes
    if opcode == "fusion":
        return _fusion_bytes(program.computations[instruction.called("calls")])
    return instruction.result_bytes + sum(shape.bytes for shape in shapes)


def _fusion_bytes(inside: Computation) -> float:
    """Of a fusion's inputs and result alone: what passes between its instructions stays in registers."""
    total = 0.0
    for name, part in inside.items():
        if part.opcode == "parameter":
            total += _read(name, inside)
        elif part.is_root:
            updated = part.opcode == "dynamic-update-slice"
            total += part.operand_shapes[1].bytes if updated else part.result_bytes
    return total


def _read(parameter: str, inside: Computation) -> float:
    """Bytes of a fusion's input that are read."""
    # A fusion reads what its instructions ask for: of an input that is only sliced, the slices; of one that
    # is only updated in place, nothing. This is what loops over slices of a large array look like.
    users = [other for other in inside.values() if parameter in other.operands]
    if users and all(user.operands[0] == parameter for user in users):
        if all(user.opcode in _SLICES for user in users):
            return sum(user.result_bytes for user in users)
        if all(user.opcode == "dynamic-update-slice" for user in users):
            return 0.0
    return inside[parameter].result_bytes
