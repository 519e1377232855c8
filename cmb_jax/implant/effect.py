"""Lesions put into complex data that a scanner has measured: their field, dephasing and signal loss.

Frame: *array mm*, the voxel index times the spacing, axes as the array's (voxel 0 at the origin). What a body
does is a complex factor on each voxel and echo,

    M = mean over the voxel of  (1 - d f) exp(-TE R2* f) exp(i s 2 pi gamma B0 TE dB),

f the part of the point that the body fills, dB its relative field in ppm, s the sign of the data. Near the
body dB is the phantom's dipole convolution on a grid finer than the voxel, and the mean is taken of complex
values there, so that spins that point apart cancel. Further out dB is the field of the body's dipole moment,
(chi / 3) (a / r)^3 (3 cos^2 - 1) for a ball of radius a, at the voxel's center; that has no edge anywhere in
the volume, and nothing wraps around.

The mean is over the voxel's box. Cropping k-space as the phantom does would ring through the volume, and at
the wrong wavelength where a scanner has interpolated what it acquired.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.field import convolve_dipole, phase_per_ppm
from cmb_jax.phantom.geometry import Grid, smooth_size
from cmb_jax.phantom.render import draw_balls, draw_tubes, stamp_half_width

_FINE_PER_RADIUS = 8  # fine voxels per radius of the smallest body on a patch
_FINE_PER_TUBE = 3  # the same for tubes, whose length would make such a grid too large
_PADDING = 1.4  # of the patch for the convolution, least
_PERIOD = 14.0  # radii of the largest body between its periodic images, least
_REACH = (3.0, 6.0)  # half width of a patch in radii: least, most
_FLAT_RAD = 0.2  # a voxel across which the phase changes by less needs no finer grid
_TUBE_STEP_MM = 0.2
_TUBE_POLES = 7  # dipoles that stand for a tube further out
# Shares of a patch's half width: convolved field up to the first, dipole from the second.
_BLEND = (0.5, 0.75)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Implants:
    """N bodies of one shape: balls, or straight tubes with round ends."""

    center_mm: jax.Array  # (N, 3) array mm
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
    grid: Grid  # fine grid; its origin is relative to the center of the middle voxel
    padded: tuple[int, int, int]
    stamp: tuple[int, int, int]  # half width in fine voxels of what is drawn about a point
    steps: int  # points drawn per body: 1 for balls
    poles: int


def plan_patches(
    bodies: Implants, spacing_mm: tuple[float, float, float], te_ms: float, b0_t: float
) -> PatchPlan:
    """A patch for the largest and a fine grid for the smallest of these bodies; te_ms is the longest."""
    radius = np.asarray(bodies.radius_mm, np.float64)
    length = float(np.max(np.asarray(bodies.length_mm)))
    # A dipole's phase p (a / r)^3 changes by 3 p a^3 h / r^4 over a voxel h.
    pole = phase_per_ppm(te_ms, b0_t) * np.abs(np.asarray(bodies.chi_ppm)) * (2 / 3)
    flat = (3 * pole * radius**3 * max(spacing_mm) / _FLAT_RAD) ** 0.25
    reach = float(np.max(np.clip(flat, _REACH[0] * radius, _REACH[1] * radius))) + length / 2
    fine = float(radius.min()) / (_FINE_PER_TUBE if length else _FINE_PER_RADIUS)
    voxels = [2 * max(1, math.ceil(reach / h)) + 1 for h in spacing_mm]
    factors = [max(2, math.ceil(h / fine)) for h in spacing_mm]
    shape = [v * f for v, f in zip(voxels, factors, strict=True)]
    step = [h / f for h, f in zip(spacing_mm, factors, strict=True)]
    origin = [-(n - 1) / 2 * h for n, h in zip(shape, step, strict=True)]
    period = _PERIOD * float(radius.max())
    grid = Grid(_triple(shape), _triple(step), _triple(origin))
    steps = 1 if length == 0 else 1 + math.ceil(length / min(_TUBE_STEP_MM, float(radius.min()) / 2))
    padded = [smooth_size(max(n * _PADDING, period / h)) for n, h in zip(shape, step, strict=True)]
    return PatchPlan(
        voxels=_triple(voxels),
        factors=_triple(factors),
        grid=grid,
        padded=_triple(padded),
        stamp=stamp_half_width(float(radius.max()), grid.spacing_mm),
        steps=steps,
        poles=1 if length == 0 else _TUBE_POLES,
    )


def _triple(values):
    """Three values as the tuple that a static argument needs."""
    x, y, z = values
    return (x, y, z)


def _along(body: Implants, count: int) -> jax.Array:
    """(count, 3) evenly spaced points of one body's axis, relative to its center."""
    share = jnp.linspace(-0.5, 0.5, count) if count > 1 else jnp.zeros(1)
    return share[:, None] * (body.length_mm * body.direction)


