"""From the signal at the echo to a scan: what a scanner does to it, and what differs between scanners.

A head that moves is somewhere else at every phase-encoding line of k-space.

Coils are not simulated one by one. With sensitivities S_c and white noise, the matched combination
sum(conj(S_c) I_c) / |S| of coil images I_c = S_c I + n_c is |S| I + n with the noise of one channel, |S| the
root sum of squares (Roemer et al., Magn Reson Med 16:192, 1990). The root of the sum of squares of L coils is
its modulus with a chi-square of 2 (L - 1) degrees added under the root. The phase of the plain complex sum
is that of I times sum(S_c), over the noise of L channels: where coils cancel, phase has a pole, and a fringe
line ends there. All three need one complex noise image and coil maps on a coarse lattice.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmb_jax.phantom.geometry import Grid, cubic_weights

MAX_COILS = 8
COIL_LATTICE = (11, 13, 9)  # points over a field of view
_RING_MM = 135.0  # coils' distance from the head's axis
_REACH_MM = 95.0  # at this distance a coil's sensitivity is half
_G_FACTOR_MM = 75.0  # sigma of the noise amplification about the middle


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScannerRanges:
    """Ranges (low, high) that a subject's scanner is drawn from, uniformly; probabilities as one number."""

    tr_ms: tuple[float, float] = (25.0, 50.0)
    """Repetition time in ms, drawn on a logarithmic scale; at least 5 ms longer than the echo time."""
    flip_deg: tuple[float, float] = (10.0, 20.0)
    """Excitation in degrees."""
    coils: tuple[float, float] = (4.0, 8.0)
    """Receive coils, rounded to a whole number of at most MAX_COILS."""
    sum_of_squares: float = 0.4
    """Probability that magnitudes are combined as root sum of squares, not by matched (adaptive) weights."""
    unmatched_phase: float = 0.2
    """Probability that phase is that of the plain sum of coils: open-ended fringe lines."""
    acceleration: tuple[float, float] = (1.0, 3.0)
    """Factor of parallel imaging; noise is amplified in the middle, up to 1 + (factor - 1)^2 / 4 fold."""
    partial_fourier: tuple[float, float] = (0.75, 1.0)
    """Share of the phase-encoding lines that is measured: in half of the scans along x, in half along z."""
    in_plane: tuple[float, float] = (0.7, 1.0)
    """Acquired over stored resolution in plane: half of the scans are zero-filled up to the stored grid."""
    along_slices: tuple[float, float] = (1.0, 1.0)
    """The same along the slices, in every scan: overlapping or interpolated slices."""
    smoothing: tuple[float, float] = (0.0, 1.0)
    """Hann filter over the k-space that was measured, 0: none, 1: down to zero at its edge."""
    corrected: float = 0.5
    """Probability of an intensity correction; it takes off 70 to 100 % of the coils' profile."""
    mask_power: tuple[float, float] = (3.0, 5.0)
    """How often the phase mask multiplies."""
    homodyne_mm: tuple[float, float] = (6.0, 12.0)
    """Full width at half maximum of the low-pass: 2 x field of view over the Hann window's samples."""


# Limits that widening keeps to.
_LIMITS = {
    "tr_ms": (12.0, 3000.0),
    "flip_deg": (3.0, 80.0),
    "coils": (1.0, float(MAX_COILS)),
    "acceleration": (1.0, 3.0),
    "partial_fourier": (0.7, 1.0),
    "in_plane": (0.4, 1.0),
    "along_slices": (0.3, 1.0),
    "smoothing": (0.0, 1.0),
    "mask_power": (2.0, 5.0),
    "homodyne_mm": (5.0, 16.0),
}


def widened(limits: tuple[float, float], variety: float) -> tuple[float, float]:
    """A range of positive numbers, wider by the share `variety` at either end."""
    return limits[0] * (1.0 - variety), limits[1] * (1.0 + variety)


