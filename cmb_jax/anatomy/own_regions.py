"""Regions from a label volume of another program: SynthSeg, FreeSurfer, or own labels with a table.

A table says what each label is: a region of `anatomy.regions`, or one of the coarser names of `Coarse`,
which the definitions of docs/regions.md then divide. The table of FreeSurfer's numbers, which SynthSeg
shares, comes with the package.
"""

import dataclasses
import enum
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.mars import DEEP_WHITE_MATTER_MM
from cmb_jax.anatomy.regions import Region, RegionMap, Side, encode
from cmb_jax.errors import UserError
from cmb_jax.io.outside import parse_rows, read_bytes, reading, shown
from cmb_jax.io.volume import Volume

COLUMNS = ("label", "region", "side")
_NUCLEI_REACH_MM = 4.0  # white matter so near a deep nucleus that is nearer than any cortex: the capsules
_SULCI_MM = 6.0  # closing that finds the fluid between gyri where the labels have none
_LARGEST_LABEL = 1_000_000
_FIRST_COARSE = 32


class Coarse(enum.IntEnum):
    """What a table may say beside the names of `Region`."""

    CEREBRAL_WHITE_MATTER = _FIRST_COARSE  # of no particular lobe
    WHITE_MATTER_FRONTAL = _FIRST_COARSE + Region.FRONTAL
    WHITE_MATTER_PARIETAL = _FIRST_COARSE + Region.PARIETAL
    WHITE_MATTER_TEMPORAL = _FIRST_COARSE + Region.TEMPORAL
    WHITE_MATTER_OCCIPITAL = _FIRST_COARSE + Region.OCCIPITAL
    WHITE_MATTER_INSULA = _FIRST_COARSE + Region.INSULA
    LATERAL_VENTRICLE = 62  # its body and horns, less the temporal ones: what "deep" is measured from
    CEREBRAL_CORTEX = 63  # of no particular lobe: cannot be named


