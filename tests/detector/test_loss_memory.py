import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.detector.mining import Samples, empty_bank, moved_prototypes, remember, with_remembered

SIZE, LENGTH = 7, 3


def draw(rng, count, share=0.6):
    return Samples(
        embeddings=jnp.asarray(rng.normal(size=(count, LENGTH)), jnp.float32),
        classes=jnp.asarray(rng.integers(0, 2, count), jnp.int32),
        valid=jnp.asarray(rng.random(count) < share),
        weights=jnp.asarray(rng.random(count), jnp.float32),
    )


def rows(samples):
    return sorted(
        (int(c), *map(float, f))
        for f, c, v in zip(samples.embeddings, samples.classes, samples.valid, strict=True)
        if v
    )


@pytest.mark.parametrize("count", [4, 20])  # 20: more than the bank holds
def test_the_bank_is_a_queue(rng, count):
    bank, queue = empty_bank(SIZE, LENGTH), collections.deque(maxlen=SIZE)
    put = jax.jit(remember)
    for _ in range(6):
        samples = draw(rng, count)
        bank = put(bank, samples)
        for f, c, v in zip(samples.embeddings, samples.classes, samples.valid, strict=True):
            if v:
                queue.append((int(c), *map(float, f)))
        assert rows(bank.samples) == sorted(queue)
    assert len(queue) == SIZE


def test_no_bank_stays_none(rng):
    samples = draw(rng, 4)
    assert empty_bank(0, LENGTH) is None
    assert remember(None, samples) is None
    assert with_remembered(samples, None) is samples


def test_stored_samples_count_but_learn_nothing(rng):
    bank = remember(empty_bank(SIZE, LENGTH), draw(rng, 5, share=1.0))
    samples = draw(rng, 4, share=1.0)

    def square_sum(new, stored):
        joined = with_remembered(
            dataclasses.replace(samples, embeddings=new),
            dataclasses.replace(bank, samples=dataclasses.replace(bank.samples, embeddings=stored)),
        )
        return jnp.square(joined.embeddings[joined.valid]).sum()

    stored = bank.samples.embeddings
    value, gradients = jax.value_and_grad(square_sum, argnums=(0, 1))(samples.embeddings, stored)
    assert float(value) == pytest.approx(
        float(jnp.square(samples.embeddings).sum() + jnp.square(stored[bank.samples.valid]).sum()), rel=1e-5
    )
    np.testing.assert_allclose(gradients[0], 2 * samples.embeddings, rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], 0)


def test_prototypes_move_to_the_mean_of_their_own_samples(rng):
    samples = draw(rng, 30)
    prototypes = rng.normal(size=(2, 4, LENGTH)).astype(np.float32)
    prototypes[1, 2] = 50.0  # nearest to nothing
    want = prototypes.astype(float)
    for c in range(2):
        members = collections.defaultdict(list)
        for f, y, v in zip(
            *map(np.asarray, (samples.embeddings, samples.classes, samples.valid)), strict=True
        ):
            if v and y == c:
                members[min(range(4), key=lambda k: ((f - prototypes[c, k]) ** 2).sum())].append(f)
        for k, own in members.items():
            want[c, k] = 0.9 * prototypes[c, k] + 0.1 * np.mean(own, axis=0)
    moved = jax.jit(moved_prototypes, static_argnums=2)(jnp.asarray(prototypes), samples, 0.9)
    np.testing.assert_allclose(moved, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved[1, 2], 50.0)
    unseen = dataclasses.replace(
        samples, embeddings=jnp.full((30, LENGTH), jnp.nan), valid=jnp.zeros(30, bool)
    )
    np.testing.assert_array_equal(moved_prototypes(jnp.asarray(prototypes), unseen, 0.9), prototypes)