def widen_scanner(ranges: ScannerRanges, variety: float) -> ScannerRanges:
    """The ranges, wider by a share at either end, within `_LIMITS`; 0 changes nothing."""
    wider: dict[str, Any] = {}
    for name, (low, high) in _LIMITS.items():
        given = getattr(ranges, name)
        if variety > 0 and given[0] < given[1]:
            wide = widened(given, variety)
            wider[name] = (max(low, wide[0]), min(high, wide[1]))
    return dataclasses.replace(ranges, **wider)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scanner:
    """One subject's scanner; every entry () float32."""

    tr_ms: jax.Array
    flip_deg: jax.Array
    coils: jax.Array
    sum_of_squares: jax.Array  # 0 or 1
    unmatched_phase: jax.Array  # 0 or 1
    acceleration: jax.Array
    partial_x: jax.Array  # share of k-space that is measured along x
    partial_z: jax.Array
    in_plane: jax.Array  # acquired over stored resolution
    along_slices: jax.Array
    smoothing: jax.Array
    correction: jax.Array  # power of the coils' profile that intensity correction takes off
    mask_power: jax.Array
    homodyne_mm: jax.Array


def draw_scanner(key: jax.Array, ranges: ScannerRanges, te_ms: jax.Array) -> Scanner:
    """A subject's scanner for an echo time."""
    keys = iter(jax.random.split(key, 20))

    def between(limits: tuple[jax.Array, jax.Array] | tuple[float, float]) -> jax.Array:
        return limits[0] + (limits[1] - limits[0]) * jax.random.uniform(next(keys))

    def happens(probability: float | jax.Array) -> jax.Array:
        return (jax.random.uniform(next(keys)) < probability).astype(jnp.float32)

    tr_ms = jnp.exp(between((jnp.log(ranges.tr_ms[0]), jnp.log(ranges.tr_ms[1]))))
    return Scanner(
        tr_ms=jnp.maximum(tr_ms, te_ms + 5.0),
        flip_deg=between(ranges.flip_deg),
        coils=jnp.round(between(ranges.coils)),
        sum_of_squares=happens(ranges.sum_of_squares),
        unmatched_phase=happens(ranges.unmatched_phase),
        acceleration=between(ranges.acceleration),
        partial_x=jnp.where(happens(0.5) > 0, between(ranges.partial_fourier), 1.0),
        partial_z=jnp.where(happens(0.5) > 0, between(ranges.partial_fourier), 1.0),
        in_plane=jnp.where(happens(0.5) > 0, between(ranges.in_plane), 1.0),
        along_slices=between(ranges.along_slices),
        smoothing=between(ranges.smoothing),
        correction=happens(ranges.corrected) * between((0.7, 1.0)),
        mask_power=between(ranges.mask_power),
        homodyne_mm=between(ranges.homodyne_mm),
    )


def axis_window(length: int, share: jax.Array, partial: jax.Array, smoothing: jax.Array) -> jax.Array:
    """(length,) weights of k-space along an axis, in the FFT's order.

    share (): measured over stored bandwidth. partial (): lines measured of those, from the positive end;
    the rest are zeros. smoothing (): see `ScannerRanges`; the middle of k-space always has weight 1.
    """
    # Partial Fourier starts late: the first (most negative) lines are missing, up to 1 - 2 * partial.
    frequency = jnp.fft.fftfreq(length) * 2 / share  # -1..1 over what a full scan measures
    inside = (jnp.abs(frequency) < 1.0001) & (frequency > 0.9999 - 2.0 * partial)  # rounding moves no edge
    hann = jnp.cos(0.5 * jnp.pi * frequency) ** 2
    return jnp.where(inside, 1.0 - smoothing + smoothing * hann, 0.0)


def k_space_window(scanner: Scanner, matrix: tuple[int, int, int]) -> jax.Array:
    """(X, Y, Z) weights of k-space in the FFT's order: resolution, partial Fourier, smoothing."""
    x = axis_window(matrix[0], scanner.in_plane, scanner.partial_x, scanner.smoothing)
    y = axis_window(matrix[1], scanner.in_plane, jnp.float32(1.0), scanner.smoothing)
    z = axis_window(matrix[2], scanner.along_slices, scanner.partial_z, jnp.float32(0.0))
    return x[:, None, None] * y[:, None] * z


