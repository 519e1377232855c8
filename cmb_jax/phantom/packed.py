"""An anatomy pack on the device: one gather fetches all that is known of a voxel.

The *pack* frame is the RAS mm of the pack; MNI coordinates are those of MNI152NLin2009cAsym.
"""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.lattice import Lattice
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack, Channel
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom.geometry import linear_at

STANDARD_SHAPE = (193, 229, 193)  # packs of 1 mm are cut or padded to this: one compiled program for all
COARSE_MM = 6.0  # lattice of the smooth quantities
_AIR_REACH_MM = 3.5  # sigma
_CSF_REACH_MM = 1.2  # sigma
_VENTRICLE_REACH_MM = 5.0  # sigma


class Extra(enum.IntEnum):
    """Bytes of a packed voxel behind the pack's channels."""

    CODE = NUM_CHANNELS  # region code
    CSF_NEAR = NUM_CHANNELS + 1  # share of CSF in the neighborhood: where the cortex can shrink
    AIR_NEAR = NUM_CHANNELS + 2  # share of air in the neighborhood
    PIAL = NUM_CHANNELS + 3  # the cortex' surface, where siderosis settles
    VENOUS = NUM_CHANNELS + 4  # a vessel of the prior here is a sinus, not an artery


WORDS = (NUM_CHANNELS + len(Extra)) // 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedAnatomy:
    """One head. Coarse lattices have a point every COARSE_MM, the first at a given origin."""

    words: jax.Array  # (X, Y, Z, WORDS) uint32: the channels, then `Extra`, a byte each
    to_index: jax.Array  # (3, 4): pack mm -> voxel index
    center_mm: jax.Array  # (3,) middle of the brain's bounding box
    coarse_origin_mm: jax.Array  # (3,) pack frame
    ventricle: jax.Array  # (x, y, z, 1) on the coarse lattice: lateral ventricles, smoothed, at most 1
    to_mni: jax.Array  # (x, y, z, 3) on the coarse lattice: MNI - pack mm
    mni_origin_mm: jax.Array  # (3,) MNI frame
    from_mni: jax.Array  # (x, y, z, 3) on a coarse lattice in MNI mm: pack - MNI mm


def pack_anatomy(pack: AnatomyPack) -> PackedAnatomy:
    """Bring a pack to the device, with what follows from it for every subject."""
    pack = _fit(pack)
    brain = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    middle = (brain.min(axis=0) + brain.max(axis=0)) / 2
    origin, points = _coarse(pack)
    to_mni = _displacement(pack.to_mni, points)
    data = np.concatenate([pack.fractions, _extra_bytes(pack)], axis=-1)

    def single(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.float32)

    return PackedAnatomy(
        words=jnp.asarray(np.ascontiguousarray(data).view("<u4").reshape(*pack.code.shape, WORDS)),
        to_index=single(np.linalg.inv(pack.affine)[:3]),
        center_mm=single(pack.affine[:3, :3] @ middle + pack.affine[:3, 3]),
        coarse_origin_mm=single(origin),
        ventricle=single(_lateral_ventricles(pack, points, points[..., 0] + to_mni[..., 0])[..., None]),
        to_mni=single(to_mni),
        mni_origin_mm=single(origin),  # the MNI head lies within the same lattice
        from_mni=single(_displacement(pack.from_mni, points)),
    )


def _spacing_mm(pack: AnatomyPack) -> float:
    return float(np.linalg.norm(pack.affine[:3, 0]))  # isotropic


def _extra_bytes(pack: AnatomyPack) -> np.ndarray:
    """(X, Y, Z, number of `Extra`) uint8."""
    extra = np.zeros((*pack.code.shape, len(Extra)), np.uint8)

    def put(which: Extra, values: np.ndarray) -> None:
        extra[..., which - NUM_CHANNELS] = np.rint(255 * np.clip(values, 0.0, 1.0))

    spacing = _spacing_mm(pack)
    csf, gray = (pack.fractions[..., c].astype(np.float32) / 255 for c in (Channel.CSF, Channel.GRAY_MATTER))
    air = (pack.fractions[..., Channel.AIR] > 127).astype(np.float32)
    near = ndimage.gaussian_filter(csf, _CSF_REACH_MM / spacing)
    sulcal = region_of(pack.code) != Region.VENTRICLE
    extra[..., Extra.CODE - NUM_CHANNELS] = pack.code
    put(Extra.CSF_NEAR, near * sulcal)
    put(Extra.AIR_NEAR, ndimage.gaussian_filter(air, _AIR_REACH_MM / spacing))
    put(Extra.PIAL, 4.0 * near * gray * sulcal)
    put(Extra.VENOUS, 1.0 / (1.0 + np.exp((_mni_y(pack) + 25.0) / 4.0)))
    return extra


