"""Weights from the pure dict of the JAX detector to its PyTorch twin and back, bit by bit.

Names agree but for two: a convolution's `kernel` (DHWIO) is `weight` (OIDHW), a norm's `scale` is `weight`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn


def torch_name(path: tuple[Any, ...], leaf: Any) -> str:
    """Name in the twin of the JAX parameter `leaf` at `path` of the pure dict."""
    names = [str(entry.key) for entry in path]
    if names[-1] == "scale" or (names[-1] == "kernel" and leaf.ndim == 5):
        names[-1] = "weight"
    return ".".join(names)


@torch.no_grad()
def to_torch(params: Any, model: nn.Module) -> None:
    """Write a pure dict of arrays into the twin, in the twin's type.

    Raises:
        ValueError: the two have not the same parameters.
    """
    own = dict(model.named_parameters())
    leaves = {torch_name(path, leaf): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if own.keys() != leaves.keys():
        raise ValueError(f"parameters on one side only: {sorted(own.keys() ^ leaves.keys())}")
    for name, leaf in leaves.items():
        value = torch.from_numpy(np.array(leaf))
        value = value.permute(4, 3, 0, 1, 2) if value.ndim == 5 else value
        if own[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(own[name].shape)} in the twin, {tuple(value.shape)} in JAX")
        own[name].copy_(value)


def to_jax(model: nn.Module | dict[str, Tensor], template: Any) -> Any:
    """A pure dict shaped as `template` with NumPy copies of the twin's parameters.

    Args:
        model: the twin, or tensors by the twin's parameter names (gradients, averages).
        template: a pure dict of arrays or `jax.ShapeDtypeStruct`.
    """
    tensors = dict(model.named_parameters()) if isinstance(model, nn.Module) else model

    def convert(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        value = tensors[torch_name(path, leaf)].detach().cpu()
        value = value.permute(2, 3, 4, 1, 0) if value.ndim == 5 else value
        return np.array(value.numpy(), order="C")

    return jax.tree_util.tree_map_with_path(convert, template)
