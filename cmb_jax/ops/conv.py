"""3-D convolution: a compiled kernel of our own on CPUs, one plain convolution on every other platform.

XLA:CPU runs its own 3-D convolution 4 to 19 times slower than PyTorch does. On CPU the operation therefore
goes to `ops/cpu/`, C++ that XLA calls on its own threads, or, where that was not built, to 2-D convolutions
and matrix products (`conv_portable`). Accelerators get a plain convolution, which their compilers optimize.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmb_jax.ops import conv_portable
from cmb_jax.ops.cpu import library
from cmb_jax.ops.cpu.library import like, vary_together
from cmb_jax.ops.resample import sum_blocks, upsample_nearest

Triple = tuple[int, int, int]
Products = Literal["float32", "bfloat16"]

# Inside `jax.shard_map`, an array that varies over this mesh axis is one device's part of a volume's depth,
# in the order of the devices along it. Operations on single voxels, and on blocks that no cut divides, need
# not know; a convolution that looks at the neighboring planes gets them by `with_neighbors`.
DEPTH_AXIS = "space"

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    coarse: jax.Array | None = None,
    *,
    strides: Triple = (1, 1, 1),
    relu: bool = False,
    products: Products = "float32",
) -> jax.Array:
    """Convolve with zero padding that keeps the shape ("SAME"), divided by the strides.

    What usually follows is part of the operation, so that on CPU the result is written once: a bias, a
    coarser map whose voxels are repeated and added, ReLU, in this order.

    Inside `jax.shard_map` over a mesh whose devices share the depth (`DEPTH_AXIS`), x is one device's part,
    and the planes across the cuts are exchanged: the result is this device's part of the whole volume's.

    With bfloat16 products and float32 maps, both factors of each product are rounded to bfloat16 (to nearest,
    ties to even) as they are read, in both directions; sums, bias, maps and their gradients are float32. On
    CPUs without instructions for it the numbers are rounded and multiplied as float32, which is no faster.
    GPUs take TensorFloat-32 instead, TPUs bfloat16: the default precision of their compilers.

    Differentiable once in reverse mode (`custom_vjp`). To export a CPU program, pass
    `jax.export.DisabledSafetyCheck.custom_call(name)` for each of `ops.cpu.library.TARGETS`.

    Args:
        x: (B, Z, Y, X, C_in). float32 and bfloat16 on CPU take the compiled kernel, which sums in float32.
        kernel: (kz, ky, kx, C_in, C_out) of x's type or float32, each of kz, ky, kx 1 or 3. It is rounded to
            x's type; its gradient is summed, over devices too, in its own type.
        bias: (C_out,) of the kernel's type.
        coarse: map of half the result's size, (B, Z' / 2, Y' / 2, X' / 2, C_out), of x's type.
        strides: steps along z, y, x.
        relu: apply ReLU last.
        products: type of the factors of each product, for float32 maps.

    Returns:
        (B, Z', Y', X', C_out) = (B, ceil(Z / sz), ceil(Y / sy), ceil(X / sx), C_out), of x's type.

    Raises:
        ValueError: shapes or types do not fit each other, a kernel edge is neither 1 nor 3, a stride is less
            than 1, products are of an unknown type, or a kernel of 3 is to go in strides along z over a part
            of a volume.
    """
    _check(x, kernel, bias, coarse, strides)
    if products not in ("float32", "bfloat16"):
        raise ValueError(f"conv3d takes products of float32 or bfloat16, got {products}")
    rounded = products == "bfloat16" or x.dtype == jnp.bfloat16
    x, kernel, bias, coarse = vary_together(x, kernel, bias, coarse)
    if kernel.shape[0] == 3 and is_part_of_depth(x):
        if strides[0] != 1:
            raise ValueError("conv3d takes no strides along z where devices share the depth")
        # ReLU is left to the pass that takes the neighbors' planes off again
        whole = _apply(with_neighbors(x), kernel, bias, None, strides, False, rounded)
        return _finish(whole[:, 1:-1], None, coarse, relu)
    return _apply(x, kernel, bias, coarse, strides, relu, rounded)


def is_part_of_depth(x: jax.Array) -> bool:
    """Whether x is one of several parts of a volume's depth."""
    return DEPTH_AXIS in jax.typeof(x).manual_axis_type.varying and lax.axis_size(DEPTH_AXIS) > 1


def with_neighbors(x: jax.Array) -> jax.Array:
    """One plane of each neighboring part put before and after: (B, Z, ...) to (B, Z + 2, ...).

    Beyond the ends of the volume the planes are zero, as the network pads a whole volume.
    """
    last = lax.axis_size(DEPTH_AXIS) - 1
    upwards = [(part, part + 1) for part in range(last)]
    downwards = [(part + 1, part) for part in range(last)]
    before = lax.ppermute(x[:, -1:], DEPTH_AXIS, upwards)
    after = lax.ppermute(x[:, :1], DEPTH_AXIS, downwards)
    return jnp.concatenate([before, x, after], axis=1)


def _apply(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    coarse: jax.Array | None,
    strides: Triple,
    relu: bool,
    rounded: bool,
) -> jax.Array:
    # float64 is for tests of gradients, and nothing need be computed for empty arrays: neither has a kernel
    if x.dtype not in (np.float32, jnp.bfloat16) or 0 in x.shape or 0 in kernel.shape:
        return _plain(x, kernel, bias, coarse, strides, relu, rounded)
    return _conv(x, kernel, bias, coarse, tuple(strides), relu, rounded)


def _check(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, coarse: jax.Array | None, strides: Triple
) -> None:
    if x.ndim != 5 or kernel.ndim != 5 or x.shape[-1] != kernel.shape[3]:
        raise ValueError(
            f"conv3d cannot apply a kernel of shape {kernel.shape} to an input of shape {x.shape}"
        )
    if any(edge not in (1, 3) for edge in kernel.shape[:3]):
        raise ValueError(f"conv3d takes kernel edges of 1 or 3, got {kernel.shape[:3]}")
    if len(strides) != 3 or any(step < 1 for step in strides):
        raise ValueError(f"conv3d takes three strides of 1 or more, got {strides}")
    maps = [str(array.dtype) for array in (x, coarse) if array is not None]
    weights = [str(array.dtype) for array in (kernel, bias) if array is not None]
    if len(set(maps)) > 1 or len(set(weights)) > 1 or weights[0] not in (maps[0], "float32"):
        raise ValueError(
            "conv3d needs one type for input and coarse map, and that type or float32 for kernel and bias, "
            f"got {maps} and {weights}"
        )
    outputs = kernel.shape[4]
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"conv3d takes a bias of shape ({outputs},), got {bias.shape}")
    grid = _output_grid(x, strides)
    if coarse is not None and (
        any(size % 2 for size in grid) or coarse.shape != (x.shape[0], *(n // 2 for n in grid), outputs)
    ):
        raise ValueError(
            f"conv3d cannot add a coarse map of shape {coarse.shape} to a result of {(*grid, outputs)}"
        )


def _output_grid(x: jax.Array, strides: Triple) -> Triple:
    z, y, x_size = (-(-n // step) for n, step in zip(x.shape[1:4], strides, strict=True))
    return (z, y, x_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    coarse: jax.Array | None,
    strides: Triple,
    relu: bool,
    rounded: bool,
) -> jax.Array:
    # The choice is made when the program is lowered, not when it is traced: one traced step can be exported
    # for any platform, and compiled ahead of time for devices that this machine does not have.
    return lax.platform_dependent(
        x,
        kernel,
        bias,
        coarse,
        cpu=functools.partial(_forward_on_cpu, strides=strides, relu=relu, rounded=rounded),
        default=functools.partial(_plain, strides=strides, relu=relu, rounded=rounded),
    )


def _conv_saved(x, kernel, bias, coarse, strides: Triple, relu: bool, rounded: bool):
    y = _conv(x, kernel, bias, coarse, strides, relu, rounded)
    # what no gradient depends on is kept by its type alone
    return y, (x, kernel, bias is None, coarse is None, y if relu else None)


def _conv_backward(strides: Triple, relu: bool, rounded: bool, saved, g: jax.Array):
    x, kernel, no_bias, no_coarse, y = saved
    grad_x, grad_kernel, grad_bias, grad_coarse = lax.platform_dependent(
        x,
        kernel,
        y,
        g,
        cpu=functools.partial(_backward_on_cpu, strides=strides, coarse=not no_coarse, rounded=rounded),
        default=functools.partial(_backward_plain, strides=strides, coarse=not no_coarse, rounded=rounded),
    )
    return grad_x, grad_kernel, None if no_bias else grad_bias, grad_coarse


_conv.defvjp(_conv_saved, _conv_backward)


def _finish(y: jax.Array, bias: jax.Array | None, coarse: jax.Array | None, relu: bool) -> jax.Array:
    y = y if bias is None else (y + bias).astype(y.dtype)
    y = y if coarse is None else y + upsample_nearest(coarse)
    return jax.nn.relu(y) if relu else y


def _precision(rounded: bool) -> lax.Precision:
    """Precision of products on accelerators: the compiler's default, or full float32."""
    return lax.Precision.DEFAULT if rounded else lax.Precision.HIGHEST


def _convolve(x: jax.Array, kernel: jax.Array, strides: Triple, rounded: bool = False) -> jax.Array:
    """The convolution alone, without bias, coarse map and ReLU."""
    kernel = kernel.astype(x.dtype)
    # a 1x1x1 kernel without strides is one matrix product over the channels
    if kernel.shape[:3] == strides == (1, 1, 1):
        return jnp.dot(x, kernel[0, 0, 0], precision=_precision(rounded))
    return lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=_LAYOUT, precision=_precision(rounded)
    )


def _plain(x, kernel, bias, coarse, strides: Triple, relu: bool, rounded: bool) -> jax.Array:
    return _finish(_convolve(x, kernel, strides, rounded), bias, coarse, relu)


def _after_convolution(g: jax.Array, y: jax.Array | None, coarse: bool, weights: np.dtype):
    """Gradients of the convolution's own result, the bias and the coarse map (None without one)."""
    g = g if y is None else jnp.where(y > 0, g, 0)
    return g, g.sum(axis=(0, 1, 2, 3), dtype=weights), sum_blocks(g) if coarse else None


def _backward_plain(x, kernel, y, g: jax.Array, strides: Triple, coarse: bool, rounded: bool):
    g, grad_bias, grad_coarse = _after_convolution(g, y, coarse, kernel.dtype)
    (grad_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, strides, rounded), x)(g)
    return grad_x, _kernel_gradient(x, kernel, g, strides, rounded), grad_bias, grad_coarse


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, g: jax.Array, strides: Triple, rounded: bool
) -> jax.Array:
    """The convolution of x with g over batch and space, summed and returned in the kernel's type.

    Not left to `jax.linear_transpose`, which would sum in the type of x, over devices too.
    """
    edges = kernel.shape[:3]
    precision = _precision(rounded)
    if edges == strides == (1, 1, 1):
        everywhere = (((0, 1, 2, 3), (0, 1, 2, 3)), ((), ()))
        product = lax.dot_general(x, g, everywhere, precision=precision, preferred_element_type=kernel.dtype)
        return product.reshape(kernel.shape)
    # x is convolved with g as the kernel: the sum over channels becomes one over the batch ("C" is x's batch,
    # "I" that of g), forward strides become dilation of g, and the padding leaves `edge` results per axis
    spanned = [(outputs - 1) * step + 1 for outputs, step in zip(g.shape[1:4], strides, strict=True)]
    before = [low for low, _ in lax.padtype_to_pads(x.shape[1:4], edges, strides, "SAME")]
    pads = [
        (low, edge - 1 + span - low - size)
        for low, edge, span, size in zip(before, edges, spanned, x.shape[1:4], strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        g,
        (1, 1, 1),
        pads,
        rhs_dilation=strides,
        dimension_numbers=("CDHWN", "IDHWO", "DHWNC"),
        precision=precision,
        preferred_element_type=kernel.dtype,
    )


def _in_float32(function, *arrays: jax.Array | None):
    """`function` applied to the arrays in float32, for kernels that take no other type."""
    return function(*(None if array is None else array.astype(jnp.float32) for array in arrays))


def _to_bfloat16(x: jax.Array) -> jax.Array:
    """Float32 numbers as bfloat16 would hold them; a cast there and back is one that XLA may leave out."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _forward_on_cpu(x, kernel, bias, coarse, strides: Triple, relu: bool, rounded: bool) -> jax.Array:
    if x.dtype != np.float32:
        kernel = kernel.astype(x.dtype)
        same = functools.partial(_forward_on_cpu, strides=strides, relu=relu, rounded=rounded)
        return _in_float32(same, x, kernel, bias, coarse).astype(x.dtype)
    if library.available():
        return _call(x, kernel, bias=bias, coarse=coarse, strides=strides, relu=relu, rounded=rounded)
    if rounded:
        x, kernel = _to_bfloat16(x), _to_bfloat16(kernel)
    if strides != (1, 1, 1) or kernel.shape[:3] == (1, 1, 1):
        return _plain(x, kernel, bias, coarse, strides, relu, rounded)
    return _finish(conv_portable.convolve(x, kernel), bias, coarse, relu)


def _backward_on_cpu(x, kernel, y, g: jax.Array, strides: Triple, coarse: bool, rounded: bool):
    if x.dtype != np.float32:
        same = functools.partial(_backward_on_cpu, strides=strides, coarse=coarse, rounded=rounded)
        results = _in_float32(same, x, kernel.astype(x.dtype), y, g)
        types = (x.dtype, kernel.dtype, kernel.dtype, x.dtype)
        return tuple(None if r is None else r.astype(t) for r, t in zip(results, types, strict=True))
    edges: Triple = (kernel.shape[0], kernel.shape[1], kernel.shape[2])
    if not library.available():
        return _backward_portable(x, kernel, y, g, strides, coarse, rounded)
    # The ReLU is not undone first, which would be one more pass over a map: the kernels read the gradient
    # through the gate, that is where the forward result was positive.
    gate = _absent(g) if y is None else y
    of_kernel = (like(x, kernel.shape), like(x, kernel.shape[4:]))
    batch, *grid, outputs = g.shape
    halved = like(x, (batch, *(size // 2 for size in grid), outputs))
    if rounded and edges == strides == (1, 1, 1) and library.multiplies_bfloat16():
        # a product over channels is bound by memory: all gradients in one pass over the maps
        results = (like(x, x.shape), *of_kernel, halved if coarse else like(x, (0,)))
        call = jax.ffi.ffi_call(library.POINTWISE_GRADIENT, results, vmap_method="sequential")
        *grads, grad_half = call(x, g, gate, kernel)
        return (*grads, grad_half if coarse else None)
    call = jax.ffi.ffi_call(library.KERNEL_GRADIENT, of_kernel, vmap_method="sequential")
    grad_kernel, grad_bias = call(x, g, gate, strides=np.array(strides, np.int64), rounded=rounded)
    grad_coarse: jax.Array | None = None
    if coarse:
        grad_coarse = jax.ffi.ffi_call(library.BLOCK_SUM, halved, vmap_method="sequential")(g, gate)
    if strides != (1, 1, 1):
        # the kernel now walks the input's grid in single steps; the gate lies on the strided one
        g = _spread(g if y is None else jnp.where(y > 0, g, 0), x.shape, edges, strides)
        gate = _absent(g)
    grad_x = _call(g, kernel, gate=gate, mirrored=True, rounded=rounded)
    return grad_x, grad_kernel, grad_bias, grad_coarse


def _backward_portable(x, kernel, y, g: jax.Array, strides: Triple, coarse: bool, rounded: bool):
    """Without the compiled kernel."""
    g, grad_bias, grad_coarse = _after_convolution(g, y, coarse, kernel.dtype)
    if rounded:
        x, kernel, g = (_to_bfloat16(array) for array in (x, kernel, g))
    edges: Triple = (kernel.shape[0], kernel.shape[1], kernel.shape[2])
    if strides != (1, 1, 1) or edges == (1, 1, 1):
        grad_x, grad_kernel, _, _ = _backward_plain(x, kernel, None, g, strides, False, rounded)
    else:
        # With stride 1 the gradient of the input is a convolution with the mirrored kernel.
        grad_x = conv_portable.convolve(g, kernel[::-1, ::-1, ::-1].swapaxes(3, 4))
        grad_kernel = conv_portable.kernel_gradient(x, g, edges)
    return grad_x, grad_kernel, grad_bias, grad_coarse


def _call(
    x: jax.Array,
    kernel: jax.Array,
    *,
    gate: jax.Array | None = None,
    bias: jax.Array | None = None,
    coarse: jax.Array | None = None,
    strides: Triple = (1, 1, 1),
    mirrored: bool = False,
    relu: bool = False,
    rounded: bool = False,
) -> jax.Array:
    """The compiled kernel; x is read as zero where the gate is not positive."""
    outputs = kernel.shape[3 if mirrored else 4]
    result = like(x, (x.shape[0], *_output_grid(x, strides), outputs))
    call = jax.ffi.ffi_call(library.CONVOLUTION, result, vmap_method="sequential")
    gate, bias, coarse = (_absent(x) if array is None else array for array in (gate, bias, coarse))
    options = {"mirrored": mirrored, "relu": relu, "rounded": rounded}
    return call(x, gate, kernel, bias, coarse, strides=np.array(strides, np.int64), **options)


def _absent(x: jax.Array) -> jax.Array:
    """An empty array in place of one that is left out; it varies over a mesh as x does."""
    return lax.slice_in_dim(x, 0, 0, axis=0)


def _spread(g: jax.Array, shape: tuple[int, ...], edges: Triple, strides: Triple) -> jax.Array:
    """Put the gradient of a strided convolution onto the input's grid, zeros between."""
    if strides == (1, 1, 1):
        return g
    margins = [(0, 0, 0)]
    # "SAME" puts the smaller half of its padding first, which depends on the size once there are strides. The
    # mirrored convolution that follows is centered, so the first value moves by the difference.
    for size, out, edge, step in zip(shape[1:4], g.shape[1:4], edges, strides, strict=True):
        before = max((out - 1) * step + edge - size, 0) // 2
        low = edge // 2 - before
        margins.append((low, size - low - ((out - 1) * step + 1), step - 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*margins, (0, 0, 0)])
