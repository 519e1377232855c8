"""A convolution on parts of a volume's depth is that of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cmb_jax.ops.conv import conv3d, with_neighbors
from cmb_jax.training.distributed import make_mesh

DEEP = P("data", "space")


def test_parts_get_one_plane_of_each_neighbor_and_zeros_at_the_ends():
    planes = jnp.arange(1.0, 9.0)[None, :, None]
    mesh = make_mesh(1, 4)
    parts = jax.shard_map(with_neighbors, mesh=mesh, in_specs=DEEP, out_specs=DEEP)(planes)
    np.testing.assert_array_equal(
        np.asarray(parts).reshape(4, 4), [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 0]]
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # the compiled kernel and the plain convolution
def test_a_shared_convolution_and_its_gradients_are_those_of_the_whole(rng, dtype):
    x, kernel, bias = (
        jnp.asarray(rng.normal(size=size), dtype) for size in ((2, 8, 6, 4, 5), (3, 3, 3, 5, 6), (6,))
    )
    coarse = jnp.asarray(rng.normal(size=(2, 4, 3, 2, 6)), dtype)
    conv = functools.partial(conv3d, relu=True)
    shared = jax.shard_map(conv, mesh=make_mesh(2, 4), in_specs=(DEEP, P(), P(), DEEP), out_specs=DEEP)
    tolerance = {"float32": 1e-5, "float16": 2e-2}[dtype]

    def results(function):
        value, pull = jax.vjp(function, x, kernel, bias, coarse)
        return value, *pull(jnp.cos(value))

    results = jax.jit(results, static_argnums=0)
    for one, many in zip(results(conv), results(shared), strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(np.asarray(many) / scale, np.asarray(one) / scale, atol=tolerance)


def test_strides_over_parts_are_refused(rng):
    x, kernel = jnp.zeros((1, 8, 4, 4, 2)), jnp.zeros((3, 3, 3, 2, 2))
    conv = functools.partial(conv3d, strides=(2, 1, 1))
    with pytest.raises(ValueError, match="no strides along z"):
        jax.shard_map(conv, mesh=make_mesh(1, 4), in_specs=(DEEP, P()), out_specs=DEEP)(x, kernel)
