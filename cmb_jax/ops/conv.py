"""3-D convolution that is fast on CPUs too.

XLA:CPU runs its own 3-D convolution, and above all the gradient towards the kernel, several times slower than
2-D convolutions and matrix products of the same work. On CPU the operation is therefore written with those;
every other platform gets one plain convolution, which its compiler knows best.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Triple = tuple[int, int, int]

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
# Rows of the matrix products that sum the kernel gradient: enough to keep the product busy, few enough for
# the gathered columns to stay in the cache.
_ROWS = 8192


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple = (1, 1, 1)) -> jax.Array:
    """Convolve with zero padding that keeps the shape ("SAME"), divided by the strides.

    Args:
        x: (B, Z, Y, X, C_in).
        kernel: (kz, ky, kx, C_in, C_out) of x's type, each of kz, ky, kx 1 or 3.
        strides: steps along z, y, x.

    Returns:
        (B, ceil(Z / sz), ceil(Y / sy), ceil(X / sx), C_out), of x's type.

    Raises:
        ValueError: x and kernel do not fit each other, or a kernel edge is neither 1 nor 3.
    """
    if x.ndim != 5 or kernel.ndim != 5 or x.shape[-1] != kernel.shape[3]:
        raise ValueError(
            f"conv3d cannot apply a kernel of shape {kernel.shape} to an input of shape {x.shape}"
        )
    if any(edge not in (1, 3) for edge in kernel.shape[:3]):
        raise ValueError(f"conv3d takes kernel edges of 1 or 3, got {kernel.shape[:3]}")
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv3d needs one type for input and kernel, got {x.dtype} and {kernel.dtype}")
    if strides != (1, 1, 1):
        return _plain(x, kernel, strides)
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.dot(x, kernel[0, 0, 0])
    if x.dtype == jnp.bfloat16:
        return _plain(x, kernel)
    return _conv(x, kernel)


@jax.custom_vjp
def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=_by_planes, default=_plain)


def _conv_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel), (x, kernel)


def _conv_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # With stride 1 and odd kernels the gradient towards the input is a convolution with the mirrored kernel.
    mirrored = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    towards_input = lax.platform_dependent(g, mirrored, cpu=_by_planes, default=_plain)
    edges: Triple = (kernel.shape[0], kernel.shape[1], kernel.shape[2])
    towards_kernel = lax.platform_dependent(
        x,
        g,
        cpu=lambda x, g: _kernel_gradient_by_products(x, g, edges),
        default=lambda x, g: _kernel_gradient_plain(x, g, edges),
    )
    return towards_input, towards_kernel


_conv.defvjp(_conv_forward, _conv_backward)


def _plain(x: jax.Array, kernel: jax.Array, strides: Triple = (1, 1, 1)) -> jax.Array:
    padding = [(edge // 2, edge // 2) for edge in kernel.shape[:3]]
    if strides != (1, 1, 1):
        return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=_LAYOUT)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _kernel_gradient_plain(x: jax.Array, g: jax.Array, edges: Triple) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((*edges, x.shape[-1], g.shape[-1]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda k: _plain(x, k), kernel)(g)
    return gradient


def _by_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Sum over the kernel's depth of 2-D convolutions, all planes of all volumes as one batch."""
    batch, depth, height, width, channels = x.shape
    taps = kernel.shape[0]
    padded = _pad(x, (taps // 2, 0, 0))
    out = sum(
        lax.conv_general_dilated(
            padded[:, tap : tap + depth].reshape(batch * depth, height, width, channels),
            kernel[tap],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for tap in range(taps)
    )
    return jnp.asarray(out).reshape(batch, depth, height, width, kernel.shape[-1])


def _kernel_gradient_by_products(x: jax.Array, g: jax.Array, edges: Triple) -> jax.Array:
    """Sum over slabs of planes of (x shifted along kx)^T @ (g shifted along kz and ky).

    Sharing the shifts between both operands copies each value 3 and 9 times; the usual 27-fold columns of x
    alone would move far more memory for the same product.
    """
    batch, depth, height, width, inputs = x.shape
    outputs = g.shape[-1]
    kz, ky, kx = edges
    planes = max(
        p for p in range(1, depth + 1) if depth % p == 0 and (p == 1 or p * batch * height * width <= _ROWS)
    )
    rows = batch * planes * height * width
    x = _pad(x, (0, 0, kx // 2))
    g = _pad(g, (kz // 2, ky // 2, 0))

    def slab(total: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
        xs = lax.dynamic_slice_in_dim(x, first, planes, axis=1)
        gs = lax.dynamic_slice_in_dim(g, first, planes + kz - 1, axis=1)
        left = jnp.concatenate([xs[:, :, :, c : c + width] for c in range(kx)], axis=-1)
        # Output plane z meets input plane z + tap - kz//2, so tap runs backwards through the padded gradient.
        right = jnp.concatenate(
            [
                gs[:, kz - 1 - a : kz - 1 - a + planes, ky - 1 - b : ky - 1 - b + height]
                for a in range(kz)
                for b in range(ky)
            ],
            axis=-1,
        )
        product = lax.dot_general(
            left.reshape(rows, kx * inputs), right.reshape(rows, kz * ky * outputs), (((0,), (0,)), ((), ()))
        )
        return total + product, None

    start = jnp.zeros((kx * inputs, kz * ky * outputs), x.dtype)
    total, _ = lax.scan(slab, start, jnp.arange(0, depth, planes))
    return total.reshape(kx, inputs, kz, ky, outputs).transpose(2, 3, 0, 1, 4)


def _pad(x: jax.Array, margins: Triple) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((margin, margin) for margin in margins), (0, 0)))