def _pole_field(body: Implants, grid: Grid, at_mm: jax.Array, b: jax.Array, poles: int) -> jax.Array:
    """Field in ppm on a grid of one body at `at_mm` (3,) taken as dipoles; within a radius it stays finite.

    The moment over 4 pi: chi a^3 / 3 for a ball, chi (a^2 L / 4 + a^3 / 3) for a tube with round ends.
    """
    a = body.radius_mm
    strength = body.chi_ppm * (a**2 * body.length_mm / 4 + a**3 / 3) / poles
    axes = [jnp.asarray(grid.axis_mm(axis), jnp.float32) for axis in range(3)]

    def add(field: jax.Array, point: jax.Array) -> tuple[jax.Array, None]:
        x, y, z = (axis - p for axis, p in zip(axes, point, strict=True))
        x, y = x[:, None, None], y[:, None]
        # the field within a ball is not a dipole's: there it is only kept finite, and `_patch` replaces it
        square = jnp.maximum(x**2 + y**2 + z**2, a**2)
        along = b[0] * x + b[1] * y + b[2] * z
        return field + strength * (3 * along**2 / square - 1) * square**-1.5, None

    return jax.lax.scan(add, jnp.zeros(grid.shape, jnp.float32), at_mm + _along(body, poles))[0]


def _window(grid: Grid, half_mm: tuple[float, ...], inner: float, outer: float) -> jax.Array:
    """1 up to `inner` of the half widths from the middle of a patch, 0 from `outer`, smooth between."""
    result = jnp.ones((), jnp.float32)
    for axis in range(3):
        t = np.clip((np.abs(grid.axis_mm(axis)) / half_mm[axis] - inner) / (outer - inner), 0.0, 1.0)
        line = [1, 1, 1]
        line[axis] = len(t)
        result = result * jnp.asarray(1 - t**2 * (3 - 2 * t), jnp.float32).reshape(line)
    return result


