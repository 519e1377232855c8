"""The field of susceptible tissue and its echo, spins that point apart within a voxel included.

The field is computed on voxels of about half a millimeter. A microbleed turns the phase by many radians
within one of them, so its echo cannot be taken at points of that grid. As in Ewald sums it is split in two:

1. On the grid each body is a smooth ball of the same dipole moment, as wide as the body's *reach*: where the
   phase changes by little from voxel to voxel. Beyond the reach the two have the same field.
2. Within the reach each voxel of the echo is multiplied with

       mean over points of the voxel of  (1 - d f) exp(-TE R2* f) exp(i 2 pi gammabar B0 TE (dB - dB_smooth)),

   f being 1 inside the body, dB the body's field at the point, dB_smooth that of the smooth ball at the
   voxel's center. Points lie `FINE_MM` apart.

The field of any radial distribution chi(r) is (mean of chi within r - chi(r)) (cos^2 theta - 1/3): the
dipole's outside, zero within a uniform ball. Ellipsoids have the field of the ball of their volume.

Veins and air are on the grid as they are. There the phase within a voxel is taken as linear.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.geometry import Grid, smooth_size

GAMMA_BAR_MHZ_PER_T = 42.577  # proton
CHI_AIR = 9.4  # ppm against tissue
PADDING = 1.2  # of the field's grid: what wraps around is smooth and far away
FINE_MM = 0.1  # distance of the points at which spins are summed, at most
MAX_FINE = 8  # points along an edge of a voxel, at most: coarser grids serve tests alone
STEP_RAD = 0.4  # phase from voxel to voxel at a body's reach
MAX_REACH_MM = 11.0
_TILE = (6, 6, 4)  # voxels worked on at a time


def _dipole_kernel(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], b0_direction: jax.Array
) -> jax.Array:
    """D(k) = 1/3 - (k.b)^2 / k^2 on the half spectrum of `rfftn`, D(0) = 0, times the voxel's own transform.

    A voxel is a box of uniform susceptibility, not a point: its transform, a product of sinc(k h), halves the
    ringing that sharp borders otherwise send out along oblique directions.
    """
    squared, odd = [], []
    box: jax.Array | float = 1.0
    for axis, (n, h) in enumerate(zip(shape, spacing_mm, strict=True)):
        k = np.fft.rfftfreq(n, h) if axis == 2 else np.fft.fftfreq(n, h)
        # On the Nyquist plane of an even axis k and -k fall on one sample: terms that are odd in that axis
        # average to zero there. Kept, they would give a real field an imaginary part.
        odd_k = k.copy()
        if n % 2 == 0:
            odd_k[n // 2] = 0.0
        line = [1, 1, 1]
        line[axis] = len(k)
        squared.append(jnp.asarray((k**2).reshape(line), jnp.float32))
        odd.append(jnp.asarray(odd_k.reshape(line), jnp.float32))
        box = box * jnp.asarray(np.sinc(k * h).reshape(line), jnp.float32)
    b = b0_direction
    norm = squared[0] + squared[1] + squared[2]
    along = sum(squared[a] * b[a] ** 2 for a in range(3))
    for a, c in ((0, 1), (0, 2), (1, 2)):
        along = along + 2 * b[a] * b[c] * odd[a] * odd[c]
    kernel = box * (1.0 / 3.0 - along / jnp.where(norm == 0, 1.0, norm))
    return kernel.at[0, 0, 0].set(0.0)


@functools.partial(jax.jit, static_argnames=("spacing_mm", "padded"))
def convolve_dipole(
    chi_ppm: jax.Array,
    b0_direction: jax.Array,
    *,
    spacing_mm: tuple[float, float, float],
    padded: tuple[int, int, int],
) -> jax.Array:
    """Field in ppm of `chi_ppm` (X, Y, Z), extended by zeros to `padded` voxels; b0_direction (3,) unit."""
    spectrum = jnp.fft.rfftn(chi_ppm, s=padded)
    field = jnp.fft.irfftn(spectrum * _dipole_kernel(padded, spacing_mm, b0_direction), s=padded)
    x, y, z = chi_ppm.shape
    return field[:x, :y, :z]


def head_field(chi_ppm: jax.Array, b0_direction: jax.Array, *, grid: Grid) -> jax.Array:
    """Field in ppm of a head in air. The neck goes on below the grid, so that it does not end in a pole."""
    x, y, z = grid.shape
    below = smooth_size(z * PADDING) - z
    chi = jnp.pad(chi_ppm - CHI_AIR, ((0, 0), (0, 0), (below, 0)), mode="edge")
    padded = (smooth_size(x * PADDING), smooth_size(y * PADDING), z + below)
    field = convolve_dipole(chi, b0_direction, spacing_mm=grid.spacing_mm, padded=padded)
    return field[:, :, below:]


def phase_per_ppm(te_ms, b0_t):
    """Radians at the echo for a field of 1 ppm: 2 pi gammabar B0 TE; any shape, also of plain numbers."""
    return 2 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_ms / 1000.0


def echo_signal(
    signal: jax.Array, r2_star: jax.Array, field_ppm: jax.Array, te_ms: jax.Array, b0_t: jax.Array
) -> jax.Array:
    """S = M0 exp(-TE R2*) exp(i 2 pi gamma B0 TE dB), complex64; paramagnetic positive. R2* in 1/s."""
    te_s = te_ms / 1000.0
    phase = 2.0 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_s * field_ppm
    size = signal * jnp.exp(-te_s * r2_star)
    return jax.lax.complex(size * jnp.cos(phase), size * jnp.sin(phase))


def dephased_echo(
    signal: jax.Array, r2_star: jax.Array, field_ppm: jax.Array, te_ms: jax.Array, b0_t: jax.Array
) -> jax.Array:
    """`echo_signal` averaged over each voxel, the phase within it taken as linear.

    A step of d radians from one side of a voxel to the other leaves sinc(d / 2 pi) of the signal. The normal
    curve of the same width, exp(-d^2 / 24), has no zeros, which would look like rings in a steep field.
    """
    steps = []
    for axis in range(3):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        wide = jnp.pad(field_ppm, pad, mode="edge")
        n = field_ppm.shape[axis]
        ahead, behind = (jax.lax.slice_in_dim(wide, k, k + n, axis=axis) for k in (2, 0))
        steps.append(((ahead - behind) / 2) ** 2)
    loss = phase_per_ppm(te_ms, b0_t) ** 2 * sum(steps) / 24
    return echo_signal(signal * jnp.exp(-loss), r2_star, field_ppm, te_ms, b0_t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inclusions:
    """N ellipsoids in tissue, padded."""

    center_mm: jax.Array  # (N, 3) image frame
    radii_mm: jax.Array  # (N, 3)
    chi_ppm: jax.Array  # (N,) against the surroundings
    r2_star: jax.Array  # (N,) added, 1/s at the field strength of the scan
    signal_drop: jax.Array  # (N,) 0..1 of the signal at TE 0 that is missing inside
    valid: jax.Array  # (N,) bool

    @property
    def radius_mm(self) -> jax.Array:
        """(N,) of the ball of the same volume."""
        return jnp.prod(self.radii_mm, axis=1) ** (1 / 3)


def reaches(bodies: Inclusions, te_ms: jax.Array, b0_t: jax.Array, grid: Grid) -> jax.Array:
    """(N,) mm from each body's center to where its phase changes by `STEP_RAD` per voxel.

    On its axis a dipole's phase p (a / r)^3 changes by 3 p a^3 h / r^4 over a voxel h.
    """
    h = max(grid.spacing_mm)
    pole = phase_per_ppm(te_ms, b0_t) * jnp.abs(bodies.chi_ppm) * (2 / 3)
    flat = (3 * pole * bodies.radius_mm**3 * h / STEP_RAD) ** 0.25
    smooth = 5 * h  # a smaller ball is not smooth on the grid
    least = jnp.maximum(jnp.max(bodies.radii_mm, axis=1) + h, smooth)
    return jnp.maximum(least, jnp.minimum(flat, MAX_REACH_MM))


def _for_each_tile(
    state: jax.Array, bodies: Inclusions, reach_mm: jax.Array, grid: Grid, change: Callable
) -> jax.Array:
    """state (*grid.shape) with `change` applied to the voxels within each body's reach, tile by tile.

    change(window, own, body, axes): new values of a window of the state. `own` marks the voxels to change,
    `axes` are the mm along the window's axes relative to the body's center, `body` its index.
    """
    shape, spacing, origin = (np.asarray(v) for v in (grid.shape, grid.spacing_mm, grid.origin_mm))
    tile = np.minimum(_TILE, shape)
    middle = (bodies.center_mm - origin) / spacing
    extent = reach_mm[:, None] / spacing
    low = jnp.maximum(jnp.ceil(middle - extent), 0).astype(jnp.int32)
    high = jnp.minimum(jnp.floor(middle + extent), shape - 1).astype(jnp.int32)
    # Shapes are static, but the number of tiles is not: one loop runs over the tiles of all valid bodies, so
    # that few small bodies cost little. `ends` says which body a tile belongs to.
    counts = jnp.where(bodies.valid[:, None], jnp.maximum(high - low + tile, 0) // tile, 0)
    each = jnp.prod(counts, axis=1)
    ends = jnp.cumsum(each)

    def step(number: jax.Array, state: jax.Array) -> jax.Array:
        body = jnp.searchsorted(ends, number, side="right")
        rest = number - (ends[body] - each[body])
        _, ny, nz = counts[body]
        at = jnp.stack([rest // (ny * nz), rest // nz % ny, rest % nz])
        first = low[body] + at * tile
        # A tile at the far side is moved back into the grid; `own` leaves out what its neighbor covers.
        start = jnp.minimum(first, shape - tile)
        axes, own = [], jnp.ones((), bool)
        for a in range(3):
            index = start[a] + jnp.arange(tile[a])
            line = [1, 1, 1]
            line[a] = int(tile[a])
            own = own & ((index >= first[a]) & (index <= high[body, a])).reshape(line)
            axes.append(origin[a] + spacing[a] * index - bodies.center_mm[body, a])
        window = jax.lax.dynamic_slice(state, start, tile)
        return jax.lax.dynamic_update_slice(state, change(window, own, body, axes), start)

    return jax.lax.fori_loop(0, ends[-1], step, state)


def _square(axes: list[jax.Array], divisors: jax.Array | None = None) -> jax.Array:
    """Squared length of the vectors that three axes span, each axis over its divisor."""
    x, y, z = axes if divisors is None else (v / d for v, d in zip(axes, divisors, strict=True))
    return (x**2)[:, None, None] + (y**2)[:, None] + z**2


def _angular(axes: list[jax.Array], square: jax.Array, b0_direction: jax.Array) -> jax.Array:
    """cos^2 theta - 1/3 of the vectors that three axes span."""
    x, y, z = (b * v for b, v in zip(b0_direction, axes, strict=True))
    return (x[:, None, None] + y[:, None] + z) ** 2 / jnp.maximum(square, 1e-12) - 1 / 3


def add_smooth_balls(chi_ppm: jax.Array, bodies: Inclusions, reach_mm: jax.Array, *, grid: Grid) -> jax.Array:
    """chi (X, Y, Z) with each body as (35/8) chi (a / R)^3 (1 - (r / R)^2)^2 within its reach R."""
    peak = 35 / 8 * bodies.chi_ppm * (bodies.radius_mm / reach_mm) ** 3

    def add(window: jax.Array, own: jax.Array, body: jax.Array, axes: list[jax.Array]) -> jax.Array:
        inward = jnp.maximum(1 - _square(axes) / reach_mm[body] ** 2, 0.0)
        return window + jnp.where(own, peak[body] * inward**2, 0.0)

    return _for_each_tile(chi_ppm, bodies, reach_mm, grid, add)


def dephase_about_bodies(
    echo: jax.Array,
    bodies: Inclusions,
    reach_mm: jax.Array,
    te_ms: jax.Array,
    b0_t: jax.Array,
    b0_direction: jax.Array,
    *,
    grid: Grid,
) -> jax.Array:
    """The echo (X, Y, Z), complex, of smooth balls turned into that of the bodies: step 2 of the module.

    b0_direction (3,): unit vector in array axes.
    """
    factors = [min(MAX_FINE, math.ceil(h / FINE_MM)) for h in grid.spacing_mm]
    offsets = [
        jnp.asarray(((np.arange(n) + 0.5) / n - 0.5) * h, jnp.float32)
        for n, h in zip(factors, grid.spacing_mm, strict=True)
    ]
    edge = float(np.mean([h / n for n, h in zip(factors, grid.spacing_mm, strict=True)]))
    radians, te_s = phase_per_ppm(te_ms, b0_t), te_ms / 1000.0
    radius = bodies.radius_mm

    def change(window: jax.Array, own: jax.Array, body: jax.Array, axes: list[jax.Array]) -> jax.Array:
        a, reach, chi = radius[body], reach_mm[body], bodies.chi_ppm[body]
        square = _square(axes)
        share = square / reach**2
        smooth = (a / reach) ** 3 * share * (3.5 - 2.5 * share) * _angular(axes, square, b0_direction)

        # fine points of the tile: the body with an edge one of them soft, its field, its signal
        fine = [(v[:, None] + o).reshape(-1) for v, o in zip(axes, offsets, strict=True)]
        far = _square(fine)
        depth = jnp.sqrt(_square(fine, bodies.radii_mm[body]))  # 1 at the surface
        inside = jnp.clip(0.5 - (depth - 1.0) * a / edge, 0.0, 1.0)
        decay = (a * a / jnp.maximum(far, a * a / 4)) ** 1.5
        field = jnp.where(depth > 1.0, decay * _angular(fine, far, b0_direction), 0.0)
        size = (1 - bodies.signal_drop[body] * inside) * jnp.exp(-te_s * bodies.r2_star[body] * inside)
        phase = radians * chi * field
        blocks = [n for pair in zip(window.shape, factors, strict=True) for n in pair]
        real, imag = (
            jnp.mean((size * wave(phase)).reshape(blocks), axis=(1, 3, 5)) for wave in (jnp.cos, jnp.sin)
        )
        back = radians * chi * smooth
        factor = jax.lax.complex(real, imag) * jax.lax.complex(jnp.cos(back), -jnp.sin(back))
        return jnp.where(own & (share < 1), window * factor, window)

    return _for_each_tile(echo, bodies, reach_mm, grid, change)
