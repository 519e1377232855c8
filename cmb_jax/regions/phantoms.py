"""Simulated subjects that the region network is trained on: a few seconds each, kept on disk.

They have the anatomies, tiers and seeds of CMB-Phantom's train split, and the echo time, field strength and
noise of their protocols. All have the voxels of one protocol and a field computed on a coarse grid: the
region grid shows nothing finer, and one compiled program simulates them all.
"""

import dataclasses
import functools
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.io.outside import read_arrays, reading
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.benchmark import BenchmarkSplit
from cmb_jax.phantom.settings import PROTOCOLS, SubjectSettings
from cmb_jax.phantom.simulate import simulate_subject
from cmb_jax.phantom.tree import VERSION, CohortMember
from cmb_jax.phantom.types import PhantomSubject
from cmb_jax.progress import track
from cmb_jax.regions.grid import GRID_MM, GRID_SHAPE, normalize, to_grid
from cmb_jax.regions.samples import PhantomViews

SIMULATION_SPACING_MM = 1.6
GRID_PROTOCOL = "iso08"
_TIERS = ("easy", "hard")
_LEVELS = 170  # stored value of an intensity of 1


def phantom_members(count: int) -> list[CohortMember]:
    """The first `count` subjects of the train split, from both tiers in equal parts."""
    each = -(-count // len(_TIERS))
    tiers = [BenchmarkSplit(split="train", tier=tier).members(each) for tier in _TIERS]
    members = [member for pair in zip(*tiers, strict=True) for member in pair][:count]
    return [dataclasses.replace(member, settings=_coarse(member)) for member in members]


def _coarse(member: CohortMember) -> SubjectSettings:
    """The member's tier and scanner, on the common grid."""
    protocol = PROTOCOLS[member.settings.protocol]
    return SubjectSettings(
        protocol=GRID_PROTOCOL,
        tier=member.settings.tier,
        simulation_spacing_mm=SIMULATION_SPACING_MM,
        te_ms=protocol.te_ms,
        b0_t=protocol.b0_t[member.seed % len(protocol.b0_t)],
        snr=protocol.snr,
    )


def phantom_views(count: int, folder: Path) -> PhantomViews:
    """The views of `count` subjects, simulated and stored where `folder` does not hold them yet."""
    folder.mkdir(parents=True, exist_ok=True)
    pack = functools.cache(load_pack)
    parts = []
    for member in track(phantom_members(count), "phantoms for the region network"):
        path = folder / f"phantom{VERSION}-{member.name}.npz"
        if not path.exists():
            view = view_of(simulate_subject(pack(member.anatomy), member.seed, member.settings))
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=view[0], code=view[1])
            atomic_write_bytes(path, buffer.getvalue(), overwrite=True)
        with reading(path, "remove it: it is simulated again"):
            stored = read_arrays(path)
            parts.append((stored["images"], stored["code"]))
    images, codes = (np.stack(column) for column in zip(*parts, strict=True))
    return PhantomViews(
        images=jnp.asarray(images),
        code=jnp.asarray(codes),
        brain_mm=jnp.asarray([_brain_mm(code) for code in codes], jnp.float32),
    )


def view_of(subject: PhantomSubject) -> tuple[np.ndarray, np.ndarray]:
    """SWI and magnitude (2, Z, Y, X), region code (Z, Y, X): uint8, the grid centered on the brain."""
    found = np.argwhere(region_of(subject.region_code) != Region.OUTSIDE)
    center = (found.min(axis=0) + found.max(axis=0)) / 2
    images = [_levels(volume, center) for volume in (subject.swi, subject.magnitude)]
    return np.stack(images), codes_on_grid(subject.region_code, subject.swi.spacing_mm, center)


def _levels(volume: Volume, center: np.ndarray) -> np.ndarray:
    image = np.asarray(normalize(jnp.asarray(to_grid(volume.data, volume.affine, center))))
    return np.rint(image * _LEVELS).astype(np.uint8)


def codes_on_grid(code: np.ndarray, spacing_mm: tuple[float, float, float], center: np.ndarray) -> np.ndarray:
    """Nearest code (Z, Y, X) on the region grid of (X, Y, Z) around voxel position `center`; 0 outside."""
    index = [
        np.rint(center[a] + (np.arange(GRID_SHAPE[2 - a]) - (GRID_SHAPE[2 - a] - 1) / 2) * GRID_MM / step)
        for a, step in enumerate(spacing_mm)
    ]
    inside = [(i >= 0) & (i < size) for i, size in zip(index, code.shape, strict=True)]
    x, y, z = (np.where(keep, i, 0).astype(int) for keep, i in zip(inside, index, strict=True))
    in_x, in_y, in_z = inside
    in_view = in_x[:, None, None] & in_y[None, :, None] & in_z[None, None, :]
    return np.where(in_view, code[np.ix_(x, y, z)], np.uint8(0)).transpose(2, 1, 0)


def _brain_mm(code: np.ndarray) -> tuple[float, float]:
    z = np.flatnonzero((region_of(code) != Region.OUTSIDE).any(axis=(1, 2)))
    middle = (len(code) - 1) / 2
    return (float(z[0] - middle) * GRID_MM, float(z[-1] - middle) * GRID_MM)
