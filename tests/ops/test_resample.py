import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.ops.resample import depth_to_space, max_pool, space_to_depth, upsample_nearest

FACTORS = [(2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 1, 3)]


def blocks_of(x, factors):
    """The values of every block by slow loops: (B, z, y, x, C, values of the block)."""
    batch, *grid, channels = x.shape
    small = [size // factor for size, factor in zip(grid, factors, strict=True)]
    out = np.zeros((batch, *small, channels, int(np.prod(factors))), x.dtype)
    for index in np.ndindex(*small):
        window = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        values = x[(slice(None), *window)].reshape(batch, -1, channels)
        out[(slice(None), *index)] = values.transpose(0, 2, 1)
    return out


@pytest.mark.parametrize("factors", FACTORS)
def test_max_pool_takes_the_largest_of_each_block(rng, factors):
    x = rng.normal(size=(2, 4, 6, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), factors), blocks_of(x, factors).max(axis=-1))


@pytest.mark.parametrize("factors", FACTORS)
def test_max_pool_gradient_goes_to_one_largest_voxel(rng, factors):
    x = rng.integers(0, 3, size=(2, 4, 6, 6, 3)).astype(np.float32)  # many ties
    g = rng.normal(size=max_pool(jnp.asarray(x), factors).shape).astype(np.float32)
    (gradient,) = jax.vjp(lambda x: max_pool(x, factors), jnp.asarray(x))[1](jnp.asarray(g))
    values, shares = blocks_of(x, factors), blocks_of(np.asarray(gradient), factors)
    assert ((shares != 0).sum(axis=-1) == 1).all()
    assert (
        values[shares != 0] == np.broadcast_to(values.max(-1, keepdims=True), values.shape)[shares != 0]
    ).all()
    np.testing.assert_array_equal(shares.sum(axis=-1), g)


def test_of_equal_voxels_the_first_gets_the_gradient():
    factors = (2, 3, 2)
    _, back = jax.vjp(lambda x: max_pool(x, factors), jnp.zeros((1, 4, 6, 4, 1)))
    (gradient,) = back(jnp.ones((1, 2, 2, 2, 1)))
    first = np.zeros((4, 6, 4))
    first[::2, ::3, ::2] = 1
    np.testing.assert_array_equal(gradient[0, ..., 0], first)


def test_upsample_repeats_and_its_gradient_sums(rng):
    x = rng.normal(size=(2, 2, 3, 2, 3)).astype(np.float32)
    factors = (2, 1, 3)
    want = x.repeat(2, axis=1).repeat(3, axis=3)
    got, back = jax.vjp(lambda x: upsample_nearest(x, factors), jnp.asarray(x))
    np.testing.assert_array_equal(got, want)
    g = rng.normal(size=want.shape).astype(np.float32)
    np.testing.assert_allclose(
        back(jnp.asarray(g))[0], blocks_of(g, factors).sum(axis=-1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("factors", FACTORS)
def test_space_to_depth_orders_z_y_x_channel_and_is_undone(rng, factors):
    x = rng.normal(size=(2, 4, 6, 6, 3)).astype(np.float32)
    deep = space_to_depth(jnp.asarray(x), factors)
    want = np.moveaxis(blocks_of(x, factors), -1, -2)  # block order before channel
    np.testing.assert_array_equal(deep, want.reshape(deep.shape))
    np.testing.assert_array_equal(depth_to_space(deep, factors), x)


def test_sizes_that_do_not_fit_are_refused():
    x = jnp.zeros((1, 3, 4, 4, 2))
    for operation in (max_pool, space_to_depth):
        with pytest.raises(ValueError, match="not a multiple"):
            operation(x, (2, 2, 2))
    with pytest.raises(ValueError, match="multiples of 8"):
        depth_to_space(x, (2, 2, 2))
