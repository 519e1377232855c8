import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cmb_jax.ops.norm import channel_norm


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [3, 4, 6, 8, 15, 16, 24, 33, 48, 70])
@pytest.mark.parametrize("grid", [(2, 3, 4), (1, 1, 1), (9, 17, 11)])
def test_equals_torch_layer_norm_and_its_gradient(rng, grid, channels, relu):
    shape = (2, *grid, channels)
    x, g = (rng.normal(2, 3, size=shape).astype(np.float32) for _ in range(2))
    scale, bias = rng.normal(size=(2, channels)).astype(np.float32)
    peers = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (x, scale, bias)]
    theirs = torch.nn.functional.layer_norm(peers[0], (channels,), peers[1], peers[2])
    g[np.abs(theirs.detach().numpy()) < 1e-4] = 0  # where the sign is a matter of rounding
    theirs = theirs.relu() if relu else theirs
    theirs.backward(torch.tensor(g, dtype=torch.float64))
    ours, back = jax.vjp(lambda *a: channel_norm(*a, relu=relu), *map(jnp.asarray, (x, scale, bias)))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    for mine, peer in zip(back(jnp.asarray(g)), peers, strict=True):
        np.testing.assert_allclose(
            mine, peer.grad.numpy(), rtol=1e-4, atol=1e-5 * float(peer.grad.abs().max())
        )


def test_a_voxel_depends_on_no_other(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.float32)
    one, zero = jnp.ones(6), jnp.zeros(6)
    np.testing.assert_array_equal(
        channel_norm(x, one, zero)[1, 2, 3, 4], channel_norm(x[1, 2, 3, 4], one, zero)
    )


def test_vmap_and_shard_map(rng):
    x = jnp.asarray(rng.normal(size=(8, 3, 4, 5, 8)), jnp.float32)
    scale, bias = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(channel_norm, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"))
    want, pull = jax.vjp(channel_norm, x, scale, bias)
    got, pull_spread = jax.vjp(jax.jit(spread), x, scale, bias)
    np.testing.assert_array_equal(got, want)
    for mine, peer in zip(pull_spread(want), pull(want), strict=True):
        np.testing.assert_allclose(mine, peer, rtol=1e-4, atol=1e-4)
    scales = jnp.stack([scale, 2 * scale])
    both = jax.vmap(channel_norm, in_axes=(None, 0, None))(x, scales, bias)
    np.testing.assert_allclose(both[1], channel_norm(x, 2 * scale, bias), rtol=1e-6)


def test_bfloat16_is_kept_and_statistics_are_float32(rng):
    x = jnp.asarray(rng.normal(100, 1, size=(4, 8)), jnp.bfloat16)
    y = channel_norm(x, jnp.ones(8), jnp.zeros(8))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32).std(axis=-1), 1, atol=0.05)
