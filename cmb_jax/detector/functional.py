"""NNX modules used functionally, and what the detector returns.

Weights travel as a pure dict; the structure stays outside of jit. B batch, Z Y X cells of the proposal grid,
C channels, A anchors per cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalMaps:
    """Dense maps of the region proposal network on its grid (stride (1, 2, 2) from the working grid)."""

    features: jax.Array  # (B, Z, Y, X, C) features of the scores; embeddings are read from them
    box_input: jax.Array  # (B, Z, Y, X, C) what the box codes of single anchors are computed from
    objectness: jax.Array  # (B, Z, Y, X, A) logits
    deltas: jax.Array  # (B, Z, Y, X, A, 6) box code: center offset over anchor size, log size ratio
    semantic: jax.Array | None  # (B, Z, Y, X, classes) logits; None without a semantic head


Module = TypeVar("Module", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, eq=False)
class Template(Generic[Module]):
    """The structure of a module without weights; close over it in jitted functions, never pass it in."""

    graph: nnx.GraphDef
    abstract: nnx.State  # shapes and types of the parameters

    @classmethod
    def of(cls, make: Callable[[], Module]) -> Template[Module]:
        """Structure of what `make` builds; nothing is allocated."""
        return cls(*nnx.split(nnx.eval_shape(make)))

    def bind(self, params: Any) -> Module:
        """The module with the weights of a pure dict (arrays or tracers)."""
        state = jax.tree.map(lambda leaf: leaf, self.abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def shapes(self) -> Any:
        """The pure dict of parameters as `jax.ShapeDtypeStruct`."""
        return nnx.to_pure_dict(self.abstract)


def params_of(module: nnx.Module) -> Any:
    """The parameters of a module as a pure dict."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))
