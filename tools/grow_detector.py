"""Weights of a larger detector from trained ones, as a start of its training.

    python tools/grow_detector.py small configs/base.py base.safetensors

The same outputs with every hidden channel twice, more blocks on the finest level, or both, as the
configuration has it (Chen et al. 2016, Net2Net, ICLR). Train them on with

    cmb-jax train --config base --train.init-from base.safetensors --workdir runs/base
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmb_jax.cli.common import run_cli
from cmb_jax.config import ModelConfig
from cmb_jax.config_load import config_from_file
from cmb_jax.detector.network import Detector, Template
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import load_bundle, save_bundle

_LEAST_SHARE = 0.2  # of a weight that one of the two copies of its input takes over
_KERNELS = 2  # axes of a kernel that are channels: in, out


def main() -> None:
    """Read, grow, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="name of bundled weights, or a .safetensors file")
    parser.add_argument("config", type=Path, help="experiment whose detector is wanted")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the shares of weights (default: 0)")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise UserError(f"{arguments.out}: exists already; choose another file")
    bundle = load_bundle(arguments.weights)
    model = config_from_file(arguments.config).model
    try:
        params = grow(bundle.params, bundle.config.model, model, arguments.seed)
    except ValueError as error:
        raise UserError(f"{arguments.config}: does not enlarge {arguments.weights}: {error}") from None
    save_bundle(arguments.out, params, dataclasses.replace(bundle.config, model=model))
    print(f"{arguments.out}: the function of {arguments.weights} in the detector of {arguments.config}")


def grow(params: object, old: ModelConfig, new: ModelConfig, seed: int) -> object:
    """Channels first, then blocks."""
    if new.widths != old.widths:
        wide = dataclasses.replace(new, encoder_convs=old.encoder_convs, decoder_convs=old.decoder_convs)
        params = widen(params, _shapes(wide), jax.random.key(seed))
    return deepen(params, _shapes(new))


def _shapes(model: ModelConfig) -> object:
    return Template.of(lambda: Detector(model, rngs=nnx.Rngs(0))).shapes()


def widen(params: Any, wider: Any, key: jax.Array) -> Any:
    """Parameters of the wider network: every hidden channel twice, the same outputs.

    A weight on a channel is shared among the channel's two copies, in parts drawn at random for each weight,
    so that the copies get different gradients and part. Embeddings, which training alone uses, keep their
    distances: both halves are the old one over sqrt(2).

    Args:
        params: pure dict of a `Detector`.
        wider: pure dict of shapes of a detector whose hidden widths are all twice those of `params`.
        key: draws the shares.

    Raises:
        ValueError: the networks are not of one kind, or widths are neither equal nor doubled.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    targets = jax.tree_util.tree_leaves_with_path(wider)
    if [path for path, _ in leaves] != [path for path, _ in targets]:
        raise ValueError("the wider network has other layers; only its channels may be more")
    widened = []
    for index, ((path, leaf), (_, target)) in enumerate(zip(leaves, targets, strict=True)):
        name = _name(path)
        embeds = name.split(".")[0] in ("embedding", "prototypes")
        leaf_key = jax.random.fold_in(key, index)
        widened.append(_widen_leaf(jnp.asarray(leaf), target.shape, name, leaf_key, embeds))
    return jax.tree.unflatten(jax.tree.structure(params), widened)


def deepen(params: Any, deeper: Any) -> Any:
    """Parameters of a network with more layers and the same outputs.

    A new block on the finest level has no norm and begins as the identity: what it is given went through a
    ReLU, so that its own changes nothing. A block of its own for the boxes begins as a copy of the block that
    they shared; a semantic head begins with zeros.

    Args:
        params: pure dict of a `Detector`.
        deeper: pure dict of shapes of a detector that differs from that of `params` only in that it has more
            blocks on the finest encoder or decoder level, a block for the boxes or a semantic head.

    Raises:
        ValueError: the networks differ otherwise.
    """
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    targets = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(deeper)}
    if not leaves.keys() <= targets.keys():
        raise ValueError("the deeper network lacks layers of the other")
    deepened = [
        _old_leaf(leaves[name], shape, name) if name in leaves else _new_leaf(leaves, shape, name)
        for name, shape in targets.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(deeper), deepened)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _old_leaf(leaf: jax.Array, shape: tuple[int, ...], name: str) -> jax.Array:
    if leaf.shape != shape:
        raise ValueError(f"{name}: {leaf.shape} cannot become {shape} by more blocks")
    return jnp.asarray(leaf)


def _new_leaf(leaves: dict[str, jax.Array], shape: tuple[int, ...], name: str) -> jax.Array:
    """Kernel or bias of a layer that changes nothing."""
    if name.startswith("head.box_block."):
        return _old_leaf(leaves[name.replace("box_block", "block")], shape, name)
    if name.startswith("semantic."):
        return jnp.zeros(shape, jnp.float32)
    if not name.startswith(("unet.encoder.0.", "unet.decoder.0.")):
        raise ValueError(f"{name}: only blocks of the finest level can begin as the identity")
    leaf = jnp.zeros(shape, jnp.float32)
    return leaf.at[1, 1, 1].set(jnp.eye(shape[-1])) if name.endswith(".kernel") else leaf


def _widen_leaf(
    leaf: jax.Array, shape: tuple[int, ...], name: str, key: jax.Array, embeds: bool
) -> jax.Array:
    ratios = np.array(shape) / np.array(leaf.shape)
    doubled = np.flatnonzero(ratios == 2)
    if not np.isin(ratios, (1, 2)).all() or (doubled < leaf.ndim - _KERNELS).any():
        raise ValueError(f"{name}: from {leaf.shape} to {shape} is not twice the channels")
    last = leaf.ndim - 1
    if last in doubled:
        leaf = jnp.concatenate([leaf, leaf], axis=last)
        leaf = leaf / jnp.sqrt(2.0) if embeds else leaf
    if last - 1 in doubled:
        share = jax.random.uniform(key, leaf.shape, minval=_LEAST_SHARE, maxval=1 - _LEAST_SHARE)
        leaf = jnp.concatenate([share * leaf, (1 - share) * leaf], axis=last - 1)
    return leaf


if __name__ == "__main__":
    run_cli(main)
