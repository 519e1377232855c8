"""Which GPU JAX sees."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.cases import Prepared
from cmb_jax.ops.cpu import library


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The result is 1 with a CUDA device; the note is the instruction set of the CPU kernel."""
    seen = jax.default_backend() in ("gpu", "cuda")
    return Prepared(run=lambda: seen, result=float, note=library.instruction_set())
