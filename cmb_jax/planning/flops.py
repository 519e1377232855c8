"""Floating-point operations of single instructions of a compiled program, a multiply-add being two."""

from __future__ import annotations

import math
import re

import numpy as np

from cmb_jax.ops.cpu import library
from cmb_jax.planning.hlo import Computation, Instruction, Program, Shape


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