def _lateral_ventricles(pack: AnatomyPack, points_mm: np.ndarray, mni_x: np.ndarray) -> np.ndarray:
    """Smoothed ventricles at pack points (x, y, z, 3), less the third and fourth about the midline."""
    ventricle = (region_of(pack.code) == Region.VENTRICLE).astype(np.float32)
    smooth = ndimage.gaussian_filter(ventricle, _VENTRICLE_REACH_MM / _spacing_mm(pack))
    to_index = np.linalg.inv(pack.affine)[:3]
    index = points_mm @ to_index[:, :3].T + to_index[:, 3]
    values = ndimage.map_coordinates(smooth, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    return values * np.clip((np.abs(mni_x) - 2.0) / 4.0, 0.0, 1.0)


def _mni_y(pack: AnatomyPack) -> np.ndarray:
    """MNI y in mm of every voxel, (X, Y, Z)."""
    if pack.to_mni is not None:
        return pack.to_mni.map_grid(pack.code.shape, pack.affine)[1]
    y = pack.affine[1, 3] + pack.affine[1, 1] * np.arange(pack.code.shape[1], dtype=np.float32)
    return np.broadcast_to(y[None, :, None], pack.code.shape)


def _coarse(pack: AnatomyPack) -> tuple[np.ndarray, np.ndarray]:
    """Origin (3,) and points (x, y, z, 3) in pack mm of the coarse lattice over a pack's grid."""
    last = np.array(pack.code.shape) - 1
    origin = pack.affine[:3, 3] + np.minimum(pack.affine[:3, :3] @ last, 0)
    axes = [
        o + COARSE_MM * np.arange(int(np.ceil(n * _spacing_mm(pack) / COARSE_MM)) + 1)
        for o, n in zip(origin, last, strict=True)
    ]
    return origin, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _displacement(lattice: Lattice | None, points_mm: np.ndarray) -> np.ndarray:
    """Of points (..., 3) by a pack's lattice; zero where there is none: the pack is in MNI space."""
    return np.zeros_like(points_mm) if lattice is None else lattice.map_points(points_mm) - points_mm


def _fit(pack: AnatomyPack) -> AnatomyPack:
    """Cut or pad a pack of 1 mm to STANDARD_SHAPE about its brain; others stay as they are."""
    if pack.code.shape == STANDARD_SHAPE or not np.allclose(np.abs(np.diag(pack.affine)[:3]), 1.0):
        return pack
    brain = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    wanted = np.rint((brain.min(axis=0) + brain.max(axis=0) - np.array(STANDARD_SHAPE)) / 2).astype(int)
    index = [
        np.clip(np.arange(start, start + n), 0, size - 1)
        for start, n, size in zip(wanted, STANDARD_SHAPE, pack.code.shape, strict=True)
    ]
    affine = pack.affine.copy()
    affine[:3, 3] += pack.affine[:3, :3] @ wanted
    window = np.ix_(*index)
    return dataclasses.replace(pack, fractions=pack.fractions[window], code=pack.code[window], affine=affine)


def unpack(words: jax.Array) -> jax.Array:
    """(..., WORDS) uint32 -> (..., 4 * WORDS) the bytes, as uint32."""
    shifts = jnp.arange(4, dtype=jnp.uint32) * 8
    return ((words[..., None] >> shifts) & 0xFF).reshape(*words.shape[:-1], 4 * WORDS)


def _index(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    return points_mm @ anatomy.to_index[:, :3].T + anatomy.to_index[:, 3]


def _flat(anatomy: PackedAnatomy, index: jax.Array) -> jax.Array:
    _, ny, nz = anatomy.words.shape[:3]
    return (index[:, 0] * ny + index[:, 1]) * nz + index[:, 2]


def sample_pack(anatomy: PackedAnatomy, points_mm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bytes over 255 (P, 4 * WORDS), linear, and region codes (P,) uint8, nearest, at pack points (P, 3).

    Outside the pack the nearest edge voxel counts.
    """
    last = jnp.asarray(anatomy.words.shape[:3]) - 1
    index = jnp.clip(_index(anatomy, points_mm), 0.0, last.astype(jnp.float32))
    low = jnp.minimum(jnp.floor(index).astype(jnp.int32), last - 1)
    fraction = index - low
    rows = anatomy.words.reshape(-1, WORDS)
    total = jnp.zeros((points_mm.shape[0], 4 * WORDS), jnp.float32)
    for corner in np.ndindex(2, 2, 2):
        picked = jnp.asarray(corner, jnp.int32)
        weight = jnp.prod(jnp.where(picked == 1, fraction, 1 - fraction), axis=1)
        total = total + weight[:, None] * unpack(rows[_flat(anatomy, low + picked)]).astype(jnp.float32)
    nearest = rows[_flat(anatomy, low + (fraction > 0.5).astype(jnp.int32))]
    return total / 255.0, unpack(nearest)[:, Extra.CODE].astype(jnp.uint8)


def codes_at(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """(P,) uint8 region code of the voxel nearest to each pack point (P, 3)."""
    last = jnp.asarray(anatomy.words.shape[:3]) - 1
    index = jnp.clip(jnp.round(_index(anatomy, points_mm)).astype(jnp.int32), 0, last)
    rows = anatomy.words.reshape(-1, WORDS)
    return unpack(rows[_flat(anatomy, index)])[:, Extra.CODE].astype(jnp.uint8)


def mni_of(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """MNI coordinates (P, 3) of pack points (P, 3)."""
    return points_mm + linear_at(anatomy.to_mni, (points_mm - anatomy.coarse_origin_mm) / COARSE_MM)


def of_mni(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """Pack points (P, 3) of MNI coordinates (P, 3)."""
    return points_mm + linear_at(anatomy.from_mni, (points_mm - anatomy.mni_origin_mm) / COARSE_MM)