def _patch(body: Implants, offset_mm: jax.Array, radians: jax.Array, te_s, b, plan: PatchPlan) -> jax.Array:
    """M over the factor of the dipoles alone, (E, *plan.voxels) complex64, 1 at the patch's faces.

    offset_mm (3,): the body's center from that of the middle voxel. radians (E,) per ppm, te_s (E,).
    """
    # Near the body the convolved field, which knows its shape; further out the field of its dipoles, which
    # knows no padding. Both are blended on the fine grid. The dipoles' phase at the voxel's center is taken
    # off again: `implant_effect` adds it everywhere, so that there is no step where the patch ends.
    fine = plan.grid
    points, one = offset_mm + _along(body, plan.steps), jnp.ones(plan.steps)
    empty = jnp.zeros(fine.shape, jnp.float32)
    if plan.steps == 1:
        filled = draw_balls(empty, fine, points, body.radius_mm * jnp.ones((1, 3)), one, plan.stamp)
    else:
        filled = draw_tubes(empty, fine, points, body.radius_mm * one, one, plan.stamp)
    field = convolve_dipole(body.chi_ppm * filled, b, spacing_mm=fine.spacing_mm, padded=plan.padded)
    half = _triple([n * h / 2 for n, h in zip(fine.shape, fine.spacing_mm, strict=True)])
    near = _window(fine, half, *_BLEND)
    field = near * field + (1 - near) * _pole_field(body, fine, offset_mm, b, plan.poles)

    spacing = _triple([h * f for h, f in zip(fine.spacing_mm, plan.factors, strict=True)])
    origin = _triple([-(n // 2) * h for n, h in zip(plan.voxels, spacing, strict=True)])
    coarse = Grid(plan.voxels, spacing, origin)
    poles = _pole_field(body, coarse, offset_mm, b, plan.poles)
    fade = _window(coarse, half, _BLEND[1], 1.0)
    blocks = [n for pair in zip(plan.voxels, plan.factors, strict=True) for n in pair]

    def echo(each: tuple[jax.Array, jax.Array]) -> jax.Array:
        radian, te = each
        size = (1 - body.signal_drop * filled) * jnp.exp(-te * body.r2_star * filled)
        value = size * jnp.exp(1j * radian * field)
        mean = jnp.mean(value.reshape(blocks), axis=(1, 3, 5))
        return 1 + fade * (mean * jnp.exp(-1j * radian * poles) - 1)

    return jax.lax.map(echo, (radians, te_s)).astype(jnp.complex64)


@functools.partial(jax.jit, static_argnames=("plan", "shape"))
def implant_effect(
    bodies: Implants,
    te_ms: jax.Array,
    b0_t: jax.Array,
    phase_sign: jax.Array,
    b0_direction: jax.Array,
    *,
    plan: PatchPlan,
    shape: tuple[int, int, int],
) -> tuple[jax.Array, jax.Array]:
    """What bodies do to complex data: S becomes S gain exp(i shift).

    Args:
        bodies: N of them, centers anywhere in the volume.
        te_ms: (E,) echo times.
        b0_t: () field strength in tesla.
        phase_sign: () +1: paramagnetic phase is positive in the data; -1: negative.
        b0_direction: (3,) unit vector in array axes.
        plan: of `plan_patches` for these bodies and the data's spacing.
        shape: of the data.

    Returns:
        gain (E, *shape), 1 away from the bodies, and shift (E, *shape) in radians, both float32. The shift is
        meant modulo a turn.
    """
    # First the dipoles of all bodies in the whole volume, then each body's patch on top of them (`_patch`
    # holds only the difference). The volume is padded by half a patch, so that patches at its faces need no
    # other shape.
    spacing = _triple([h * f for h, f in zip(plan.grid.spacing_mm, plan.factors, strict=True)])
    volume = Grid(shape, spacing, (0.0, 0.0, 0.0))
    radians = phase_sign * phase_per_ppm(te_ms, b0_t)
    middle = jnp.round(bodies.center_mm / jnp.asarray(spacing))

    def far(field: jax.Array, body: Implants) -> tuple[jax.Array, None]:
        return field + _pole_field(body, volume, body.center_mm, b0_direction, plan.poles), None

    field, _ = jax.lax.scan(far, jnp.zeros(shape, jnp.float32), bodies)
    margin = [(0, 0), *((v // 2, v // 2) for v in plan.voxels)]
    count = te_ms.shape[0]
    gain = jnp.pad(jnp.ones((count, *shape), jnp.float32), margin)
    shift = jnp.pad(radians[:, None, None, None] * field, margin)

    def near(state: tuple[jax.Array, jax.Array], each: tuple[Implants, jax.Array]):
        gain, shift = state
        body, index = each
        offset = body.center_mm - index * jnp.asarray(spacing)
        factor = _patch(body, offset, radians, te_ms / 1000.0, b0_direction, plan)
        x, y, z = index.astype(jnp.int32)  # of the patch's corner in the padded volume
        start, size = (jnp.int32(0), x, y, z), (count, *plan.voxels)
        window = jax.lax.dynamic_slice(gain, start, size) * jnp.abs(factor)
        gain = jax.lax.dynamic_update_slice(gain, window, start)
        window = jax.lax.dynamic_slice(shift, start, size) + jnp.angle(factor)
        return (gain, jax.lax.dynamic_update_slice(shift, window, start)), None

    (gain, shift), _ = jax.lax.scan(near, (gain, shift), (bodies, middle))
    inside = tuple(slice(low, low + n) for (low, _), n in zip(margin, (count, *shape), strict=True))
    return gain[inside], shift[inside]


def effect_of_groups(
    groups: Sequence[Implants],
    te_ms: Sequence[float],
    b0_t: float,
    phase_sign: int,
    b0_direction: Sequence[float],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """`implant_effect` of groups of bodies, each of one shape and similar size: gain and shift together.

    te_ms (E,); b0_direction (3,) of any length, array axes. Returns (E, *shape) float32 twice, as above.
    """
    direction = np.asarray(b0_direction, np.float64)
    b = jnp.asarray(direction / np.linalg.norm(direction), jnp.float32)
    gain = np.ones((len(te_ms), *shape), np.float32)
    shift = np.zeros_like(gain)
    times = jnp.asarray(te_ms, jnp.float32)
    for group in groups:
        plan = plan_patches(group, spacing_mm, max(te_ms), b0_t)
        each = implant_effect(
            group, times, jnp.float32(b0_t), jnp.float32(phase_sign), b, plan=plan, shape=shape
        )
        gain *= np.asarray(each[0])
        shift += np.asarray(each[1])
    return gain, shift