_LOBES = (Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL, Region.INSULA)
_NAMES: dict[str, int] = {member.name.lower(): int(member) for member in (*Region, *Coarse)}
_SIDES = {"": Side.NONE, "none": Side.NONE, "left": Side.LEFT, "right": Side.RIGHT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTable:
    """What the labels of a volume mean. K labels, sorted."""

    labels: np.ndarray  # (K,) int64
    kinds: np.ndarray  # (K,) int64, Region or Coarse
    sides: np.ndarray  # (K,) int64, Side
    sha256: str  # of the file


def freesurfer_table() -> LabelTable:
    """FreeSurfer's aseg, aparc and wmparc numbers, which SynthSeg uses as well."""
    path = resources.files("cmb_jax.anatomy").joinpath("labels/freesurfer.csv")
    with reading("freesurfer.csv"):
        return _parse_table(path.read_bytes(), "freesurfer.csv")


def label_table(path: Path | None) -> LabelTable:
    """An own table, or without one that of FreeSurfer and SynthSeg. Raises as `read_label_table`."""
    return freesurfer_table() if path is None else read_label_table(path)


def read_label_table(path: Path) -> LabelTable:
    """An own table: CSV with the columns label, region, side (left, right or empty); others are ignored.

    Raises:
        UserError: no such file, a column is missing, or a line that cannot be understood is named.
    """
    with reading(path, "give a CSV file"):
        return _parse_table(read_bytes(path, "give a CSV file"), str(path))


def _parse_table(content: bytes, name: str) -> LabelTable:
    names, *lines = parse_rows(content.decode("utf-8-sig"), ",") or [[]]
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise UserError(f"{name}: lacks the column {missing[0]}; the columns are {', '.join(COLUMNS)}")
    entries: dict[int, tuple[int, int]] = {0: (Region.OUTSIDE, Side.NONE)}
    for number, line in enumerate(lines, start=2):
        row = dict(zip(names, line, strict=False))
        if not line:
            continue
        where = f"{name}: line {number}"
        label = row.get("label", "").strip()
        if not label.isdecimal() or len(label) > 20 or int(label) > _LARGEST_LABEL:
            raise UserError(
                f"{where}: label is {shown(label)}; write a whole number from 0 to {_LARGEST_LABEL}"
            )
        region = row.get("region", "").strip().lower()
        if region not in _NAMES:
            raise UserError(f"{where}: region is {shown(region)}; choose one of {', '.join(_NAMES)}")
        side = row.get("side", "").strip().lower()
        if side not in _SIDES:
            raise UserError(f"{where}: side is {shown(side)}; write left, right or nothing")
        entries[int(label)] = (_NAMES[region], _SIDES[side])
    labels = np.array(sorted(entries))
    kinds, sides = np.array([entries[label] for label in labels.tolist()]).T
    digest = hashlib.sha256(content).hexdigest()
    return LabelTable(labels=labels, kinds=kinds, sides=sides, sha256=digest)


def regions_from_labels(volume: Volume, table: LabelTable, like: Volume) -> RegionMap:
    """The region map of a label volume; the definitions are those of docs/regions.md.

    White matter without a lobe goes to the nearest one; white matter within 10 mm of the lateral ventricles,
    or beside the deep nuclei (where the capsules run), is deep. Where a label has no side, the nearest sided
    label gives it. Voxels without a label that the brain encloses are sulcal fluid.

    Args:
        volume: labels, in the same scanner space as the scan; any grid.
        table: what they mean.
        like: the scan; only its place is used.

    Raises:
        UserError: labels that are not whole numbers or not in the table, cortex without lobes, nothing
            labeled, or a volume that does not lie where the scan lies.
    """
    name = str(volume.source or "the label volume")
    kind, side = _translate(volume.data, table, name)
    found = np.argwhere(kind != Region.OUTSIDE)
    if not len(found):
        raise UserError(f"{name}: none of its labels lies in the brain; give another volume or table")
    _check_place(found, volume.affine, like, name)
    # distances are computed on the box around the brain alone
    margin = np.ceil((_SULCI_MM + 1) / np.array(volume.spacing_mm)).astype(int)
    low = np.maximum(found.min(axis=0) - margin, 0)
    high = np.minimum(found.max(axis=0) + margin + 1, kind.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    region = _divide(kind[box], volume.spacing_mm)
    sides = _complete_sides(side[box], region, volume.spacing_mm)
    shift = np.eye(4)
    shift[:3, 3] = low
    messages = tuple(f"regions: {line}" for line in volume.warnings)
    return RegionMap(code=encode(region, sides), affine=volume.affine @ shift, messages=messages)


def _translate(data: np.ndarray, table: LabelTable, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kind and side of every voxel, uint8."""
    labels = np.rint(data).astype(np.int64)
    if np.abs(data - labels).max() > 1e-3 or labels.min() < 0:
        raise UserError(f"{name}: holds values that are not labels; give whole numbers from 0 on")
    # translated once per label, not per voxel
    values, inverse = np.unique(labels, return_inverse=True)
    unknown = values[~np.isin(values, table.labels)]
    if len(unknown):
        some = ", ".join(str(value) for value in unknown[:8])
        raise UserError(f"{name}: labels {some} are not in the table; say what they are: --region-labels")
    rows = np.searchsorted(table.labels, values)
    kinds = table.kinds[rows]
    if Coarse.CEREBRAL_CORTEX in kinds:
        raise UserError(
            f"{name}: has cortex without lobes (labels 3 and 42 of FreeSurfer); give aparc+aseg, or what "
            "SynthSeg writes with --parc"
        )
    inverse = inverse.reshape(data.shape)
    return kinds.astype(np.uint8)[inverse], table.sides[rows].astype(np.uint8)[inverse]


def _check_place(found: np.ndarray, affine: np.ndarray, like: Volume, name: str) -> None:
    """The labeled brain's middle must lie in the scan's field of view."""
    middle = affine[:3, :3] @ ((found.min(axis=0) + found.max(axis=0)) / 2) + affine[:3, 3]
    index = np.linalg.inv(like.affine)[:3] @ np.append(middle, 1.0)
    if (index < -0.5).any() or (index > np.array(like.shape) - 0.5).any():
        raise UserError(
            f"{name}: its brain does not lie where the scan is; give labels in the scan's own space "
            "(registered to it)"
        )


def _divide(kind: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Regions (uint8) of kinds: lobes of white matter, what of it is deep, and fluid between the gyri."""
    region = kind.copy()
    white = (kind >= _FIRST_COARSE) & (kind < Coarse.LATERAL_VENTRICLE)
    lobe_white = white & (kind > _FIRST_COARSE)
    region[lobe_white] -= _FIRST_COARSE
    plain = kind == Coarse.CEREBRAL_WHITE_MATTER
    if plain.any():
        lobar = np.isin(region, _LOBES)
        if not lobar.any():
            raise UserError("the label volume has white matter but no lobes; give labels of the cortex too")
        to_lobe, nearest = ndimage.distance_transform_edt(~lobar, spacing_mm, return_indices=True)
        region[plain] = region[tuple(nearest)][plain]
        nuclei = np.isin(kind, (Region.BASAL_GANGLIA, Region.THALAMUS))
        if nuclei.any():
            to_nucleus = ndimage.distance_transform_edt(~nuclei, spacing_mm)
            capsules = plain & (to_nucleus < to_lobe) & (to_nucleus <= _NUCLEI_REACH_MM)
            region[capsules] = Region.DEEP_WHITE_MATTER
    ventricle = kind == Coarse.LATERAL_VENTRICLE
    if ventricle.any():
        near = ndimage.distance_transform_edt(~ventricle, spacing_mm) <= DEEP_WHITE_MATTER_MM
        region[white & near] = Region.DEEP_WHITE_MATTER
    region[ventricle] = Region.VENTRICLE
    return _fill_sulci(region, spacing_mm)


def _fill_sulci(region: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Unlabeled voxels that a closing by a ball of _SULCI_MM adds to the brain become sulcal fluid."""
    brain = region != Region.OUTSIDE
    # a closing by a ball, as two distance transforms: their cost does not depend on the ball's size
    grown = ndimage.distance_transform_edt(~brain, spacing_mm) <= _SULCI_MM
    # beyond the box's faces lies air
    padded = np.pad(grown, 1)
    closed = ndimage.distance_transform_edt(padded, spacing_mm)[1:-1, 1:-1, 1:-1] > _SULCI_MM
    return np.where(closed & ~brain, np.uint8(Region.SULCAL_CSF), region)


def _complete_sides(
    side: np.ndarray, region: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Sides (uint8) of all the brain: the label's own, or that of the nearest label that has one."""
    known = side != Side.NONE
    if known.any():
        nearest = ndimage.distance_transform_edt(
            ~known, spacing_mm, return_distances=False, return_indices=True
        )
        side = side[tuple(nearest)]
    return np.where(region == Region.OUTSIDE, np.uint8(Side.NONE), side)
