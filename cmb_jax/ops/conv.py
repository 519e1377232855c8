"""3-D convolution: a compiled kernel of our own on CPUs, one plain convolution on every other platform.

XLA:CPU runs its own 3-D convolution 4 to 19 times slower than PyTorch does. On CPU the operation therefore
goes to `ops/cpu/`, C++ that XLA calls on its own threads, or, where that was not built, to 2-D convolutions
and matrix products (`conv_portable`). Accelerators get what their compilers know best.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmb_jax.ops import conv_portable
from cmb_jax.ops.cpu import library

Triple = tuple[int, int, int]

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple = (1, 1, 1)) -> jax.Array:
    """Convolve with zero padding that keeps the shape ("SAME"), divided by the strides.

    Differentiable once in reverse mode (`custom_vjp`). To export a CPU program, pass
    `jax.export.DisabledSafetyCheck.custom_call(name)` for each of `ops.cpu.library.TARGETS`.

    Args:
        x: (B, Z, Y, X, C_in). float32 on CPU takes the compiled kernel; other types the plain convolution.
        kernel: (kz, ky, kx, C_in, C_out) of x's type, each of kz, ky, kx 1 or 3.
        strides: steps along z, y, x.

    Returns:
        (B, ceil(Z / sz), ceil(Y / sy), ceil(X / sx), C_out), of x's type.

    Raises:
        ValueError: x and kernel do not fit each other, a kernel edge is neither 1 nor 3, or a stride is less
            than 1.
    """
    if x.ndim != 5 or kernel.ndim != 5 or x.shape[-1] != kernel.shape[3]:
        raise ValueError(
            f"conv3d cannot apply a kernel of shape {kernel.shape} to an input of shape {x.shape}"
        )
    if any(edge not in (1, 3) for edge in kernel.shape[:3]):
        raise ValueError(f"conv3d takes kernel edges of 1 or 3, got {kernel.shape[:3]}")
    if len(strides) != 3 or any(step < 1 for step in strides):
        raise ValueError(f"conv3d takes three strides of 1 or more, got {strides}")
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv3d needs one type for input and kernel, got {x.dtype} and {kernel.dtype}")
    x, kernel = _vary_together(x, kernel)
    if x.dtype != jnp.float32 or 0 in x.shape or 0 in kernel.shape:
        return _plain(x, kernel, strides)
    return _conv(x, kernel, tuple(strides))


def _vary_together(*arrays: jax.Array) -> list[jax.Array]:
    """Under `shard_map`, mark all arrays as varying over the mesh axes that any of them varies over.

    The kernel's gradient is then summed over those axes by the transpose of this mark.
    """
    varying = [frozenset(jax.typeof(array).manual_axis_type.varying) for array in arrays]
    missing = [tuple(frozenset().union(*varying) - own) for own in varying]
    return [
        lax.pcast(array, names, to="varying") if names else array
        for array, names in zip(arrays, missing, strict=True)
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, strides: Triple) -> jax.Array:
    if kernel.shape[:3] == strides == (1, 1, 1):
        return jnp.dot(x, kernel[0, 0, 0])
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_forward_on_cpu, strides=strides),
        default=functools.partial(_plain, strides=strides),
    )


def _conv_saved(x: jax.Array, kernel: jax.Array, strides: Triple):
    return _conv(x, kernel, strides), (x, kernel)


def _conv_backward(strides: Triple, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, kernel = saved
    return lax.platform_dependent(
        x,
        kernel,
        g,
        cpu=functools.partial(_backward_on_cpu, strides=strides),
        default=functools.partial(_backward_plain, strides=strides),
    )


_conv.defvjp(_conv_saved, _conv_backward)


def _plain(x: jax.Array, kernel: jax.Array, strides: Triple) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=_LAYOUT)


def _backward_plain(x: jax.Array, kernel: jax.Array, g: jax.Array, strides: Triple):
    (towards_input,) = jax.linear_transpose(lambda x: _plain(x, kernel, strides), x)(g)
    (towards_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel, strides), kernel)(g)
    return towards_input, towards_kernel


def _forward_on_cpu(x: jax.Array, kernel: jax.Array, strides: Triple) -> jax.Array:
    if library.available():
        return _call(x, kernel, strides, mirrored=False)
    return conv_portable.convolve(x, kernel) if strides == (1, 1, 1) else _plain(x, kernel, strides)


def _backward_on_cpu(x: jax.Array, kernel: jax.Array, g: jax.Array, strides: Triple):
    edges: Triple = (kernel.shape[0], kernel.shape[1], kernel.shape[2])
    if library.available():
        result = _like(x, kernel.shape)
        call = jax.ffi.ffi_call(library.KERNEL_GRADIENT, result, vmap_method="sequential")
        towards_kernel = call(x, g, strides=np.array(strides, np.int64))
        spread = _spread(g, x.shape, edges, strides)
        return _call(spread, kernel, (1, 1, 1), mirrored=True), towards_kernel
    if strides != (1, 1, 1):
        return _backward_plain(x, kernel, g, strides)
    # With stride 1 and odd kernels the gradient towards the input is a convolution with the mirrored kernel.
    towards_input = conv_portable.convolve(g, kernel[::-1, ::-1, ::-1].swapaxes(3, 4))
    return towards_input, conv_portable.kernel_gradient(x, g, edges)


def _call(x: jax.Array, kernel: jax.Array, strides: Triple, *, mirrored: bool) -> jax.Array:
    size = [-(-n // step) for n, step in zip(x.shape[1:4], strides, strict=True)]
    outputs = kernel.shape[3 if mirrored else 4]
    result = _like(x, (x.shape[0], *size, outputs))
    call = jax.ffi.ffi_call(library.CONVOLUTION, result, vmap_method="sequential")
    return call(x, kernel, strides=np.array(strides, np.int64), mirrored=mirrored)


def _like(x: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What a call returns: under `shard_map` it varies over the mesh axes that x varies over."""
    kind = jax.typeof(x)
    if not kind.manual_axis_type.varying:
        return jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.ShapeDtypeStruct(
        shape, x.dtype, sharding=kind.sharding, manual_axis_type=kind.manual_axis_type
    )


def _spread(g: jax.Array, shape: tuple[int, ...], edges: Triple, strides: Triple) -> jax.Array:
    """Put the gradient of a strided convolution onto the input's grid, zeros between."""
    if strides == (1, 1, 1):
        return g
    margins = [(0, 0, 0)]
    for size, out, edge, step in zip(shape[1:4], g.shape[1:4], edges, strides, strict=True):
        before = max((out - 1) * step + edge - size, 0) // 2
        low = edge // 2 - before
        margins.append((low, size - low - ((out - 1) * step + 1), step - 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*margins, (0, 0, 0)])
