"""Pictures of two registered scans of one head: the same plane of both, in the follow-up's own slices."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cmb_jax.io.volume import Volume
from cmb_jax.report.comparison_content import Change, ComparisonContent, ScanContent
from cmb_jax.report.shapes import Picture, Shape, crosshair, edge_labels, outline, scale_bar
from cmb_jax.report.slices import (
    AXIAL,
    PLANES,
    Frame,
    Plane,
    centered_frame,
    choose_windows,
    data_uri,
    fitted_frame,
    mask_bounds,
    to_gray,
)
from cmb_jax.report.thumbnails import FIELD_OF_VIEW_MM, THUMBNAIL_PX

CHECK_SLICES = 4
CHECK_MM_PER_PX = 0.8
_ARM_MM = 3.0


class RegisteredPictures:
    """Draws both scans of a comparison on the planes of the follow-up."""

    def __init__(self, content: ComparisonContent) -> None:
        self._content = content
        self._scans = (content.baseline, content.followup)
        self._windows = tuple(choose_windows(s.image.data, None, s.brain).swi for s in self._scans)
        to_baseline = np.linalg.inv(content.matrix)
        affine = content.followup.image.affine
        self._to_scan = (np.linalg.inv(content.baseline.image.affine) @ to_baseline @ affine, np.eye(4))

    def thumbnails(self, change: Change) -> tuple[tuple[str, tuple[Picture, ...]], ...]:
        """(scan's name, its axial, coronal and sagittal picture) of one lesion, baseline first."""
        image = self._content.followup.image
        inverse = np.linalg.inv(image.affine)
        center = inverse[:3, :3] @ change.followup_mm + inverse[:3, 3]
        return tuple(
            (scan.name.capitalize(), tuple(self._thumbnail(n, plane, center, change) for plane in PLANES))
            for n, scan in enumerate(self._scans)
        )

    def _thumbnail(self, n: int, plane: Plane, center: np.ndarray, change: Change) -> Picture:
        spacing = self._content.followup.image.spacing_mm
        frame = centered_frame(plane, spacing, center, FIELD_OF_VIEW_MM, THUMBNAIL_PX)
        picture = _resampled(
            self._scans[n].image, frame, float(center[plane.through_axis]), self._to_scan[n], 1
        )
        gap = (max(change.row.diameter_mm / 2, 1.0) + 1.5) / frame.mm_per_px
        middle = THUMBNAIL_PX / 2
        mark = crosshair(middle, middle, (gap, gap), arm=_ARM_MM / frame.mm_per_px)
        bar, text = scale_bar(frame, 5.0)
        return Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=data_uri(to_gray(picture, *self._windows[n])),
            alt=f"{self._scans[n].name}, {plane.name} plane around lesion {change.id}",
            shapes=(Shape(mark, "halo"), Shape(mark, "mark"), bar),
            labels=(*edge_labels(frame), text),
        )

    def check(self) -> tuple[tuple[Picture, Picture], ...]:
        """(baseline, follow-up) of axial slices, each with the outline of the baseline's brain."""
        followup = self._content.followup
        bounds = mask_bounds(followup.brain)
        frame = fitted_frame(AXIAL, followup.image.spacing_mm, bounds, CHECK_MM_PER_PX, margin_mm=6.0)
        start, stop = bounds[2]
        places = start + (np.arange(CHECK_SLICES) + 0.5) * (stop - start) / CHECK_SLICES
        return tuple(self._check_pair(frame, float(np.floor(z))) for z in places[::-1])

    def _check_pair(self, frame: Frame, z: float) -> tuple[Picture, Picture]:
        brain = self._scans[0].brain.astype(np.uint8)
        mask = _resampled(_with(self._scans[0].image, brain), frame, z, self._to_scan[0], 0)
        border = Shape(outline(np.nan_to_num(mask) > 0.5), "brain-outline")
        first, second = (self._check_picture(n, scan, frame, z, border) for n, scan in enumerate(self._scans))
        return first, second

    def _check_picture(self, n: int, scan: ScanContent, frame: Frame, z: float, border: Shape) -> Picture:
        picture = _resampled(scan.image, frame, z, self._to_scan[n], 1)
        return Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=data_uri(to_gray(picture, *self._windows[n]), quality=82),
            alt=f"Axial slice of the {scan.name} with the outline of the baseline's brain",
            shapes=(border,),
            labels=edge_labels(frame),
            caption=scan.name.capitalize(),
        )


def _with(volume: Volume, data: np.ndarray) -> Volume:
    return Volume.from_array(data, volume.affine)


def _resampled(volume: Volume, frame: Frame, depth: float, to_volume: np.ndarray, order: int) -> np.ndarray:
    """A plane of one grid as another volume shows it, (height, width) float32; NaN beyond the volume.

    Args:
        volume: what is shown.
        frame: which part of the plane, in voxels of the grid.
        depth: voxel index of the plane through the grid.
        to_volume: (4, 4) voxel index of the grid -> voxel index of the volume.
        order: 0 nearest, 1 linear.
    """
    columns, rows = frame.grid_index()
    index = np.empty((3, frame.height_px, frame.width_px))
    index[frame.plane.column_axis] = columns[None, :]
    index[frame.plane.row_axis] = rows[:, None]
    index[frame.plane.through_axis] = depth
    place = np.einsum("ij,jhw->ihw", to_volume[:3, :3], index) + to_volume[:3, 3, None, None]
    limits = np.array(volume.shape)[:, None, None] - 0.5
    inside = ((place > -0.5) & (place < limits)).all(axis=0)
    values = ndimage.map_coordinates(volume.data, place, order=order, mode="nearest")
    return np.where(inside, values, np.nan).astype(np.float32)
