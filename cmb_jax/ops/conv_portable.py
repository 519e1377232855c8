"""3-D convolution on CPU in plain JAX: for machines on which the compiled kernel is missing.

XLA:CPU runs its own 3-D convolution, and above all the gradient of the kernel, several times slower than
2-D convolutions and matrix products of the same work; so it is written with those here. Kernel edges are 1 or
3, strides 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Triple = tuple[int, int, int]

# Voxels that one 2-D convolution call works on: a few MB, so that what it writes is still in the cache when
# the three depth taps are summed. Larger volumes go through in slabs of planes.
_SLAB_VOXELS = 2**17
# A slab has at least so many planes: its two planes of margin are computed twice.
_SLAB_PLANES = 16
# Rows of the matrix products that sum the kernel gradient: the gathered columns stay in the cache.
_ROWS = 5000


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve (B, Z, Y, X, C_in) with (kz, ky, kx, C_in, C_out), zero padding, strides 1."""
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.dot(x, kernel[0, 0, 0])
    return lax.map(lambda volume: _one_volume(volume, kernel), x)


def kernel_gradient(x: jax.Array, g: jax.Array, edges: Triple) -> jax.Array:
    """Gradient (kz, ky, kx, C_in, C_out) of the kernel for x (B, Z, Y, X, C_in) and g (B, Z, Y, X, C_out)."""
    return _gradient_by_planes(x, g, edges) if edges == (1, 1, 1) else _gradient_by_slabs(x, g, edges)


def _one_volume(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of one volume (Z, Y, X, C), in slabs of planes if it is large."""
    depth, height, width, _ = x.shape
    margin = kernel.shape[0] // 2
    planes = max(_SLAB_PLANES, _SLAB_VOXELS // (height * width))
    if depth <= planes:
        return _planes(jnp.pad(x, ((margin, margin), (0, 0), (0, 0), (0, 0))) if margin else x, kernel)
    slabs = -(-depth // planes)
    padded = jnp.pad(x, ((margin, margin), (0, 0), (0, 0), (0, 0)))

    def slab(i: jax.Array, out: jax.Array) -> jax.Array:
        # The last slab starts early enough to end with the volume, and writes some planes twice.
        first = jnp.minimum(i * planes, depth - planes)
        source = lax.dynamic_slice_in_dim(padded, first, planes + 2 * margin)
        return lax.dynamic_update_slice_in_dim(out, _planes(source, kernel), first, 0)

    start = _zeros((depth, height, width, kernel.shape[-1]), x, kernel)
    return lax.fori_loop(0, slabs, slab, start)


def _planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve planes (Z + kz - 1, Y, X, C) to (Z, Y, X, O).

    One 2-D convolution gives every plane's contribution to the kz planes that it touches; contributions of
    neighboring planes are then summed.
    """
    kz, ky, kx, inputs, outputs = kernel.shape
    flat = kernel.transpose(1, 2, 3, 0, 4).reshape(ky, kx, inputs, kz * outputs)
    taps = lax.conv_general_dilated(x, flat, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    # channels [t * outputs, (t + 1) * outputs) of input plane z + t belong to output plane z
    depth = x.shape[0] - kz + 1
    out = taps[:depth, ..., :outputs]
    for tap in range(1, kz):
        out = out + taps[tap : tap + depth, ..., tap * outputs : (tap + 1) * outputs]
    return out


def _gradient_by_planes(x: jax.Array, g: jax.Array, edges: Triple) -> jax.Array:
    """Gradient of a 1x1x1 kernel: one product per plane; a single long one is many times slower."""
    batch, depth, height, width, inputs = x.shape
    shape = (batch * depth, height * width)
    products = lax.dot_general(
        x.reshape(*shape, inputs), g.reshape(*shape, g.shape[-1]), (((1,), (1,)), ((0,), (0,)))
    )
    return products.sum(axis=0).reshape(*edges, inputs, g.shape[-1])


def _gradient_by_slabs(x: jax.Array, g: jax.Array, edges: Triple) -> jax.Array:
    """Sum over slabs of planes of (x shifted along kx)^T @ (g shifted along kz and ky).

    Sharing the shifts between both operands copies each value 3 and 9 times; the usual 27-fold columns of x
    alone would move far more memory for the same product.
    """
    batch, depth, height, width, inputs = x.shape
    outputs = g.shape[-1]
    kz, ky, kx = edges
    plane = batch * height * width
    # a divisor of the depth, so that all slabs of the scan have one static shape
    planes = max(p for p in range(1, depth + 1) if depth % p == 0 and (p == 1 or p * plane <= _ROWS))
    x = _pad(x, (0, 0, kx // 2))
    g = _pad(g, (kz // 2, ky // 2, 0))

    def slab(total: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
        xs = lax.dynamic_slice_in_dim(x, first, planes, axis=1)
        gs = lax.dynamic_slice_in_dim(g, first, planes + kz - 1, axis=1)
        left = jnp.concatenate([xs[:, :, :, c : c + width] for c in range(kx)], axis=-1)
        # Output plane z meets input plane z + tap - kz // 2: taps run backwards through the padded gradient.
        right = jnp.concatenate(
            [
                gs[:, kz - 1 - a : kz - 1 - a + planes, ky - 1 - b : ky - 1 - b + height]
                for a in range(kz)
                for b in range(ky)
            ],
            axis=-1,
        )
        rows = planes * plane
        product = lax.dot_general(
            left.reshape(rows, kx * inputs), right.reshape(rows, kz * ky * outputs), (((0,), (0,)), ((), ()))
        )
        return total + product, None

    start = _zeros((kx * inputs, kz * ky * outputs), x, g)
    total, _ = lax.scan(slab, start, jnp.arange(0, depth, planes))
    # (kx, C_in, kz, ky, C_out) -> (kz, ky, kx, C_in, C_out)
    return total.reshape(kx, inputs, kz, ky, outputs).transpose(2, 3, 0, 1, 4)


def _zeros(shape: tuple[int, ...], *operands: jax.Array) -> jax.Array:
    """Zeros of the operands' type that vary over every mesh axis over which an operand varies.

    Inside `jax.shard_map` the carry of a loop must vary as the loop's results do.
    """
    axes = frozenset().union(*(jax.typeof(operand).manual_axis_type.varying for operand in operands))
    zeros = jnp.zeros(shape, operands[0].dtype)
    return lax.pcast(zeros, tuple(axes), to="varying") if axes else zeros


def _pad(x: jax.Array, margins: Triple) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((margin, margin) for margin in margins), (0, 0)))