def draw_sensitivities(key: jax.Array, coils: jax.Array, points_mm: jax.Array) -> jax.Array:
    """Complex sensitivities (MAX_COILS, P) of coils about a head at points (P, 3) in mm from its middle.

    Coils sit on two rings at drawn angles; those beyond `coils` () are 0. A coil's phase turns with the
    distance from it. Coils agree in phase at a point near the middle, as vendors' prescans make them.
    """
    k_start, k_angle, k_height, k_turn, k_gain, k_agree = jax.random.split(key, 6)
    number = jnp.arange(MAX_COILS)
    angle = 2 * jnp.pi * (number / coils + jax.random.uniform(k_start))
    angle = angle + 0.25 * jax.random.normal(k_angle, (MAX_COILS,))
    height = jnp.where(number % 2 == 0, 30.0, -30.0) + 15.0 * jax.random.normal(k_height, (MAX_COILS,))
    place = jnp.stack([_RING_MM * jnp.cos(angle), _RING_MM * jnp.sin(angle), height], axis=1)
    in_phase = jnp.array([25.0, 30.0, 20.0]) * jax.random.normal(k_agree, (3,))
    turn = jax.random.uniform(k_turn, (MAX_COILS,), minval=-1.0, maxval=1.0) / 22.0  # radians per mm
    gain = jnp.exp(0.15 * jax.random.normal(k_gain, (MAX_COILS,))) * (number < coils)

    def sensitivity(place: jax.Array, turn: jax.Array, gain: jax.Array) -> jax.Array:
        distance = jnp.linalg.norm(points_mm - place, axis=-1)
        angle = turn * (distance - jnp.linalg.norm(in_phase - place))
        return gain / (1.0 + (distance / _REACH_MM) ** 2) * jnp.exp(1j * angle)

    return jax.vmap(sensitivity)(place, turn, gain)


