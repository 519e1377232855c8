"""The work of one device in one call of a compiled program, with the body of a loop counted once per
iteration.

XLA's own `cost_analysis()` is not enough: it counts the body of a loop once, however often it runs (gradient
accumulation is such a loop), counts nothing for our own CPU kernels, and returns only sums, which give
neither the time of each instruction nor the messages between devices. So we parse the text of the compiled
program (HLO); `tests/research/test_costs.py` holds the counts to XLA's where both count.
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
        """Size without the padding of a device's layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.prod(self.sizes) * bits / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation."""

    opcode: str
    results: tuple[Shape, ...]  # several where the result is a tuple
    operands: tuple[str, ...]  # names of instructions of the same computation
    operand_shapes: tuple[Shape, ...]  # of all operands in order, tuples flattened
    attributes: str  # the rest of the line
    is_root: bool

    @property
    def result_bytes(self) -> float:
        """Total size of the results."""
        return sum(shape.bytes for shape in self.results)

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern searched in the attributes; empty without a match."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""

    def called(self, role: str) -> str:
        """Name of the computation in an attribute such as `body` or `calls`; empty without one."""
        return self.attribute(rf"\b{role}=%?([\w.\-]+)")


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: the program of one device of a partition."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Parse the text from `jax.stages.Compiled.as_text()`.

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
            operands = tuple(_NAME.findall(arguments))  # all are defined above
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
    """FLOPs of convolutions, matrix products and our own kernels, including those inside a fusion; else 0."""
    shapes, opcode = instruction.operand_shapes, instruction.opcode
    if opcode == "fusion":
        inside = program.computations[instruction.called("calls")]
        return sum(operations(part, program) for part in inside.values())
    if opcode == "convolution":
        return _convolution(instruction)
    if opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims={([\d,]*)}").split(",")
        summed = math.prod(shapes[0].sizes[int(axis)] for axis in contracted if axis)
        return 2 * math.prod(instruction.results[0].sizes) * summed
    # operands and results as in `ops.conv`; our kernels also multiply the zeros at the border, so all count
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if target == library.CONVOLUTION:
        return 2 * math.prod(instruction.results[0].sizes[:4]) * math.prod(shapes[2].sizes)
    if target == library.KERNEL_GRADIENT:
        return 2 * math.prod(shapes[1].sizes[:4]) * math.prod(instruction.results[0].sizes)
    return 0.0


def _convolution(instruction: Instruction) -> float:
    """FLOPs of the products of two real values, without those with padding or dilation zeros.

    Gradients of a convolution are convolutions with a dilated input or with a kernel as large as the image,
    for which outputs times kernel size would be far too many. So we count, along each spatial axis, the pairs
    of an output and a kernel tap that meet a value of the input: their position in the dilated input is
    inside it and not one of the zeros between its values.
    """
    left, right = instruction.operand_shapes[:2]
    lhs, rhs, out = re.split("_|->", instruction.attribute(r"dim_labels=(\w+_\w+->\w+)"))
    result = instruction.results[0].sizes
    space = sorted(label for label in lhs if label.isdigit())
    size, stride, lhs_dilation, rhs_dilation, padding = (
        _window(instruction, field, len(space), default)
        for field, default in (("size", 1), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1), ("pad", 0))
    )
    pairs = 1
    for axis, label in enumerate(space):
        outputs = np.arange(result[out.index(label)])[:, None] * stride[axis]
        position = outputs + np.arange(size[axis])[None] * rhs_dilation[axis] - padding[axis]
        last = (left.sizes[lhs.index(label)] - 1) * lhs_dilation[axis]
        pairs *= int(((position >= 0) & (position <= last) & (position % lhs_dilation[axis] == 0)).sum())
    channels = right.sizes[rhs.index("i")] * result[out.index("f")]
    batch = left.sizes[lhs.index("b")] / int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * batch * channels * pairs


def _window(instruction: Instruction, field: str, axes: int, default: int) -> list[int]:
    """A field of `window={size=3x3x3 pad=1_1x1_1x1_1}`: the first number of each axis."""
    text = instruction.attribute(rf"window={{[^}}]*\b{field}=([\dx_\-]+)")
    return [int(part.split("_")[0]) for part in text.split("x")] if text else [default] * axes


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# these neither compute nor move data
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
    """An instruction that computes or moves data."""

    times: int  # how often it runs
    flops: float  # each time
    bytes: float  # read and written, each time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """A message between devices."""

    kind: str  # one of COLLECTIVES
    times: int
    bytes: float  # on one device before the message, each time
    devices: int  # in a group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything that one device does in one call."""

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: int  # loops whose length depends on the data; their bodies are counted once

    @property
    def flops(self) -> float:
        """Of convolutions and matrix products."""
        return sum(o.times * o.flops for o in self.operations)

    @property
    def bytes(self) -> float:
        """Read from and written to memory, assuming no caches."""
        return sum(o.times * o.bytes for o in self.operations)


def costs_of(program: Program, devices: int = 1) -> Costs:
    """The costs of a program that runs on this many devices."""
    work: list[Operation] = []
    messages: list[Collective] = []
    for instruction, times in _walk(program, program.entry, 1):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            flops, moved = operations(instruction, program), _bytes(instruction, program)
            work.append(Operation(times=times, flops=flops, bytes=moved))
        elif (group := _group(instruction, devices)) > 1:  # a group of one sends nothing
            held = sum(shape.bytes for shape in instruction.operand_shapes)
            messages.append(Collective(kind=kind, times=times, bytes=held, devices=group))
    return Costs(
        operations=tuple(work),
        collectives=tuple(messages),
        unknown_loops=sum(
            instruction.opcode == "while" and not _trips(instruction)
            for computation in program.computations.values()
            for instruction in computation.values()
        ),
    )


def _walk(program: Program, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
    """Instructions that compute or move data, with the number of times that they run."""
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
            # which branch runs depends on the data: both count, an upper bound
            for branch in _branches(instruction):
                yield from _walk(program, branch, times)
        else:
            yield instruction, times


def _trips(loop: Instruction) -> str:
    """Number of iterations of a loop; empty if it depends on the data."""
    return loop.attribute(r'"known_trip_count":{"n":"(\d+)"')


def _branches(instruction: Instruction) -> list[str]:
    listed = instruction.attribute(r"branch_computations={([^}]*)}")
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
    """Bytes read and written; for slices and updates in place, only the part concerned."""
    shapes, opcode = instruction.operand_shapes, instruction.opcode
    if opcode in _SLICES:
        return 2 * instruction.result_bytes
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * shapes[-1 if opcode == "scatter" else 1].bytes
    if opcode == "fusion":
        return _fusion_bytes(program.computations[instruction.called("calls")])
    return instruction.result_bytes + sum(shape.bytes for shape in shapes)


def _fusion_bytes(inside: Computation) -> float:
    """Bytes of a fusion's inputs and result: what passes between its instructions stays in registers."""
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
    # Loops over slices of a large array become fusions that only slice their input, and read just the slices,
    # or that only update it in place, and read nothing of it.
    users = [other for other in inside.values() if parameter in other.operands]
    if users and all(user.operands[0] == parameter for user in users):
        if all(user.opcode in _SLICES for user in users):
            return sum(user.result_bytes for user in users)
        if all(user.opcode == "dynamic-update-slice" for user in users):
            return 0.0
    return inside[parameter].result_bytes
