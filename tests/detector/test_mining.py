import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.detector.mining import MINERS, mimics_first, peaks, spread

POSITIVES, NEGATIVES = 3, 4
_mine = jax.jit(mimics_first, static_argnums=(3, 4))
_miners = {name: jax.jit(miner, static_argnums=(3, 4)) for name, miner in MINERS.items()}
_spread = jax.jit(spread, static_argnums=1)


def test_known_mimics_come_first():
    logits = jnp.asarray([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0])
    label = jnp.asarray([0, 1, -1, 0, 0, 0, 1])
    mimic = jnp.asarray([False, True, True, False, False, True, False])
    mined = mimics_first(logits, label, mimic, 3, 3)
    np.testing.assert_array_equal(mined.valid, [True, True, False, True, True, True])
    np.testing.assert_array_equal(
        mined.indices[mined.valid], [1, 6, 5, 0, 3]
    )  # 1 is positive although a mimic
    np.testing.assert_array_equal(mined.classes[mined.valid], [0, 0, 1, 1, 1])


def even_choice(places):
    """As many of the places as fit, evenly chosen."""
    fit = min(len(places), POSITIVES)
    return [int(places[i * len(places) // fit]) for i in range(fit)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-1, 1), st.booleans()), min_size=12, max_size=12))
def test_equals_a_sort(rows):
    logits, label, mimic = (np.asarray(column) for column in zip(*rows, strict=True))
    positives = even_choice(np.flatnonzero(label == 1))
    negatives = sorted((not mimic[i], -logits[i], i) for i in range(12) if label[i] == 0)[:NEGATIVES]
    mined = _mine(jnp.float32(logits), jnp.asarray(label), jnp.asarray(mimic), POSITIVES, NEGATIVES)
    valid = np.asarray(mined.valid)
    np.testing.assert_array_equal(
        np.asarray(mined.indices)[valid], positives + [row[-1] for row in negatives]
    )
    np.testing.assert_array_equal(
        np.asarray(mined.classes)[valid], [0] * len(positives) + [1] * len(negatives)
    )


def test_fewer_anchors_than_slots():
    mined = mimics_first(jnp.asarray([1.0, jnp.nan]), jnp.asarray([0, 0]), jnp.zeros(2, bool), 2, 5)
    assert mined.indices.shape == (7,)
    assert set(np.asarray(mined.indices)[np.asarray(mined.valid)].tolist()) == {0, 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=150, max_size=150), st.integers(0, 150))
def test_spread_finds_all_flags_that_fit(flags, keep):
    flags = np.asarray(flags) & (np.arange(150) >= keep)
    indices, valid = _spread(jnp.asarray(flags), 150)
    np.testing.assert_array_equal(np.asarray(indices)[np.asarray(valid)], np.flatnonzero(flags))


def test_spread_thins_evenly(rng):
    flags = rng.random(5000) < 0.5
    indices, valid = _spread(jnp.asarray(flags), 16)
    every = np.flatnonzero(flags)
    assert np.asarray(valid).all()
    np.testing.assert_array_equal(indices, every[np.arange(16) * len(every) // 16])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-1, 1), st.booleans()), min_size=12, max_size=12))
def test_other_miners_equal_a_sort(rows):
    logits, label, mimic = (np.asarray(column) for column in zip(*rows, strict=True))
    score = 1 / (1 + np.exp(-np.float64(logits)))
    positives = np.flatnonzero(label == 1)
    bar = np.mean(score[positives]) if len(positives) else 1.0
    negatives = [i for i in range(12) if label[i] == 0]
    below = [i for i in negatives if score[i] < bar - 1e-6]
    wanted = {
        "top_objectness": sorted(negatives, key=lambda i: (-logits[i], i)),
        "semi_hard": sorted(below, key=lambda i: (-logits[i], i))
        + sorted(set(negatives) - set(below), key=lambda i: (logits[i], i)),
    }
    if any(abs(score[i] - bar) < 1e-6 for i in negatives):
        del wanted["semi_hard"]  # on the bar: rounding decides
    for name, order in wanted.items():
        mined = _miners[name](
            jnp.float32(logits), jnp.asarray(label), jnp.asarray(mimic), POSITIVES, NEGATIVES
        )
        want = even_choice(positives) + order[:NEGATIVES]
        np.testing.assert_array_equal(np.asarray(mined.indices)[np.asarray(mined.valid)], want)


def test_peaks_against_a_loop(rng):
    logits = rng.normal(size=(2, 4, 5, 6, 3)).astype(np.float32)
    logits[0, 1, 1, 1:3] = 9.0  # ties are all left
    negative = rng.random(logits.shape) < 0.8
    found = np.asarray(jax.jit(peaks)(jnp.asarray(negative), jnp.asarray(logits)))
    for b, z, y, x, a in np.ndindex(*logits.shape):
        around = tuple(slice(max(i - 1, 0), i + 2) for i in (z, y, x))
        best = np.where(negative, logits, -np.inf)[b][around].max()
        assert found[b, z, y, x, a] == (negative[b, z, y, x, a] and logits[b, z, y, x, a] == best)
    assert 0 < found.sum() < negative.sum() / 10