def reference_phase(key: jax.Array, points_mm: jax.Array) -> jax.Array:
    """Unit complex numbers (P,): smooth phase of shim and transmit field, which every combination keeps."""
    at = points_mm / 100.0
    terms = jnp.concatenate([at, at**2, at * jnp.roll(at, 1, axis=1)], axis=1)
    size = jnp.array([0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3, 2.0])
    drawn = jax.random.normal(key, (10,)) * size
    return jnp.exp(1j * (terms @ drawn[:9] + drawn[9]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Receive:
    """Coils as seen in the combined image, each (X, Y, Z)."""

    gain: jax.Array  # real, of the magnitude, intensity correction included
    noise: jax.Array  # standard deviation of the noise in that unit, up to one factor for all voxels
    phase: jax.Array  # complex: angle of the receive phase; modulus: its signal over that of the magnitude


def draw_receive(key: jax.Array, scanner: Scanner, grid: Grid) -> Receive:
    """The coils' maps on a grid whose middle is that of the head."""
    k_coils, k_middle, k_phase = jax.random.split(key, 3)
    extent = [h * n for h, n in zip(grid.spacing_mm, grid.shape, strict=True)]
    axes = [jnp.linspace(0.0, e, n) + o for e, n, o in zip(extent, COIL_LATTICE, grid.origin_mm, strict=True)]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    maps = draw_sensitivities(k_coils, scanner.coils, points)
    total = jnp.sqrt(jnp.sum(jnp.abs(maps) ** 2, axis=0))
    plain = jnp.sum(maps, axis=0) / (total * jnp.sqrt(scanner.coils))  # modulus 1 where all coils agree
    phase = jnp.where(scanner.unmatched_phase > 0, plain, 1.0) * reference_phase(k_phase, points)

    middle = 15.0 * jax.random.normal(k_middle, (3,))
    bump = jnp.exp(-0.5 * jnp.sum(((points - middle) / _G_FACTOR_MM) ** 2, axis=1))
    g_factor = 1.0 + 0.25 * (scanner.acceleration - 1.0) ** 2 * bump
    log_gain = (1.0 - scanner.correction) * jnp.log(total)
    log_noise = jnp.log(g_factor) - scanner.correction * jnp.log(total)
    # Between the points of the coarse lattice logarithms are interpolated, so that gain and noise stay
    # positive, and the phase as a complex number, since an angle has a seam.
    channels = jnp.stack([log_gain, log_noise, phase.real, phase.imag], axis=-1).reshape(*COIL_LATTICE, 4)
    wx, wy, wz = (
        cubic_weights(jnp.arange(n) * ((m - 1) / n), m) for n, m in zip(grid.shape, COIL_LATTICE, strict=True)
    )
    gain, noise, real, imag = jnp.einsum("xi,yj,zk,ijkc->cxyz", wx, wy, wz, channels, optimize="optimal")
    return Receive(jnp.exp(gain), jnp.exp(noise), jax.lax.complex(real, imag))


JUMPS = 3  # sudden displacements per scan
_CYCLES = (8.0, 60.0)  # of breathing or pulsation, per scan


def draw_motion(key: jax.Array, lines: int, rms_mm: jax.Array) -> jax.Array:
    """Displacement (lines, 3) in mm at each phase-encoding line: jumps, drift and an oscillation.

    Lines are acquired from one edge of k-space to the other; the head is at zero when its middle is measured.
    """
    k_time, k_size, k_drift, k_cycles, k_wave, k_phase = jax.random.split(key, 6)
    time = jnp.arange(lines) / lines
    when = jax.random.uniform(k_time, (JUMPS,))
    steps = (time[:, None] > when) @ jax.random.normal(k_size, (JUMPS, 3))
    drift = time[:, None] * jax.random.normal(k_drift, (3,))
    cycles = jax.random.uniform(k_cycles, (), minval=_CYCLES[0], maxval=_CYCLES[1])
    angle = 2 * jnp.pi * (cycles * time + jax.random.uniform(k_phase))
    wave = jnp.sin(angle)[:, None] * jax.random.normal(k_wave, (3,)) * 0.6
    path = steps + drift + wave
    path = path - path[lines // 2]
    size = jnp.sqrt(jnp.mean(jnp.sum(path**2, axis=1)))
    return path * rms_mm / jnp.maximum(size, 1e-6)


def move_lines(spectrum: jax.Array, path_mm: jax.Array, field_of_view_mm: tuple[float, ...]) -> jax.Array:
    """A spectrum (X, Y, Z), in the FFT's order, of a head displaced by path_mm (X, 3) line by line along x.

    A displacement by d multiplies k-space by exp(-2 pi i k.d) (Fourier's shift theorem). Lines run in time
    from the most negative frequency to the most positive one.
    """
    path = jnp.fft.ifftshift(path_mm, axes=0)  # row i: displacement when frequency i was measured
    x, y, z = (
        jnp.fft.fftfreq(n, 1.0 / n) / extent
        for n, extent in zip(spectrum.shape, field_of_view_mm, strict=True)
    )

    def wave(turns: jax.Array) -> jax.Array:
        return jnp.exp(-2j * jnp.pi * turns).astype(spectrum.dtype)

    in_plane = wave((x * path[:, 0])[:, None] + y * path[:, 1:2])
    return spectrum * in_plane[:, :, None] * wave(z * path[:, 2:])[:, None, :]


def _crop_axis(spectrum: jax.Array, axis: int, size: int) -> jax.Array:
    """Low frequencies of an axis in the FFT's order: cut off or filled with zeros to `size`."""
    n = spectrum.shape[axis]
    if size == n:
        return spectrum
    kept = min(n, size)
    positive = (kept + 1) // 2  # frequencies 0 .. ; the rest of those kept are the negative ones
    low = jax.lax.slice_in_dim(spectrum, 0, positive, axis=axis)
    high = jax.lax.slice_in_dim(spectrum, n - (kept - positive), n, axis=axis)
    shape = list(spectrum.shape)
    shape[axis] = size - kept
    return jnp.concatenate([low, jnp.zeros(shape, spectrum.dtype), high], axis=axis)


def cropped_spectrum(image: jax.Array, matrix: tuple[int, int, int]) -> jax.Array:
    """Complex image (X, Y, Z) -> its k-space on `matrix` samples, in the FFT's order.

    The high frequencies are cut off where the matrix is coarser (dephasing between the image's voxels and
    Gibbs ringing follow; `phantom.field` sees to that within them) and filled with zeros where it is finer.
    The inverse FFT gives the image at its old scale, voxel 0 in its place.
    """
    scale = 1.0
    for axis in (2, 0, 1):  # slices first: that shrinks the most
        scale *= matrix[axis] / image.shape[axis]
        image = _crop_axis(jnp.fft.fft(image, axis=axis), axis, matrix[axis])
    return image * scale


def without_ringing(image: jax.Array) -> jax.Array:
    """A complex image (X, Y, Z) under a Hann window over k-space: three taps along each axis, periodic."""
    for axis in range(3):
        image = 0.5 * image + 0.25 * (jnp.roll(image, 1, axis) + jnp.roll(image, -1, axis))
    return image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Acquired:
    """A scan (X, Y, Z) without its discarded slices."""

    magnitude: jax.Array
    phase: jax.Array  # radians, wrapped, as stored
    sigma: jax.Array  # () standard deviation of the noise per channel, mean over the brain
    noise: jax.Array  # (X, Y, Z) its standard deviation in each voxel
    ghost: jax.Array  # how much darker motion makes a voxel, over the brain's mean signal
    ringing: jax.Array  # how much darker the sharp end of k-space makes it, likewise


def combine_coils(
    image: jax.Array, noise: jax.Array, receive: Receive, sigma: jax.Array, scanner: Scanner
) -> tuple[jax.Array, jax.Array]:
    """Magnitude and phase in radians of a scan by all coils, see the head of this file.

    image: complex (X, Y, Z) of an ideal coil. noise: complex, standard deviation 1 per channel.
    sigma: (X, Y, Z) standard deviation of the noise in the combined image.
    """
    # One complex noise image serves all of it. The chi-square of the other coils takes the noise of a voxel
    # far away, which is independent of that of this voxel.
    image = receive.gain * image
    disturbed = sigma * noise
    matched = jnp.abs(image + disturbed)
    # chi-square of the other coils from a normal variable (Wilson and Hilferty 1931)
    free = jnp.maximum(2.0 * (scanner.coils - 1.0), 1e-3)
    far = jnp.roll(noise.real, tuple(n // 2 for n in noise.shape), (0, 1, 2))
    others = free * jnp.maximum(1.0 - 2.0 / (9.0 * free) + jnp.sqrt(2.0 / (9.0 * free)) * far, 0.0) ** 3
    others = jnp.where((scanner.sum_of_squares > 0) & (scanner.coils > 1), others, 0.0)
    magnitude = jnp.sqrt(matched**2 + sigma**2 * others)
    strength = jnp.abs(receive.phase)  # of the image's signal in what the phase is taken from
    return magnitude, jnp.angle(receive.phase * (strength * image + disturbed))


def acquire(
    echo: jax.Array,
    brain: jax.Array,
    snr: jax.Array,
    motion_mm: jax.Array,
    phase_sign: jax.Array,
    scanner: Scanner,
    key: jax.Array,
    *,
    matrix: tuple[int, int, int],
    field_of_view_mm: tuple[float, float, float],
    discarded: int,
) -> Acquired:
    """Signal at the echo, complex (x, y, z) on the simulation grid, to a scan by all coils.

    `brain` (X, Y, Z of the result) marks where the mean signal over the mean noise is `snr`. `discarded`
    slices are dropped at either end. motion_mm (): root mean square displacement. phase_sign (): +1 or -1.
    """
    # The same k-space is transformed twice, with the head still and moving: the difference is the ghost. A
    # Hann window on the still image takes the ringing off: the difference is what Gibbs ringing adds.
    k_receive, k_noise, k_motion = jax.random.split(key, 3)
    spectrum = cropped_spectrum(echo, matrix)
    window = k_space_window(scanner, matrix)
    spectrum = spectrum * window
    path = draw_motion(k_motion, matrix[0], motion_mm)
    kept = slice(discarded, matrix[2] - discarded)
    still = jnp.fft.ifftn(spectrum)
    image = jnp.fft.ifftn(move_lines(spectrum, path, field_of_view_mm))[:, :, kept]
    ringing = (jnp.abs(without_ringing(still)) - jnp.abs(still))[:, :, kept]
    ghost = jnp.abs(still[:, :, kept]) - jnp.abs(image)

    receive = draw_receive(k_receive, scanner, Grid.over(field_of_view_mm, matrix))
    receive = jax.tree.map(lambda part: part[:, :, kept], receive)
    level = jnp.maximum(_mean(jnp.abs(image), brain), 1e-6)
    sigma = _mean(receive.gain * jnp.abs(image), brain) / snr
    local = receive.noise * (sigma / _mean(receive.noise, brain))
    noise = windowed_noise(k_noise, window)[:, :, kept]
    magnitude, phase = combine_coils(image, noise, receive, local, scanner)
    wrapped = jnp.where(phase_sign < 0, -phase, phase)
    return Acquired(magnitude, wrapped, sigma, local, ghost / level, ringing / level)


def windowed_noise(key: jax.Array, window: jax.Array) -> jax.Array:
    """Complex noise (X, Y, Z) of a k-space measured under `window`; standard deviation 1 per channel."""
    drawn = jax.random.normal(key, (2, *window.shape))
    # scaled by the root mean square of the window, so that the image's noise is 1 whatever is left out
    size = window * (window.size / jnp.sqrt(jnp.sum(window**2)))
    return jnp.fft.ifftn(jax.lax.complex(drawn[0], drawn[1]) * size)


def _mean(image: jax.Array, brain: jax.Array) -> jax.Array:
    return jnp.sum(image * brain) / jnp.maximum(jnp.sum(brain), 1)
