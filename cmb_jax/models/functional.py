"""NNX modules used functionally: weights travel as a pure dict, the structure stays outside of jit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

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
