"""What the detector returns. B batch, Z Y X cells of the proposal grid, C channels, A anchors per cell."""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalMaps:
    """Dense maps of the region proposal network on its grid (stride (1, 2, 2) from the working grid)."""

    features: jax.Array  # (B, Z, Y, X, C) features of the scores; embeddings are read from them
    box_input: jax.Array  # (B, Z, Y, X, C) what the box codes of single anchors are computed from
    objectness: jax.Array  # (B, Z, Y, X, A) logits
    deltas: jax.Array  # (B, Z, Y, X, A, 6) box code: centre offset over anchor size, log size ratio
    semantic: jax.Array | None  # (B, Z, Y, X, classes) logits; None without a semantic head
