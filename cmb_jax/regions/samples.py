"""Training samples of the region network: few anatomies, endless contrasts and shapes.

Domain randomization after Billot et al. 2023, SynthSeg, Med Image Anal 86:102789: every sample draws the
intensity of each tissue, the shape, the field of view, the resolution, the noise and the artifacts anew, so
that the network must go by anatomy and not by contrast. Three quarters of the samples are drawn around the
look of T2*-weighted magnitude and SWI; the rest are arbitrary. Everything after `build_source` is a pure
function of a key, jitted, and runs where the training runs.

Points are arrays (3, ...) of z, y, x in mm; the origin is the middle of the brain's bounding box. Images are
(Z, Y, X) on the network's grid.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from cmb_jax.anatomy.pack import AnatomyPack, Channel
from cmb_jax.anatomy.regions import Region, Side, region_of, side_of
from cmb_jax.phantom.head import NUCLEI
from cmb_jax.regions.grid import GRID_MM, GRID_SHAPE, normalize

FIELD_MM = 8.0  # grid of the warps
SOURCE_MM = (208.0, 248.0, 224.0)  # extent of the source (z, y, x)
MATERIAL_MM = 1.5  # grid of the tissue fractions
CODE_MM = 1.0  # grid of the region codes

# Order of the materials: cortex, white matter, ventricular and sulcal CSF, soft tissue dark and bright on T1,
# the nuclei, vessels, white-matter hyperintensity, T1 texture of the brain. Air has none: it is dark.
NUM_MATERIALS = 6 + len(NUCLEI) + 3


def uniform(key: jax.Array, low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
    """Uniform numbers between low and high."""
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def smooth_noise(
    key: jax.Array, coarse: tuple[int, ...], fine: tuple[int, ...], channels: int = 1
) -> jax.Array:
    """(channels, *fine) noise: normal values on a coarse grid, interpolated."""
    noise = jax.random.normal(key, (channels, *coarse))
    return jax.image.resize(noise, (channels, *fine), "cubic")


def head_points(key: jax.Array, brain_mm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Points of the grid's voxels in the posed head, and which of them lie in the field of view.

    Half of the views end in the neck or at the chin, a fifth cut the brain at the top or at the bottom (up to
    50 mm); the rest hold the whole head. The grid is centered on the visible brain, up to a shift.
    """
    low_key, cut_key, which_key, shift_key, kind_key = jax.random.split(key, 5)
    kind = jax.random.uniform(kind_key)
    cut = uniform(cut_key, 3.0, 50.0)
    cut_top = jax.random.bernoulli(which_key)
    low, high = brain_mm[0], brain_mm[1]
    neck = jnp.where(kind < 0.7, low - uniform(low_key, 0.0, 40.0), low - 200.0)
    bottom = jnp.where((kind < 0.2) & ~cut_top, low + cut, neck)
    top = jnp.where((kind < 0.2) & cut_top, high - cut, high + 200.0)
    center_z = (jnp.maximum(bottom, low) + jnp.minimum(top, high)) / 2
    shift = uniform(shift_key, -1.0, 1.0, (3,)) * jnp.asarray([18.0, 12.0, 12.0])
    points = grid_mm() + shift.at[0].add(center_z)[:, None, None, None]
    return points, (points[0] >= bottom) & (points[0] <= top)


def grid_mm() -> jax.Array:
    """(3, Z, Y, X) points of the region grid relative to its center, mm."""
    axes = [(jnp.arange(n) - (n - 1) / 2) * GRID_MM for n in GRID_SHAPE]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"))


def pose(key: jax.Array, points: jax.Array) -> jax.Array:
    """Affine pose (rotation, scale, shear) of points (3, ...)."""
    angle_key, scale_key, shear_key = jax.random.split(key, 3)
    angles = uniform(angle_key, -1.0, 1.0, (3,)) * jnp.deg2rad(jnp.asarray([12.0, 12.0, 18.0]))
    rotation = _rotation(0, 1, angles[0]) @ _rotation(0, 2, angles[1]) @ _rotation(1, 2, angles[2])
    scale = 1 + uniform(scale_key, -0.12, 0.12, (3,))
    shear = jnp.eye(3) + jnp.triu(uniform(shear_key, -0.06, 0.06, (3, 3)), 1)
    return jnp.einsum("ij,j...->i...", rotation @ shear @ jnp.diag(scale), points)


