import jax
import jax.numpy as jnp
import numpy as np
import torch

from cmb_jax.ops.norm import channel_norm


def test_equals_torch_layer_norm_and_its_gradient(rng):
    x, g = (rng.normal(2, 3, size=(2, 3, 4, 5, 6)).astype(np.float32) for _ in range(2))
    scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
    peers = [torch.tensor(value, requires_grad=True) for value in (x, scale, bias)]
    theirs = torch.nn.functional.layer_norm(peers[0], (6,), peers[1], peers[2])
    theirs.backward(torch.tensor(g))
    ours, back = jax.vjp(channel_norm, *map(jnp.asarray, (x, scale, bias)))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    for mine, peer in zip(back(jnp.asarray(g)), peers, strict=True):
        np.testing.assert_allclose(mine, peer.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_a_voxel_depends_on_no_other(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.float32)
    one, zero = jnp.ones(6), jnp.zeros(6)
    np.testing.assert_array_equal(
        channel_norm(x, one, zero)[1, 2, 3, 4], channel_norm(x[1, 2, 3, 4], one, zero)
    )


def test_bfloat16_is_kept_and_statistics_are_float32(rng):
    x = jnp.asarray(rng.normal(100, 1, size=(4, 8)), jnp.bfloat16)
    y = channel_norm(x, jnp.ones(8), jnp.zeros(8))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32).std(axis=-1), 1, atol=0.05)
