"""What one device of a compiled program does in one call, loops counted as often as they run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from cmb_jax.planning.flops import operations
from cmb_jax.planning.hlo import Computation, Instruction, Program

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
