"""Compares the compiled kernels of every instruction set with sums in float64, one process per set.

`python -m cmb_jax.ops.self_test` is one of these processes and prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.ops.conv import Products, conv3d
from cmb_jax.ops.cpu import library

SETS = ("amx", "avx512bf16", "avx512", "avx2", "portable")
NO_KERNEL = "no kernel"  # the form in JAX
PRODUCTS: tuple[Products, ...] = ("float32", "bfloat16")
TOLERANCE = 1e-5  # of the largest value: a few hundred float32 roundings

_CHANNELS = (3, 8, 16, 24, 32, 48, 64, 96)
_EDGES = ((3, 3, 3), (1, 3, 3), (1, 1, 1))
_STRIDES = ((1, 1, 1), (1, 2, 2))
_GRIDS = ((2, 4, 6, 12), (1, 3, 5, 7), (1, 2, 10, 34), (1, 1, 1, 1))  # batch, z, y, x
_TIMED_GRID, _TIMED_CHANNELS, _TIMED_RUNS = (4, 24, 24, 24), 48, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfTest:
    """One instruction set with one type of products. Errors are relative to the largest value."""

    instruction_set: str
    products: str
    shapes: int = 0
    forward: float = 0.0
    to_input: float = 0.0
    to_kernel: float = 0.0
    gflop_per_s: tuple[float, float, float] = (0.0, 0.0, 0.0)  # forward, to input, to kernel
    missing: str = ""  # why nothing was tested
    failed: str = ""

    @property
    def passed(self) -> bool:
        """False for an error that is too large, or that is not a number."""
        return not self.failed and max(self.forward, self.to_input, self.to_kernel) <= TOLERANCE


def run() -> list[SelfTest]:
    """Every instruction set in a process of its own, and no kernel."""
    found = []
    # a process registers its kernels once, by the environment that it starts with
    for wish in (*SETS, NO_KERNEL):
        setting = {"CMB_JAX_CPU_ISA": wish} if wish != NO_KERNEL else {"CMB_JAX_CPU_KERNEL": "off"}
        done = subprocess.run(
            [sys.executable, "-m", "cmb_jax.ops.self_test"],
            env={**os.environ, **setting, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            why = f"ended with code {done.returncode}: {last}"
            found.append(SelfTest(instruction_set=wish, products="both", failed=why))
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["instruction_set"] != ("none" if wish == NO_KERNEL else wish):
            found.append(SelfTest(instruction_set=wish, products="both", missing="not on this processor"))
            continue
        found += [SelfTest(**{**values, "instruction_set": wish}) for values in answer["tests"]]
    return found


def table(tests: list[SelfTest]) -> str:
    """For the terminal."""
    header = (
        f"{'instructions':13}{'products':10}{'shapes':>7}{'forward':>10}{'to input':>10}{'to kernel':>10}"
    )
    lines = [f"{header}{'GFLOP/s':>18}  result"]
    for test in tests:
        start = f"{test.instruction_set:13}{test.products:10}"
        if test.missing or test.failed:
            lines.append(start + (test.missing or f"FAILED, {test.failed}"))
            continue
        errors = "".join(f"{error:10.1e}" for error in (test.forward, test.to_input, test.to_kernel))
        rates = " ".join(f"{rate:.0f}" for rate in test.gflop_per_s)
        result = "ok" if test.passed else f"FAILED: an error above {TOLERANCE:g}"
        lines.append(f"{start}{test.shapes:7}{errors}{rates:>18}  {result}")
    grid = " x ".join(map(str, _TIMED_GRID))
    lines.append(
        "Errors: largest difference to sums in float64, of numbers rounded to bfloat16 where products are, "
        f"over the largest value.\nGFLOP/s: forward, to input, to kernel; 3 x 3 x 3, {_TIMED_CHANNELS} "
        f"channels, {grid}, all threads."
    )
    return "\n".join(lines)


def of_this_process() -> dict[str, Any]:
    """Instruction set and tests of this process."""
    tests = [dataclasses.asdict(_test(products)) for products in PRODUCTS]
    return {"instruction_set": library.instruction_set(), "tests": tests}


def _test(products: Products) -> SelfTest:
    rng = np.random.default_rng(0)
    errors = np.zeros(3)
    count = 0
    # every pair of channel counts; kernels, strides, ReLU and grids take turns, else there were 48 times as
    # many
    kinds = itertools.cycle(itertools.product(_EDGES, _STRIDES, (False, True)))
    grids = itertools.cycle(_GRIDS)
    for (inputs, outputs), (edges, strides, relu), grid in zip(
        itertools.product(_CHANNELS, _CHANNELS), kinds, grids, strict=False
    ):
        errors = np.fmax(errors, _errors(rng, (*grid, inputs), outputs, edges, strides, relu, products))
        count += 1
    forward, to_input, to_kernel = (float(error) for error in errors)
    return SelfTest(
        instruction_set=library.instruction_set(),
        products=products,
        shapes=count,
        forward=forward,
        to_input=to_input,
        to_kernel=to_kernel,
        gflop_per_s=_rates(products),
    )


def _errors(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    outputs: int,
    edges: tuple[int, int, int],
    strides: tuple[int, int, int],
    relu: bool,
    products: Products,
) -> np.ndarray:
    """Errors (3,) of the value, of the input's gradient, and of the gradients of kernel and bias."""
    x = rng.standard_normal(shape, np.float32)
    kernel = rng.standard_normal((*edges, shape[-1], outputs), np.float32)
    bias = rng.standard_normal(outputs, np.float32)
    value, pull = jax.vjp(
        lambda *arrays: conv3d(*arrays, strides=strides, relu=relu, products=products),
        *(jnp.asarray(array) for array in (x, kernel, bias)),
    )
    g = rng.standard_normal(value.shape, np.float32)
    got = [np.asarray(array, np.float64) for array in (value, *pull(jnp.asarray(g)))]
    rounded = _rounded if products == "bfloat16" else _as_float64
    # The reference is one matrix product in float64 per tap of the kernel. Where the result is 0 the ReLU's
    # gradient is decided by rounding, so the gate is that of the result under test.
    gated = np.where(got[0] > 0, g, 0) if relu else g
    want_x, want_kernel = np.zeros(_padded(rounded(x), edges, strides).shape), np.zeros(kernel.shape)
    padded, want = _padded(rounded(x), edges, strides), np.zeros(value.shape) + bias
    exact_kernel, exact_g = rounded(kernel), rounded(gated)
    for tap in np.ndindex(*edges):
        view = (slice(None), *_slices(tap, value.shape[1:4], strides))
        want += padded[view] @ exact_kernel[tap]
        want_x[view] += exact_g @ exact_kernel[tap].T
        want_kernel[tap] = np.einsum("nzyxi,nzyxo->io", padded[view], exact_g)
    low = [before for before, _ in _margins(shape[1:4], edges, strides)]
    inside = tuple(slice(start, start + size) for start, size in zip(low, shape[1:4], strict=True))
    want_bias = gated.sum(axis=(0, 1, 2, 3), dtype=np.float64)
    found = [
        _relative(got[0], np.maximum(want, 0) if relu else want),
        _relative(got[1], want_x[(slice(None), *inside)]),
        max(_relative(got[2], want_kernel), _relative(got[3], want_bias)),
    ]
    # a NaN would be lost in the caller's maximum, so it counts as infinite
    return np.array([error if np.isfinite(error) else np.inf for error in found])


