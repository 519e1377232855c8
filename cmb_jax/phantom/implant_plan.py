"""Bodies to implant, and the static sizes of the patches on which their near field is computed."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from cmb_jax.phantom.field import smooth_size
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T
from cmb_jax.phantom.stamps import stamp_half_width

_FINE_PER_RADIUS = 8  # fine voxels a radius of the smallest body on a patch
_FINE_PER_TUBE = 3  # the same for tubes, whose length would make such a grid too large
_PADDING = 1.4  # of the patch for the convolution, least
_PERIOD = 14.0  # radii of the largest body between its periodic images, least
_REACH = (3.0, 6.0)  # half width of a patch in radii: least, most
_FLAT_RAD = 0.2  # a voxel across which the phase changes by less needs no finer grid
_TUBE_STEP_MM = 0.2
_TUBE_POLES = 7  # dipoles that stand for a tube further out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Implants:
    """N bodies of one shape: balls, or straight tubes with round ends."""

    centre_mm: jax.Array  # (N, 3) array mm
    direction: jax.Array  # (N, 3) unit vectors along the tubes, array axes
    length_mm: jax.Array  # (N,) of a tube's axis; 0: a ball
    radius_mm: jax.Array  # (N,)
    chi_ppm: jax.Array  # (N,) against the surroundings
    r2_star: jax.Array  # (N,) added, 1/s at the field strength of the data
    signal_drop: jax.Array  # (N,) 0..1 of the signal at TE 0 that is missing inside

    def __len__(self) -> int:
        """N."""
        return len(self.radius_mm)


@dataclasses.dataclass(frozen=True)
class PatchPlan:
    """Everything static of the patches about bodies of similar size."""

    voxels: tuple[int, int, int]  # of the data, odd
    factors: tuple[int, int, int]  # fine voxels per voxel
    grid: Grid  # fine grid; its origin is relative to the centre of the middle voxel
    padded: tuple[int, int, int]
    stamp: tuple[int, int, int]  # half width in fine voxels of what is drawn about a point
    steps: int  # points drawn a body: 1 for balls
    poles: int


def plan_patches(
    bodies: Implants, spacing_mm: tuple[float, float, float], te_ms: float, b0_t: float
) -> PatchPlan:
    """A patch for the largest and a fine grid for the smallest of these bodies; te_ms is the longest."""
    radius = np.asarray(bodies.radius_mm, np.float64)
    length = float(np.max(np.asarray(bodies.length_mm)))
    # A dipole's phase p (a / r)^3 changes by 3 p a^3 h / r^4 over a voxel h.
    pole = turns(te_ms, b0_t) * np.abs(np.asarray(bodies.chi_ppm)) * (2 / 3)
    flat = (3 * pole * radius**3 * max(spacing_mm) / _FLAT_RAD) ** 0.25
    reach = float(np.max(np.clip(flat, _REACH[0] * radius, _REACH[1] * radius))) + length / 2
    fine = float(radius.min()) / (_FINE_PER_TUBE if length else _FINE_PER_RADIUS)
    voxels = [2 * max(1, math.ceil(reach / h)) + 1 for h in spacing_mm]
    factors = [max(2, math.ceil(h / fine)) for h in spacing_mm]
    shape = [v * f for v, f in zip(voxels, factors, strict=True)]
    step = [h / f for h, f in zip(spacing_mm, factors, strict=True)]
    origin = [-(n - 1) / 2 * h for n, h in zip(shape, step, strict=True)]
    period = _PERIOD * float(radius.max())
    grid = Grid(three(shape), three(step), three(origin))
    steps = 1 if length == 0 else 1 + math.ceil(length / min(_TUBE_STEP_MM, float(radius.min()) / 2))
    return PatchPlan(
        voxels=three(voxels),
        factors=three(factors),
        grid=grid,
        padded=three([smooth_size(max(n * _PADDING, period / h)) for n, h in zip(shape, step, strict=True)]),
        stamp=stamp_half_width(float(radius.max()), grid.spacing_mm),
        steps=steps,
        poles=1 if length == 0 else _TUBE_POLES,
    )


def three(values):
    """A list or tuple of three values as the tuple that a static argument needs."""
    x, y, z = values
    return (x, y, z)


def turns(te_ms, b0_t):
    """Radians of phase a ppm of field: 2 pi gammabar B0 TE, for te_ms and b0_t of any shape."""
    return 2 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_ms / 1000.0
