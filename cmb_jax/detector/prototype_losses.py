"""Prototype losses: what training asks of the embeddings of mined anchors (`loss.prototype`).

Each is a frozen dataclass of its settings. `PROTOTYPE_LOSSES`, at the end, gives it its short name; nothing
else in the package knows it. Most draw embeddings to prototypes of their own class; two compare samples with
each other, need no prototypes, and take memory that grows with S squared.

`__call__(embeddings, labels, valid, prototypes, key)` of each takes:

- embeddings: (S, E) float32 of S samples.
- labels: (S,) integer class y; anything where not valid.
- valid: (S,) bool; loss and gradient are 0 elsewhere.
- prototypes: (classes, K, E) float32, m_ck.
- key: another one every step, for losses that draw random numbers; none here does.

and returns (S,) float32, of which the detector's loss is the mean over the valid samples. Below, d is a
squared distance of a sample f to a prototype.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from cmb_jax.config import PrototypeLoss


class _Later:
    """A module that is imported when it is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


# Configurations hold these objects and `cmb-jax train --help` shows them, in half a second, so without JAX.
if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax import Array
else:
    jax, jnp = _Later("jax"), _Later("jax.numpy")


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"loss.prototype: {name} must be above 0, got {value}")


class _PrototypeLoss:
    """Samples and labels that are not valid are 0 for the loss of a subclass, and so is the loss there."""

    def __call__(
        self, embeddings: Array, labels: Array, valid: Array, prototypes: Array, key: Array | None = None
    ) -> Array:
        """Loss (S,) of each sample; arguments as above."""
        samples = jnp.where(valid[:, None], embeddings, 0.0)
        return jnp.where(valid, self._of(samples, jnp.where(valid, labels, 0), valid, prototypes), 0.0)

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Concentration(_PrototypeLoss):
    """Distance cross-entropy plus pull to the nearest own prototype (Yang et al. 2018, eqs. 7, 8 and 11).

    -log(sum_k exp(-gamma d(f, m_yk)) / sum_ck exp(-gamma d(f, m_ck))) + pull * min_k d(f, m_yk).
    """

    gamma: float = 1.0
    """Temperature on squared distances, more than 0."""
    pull: float = 0.05
    """Weight of the pull toward the nearest own prototype."""

    def __post_init__(self) -> None:
        _check_positive(gamma=self.gamma)

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        distances = squared_distances(samples, prototypes)
        by_class = jax.nn.logsumexp(-self.gamma * distances, axis=-1)
        return _cross_entropy(by_class, labels) + self.pull * _own(distances.min(axis=-1), labels)


@dataclasses.dataclass(frozen=True)
class DistanceCrossEntropy(_PrototypeLoss):
    """Distance cross-entropy alone (DCE: Yang et al. 2018, eqs. 7 and 8): `Concentration` without pull."""

    gamma: float = 1.0
    """Temperature on squared distances, more than 0."""

    def __post_init__(self) -> None:
        _check_positive(gamma=self.gamma)

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        return Concentration(gamma=self.gamma, pull=0.0)._of(samples, labels, valid, prototypes)


@dataclasses.dataclass(frozen=True)
class NearestPrototype(_PrototypeLoss):
    """Generalized convolutional prototype learning, hard form: classes by their nearest prototype alone.

    -log(exp(-gamma min_k d(f, m_yk)) / sum_c exp(-gamma min_k d(f, m_ck))) + pull * min_k d(f, m_yk).

    Yang et al. 2018 call GCPL any loss of classification plus the pull. With their DCE, where all prototypes
    of a class share in its probability, that is exactly `Concentration`; so this is the same family.
    Here a class counts by its nearest prototype alone, as in their rule of decision: a prototype that is
    no sample's nearest learns nothing. With one prototype per class both losses are equal.
    """

    gamma: float = 1.0
    """Temperature on squared distances, more than 0."""
    pull: float = 0.05
    """Weight of the pull toward the nearest own prototype."""

    def __post_init__(self) -> None:
        _check_positive(gamma=self.gamma)

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        nearest = squared_distances(samples, prototypes).min(axis=-1)
        return _cross_entropy(-self.gamma * nearest, labels) + self.pull * _own(nearest, labels)


@dataclasses.dataclass(frozen=True)
class Center(_PrototypeLoss):
    """Half the squared distance to the nearest center of the own class (Wen et al. 2016, eq. 2).

    One center per class is the paper's. Nothing pushes the classes apart here: the paper's softmax on the
    same embedding does that, but our objectness is read from the features, not from the embedding.
    """

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        return 0.5 * _own(squared_distances(samples, prototypes).min(axis=-1), labels)


