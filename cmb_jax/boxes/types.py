"""The structured arrays that detection passes around. B batch, N candidates, M truths, K kept."""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
    """A fixed number of boxes, of which those with `valid` count."""

    boxes: jax.Array  # (..., K, 6) float32, (z0, y0, x0, z1, y1, x1) half-open, voxels of the working grid
    scores: jax.Array  # (..., K) float32 in 0..1
    valid: jax.Array  # (..., K) bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Truths:
    """True boxes padded to a fixed number. Ignored ones are neither to be found nor background."""

    boxes: jax.Array  # (..., M, 6) float32, convention as above
    valid: jax.Array  # (..., M) bool: the box is no padding
    ignored: jax.Array | None = None  # (..., M) bool; None: all valid boxes count

    @property
    def counted(self) -> jax.Array:
        """(..., M) bool: valid and not ignored."""
        return self.valid if self.ignored is None else self.valid & ~self.ignored
