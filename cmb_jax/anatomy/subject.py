"""One person's T1-weighted scan on the pack's grid: where it lies, and its brightness evened out."""

from __future__ import annotations

import dataclasses
import gzip
import json
from importlib import resources

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.atlas_maps import AFFINE, SHAPE
from cmb_jax.anatomy.lattice import Lattice, read_lattice

_WHITE_MATTER_T1 = 0.97  # what the ICBM template has
_SURE = 0.9  # prior above which a voxel counts as one tissue
_FIELD_MM = 25.0  # sigma of the receive field's smoothness: coarser than any structure of the brain
_FIELD_STEP = 4  # voxels: the field is found on every fourth
_FIELD_ROUNDS = 4
_OUTLIER = 0.3  # log intensity: a voxel further from its tissue's is something else


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a scan lies in its pack, and the pack in MNI152NLin2009cAsym."""

    pack_to_scan: np.ndarray  # (4, 4) rigid: pack RAS mm -> RAS mm of the scan's file
    to_mni: Lattice  # pack RAS mm -> MNI RAS mm


def read_placement(name: str) -> Placement:
    """The placement of a pack's scan that tools/register_anatomy.py found and the package ships."""
    folder = resources.files("cmb_jax.anatomy").joinpath("warps")
    record = json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))
    image = nib.Nifti1Image.from_bytes(gzip.decompress(folder.joinpath(f"{name}.nii.gz").read_bytes()))
    return Placement(pack_to_scan=np.array(record["pack_to_scan"]), to_mni=read_lattice(image))


def place_scan(scan: nib.Nifti1Image, pack_to_scan: np.ndarray) -> np.ndarray:
    """The scan on the pack's grid, (X, Y, Z) float32; beyond its field of view the value at its face.

    Cubic splines, unless the grids are a whole number of voxels apart.
    """
    matrix = np.linalg.inv(scan.affine) @ pack_to_scan @ AFFINE
    whole = np.allclose(matrix, np.rint(matrix), atol=1e-6)
    data = np.asarray(scan.dataobj, np.float32)
    placed = ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], SHAPE, order=0 if whole else 3, mode="nearest"
    )
    return np.maximum(placed, 0.0)  # splines overshoot


def smooth_cranium(carried: np.ndarray) -> np.ndarray:
    """The template's intracranial fraction (X, Y, Z) after carrying, without the pits of its rim."""
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(carried > 0.5, iterations=2))
    return np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 0.5), 0.0, 1.0)


def even_out(t1: np.ndarray, tissues: np.ndarray, cranium: np.ndarray) -> np.ndarray:
    """The scan without the receive coil's shading, white matter at 0.97; (X, Y, Z) float32.

    The shading is the smooth field by which voxels that are surely grey or surely white matter differ from
    the median of their tissue, as in the intensity correction of unified segmentation (Ashburner and Friston,
    NeuroImage 2005;26:839-851).

    Args:
        t1: (X, Y, Z) intensity.
        tissues: (3, X, Y, Z) prior of grey matter, white matter, CSF.
        cranium: (X, Y, Z) fraction inside the skull.
    """
    coarse = (slice(None, None, _FIELD_STEP),) * 3
    log_t1 = np.log(np.maximum(t1[coarse], 1e-3 * t1.max()))
    sure = [(tissues[(tissue, *coarse)] > _SURE) & (cranium[coarse] > _SURE) for tissue in (0, 1)]
    field = np.zeros_like(log_t1)
    sigma = _FIELD_MM / _FIELD_STEP
    for _ in range(_FIELD_ROUNDS):  # each finds what the smoothing of those before left over
        weight, total = np.zeros_like(log_t1), np.zeros_like(log_t1)
        for mask in sure:
            rest = log_t1 - field
            rest -= np.median(rest[mask])
            kept = mask & (np.abs(rest) < _OUTLIER)
            weight += kept
            total += np.where(kept, rest, 0.0)
        field += ndimage.gaussian_filter(total, sigma) / (ndimage.gaussian_filter(weight, sigma) + 1e-6)
    wide = ndimage.affine_transform(
        field, np.full(3, 1.0 / _FIELD_STEP), output_shape=t1.shape, order=1, mode="nearest"
    )
    even = t1 * np.exp(-wide)
    white = (tissues[1] > _SURE) & (cranium > _SURE)
    return (even * (_WHITE_MATTER_T1 / np.median(even[white]))).astype(np.float32)