@dataclasses.dataclass(frozen=True)
class ProxyAnchor(_PrototypeLoss):
    """Proxy-anchor loss (Kim et al. 2020, eq. 4), with the prototypes as proxies.

    With cosine similarities s, the proxies P+ that have samples of their class X+, and all proxies P:
    mean over P+ of log(1 + sum over X+ of exp(-scale (s - margin)))
    + mean over P of log(1 + sum over X- of exp(scale (s + margin))).
    With several prototypes per class, the most similar one represents the class; the paper uses one.

    It is a loss of the whole set: every valid sample carries its value, so that their mean is the paper's.
    """

    scale: float = 32.0
    """Factor on the cosines (the paper's alpha), more than 0."""
    margin: float = 0.1
    """Margin on the cosines (the paper's delta)."""

    def __post_init__(self) -> None:
        _check_positive(scale=self.scale)

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        similarity = jnp.einsum("se,cke->sck", unit_length(samples), unit_length(prototypes)).max(axis=-1)
        own = (jnp.arange(prototypes.shape[0]) == labels[:, None]) & valid[:, None]
        other = ~own & valid[:, None]
        near = _log_one_plus_sum(-self.scale * (similarity - self.margin), own)
        far = _log_one_plus_sum(self.scale * (similarity + self.margin), other)
        # a class without samples has nothing to draw near, and does not count in the first mean
        loss = near.sum() / jnp.maximum(own.any(axis=0).sum(), 1) + far.mean()
        return jnp.broadcast_to(loss, labels.shape)


@dataclasses.dataclass(frozen=True)
class SupervisedContrastive(_PrototypeLoss):
    """Supervised contrastive loss, the sum outside the logarithm (SupCon: Khosla et al. 2020, eq. 2).

    With embeddings z at length 1, the other samples A of a sample i, and those P of its class:
    -mean over p in P of log(exp(z_i z_p / temperature) / sum over a in A of exp(z_i z_a / temperature)).
    A sample that is alone in its class has 0. Prototypes are not used.
    """

    temperature: float = 0.1
    """Of the cosines, more than 0."""

    def __post_init__(self) -> None:
        _check_positive(temperature=self.temperature)

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        samples = unit_length(samples)
        others, same = _pairs(labels, valid)
        # a finite floor: the gradient of a sum over nothing but -inf is not a number
        logits = jnp.where(others, samples @ samples.T / self.temperature, -1e30)
        log_share = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        positives = same.sum(axis=1)
        loss = -jnp.where(same, log_share, 0.0).sum(axis=1) / jnp.maximum(positives, 1)
        return jnp.where(positives > 0, loss, 0.0)


@dataclasses.dataclass(frozen=True)
class HardestTriplet(_PrototypeLoss):
    """Triplet loss with the hardest partners of the batch (Hermans et al. 2017, eq. 5).

    max(0, margin + largest distance to a sample of the own class - smallest distance to one of another), with
    distances that are not squared. A sample that is alone in its class or has no sample of another has 0.
    Prototypes are not used.
    """

    margin: float = 0.3
    """Margin between distances, in the embedding's unit."""

    def _of(self, samples: Array, labels: Array, valid: Array, prototypes: Array) -> Array:
        others, same = _pairs(labels, valid)
        different = others & ~same
        length = jnp.square(samples).sum(axis=1)
        squared = length[:, None] + length[None] - 2.0 * samples @ samples.T
        apart = squared > 1e-12  # the root has no gradient at 0
        distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
        farthest = jnp.where(same, distance, -jnp.inf).max(axis=1)
        nearest = jnp.where(different, distance, jnp.inf).min(axis=1)
        complete = same.any(axis=1) & different.any(axis=1)
        # what is missing is infinite: it is replaced before the difference, which would not be a number
        gap = jnp.where(complete, farthest, 0.0) - jnp.where(complete, nearest, 0.0)
        return jnp.where(complete, jnp.maximum(self.margin + gap, 0.0), 0.0)


def squared_distances(samples: Array, prototypes: Array) -> Array:
    """(S, classes, K) squared distances of samples (S, E) to prototypes."""
    return jnp.square(samples[:, None, None, :] - prototypes[None]).sum(axis=-1)


def unit_length(vectors: Array) -> Array:
    """Vectors (..., E) at length 1; those shorter than 1e-6 keep their direction and stay shorter."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(axis=-1, keepdims=True), 1e-12))


def _own(values: Array, labels: Array) -> Array:
    """The entry (S,) of each sample's own class in (S, classes)."""
    return jnp.take_along_axis(values, labels[:, None], axis=1)[:, 0]


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return jax.nn.logsumexp(logits, axis=-1) - _own(logits, labels)


def _log_one_plus_sum(exponents: Array, counts: Array) -> Array:
    """log(1 + sum of exp) (classes,) over the counting samples of (S, classes); 0 where none counts."""
    # a finite floor: the gradient of a sum over nothing but -inf is not a number
    masked = jnp.where(counts, exponents, -1e30)
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros_like(masked[:1]), masked]), axis=0)


def _pairs(labels: Array, valid: Array) -> tuple[Array, Array]:
    """Pairs (S, S) of two different valid samples, and those of them that are of one class."""
    others = valid[:, None] & valid[None] & ~jnp.eye(labels.shape[0], dtype=bool)
    return others, others & (labels[:, None] == labels[None])


PROTOTYPE_LOSSES: dict[str, type[PrototypeLoss]] = {
    "concentration": Concentration,
    "dce": DistanceCrossEntropy,
    "gcpl": NearestPrototype,
    "center": Center,
    "supcon": SupervisedContrastive,
    "proxy_anchor": ProxyAnchor,
    "triplet_hard": HardestTriplet,
}
"""By the names that configurations, command lines and weights' files give them."""
