"""The compiled kernels: finding them, handing them to XLA, and what their calls need inside `shard_map`.

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
from typing import Any, Literal

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

CONVOLUTION = "cmb_jax_conv3d"
KERNEL_GRADIENT = "cmb_jax_conv3d_kernel_gradient"
POINTWISE_GRADIENT = "cmb_jax_pointwise_gradient"  # with instructions for bfloat16 alone
BLOCK_SUM = "cmb_jax_block_sum"
CHANNEL_NORM = "cmb_jax_channel_norm"
CHANNEL_NORM_GRADIENT = "cmb_jax_channel_norm_gradient"
TARGETS = (
    CONVOLUTION,
    KERNEL_GRADIENT,
    POINTWISE_GRADIENT,
    BLOCK_SUM,
    CHANNEL_NORM,
    CHANNEL_NORM_GRADIENT,
)

# as in config.py, which this folder does not import
Precision = Literal["float32", "mixed", "bfloat16"]

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
    # builds of other Python versions may lie beside it in a checkout; the newest is of this source
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


def usable_precision(wish: Precision, setting: str, device: jax.Device | None = None) -> Precision:
    """The precision asked for, or float32 and a line in the log where the device gains nothing by it.

    Accelerators always have one: TensorFloat-32 or bfloat16. A processor needs instructions for bfloat16;
    `conv3d` rounds without them too, but gains nothing by it.

    Args:
        wish: one of `config.Precision`.
        setting: name of the setting, for the line in the log.
        device: the one that computes; default: JAX's first.
    """
    platform = jax.devices()[0].platform if device is None else device.platform
    if wish == "float32" or platform != "cpu" or multiplies_bfloat16():
        return wish
    _log.warning("%s %s: this processor has no instructions for bfloat16; float32 is used", setting, wish)
    return "float32"


def vary_together(*arrays: jax.Array | None) -> list[Any]:
    """Under `shard_map`, mark all arrays as varying over the mesh axes that any of them varies over.

    The kernel's gradient is then summed over those axes by the transpose of this mark.
    """
    varying = [
        frozenset() if a is None else frozenset(jax.typeof(a).manual_axis_type.varying) for a in arrays
    ]
    every = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(every - own), to="varying") if array is not None and every - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def like(x: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What a call returns: under `shard_map` it varies over the mesh axes that x varies over."""
    kind = jax.typeof(x)
    if not kind.manual_axis_type.varying:
        return jax.ShapeDtypeStruct(shape, x.dtype)
    anywhere = NamedSharding(kind.sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=anywhere, manual_axis_type=kind.manual_axis_type)
