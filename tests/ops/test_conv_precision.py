"""bfloat16 maps with float32 weights: rounded products, gradients of the weights summed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.ops.conv import conv3d

STRIDES = [(1, 1, 1), (1, 2, 2)]


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def as_an_accelerator_does(function, *arguments):
    """Run on the CPU what `jax.export` lowers for a TPU: the plain convolution."""
    unchecked = [jax.export.DisabledSafetyCheck.platform()]
    exported = jax.export.export(jax.jit(function), platforms=("tpu",), disabled_checks=unchecked)(*arguments)
    assert "custom_call" not in exported.mlir_module()
    return exported.call(*arguments)


def value_and_gradients(x, kernel, bias, g, strides):
    y, pull = jax.vjp(lambda *arrays: conv3d(*arrays, strides=strides), x, kernel, bias)
    return y, *pull(g)


@pytest.mark.parametrize("run", [lambda f, *a: f(*a), as_an_accelerator_does], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("edges", [(3, 3, 3), (1, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("strides", STRIDES)
def test_float32_weights_on_bfloat16_maps(rng, run, edges, strides):
    """Against float32 on the rounded values; only results that are maps are rounded again."""
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 8, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(*edges, 3, 4)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=4), jnp.float32)
    shape = conv3d(x, kernel, strides=strides).shape
    g = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    got = run(lambda *a: value_and_gradients(*a, strides), x, kernel, bias, g)
    exact = [jnp.asarray(rounded(a), jnp.float32) for a in (x, kernel)]
    want = value_and_gradients(*exact, bias, g.astype(jnp.float32), strides)
    assert [str(a.dtype) for a in got] == ["bfloat16", "bfloat16", "float32", "float32"]
    for ours, theirs, tolerance in zip(got, want, (2**-7, 2**-7, 1e-5, 1e-5), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours.astype(jnp.float32) / scale, theirs / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("run", [lambda f, *a: f(*a), as_an_accelerator_does], ids=["cpu", "accelerator"])
def test_a_long_sum_does_not_stall(rng, run):
    """A sum of ones in bfloat16 stops at 256."""
    x = jnp.ones((1, 4, 32, 32, 1), jnp.bfloat16)
    kernel, bias = jnp.ones((1, 1, 1, 1, 2)), jnp.zeros(2)
    g = jnp.ones((1, 4, 32, 32, 2), jnp.bfloat16)
    gradients = run(lambda *a: value_and_gradients(*a, (1, 1, 1)), x, kernel, bias, g)
    _, _, towards_kernel, towards_bias = gradients
    np.testing.assert_array_equal(towards_kernel.ravel(), [4096, 4096])
    np.testing.assert_array_equal(towards_bias, [4096, 4096])


def test_all_in_bfloat16_stays_so(rng):
    x, kernel = jnp.ones((1, 2, 3, 4, 2), jnp.bfloat16), jnp.ones((1, 1, 1, 2, 3), jnp.bfloat16)
    y, pull = jax.vjp(conv3d, x, kernel)
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in pull(y)] == [jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_array_equal(y.astype(jnp.float32), np.full((1, 2, 3, 4, 3), 2.0))
