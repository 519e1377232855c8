"""What the prototype loss carries from step to step: moving prototypes and a bank of earlier samples.

Both are updated after the gradient from the samples of the global batch, and are plain functions of arrays,
so that a sharded step gives what one device gives.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cmb_jax.losses.prototype import squared_distances


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Embedded anchors with their classes. S samples, E numbers."""

    embeddings: jax.Array  # (S, E) float32
    classes: jax.Array  # (S,) int32: 0 = CMB, 1 = mimic
    valid: jax.Array  # (S,) bool
    weights: jax.Array  # (S,) float32, what a sample counts in the mean of its class


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBank:
    """The newest samples of earlier steps in a ring (as in cross-batch memory, Wang et al. 2020)."""

    samples: Samples  # R of them
    next: jax.Array  # () int32, where the next sample goes


def empty_bank(size: int, dim: int) -> SampleBank | None:
    """A bank for `size` samples of `dim` numbers; None for size 0."""
    if not size:
        return None
    return SampleBank(
        samples=Samples(
            embeddings=jnp.zeros((size, dim), jnp.float32),
            classes=jnp.zeros(size, jnp.int32),
            valid=jnp.zeros(size, bool),
            weights=jnp.zeros(size, jnp.float32),
        ),
        next=jnp.zeros((), jnp.int32),
    )


def remember(bank: SampleBank | None, samples: Samples) -> SampleBank | None:
    """The bank with the valid ones of `samples` in the place of its oldest; of too many, the last ones."""
    if bank is None:
        return None
    size = bank.samples.valid.shape[0]
    count = samples.valid.sum(dtype=jnp.int32)
    rank = jnp.cumsum(samples.valid, dtype=jnp.int32) - 1
    goes_in = samples.valid & (rank >= count - size)
    place = jnp.where(goes_in, (bank.next + rank) % size, size)  # beyond the end: dropped
    return SampleBank(
        samples=jax.tree.map(
            lambda stored, new: stored.at[place].set(new.astype(stored.dtype), mode="drop"),
            bank.samples,
            samples,
        ),
        next=(bank.next + count) % size,
    )


def with_remembered(samples: Samples, bank: SampleBank | None) -> Samples:
    """Samples followed by those of the bank, which carry no gradient."""
    if bank is None:
        return samples
    stored = jax.lax.stop_gradient(bank.samples)
    return jax.tree.map(lambda new, old: jnp.concatenate([new, old]), samples, stored)


def moved_prototypes(prototypes: jax.Array, samples: Samples, decay: float) -> jax.Array:
    """Prototypes (classes, K, E) moved towards the mean of the own samples that are nearest to each.

    A step of online k-means with a constant rate: m <- decay * m + (1 - decay) * mean. A prototype that no
    sample is nearest to stays where it is.
    """
    classes, per_class, _ = prototypes.shape
    nearest = squared_distances(samples.embeddings, samples.valid, prototypes).argmin(axis=-1)
    own = jax.nn.one_hot(samples.classes, classes) * samples.valid[:, None]  # (S, classes)
    belongs = own[..., None] * jax.nn.one_hot(nearest, per_class)  # (S, classes, K)
    count = belongs.sum(axis=0)
    embeddings = jnp.where(samples.valid[:, None], samples.embeddings, 0.0)
    mean = jnp.einsum("sck,se->cke", belongs, embeddings) / jnp.maximum(count, 1.0)[..., None]
    return jnp.where(count[..., None] > 0, decay * prototypes + (1.0 - decay) * mean, prototypes)
