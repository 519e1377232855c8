import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.ops.top import kth_largest, top_k


@settings(max_examples=60, deadline=None)
@given(
    count=st.sampled_from([1, 63, 64, 65, 1000, 5000]),
    share=st.floats(0, 1),
    different=st.sampled_from([1, 3, 50, 10**6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_a_stable_sort(count, share, different, seed):
    x = np.random.default_rng(seed).integers(0, different, count).astype(np.float32)
    x[::7] = -np.inf  # left out by the caller
    k = max(1, int(share * min(count, 100)))
    values, indices = top_k(jnp.asarray(x), k)
    want = np.argsort(-x, kind="stable")[:k]
    np.testing.assert_array_equal(values, x[want])
    finite = np.isfinite(x[want])  # padding and what is left out are equal
    np.testing.assert_array_equal(np.asarray(indices)[finite], want[finite])
    assert (np.asarray(indices) >= 0).all()


def test_maps_over_a_batch(rng):
    x = jnp.asarray(rng.normal(size=(3, 4000)), jnp.float32)
    values, indices = jax.vmap(lambda row: top_k(row, 5))(x)
    want = np.argsort(-np.asarray(x), axis=1)[:, :5]
    np.testing.assert_array_equal(indices, want)
    np.testing.assert_array_equal(values, np.take_along_axis(np.asarray(x), want, axis=1))


@settings(max_examples=60, deadline=None)
@given(
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
    different=st.sampled_from([1, 3, 50, 10**6]),
    k=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_kth_largest_equals_a_sort(scale, different, k, seed):
    rng = np.random.default_rng(seed)
    x = ((rng.integers(0, different, (3, 200)) - different // 2) * scale).astype(np.float32)
    x[:, ::7], x[0, 1], x[1, 2] = -np.inf, np.inf, -0.0
    np.testing.assert_array_equal(kth_largest(jnp.asarray(x), k), np.sort(x, axis=1)[:, -k])
