import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cmb_jax.ops import conv
from cmb_jax.ops.conv import conv3d

KERNELS = [(3, 3, 3), (1, 3, 3), (3, 1, 1), (3, 3, 1), (1, 1, 1)]


def direct(x, kernel):
    """Sum over taps in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    edges, size = kernel.shape[:3], x.shape[1:4]
    padded = np.pad(x, ((0, 0), *((edge // 2, edge // 2) for edge in edges), (0, 0)))
    out = np.zeros((*x.shape[:4], kernel.shape[4]))
    for tap in itertools.product(*(range(edge) for edge in edges)):
        shifted = padded[:, tap[0] : tap[0] + size[0], tap[1] : tap[1] + size[1], tap[2] : tap[2] + size[2]]
        out += shifted @ kernel[tap]
    return out


def plain(x, kernel, strides=(1, 1, 1)):
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def sample(rng, shape, outputs, edges):
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(*edges, shape[-1], outputs)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


@pytest.mark.parametrize("edges", KERNELS)
def test_value_is_the_sum_over_taps(rng, edges):
    x, kernel = sample(rng, (2, 5, 6, 7, 3), 4, edges)
    np.testing.assert_allclose(jax.jit(conv3d)(x, kernel), direct(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edges", KERNELS)
def test_gradients_are_those_of_the_plain_convolution(rng, edges):
    x, kernel = sample(rng, (2, 6, 5, 7, 3), 4, edges)
    weight = jnp.asarray(rng.normal(size=(2, 6, 5, 7, 4)), jnp.float32)
    ours = jax.jit(jax.grad(lambda x, k: (conv3d(x, k) * weight).sum(), argnums=(0, 1)))(x, kernel)
    want = jax.jit(jax.grad(lambda x, k: (plain(x, k) * weight).sum(), argnums=(0, 1)))(x, kernel)
    for mine, theirs in zip(ours, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edges", [(3, 3, 3), (1, 3, 3)])
@pytest.mark.parametrize("depth", [4, 5, 11, 12])
def test_slabs_do_not_show(rng, monkeypatch, edges, depth):
    monkeypatch.setattr(conv, "_SLAB_VOXELS", 1)
    monkeypatch.setattr(conv, "_SLAB_PLANES", 4)
    x, kernel = sample(rng, (2, depth, 4, 5, 2), 3, edges)
    np.testing.assert_allclose(conv3d(x, kernel), direct(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 200])
def test_kernel_gradient_does_not_depend_on_the_slab(rng, monkeypatch, rows):
    monkeypatch.setattr(conv, "_ROWS", rows)
    x, kernel = sample(rng, (2, 6, 5, 7, 3), 4, (3, 3, 3))
    weight = jnp.asarray(rng.normal(size=(2, 6, 5, 7, 4)), jnp.float32)
    ours = jax.grad(lambda k: (conv3d(x, k) * weight).sum())(kernel)
    want = jax.grad(lambda k: (plain(x, k) * weight).sum())(kernel)
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-4)


def test_strides_and_bfloat16_go_to_the_plain_convolution(rng):
    x, kernel = sample(rng, (1, 6, 5, 8, 3), 4, (3, 3, 3))
    np.testing.assert_allclose(
        conv3d(x, kernel, (1, 2, 2)), plain(x, kernel, (1, 2, 2)), rtol=1e-5, atol=1e-5
    )
    low = conv3d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), direct(x, kernel), rtol=0.1, atol=0.3)


def test_vmap_and_remat(rng):
    x, kernel = sample(rng, (3, 4, 4, 5, 2), 3, (3, 3, 3))
    kernels = jnp.stack([kernel, 2 * kernel])
    both = jax.jit(jax.vmap(conv3d, in_axes=(None, 0)))(x, kernels)
    np.testing.assert_allclose(both[1], direct(x, 2 * kernel), rtol=1e-5, atol=1e-4)

    def loss(k, f):
        return jnp.square(f(x, k)).sum()

    gradient = jax.grad(loss)(kernel, plain)
    np.testing.assert_allclose(jax.grad(loss)(kernel, jax.checkpoint(conv3d)), gradient, rtol=1e-4)
    stacked = jax.vmap(lambda k: jax.grad(loss)(k, conv3d))(kernels)
    np.testing.assert_allclose(stacked[0], gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_plain_convolutions(rng, platform):
    x, kernel = sample(rng, (1, 4, 4, 4, 2), 3, (3, 3, 3))
    step = jax.jit(jax.grad(lambda x, k: conv3d(x, k).sum(), argnums=(0, 1)))
    text = step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" not in text
    # the value is not needed for a sum's gradient: one convolution towards the input, one towards the kernel
    assert text.count("stablehlo.convolution") == 2
    on_cpu = step.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" in on_cpu


def test_shapes_that_do_not_fit_are_refused():
    x = jnp.zeros((1, 4, 4, 4, 2))
    with pytest.raises(ValueError, match="kernel of shape"):
        conv3d(x, jnp.zeros((3, 3, 3, 3, 4)))
    with pytest.raises(ValueError, match="1 or 3"):
        conv3d(x, jnp.zeros((5, 3, 3, 2, 4)))
    with pytest.raises(ValueError, match="one type"):
        conv3d(x, jnp.zeros((3, 3, 3, 2, 4), jnp.bfloat16))
