"""Training samples of the region network: one anatomy, endless contrasts and shapes.

Domain randomisation after Billot et al. 2023, SynthSeg, Med Image Anal 86:102789: every sample draws the
intensity of each tissue, the shape, the resolution, the noise and the artefacts anew, so that the network
must go by anatomy and not by contrast. Three quarters of the samples are drawn around the look of
T2*-weighted magnitude and SWI; the rest are arbitrary. Everything after `build_source` is a pure function of
a key, jitted, and runs where the training runs.

Points are arrays (3, ...) of z, y, x in mm; the origin is the middle of the brain's bounding box.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.pack import AnatomyPack, Channel
from cmb_jax.anatomy.regions import Region, Side, region_of, side_of
from cmb_jax.data.region_artefacts import inner_artefacts, scan_artefacts
from cmb_jax.data.region_grid import GRID_MM, GRID_SHAPE, normalise
from cmb_jax.data.region_warps import (
    FIELD_MM,
    deform,
    head_points,
    pose,
    sample_linear,
    sample_nearest,
    uniform,
)

SOURCE_MM = (208.0, 248.0, 224.0)  # extent of the source (z, y, x)
MATERIAL_MM = 1.5  # grid of the tissue fractions
CODE_MM = 1.0  # grid of the region codes

NUCLEI = (
    Channel.CAUDATE,
    Channel.PUTAMEN,
    Channel.PALLIDUM,
    Channel.THALAMUS,
    Channel.RED_NUCLEUS,
    Channel.SUBSTANTIA_NIGRA,
    Channel.DENTATE,
)
# Order of the materials: cortex, white matter, ventricular and sulcal CSF, soft tissue dark and bright on T1,
# the nuclei, vessels, white-matter hyperintensity, T1 texture of the brain. Air has none: it is dark.
NUM_MATERIALS = 6 + len(NUCLEI) + 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionSource:
    """One anatomy, ready to be sampled; all grids are centred on the brain."""

    materials: jax.Array  # (NUM_MATERIALS, Z, Y, X) uint8, 255 = 1.0, at MATERIAL_MM
    code: jax.Array  # (Z, Y, X) uint8 region code at CODE_MM
    ventricle_pull: jax.Array  # (3, Z, Y, X) at FIELD_MM: unit velocity (mm) that widens the ventricles
    brain_mm: jax.Array  # (2,) lowest and highest z of the brain


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastVariety:
    """How far the contrasts of the samples range: probabilities, static under jit."""

    arbitrary: float = 0.25  # of intensities drawn freely for every material; otherwise about T2*-weighted
    bright_csf: float = 0.5  # of fluid brighter than or like brain in T2*-weighted contrast


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionSample:
    """One training example on the region grid."""

    image: jax.Array  # (Z, Y, X) float32, normalised
    region: jax.Array  # (Z, Y, X) int32 Region; OUTSIDE beyond the field of view
    side: jax.Array  # (Z, Y, X) int32 Side


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomViews:
    """Simulated subjects on the region grid, centred on the brain (see `data.region_phantoms`)."""

    images: jax.Array  # (N, 2, Z, Y, X) uint8: SWI and magnitude, 170 = the 99th percentile
    code: jax.Array  # (N, Z, Y, X) uint8 region code
    brain_mm: jax.Array  # (N, 2) lowest and highest z of the brain, from the grid's centre


def build_source(pack: AnatomyPack) -> RegionSource:
    """Centre a pack on its brain and bring it to the grids that sampling uses (seconds, on the host)."""
    occupied = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    low, high = occupied.min(axis=0), occupied.max(axis=0)
    centre = (low + high) / 2
    spacing = np.linalg.norm(pack.affine[:3, :3], axis=0)

    def resample(data: np.ndarray, step_mm: float, order: int, mode: str) -> np.ndarray:
        """(X, Y, Z) of the pack -> (Z, Y, X) of the source."""
        shape = np.array([round(extent / step_mm) for extent in SOURCE_MM])[::-1]
        scale = step_mm / spacing
        offset = centre - (shape - 1) / 2 * scale
        out = ndimage.affine_transform(
            data, scale, offset=offset, output_shape=tuple(shape), order=order, mode=mode
        )
        return out.transpose(2, 1, 0)

    # A neck that the pack cuts off goes on downwards ("nearest"); region codes do not.
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
    grey, white, csf, soft = (fraction(Channel(c)) for c in range(4))
    t1 = np.minimum(fraction(Channel.T1), 1.0)
    ventricle = ndimage.maximum_filter(region_of(pack.code) == Region.VENTRICLE, 3)
    return [
        np.clip(grey - np.sum(nuclei, axis=0), 0, 1),
        white,
        csf * ventricle,
        csf * ~ventricle,
        soft * (1 - t1),
        soft * t1,
        *nuclei,
        fraction(Channel.VESSEL_PRIOR),
        fraction(Channel.LESION_PRIOR),
        t1 * np.minimum(grey + white, 1.0),
    ]


def make_sample(
    source: RegionSource, key: jax.Array, variety: ContrastVariety = ContrastVariety()
) -> RegionSample:
    """Draw one sample: shape, contrast, artefacts and field of view; deterministic in `key`."""
    shape_key, contrast_key, artefact_key, view_key, flip_key = jax.random.split(key, 5)
    points, in_view = head_points(view_key, source.brain_mm)
    points = deform(shape_key, points, source.ventricle_pull)
    code = sample_nearest(source.code, points / CODE_MM)
    code = jnp.where(in_view, code, 0)
    weights = _material_weights(contrast_key, variety)
    # One term at a time fuses into a single pass; a contraction of uint8 would be slow on a CPU.
    signal = sum(source.materials[m] * (weights[m] / 255) for m in range(NUM_MATERIALS))
    image = sample_linear(jnp.asarray(signal)[None], points / MATERIAL_MM)[0]
    inner_key, scan_key = jax.random.split(artefact_key)
    image = scan_artefacts(scan_key, inner_artefacts(inner_key, image), code, in_view)
    return _finish(flip_key, image, code)


def make_view_sample(views: PhantomViews, key: jax.Array) -> RegionSample:
    """Draw one sample from a simulated subject: pose, field of view, scanner; deterministic in `key`."""
    pick_key, shape_key, artefact_key, view_key, flip_key = jax.random.split(key, 5)
    subject, channel = jax.random.randint(pick_key, (2,), 0, jnp.asarray(views.images.shape[:2]))
    points, in_view = head_points(view_key, views.brain_mm[subject])
    points = pose(shape_key, points) / GRID_MM
    code = jnp.where(in_view, sample_nearest(views.code[subject], points), 0)
    edge = jnp.asarray(GRID_SHAPE)[:, None, None, None] / 2
    in_view &= jnp.all(jnp.abs(points) <= edge, axis=0)
    image = sample_linear(views.images[subject, channel].astype(jnp.float32)[None] / 170, points)[0]
    return _finish(flip_key, scan_artefacts(artefact_key, image, code, in_view), code)


def _finish(flip_key: jax.Array, image: jax.Array, code: jax.Array) -> RegionSample:
    """Scale the image and turn left and right round in half of the samples."""
    image = normalise(image)
    flip = jax.random.bernoulli(flip_key)
    image, code = (jnp.where(flip, a[..., ::-1], a) for a in (image, code))
    region, side = (f(code).astype(jnp.int32) for f in (region_of, side_of))
    other = jnp.asarray([Side.NONE, Side.RIGHT, Side.LEFT])[side]
    return RegionSample(image=image, region=region, side=jnp.where(flip, other, side))


def _material_weights(key: jax.Array, variety: ContrastVariety) -> jax.Array:
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