def deform(key: jax.Array, points: jax.Array, ventricle_pull: jax.Array) -> jax.Array:
    """Affine pose, then a diffeomorphic warp, of the grid's points (3, Z, Y, X)."""
    pose_key, warp_key = jax.random.split(key)
    posed = pose(pose_key, points)
    # The warp is smooth: every second point is enough, and eight times as fast.
    blocks = posed.reshape(3, *(part for n in GRID_SHAPE for part in (n // 2, 2)))
    displacement = sample_linear(warp(warp_key, ventricle_pull), blocks.mean(axis=(2, 4, 6)) / FIELD_MM)
    return posed + jax.image.resize(displacement, posed.shape, "linear")


def _rotation(first: int, second: int, angle: jax.Array) -> jax.Array:
    """Rotation matrix in the plane of two axes."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    out = jnp.eye(3).at[first, first].set(cos).at[second, second].set(cos)
    return out.at[first, second].set(-sin).at[second, first].set(sin)


def warp(key: jax.Array, ventricle_pull: jax.Array) -> jax.Array:
    """Displacement (3, Z, Y, X) in mm on the field grid: a stationary velocity, scaled and squared."""
    broad_key, fine_key, amplitude_key, ventricle_key = jax.random.split(key, 4)
    shape = ventricle_pull.shape[1:]
    amplitude = uniform(amplitude_key, 0.0, 1.0, (2,)) * jnp.asarray([6.0, 2.5])
    velocity = amplitude[0] * smooth_noise(broad_key, (4, 5, 4), shape, 3)
    velocity += amplitude[1] * smooth_noise(fine_key, (9, 11, 10), shape, 3)
    velocity += uniform(ventricle_key, -1.0, 5.0) * ventricle_pull
    axes = [jnp.arange(n) - (n - 1) / 2 for n in shape]
    lattice = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))
    squarings = 4
    # The flow of a sixteenth of the time is nearly the velocity; doubled four times by following it, the warp
    # stays invertible, which one large step along the velocity would not.
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = displacement + sample_linear(displacement, lattice + displacement / FIELD_MM)
    return displacement


def sample_linear(volume: jax.Array, points: jax.Array) -> jax.Array:
    """Trilinear (C, ...) of (C, Z, Y, X) at points (3, ...) in voxels from its center; edges repeat."""
    # Without this XLA computes the volume anew for each of the eight corners.
    volume, points = jax.lax.optimization_barrier((volume, points))
    size = volume.shape[1:]
    position = [jnp.clip(p + (n - 1) / 2, 0, n - 1) for p, n in zip(points, size, strict=True)]
    base = [jnp.minimum(p.astype(jnp.int32), n - 2) for p, n in zip(position, size, strict=True)]
    fz, fy, fx = (p - b for p, b in zip(position, base, strict=True))
    # Flat indices: a gather of scalars is several times faster on a CPU than one of short rows.
    step = (size[1] * size[2], size[2], 1)
    index = base[0] * step[0] + base[1] * step[1] + base[2]

    def interpolate(flat: jax.Array) -> jax.Array:
        def line(offset: int) -> jax.Array:
            return flat[index + offset] * (1 - fx) + flat[index + offset + 1] * fx

        def plane(offset: int) -> jax.Array:
            return line(offset) * (1 - fy) + line(offset + step[1]) * fy

        return plane(0) * (1 - fz) + plane(step[0]) * fz

    return jnp.stack([interpolate(channel.reshape(-1)) for channel in volume])


def sample_nearest(volume: jax.Array, points: jax.Array) -> jax.Array:
    """Nearest values (...) of (Z, Y, X) at points (3, ...) in voxels from its center; 0 beyond its edges."""
    size = volume.shape
    z, y, x = (jnp.rint(p + (n - 1) / 2).astype(jnp.int32) for p, n in zip(points, size, strict=True))
    inside = (z >= 0) & (z < size[0]) & (y >= 0) & (y < size[1]) & (x >= 0) & (x < size[2])
    index = (z * size[1] + y) * size[2] + x
    return jnp.where(inside, volume.reshape(-1)[jnp.where(inside, index, 0)], 0)


def inner_artifacts(key: jax.Array, image: jax.Array) -> jax.Array:
    """Veins, lesions, texture and signal loss, which simulated subjects have already."""
    keys = jax.random.split(key, 7)
    image = jnp.maximum(image, 0.0)
    image *= 1 - uniform(keys[0], 0.0, 0.9) * _veins(keys[1])
    image *= 1 - uniform(keys[2], 0.3, 1.0) * _blobs(keys[3])
    image *= 1 + uniform(keys[4], 0.0, 0.15) * smooth_noise(keys[5], (30, 38, 32), GRID_SHAPE)[0]
    return image * (1 - _signal_loss(keys[6]))


def scan_artifacts(key: jax.Array, image: jax.Array, code: jax.Array, in_view: jax.Array) -> jax.Array:
    """Bias, skull stripping, gamma, resolution and noise."""
    keys = jax.random.split(key, 9)
    # In the order in which a scan comes about: the coil's shading, what a program has cut away or stretched,
    # the voxel's size, and noise on top of it all.
    image *= jnp.exp(uniform(keys[0], 0.0, 0.4) * smooth_noise(keys[1], (4, 5, 4), GRID_SHAPE)[0])
    brain = blur((code > 0).astype(jnp.float32), jnp.ones(3))
    stripped = jnp.where(brain > uniform(keys[2], 0.25, 0.6), image, 0.0)
    is_stripped = jax.random.bernoulli(keys[3], 0.3)
    image = jnp.where(is_stripped, stripped, image)
    image = jnp.maximum(image, 0.0) ** jnp.exp(uniform(keys[4], -0.4, 0.4))
    image = blur(image, _blur_sigma(keys[5]))
    level = uniform(keys[6], 0.0, 0.1)
    real, imaginary = level * jax.random.normal(keys[7], (2, *image.shape))
    noisy = jnp.hypot(image + real, imaginary)  # Rician
    # Stripping comes after the noise as well: its background is exactly zero.
    keep = in_view & (~is_stripped | (image > 0.02) | jax.random.bernoulli(keys[8]))
    return jnp.where(keep, noisy, 0.0)


def _veins(key: jax.Array) -> jax.Array:
    """(Z, Y, X) in [0, 1]: thin winding lines, where two random fields are both zero."""
    fields = smooth_noise(key, (22, 28, 24), GRID_SHAPE, 2)
    return jnp.exp(-jnp.sum(fields**2, axis=0) / (2 * 0.12**2))


def _blobs(key: jax.Array) -> jax.Array:
    """(Z, Y, X) in [0, 1]: up to 40 dots of a few millimeters."""
    place_key, count_key = jax.random.split(key)
    place = jax.random.randint(place_key, (40, 3), 0, jnp.asarray(GRID_SHAPE))
    shown = (jnp.arange(40) < 40 * jax.random.uniform(count_key) ** 2).astype(jnp.float32)
    # always 40 places, of which some add nothing: shapes must not depend on the draw
    dots = jnp.zeros(GRID_SHAPE).at[place[:, 0], place[:, 1], place[:, 2]].add(shown)
    return jnp.minimum(4.0 * blur(dots, jnp.full(3, 0.8)), 1.0)


def _signal_loss(key: jax.Array) -> jax.Array:
    """(Z, Y, X) in [0, 1): up to three soft patches, as above the sinuses and the ear canals."""
    place_key, width_key, depth_key = jax.random.split(key, 3)
    place = uniform(place_key, -1.0, 1.0, (3, 3)) * jnp.asarray([30.0, 80.0, 60.0])
    place = place - jnp.asarray([35.0, 0.0, 0.0])  # below the middle
    width = uniform(width_key, 6.0, 16.0, (3,))
    depth = jnp.maximum(uniform(depth_key, -1.0, 1.0, (3,)), 0.0)
    loss = jnp.zeros(GRID_SHAPE)
    grid = grid_mm()
    for i in range(3):
        squared = jnp.sum((grid - place[i][:, None, None, None]) ** 2, axis=0)
        loss = jnp.maximum(loss, depth[i] * jnp.exp(-squared / (2 * width[i] ** 2)))
    return loss


def _blur_sigma(key: jax.Array) -> jax.Array:
    """(3,) Gaussian sigma in grid voxels: slices up to 4 mm, mostly along z."""
    base_key, thick_key, axis_key = jax.random.split(key, 3)
    base = uniform(base_key, 0.0, 0.35)
    thickness = uniform(thick_key, 0.0, 4.0) / 2.355 / GRID_MM
    axis = jax.random.choice(axis_key, 3, p=jnp.asarray([0.7, 0.15, 0.15]))
    return jnp.full(3, base).at[axis].add(thickness)


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur of (Z, Y, X) with seven taps per axis; sigma (3,) in voxels."""
    for axis in range(3):
        taps = jnp.exp(-(jnp.arange(-3.0, 4.0) ** 2) / (2 * jnp.maximum(sigma[axis], 0.05) ** 2))
        taps = taps / taps.sum()
        width = [(3, 3) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, width)
        length = image.shape[axis]
        image = sum(taps[i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(7))  # type: ignore[assignment]
    return image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionSource:
    """One anatomy, ready to be sampled; all grids are centered on the brain."""

    materials: jax.Array  # (NUM_MATERIALS, Z, Y, X) uint8, 255 = 1.0, at MATERIAL_MM
    code: jax.Array  # (Z, Y, X) uint8 region code at CODE_MM
    ventricle_pull: jax.Array  # (3, Z, Y, X) at FIELD_MM: unit velocity (mm) that widens the ventricles
    brain_mm: jax.Array  # (2,) lowest and highest z of the brain


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastVariety:
    """How often the contrasts of the samples are unusual: probabilities, static under jit."""

    arbitrary: float = 0.25  # of intensities drawn freely for every material; otherwise about T2*-weighted
    bright_csf: float = 0.5  # of fluid brighter than or like brain in T2*-weighted contrast


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionSample:
    """One training example on the region grid."""

    image: jax.Array  # (Z, Y, X) float32, normalized
    region: jax.Array  # (Z, Y, X) int32 Region; OUTSIDE beyond the field of view
    side: jax.Array  # (Z, Y, X) int32 Side


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomViews:
    """Simulated subjects on the region grid, centered on the brain (see `regions.phantoms`)."""

    images: jax.Array  # (N, 2, Z, Y, X) uint8: SWI and magnitude, 170 = the 99th percentile
    code: jax.Array  # (N, Z, Y, X) uint8 region code
    brain_mm: jax.Array  # (N, 2) lowest and highest z of the brain, from the grid's center


def build_source(pack: AnatomyPack) -> RegionSource:
    """Center a pack on its brain and bring it to the grids that sampling uses (seconds, on the host)."""
    occupied = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    low, high = occupied.min(axis=0), occupied.max(axis=0)
    center = (low + high) / 2
    spacing = voxel_sizes(pack.affine)

    def resample(data: np.ndarray, step_mm: float, order: int, mode: str) -> np.ndarray:
        """(X, Y, Z) of the pack -> (Z, Y, X) of the source."""
        shape = np.array([round(extent / step_mm) for extent in SOURCE_MM])[::-1]
        scale = step_mm / spacing
        offset = center - (shape - 1) / 2 * scale
        out = ndimage.affine_transform(
            data, scale, offset=offset, output_shape=tuple(shape), order=order, mode=mode
        )
        return out.transpose(2, 1, 0)

    # Where the pack ends in the neck, tissue is continued downwards ("nearest"); region codes are not.
    materials = np.stack(
        [
            np.rint(255 * resample(material, MATERIAL_MM, 1, "nearest")).astype(np.uint8)
            for material in _materials(pack)
        ]
    )
    code = resample(pack.code, CODE_MM, 0, "constant")
    ventricle = np.asarray(region_of(code) == Region.VENTRICLE, np.float32)
    smooth = ndimage.gaussian_filter(ventricle, 5.0 / CODE_MM)
    stride = round(FIELD_MM / CODE_MM)
    coarse = (slice(stride // 2, None, stride),) * 3
    pull = np.stack([ndimage.uniform_filter(slope, stride)[coarse] for slope in np.gradient(smooth)])
    largest = np.linalg.norm(pull, axis=0).max()
    return RegionSource(
        materials=jnp.asarray(materials),
        code=jnp.asarray(code),
        ventricle_pull=jnp.asarray(pull / max(largest, 1e-9), jnp.float32),
        brain_mm=jnp.asarray([-0.5, 0.5], jnp.float32) * float((high - low)[2] * spacing[2]),
    )


def _materials(pack: AnatomyPack) -> list[np.ndarray]:
    """NUM_MATERIALS maps (X, Y, Z) float32 in [0, 1]."""

    def fraction(channel: Channel) -> np.ndarray:
        return pack.fractions[..., channel].astype(np.float32) / 255

    nuclei = [fraction(channel) for channel in NUCLEI]
    gray, white, csf, soft = (fraction(Channel(c)) for c in range(4))
    t1 = np.minimum(fraction(Channel.T1), 1.0)
    ventricle = ndimage.maximum_filter(region_of(pack.code) == Region.VENTRICLE, 3)
    return [
        np.clip(gray - np.sum(nuclei, axis=0), 0, 1),
        white,
        csf * ventricle,
        csf * ~ventricle,
        soft * (1 - t1),
        soft * t1,
        *nuclei,
        fraction(Channel.VESSEL_PRIOR),
        fraction(Channel.LESION_PRIOR),
        t1 * np.minimum(gray + white, 1.0),
    ]


def make_sample(
    source: RegionSource, key: jax.Array, variety: ContrastVariety = ContrastVariety()
) -> RegionSample:
    """Draw one sample: shape, contrast, artifacts and field of view; deterministic in `key`."""
    # The order matters. The head is placed and deformed by moving the points at which the anatomy is read, so
    # that labels and tissue stay in register whatever is drawn. Intensities are given to materials on the
    # anatomy's own grid and read through the warp only then, one volume instead of `NUM_MATERIALS`. Artifacts
    # of the head (veins, lesions) come before those of the scanner (bias, blur, noise), as in a real scan.
    shape_key, contrast_key, artifact_key, view_key, flip_key = jax.random.split(key, 5)
    points, in_view = head_points(view_key, source.brain_mm)
    points = deform(shape_key, points, source.ventricle_pull)
    code = sample_nearest(source.code, points / CODE_MM)
    code = jnp.where(in_view, code, 0)
    weights = material_weights(contrast_key, variety)
    # One term at a time fuses into a single pass; a contraction of uint8 would be slow on a CPU.
    signal = sum(source.materials[m] * (weights[m] / 255) for m in range(NUM_MATERIALS))
    image = sample_linear(jnp.asarray(signal)[None], points / MATERIAL_MM)[0]
    inner_key, scan_key = jax.random.split(artifact_key)
    image = scan_artifacts(scan_key, inner_artifacts(inner_key, image), code, in_view)
    return _finish(flip_key, image, code)


def make_view_sample(views: PhantomViews, key: jax.Array) -> RegionSample:
    """Draw one sample from a simulated subject: pose, field of view, scanner; deterministic in `key`."""
    pick_key, shape_key, artifact_key, view_key, flip_key = jax.random.split(key, 5)
    subject, channel = jax.random.randint(pick_key, (2,), 0, jnp.asarray(views.images.shape[:2]))
    points, in_view = head_points(view_key, views.brain_mm[subject])
    points = pose(shape_key, points) / GRID_MM
    code = jnp.where(in_view, sample_nearest(views.code[subject], points), 0)
    edge = jnp.asarray(GRID_SHAPE)[:, None, None, None] / 2
    in_view &= jnp.all(jnp.abs(points) <= edge, axis=0)
    image = sample_linear(views.images[subject, channel].astype(jnp.float32)[None] / 170, points)[0]
    return _finish(flip_key, scan_artifacts(artifact_key, image, code, in_view), code)


def _finish(flip_key: jax.Array, image: jax.Array, code: jax.Array) -> RegionSample:
    """Scale the image, and mirror half of the samples left to right."""
    image = normalize(image)
    flip = jax.random.bernoulli(flip_key)
    image, code = (jnp.where(flip, a[..., ::-1], a) for a in (image, code))
    region, side = (f(code).astype(jnp.int32) for f in (region_of, side_of))
    other = jnp.asarray([Side.NONE, Side.RIGHT, Side.LEFT])[side]
    return RegionSample(image=image, region=region, side=jnp.where(flip, other, side))


def material_weights(key: jax.Array, variety: ContrastVariety) -> jax.Array:
    """(NUM_MATERIALS,) intensities: around T2*-weighted contrast, or arbitrary."""
    keys = jax.random.split(key, 10)
    white = uniform(keys[0], 0.5, 0.9)
    cortex = white * uniform(keys[1], 0.85, 1.3)
    bright = jax.random.bernoulli(keys[2], variety.bright_csf)
    csf = jnp.where(bright, uniform(keys[3], 0.85, 1.4), uniform(keys[3], 0.1, 0.55))
    csf_pair = csf * uniform(keys[4], 0.8, 1.15, (2,))
    soft = uniform(keys[5], 0.0, 1.0, (2,)) * jnp.asarray([0.35, 1.2])
    nuclei = cortex * uniform(keys[6], 0.3, 1.1, (len(NUCLEI),))
    extra = uniform(keys[7], 0.0, 1.0, (3,)) * jnp.asarray([1.3, 0.6, 0.5]) - jnp.asarray([1.0, 0.2, 0.15])
    t2star = jnp.concatenate([jnp.stack([cortex, white]), csf_pair, soft, nuclei, extra])
    free = uniform(keys[8], 0.0, 1.0, (NUM_MATERIALS,))
    near_cortex = free[0] + 0.4 * (free[6 : 6 + len(NUCLEI)] - 0.5)
    arbitrary = jnp.concatenate([free[:6], near_cortex, extra])
    return jnp.where(jax.random.bernoulli(keys[9], 1 - variety.arbitrary), t2star, arbitrary)