def _as_float64(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def _rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(jnp.bfloat16).astype(np.float64)


def _margins(sizes: Any, edges: Any, strides: Any) -> list[tuple[int, int]]:
    """Zeros before and after each axis ("SAME")."""
    whole = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, edges, strides, strict=True)]
    return [(total // 2, total - total // 2) for total in whole]


def _padded(x: np.ndarray, edges: Any, strides: Any) -> np.ndarray:
    return np.pad(x, [(0, 0), *_margins(x.shape[1:4], edges, strides), (0, 0)])


def _slices(tap: Any, outputs: Any, strides: Any) -> list[slice]:
    return [slice(t, t + (o - 1) * s + 1, s) for t, o, s in zip(tap, outputs, strides, strict=True)]


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


def _rates(products: Products) -> tuple[float, float, float]:
    rng = np.random.default_rng(1)
    shape = (*_TIMED_GRID, _TIMED_CHANNELS)
    x, g = (jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, *[_TIMED_CHANNELS] * 2), np.float32))
    # a multiplication and an addition for each of 27 taps
    gflop = 2e-9 * x.size * 27 * _TIMED_CHANNELS

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv3d(x, kernel, products=products)

    forward = jax.jit(conv)
    to_input = jax.jit(lambda x, kernel, g: jax.vjp(lambda x: conv(x, kernel), x)[1](g)[0])
    to_kernel = jax.jit(lambda x, kernel, g: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](g)[0])
    return (
        gflop / _least_seconds(lambda: forward(x, kernel)),
        gflop / _least_seconds(lambda: to_input(x, kernel, g)),
        gflop / _least_seconds(lambda: to_kernel(x, kernel, g)),
    )


def _least_seconds(function: Callable[[], jax.Array]) -> float:
    # the first call compiles
    jax.block_until_ready(function())
    least = float("inf")
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(function())
        least = min(least, time.perf_counter() - start)
    return least


if __name__ == "__main__":
    print(json.dumps(of_this_process()))
