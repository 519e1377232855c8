"""Finding the compiled kernels and handing them to XLA.

They are built when the package is installed, if a C++ compiler is there. Two environment variables are for
tests and for finding faults: CMB_JAX_CPU_KERNEL=off leaves them out, CMB_JAX_CPU_ISA=amx | avx512bf16 |
avx512 | avx2 | portable asks for one instruction set (one that the processor lacks counts as no kernel).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

import jax

CONVOLUTION = "cmb_jax_conv3d"
KERNEL_GRADIENT = "cmb_jax_conv3d_kernel_gradient"
BLOCK_SUM = "cmb_jax_block_sum"
CHANNEL_NORM = "cmb_jax_channel_norm"
CHANNEL_NORM_GRADIENT = "cmb_jax_channel_norm_gradient"
TARGETS = (CONVOLUTION, KERNEL_GRADIENT, BLOCK_SUM, CHANNEL_NORM, CHANNEL_NORM_GRADIENT)

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether XLA can call the kernels in this process; says once in the log why it cannot."""
    return instruction_set() != "none"


def multiplies_bfloat16() -> bool:
    """Whether the kernels have instructions for products of bfloat16; others round and multiply float32."""
    return instruction_set() in ("amx", "avx512bf16")


@functools.cache
def instruction_set() -> str:
    """What the kernels use: "amx", "avx512bf16", "avx512", "avx2", "portable"; "none" without kernels."""
    if os.environ.get("CMB_JAX_CPU_KERNEL", "").lower() in ("off", "0", "no"):
        return _without("CMB_JAX_CPU_KERNEL is off")
    built = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not built:
        return _without(
            "it was not built (no C++ compiler when the package was installed?); to put it right, install "
            "g++ or clang++, then run: pip install --force-reinstall --no-deps --no-cache-dir cmb-jax"
        )
    return load(max(built, key=lambda path: path.stat().st_mtime))


def load(path: Path) -> str:
    """Register the kernels of the library at `path`; its instruction set, or "none" and a line in the log."""
    try:
        shared = ctypes.CDLL(str(path))
        name_of = shared.cmb_jax_instruction_set
        name_of.restype = ctypes.c_char_p
        name = name_of().decode()
        if name == "none":
            return _without(
                "the processor has no AVX2, or not the instructions that CMB_JAX_CPU_ISA asks for"
            )
        for target in TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(shared, target)), platform="cpu")
    # what a damaged, foreign or outdated library raises depends on the loader and on XLA
    except Exception as error:
        return _without(
            f"{path.name} cannot be used ({str(error).splitlines()[0]}): install the package again"
        )
    return name


def _without(reason: str) -> str:
    _log.warning("a scan takes about 1.4 times as long on CPU without the compiled kernel: %s", reason)
    return "none"
