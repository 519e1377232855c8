"""Prototype losses by the name that a configuration gives them (`loss.prototype_loss`)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from cmb_jax.config import LossConfig
from cmb_jax.losses.contrastive import hardest_triplet_loss, supervised_contrastive_loss
from cmb_jax.losses.prototype import (
    center_loss,
    concentration_loss,
    distance_cross_entropy,
    nearest_prototype_loss,
    proxy_anchor_loss,
)

PrototypeLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
"""A loss of mined samples: pure, static shapes, 0 in value and gradient where a sample is not valid.

(embeddings (S, E), labels (S,), valid (S,), prototypes (classes, K, E), key) -> (S,). The detector's loss is
the mean over the valid samples. The key is another one every step.
"""

NONE = "none"
"""No prototype loss: samples are neither mined nor embedded."""

PROTOTYPE_LOSSES: dict[str, Callable[[LossConfig], PrototypeLoss]] = {
    "concentration": lambda config: functools.partial(
        concentration_loss, gamma=config.prototype_gamma, pull=config.prototype_pull
    ),
    "dce": lambda config: functools.partial(distance_cross_entropy, gamma=config.prototype_gamma),
    "gcpl": lambda config: functools.partial(
        nearest_prototype_loss, gamma=config.prototype_gamma, pull=config.prototype_pull
    ),
    "center": lambda config: center_loss,
    "supcon": lambda config: functools.partial(
        supervised_contrastive_loss, temperature=config.supcon_temperature
    ),
    "proxy_anchor": lambda config: functools.partial(
        proxy_anchor_loss, scale=config.proxy_scale, margin=config.proxy_margin
    ),
    "triplet_hard": lambda config: functools.partial(hardest_triplet_loss, margin=config.triplet_margin),
}


def prototype_loss(config: LossConfig) -> PrototypeLoss:
    """The loss that a configuration names, with its settings; `NONE` has no function."""
    return PROTOTYPE_LOSSES[config.prototype_loss](config)
