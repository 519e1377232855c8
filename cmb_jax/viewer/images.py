"""Images for the viewer: cropped to the head, few enough gray levels to be small, as gzipped NIfTI."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.io.volume import Volume
from cmb_jax.report.drawing import choose_windows, mask_bounds

MARGIN_MM = 12.0
"""What is shown around the brain mask, in case the mask is wrong."""
LEVELS = (1000, 250)
"""Steps in the gray values of the brain: as fine as a screen shows through a narrow window, then coarser."""
MAX_EMBEDDED = 40_000_000
"""Bytes of gzipped images in a page; base64 adds a third, and the page stays below 60 MB."""

_COMPRESSION = 4
_BRIGHTEST = 99.9  # percentile in the brain that the gray levels reach up to; brighter voxels go on beyond


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanOnGrid:
    """What is to be shown of one scan, all on one grid (X, Y, Z), axes to Right, Anterior, Superior."""

    swi: Volume
    phase: np.ndarray | None  # radians, paramagnetic positive
    labels: np.ndarray  # ids of kept candidates
    brain_mask: np.ndarray | None = None  # bool; None: nothing is cropped
    region_code: np.ndarray | None = None  # uint8, 16 * side + region


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewerImages:
    """The files of a page, with what is needed to show them."""

    files: Mapping[str, bytes]  # swi, phase, labels, regions (what there is): gzipped NIfTI
    windows: Mapping[str, tuple[float, float]]  # gray values of black and white, in the files' own numbers
    units: Mapping[str, float]  # what a step of the file is worth: the scan's own numbers, radians

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(content) for content in self.files.values())


def viewer_images(scan: ScanOnGrid, levels: int = LEVELS[0]) -> ViewerImages:
    """The scan as small files.

    Gray values are whole numbers (int16): of the SWI, `levels` between the lowest and the brightest in the
    brain, or the scan's own if those are whole and no finer; of the phase, `levels` in 2 pi. Phase outside
    the brain's surroundings is noise that takes half of the space, and is left out.
    """
    brain = scan.brain_mask
    window = tuple(slice(0, n) for n in scan.swi.shape)
    if brain is not None and brain.any():
        window = _around(brain, scan.swi.spacing_mm)
        brain = brain[window]
    affine = scan.swi.affine.copy()
    # the crop moves the first voxel; world coordinates stay
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in window]
    swi = scan.swi.data[window]
    inside = np.ones(swi.shape, bool) if brain is None or not brain.any() else brain
    step = _step(swi, inside, levels)
    arrays: dict[str, np.ndarray] = {"swi": _whole(swi / step)}
    units = {"swi": step}
    if scan.phase is not None:
        units["phase"] = 2 * np.pi / levels
        phase = scan.phase[window]
        arrays["phase"] = _whole(np.where(_near(inside, scan.swi.spacing_mm), phase, 0) / units["phase"])
    arrays["labels"] = scan.labels[window].astype(np.int16)
    if scan.region_code is not None:
        arrays["regions"] = scan.region_code[window].astype(np.uint8)
    shown = choose_windows(arrays["swi"], arrays.get("phase"), inside)
    windows = {"swi": shown.swi} | ({"phase": shown.phase} if "phase" in arrays else {})
    return ViewerImages(
        files={name: nifti_bytes(array, affine) for name, array in arrays.items()},
        windows=windows,
        units=units,
    )


def embedded_images(scan: ScanOnGrid) -> ViewerImages | None:
    """Images small enough for a page that opens from disk; None if even coarse ones are too large."""
    for levels in LEVELS:
        images = viewer_images(scan, levels)
        if images.size <= MAX_EMBEDDED:
            return images
    return None


def nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A gzipped NIfTI image with nothing in its header but geometry; the same array gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0)


def _around(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[slice, ...]:
    """The window of the mask's box and `MARGIN_MM` more, within the array."""
    margins = [int(np.ceil(MARGIN_MM / edge)) for edge in spacing_mm]
    return tuple(
        slice(max(start - margin, 0), min(stop + margin, size))
        for (start, stop), margin, size in zip(mask_bounds(mask), margins, mask.shape, strict=True)
    )


def _near(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Voxels within about `MARGIN_MM` of the mask, by boxes, which take no time."""
    size = [2 * int(np.ceil(MARGIN_MM / 2 / edge)) + 1 for edge in spacing_mm]
    return ndimage.maximum_filter(mask.view(np.uint8), size=size).astype(bool)


def _step(values: np.ndarray, inside: np.ndarray, levels: int) -> float:
    low, high = float(values.min()), float(np.percentile(values[inside], _BRIGHTEST))
    step = max(high - low, 1e-12) / levels
    if step < 1 and bool(np.all(values == np.rint(values))):
        step = 1.0
    # int16 must also hold what is brighter than the brain
    return max(step, float(np.abs(values).max()) / np.iinfo(np.int16).max / 4)


def _whole(values: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(values), limits.min, limits.max).astype(np.int16)
