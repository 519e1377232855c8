"""The self-contained HTML page of two time points, with the same planes of both scans side by side."""

import dataclasses
import functools
from typing import Literal

import numpy as np
from scipy import ndimage

from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.volume import Volume
from cmb_jax.report import drawing
from cmb_jax.report.html import environment
from cmb_jax.report.pictures import FIELD_OF_VIEW_MM, THUMBNAIL_PX
from cmb_jax.report.summary import location_text

Status = Literal["stable", "new", "resolved", "uncertain"]
STATUSES: tuple[Status, ...] = ("new", "resolved", "stable", "uncertain")
MAX_DRAWN = 60
"""Changed lesions that get pictures; all are listed."""
CHECK_SLICES = 4
CHECK_MM_PER_PX = 0.8
_ARM_MM = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One lesion at two time points."""

    id: int
    status: Status
    reason: str  # why it is uncertain; otherwise empty
    baseline: DetectionRow | None  # None: no candidate there at baseline
    followup: DetectionRow | None
    baseline_mm: np.ndarray  # (3,) RAS mm of the baseline; mapped from the follow-up if it is new
    followup_mm: np.ndarray  # (3,) RAS mm of the follow-up; mapped from the baseline if it is resolved
    distance_mm: float | None  # between the two after registration; None if one is missing

    @property
    def row(self) -> DetectionRow:
        """The candidate that represents the lesion: a kept one, preferably that of the follow-up."""
        pair = [row for row in (self.followup, self.baseline) if row is not None]
        return next((row for row in pair if row.status == "kept"), pair[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanContent:
    """One time point."""

    name: str  # "baseline" or "follow-up"
    subject: str  # pseudonym
    image: Volume
    brain: np.ndarray  # (X, Y, Z) bool on the image's grid
    inputs: tuple[tuple[str, str, str], ...]  # (role, file name, sha256) of its prediction
    version: str
    weights_sha256: str
    kept: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonContent:
    """Everything on the page; rendering reads nothing from disk."""

    baseline: ScanContent
    followup: ScanContent
    changes: tuple[Change, ...]
    matrix: np.ndarray  # (4, 4) baseline RAS mm -> follow-up RAS mm
    trusted: bool  # whether the registration is trusted
    quality: tuple[tuple[str, str], ...]  # (name, value) of measures of the registration
    statement: tuple[str, ...]  # plain sentences
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    version: str

    def count(self, status: Status) -> int:
        """Number of lesions with a status."""
        return sum(change.status == status for change in self.changes)


class RegisteredPictures:
    """Draws both scans of a comparison in the planes of the follow-up."""

    def __init__(self, content: ComparisonContent) -> None:
        self._content = content
        self._scans = (content.baseline, content.followup)
        self._windows = tuple(drawing.choose_windows(s.image.data, None, s.brain).swi for s in self._scans)
        # (4, 4) per scan: voxel index of the follow-up -> voxel index of the scan
        to_baseline = np.linalg.inv(content.matrix)
        affine = content.followup.image.affine
        self._to_scan = (np.linalg.inv(content.baseline.image.affine) @ to_baseline @ affine, np.eye(4))

    def thumbnails(self, change: Change) -> tuple[tuple[str, tuple[drawing.Picture, ...]], ...]:
        """(name of the scan, its axial, coronal and sagittal picture) of one lesion, baseline first."""
        image = self._content.followup.image
        inverse = np.linalg.inv(image.affine)
        # planes of one grid for both scans: only then do equal places look equal
        center = inverse[:3, :3] @ change.followup_mm + inverse[:3, 3]
        return tuple(
            (
                scan.name.capitalize(),
                tuple(self._thumbnail(n, plane, center, change) for plane in drawing.PLANES),
            )
            for n, scan in enumerate(self._scans)
        )

    def _thumbnail(self, n: int, plane: drawing.Plane, center: np.ndarray, change: Change) -> drawing.Picture:
        spacing = self._content.followup.image.spacing_mm
        frame = drawing.centered_frame(plane, spacing, center, FIELD_OF_VIEW_MM, THUMBNAIL_PX)
        picture = _resampled(
            self._scans[n].image, frame, float(center[plane.through_axis]), self._to_scan[n], 1
        )
        # the gap of the cross shows the lesion and a rim around it
        gap = (max(change.row.diameter_mm / 2, 1.0) + 1.5) / frame.mm_per_px
        middle = THUMBNAIL_PX / 2
        mark = drawing.crosshair(middle, middle, (gap, gap), arm=_ARM_MM / frame.mm_per_px)
        bar, text = drawing.scale_bar(frame, 5.0)
        return drawing.Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=drawing.data_uri(drawing.to_gray(picture, *self._windows[n])),
            alt=f"{self._scans[n].name}, {plane.name} plane around lesion {change.id}",
            shapes=(drawing.Shape(mark, "halo"), drawing.Shape(mark, "mark"), bar),
            labels=(*drawing.edge_labels(frame), text),
        )

    def check(self) -> tuple[tuple[drawing.Picture, drawing.Picture], ...]:
        """Pairs (baseline, follow-up) of axial slices from the top down, with the baseline's brain outline.

        The outline is drawn on both: if it does not fit the follow-up's brain, registration has failed.
        """
        followup = self._content.followup
        bounds = drawing.mask_bounds(followup.brain)
        frame = drawing.fitted_frame(
            drawing.AXIAL, followup.image.spacing_mm, bounds, CHECK_MM_PER_PX, margin_mm=6.0
        )
        start, stop = bounds[2]
        places = start + (np.arange(CHECK_SLICES) + 0.5) * (stop - start) / CHECK_SLICES
        return tuple(self._check_pair(frame, float(np.floor(z))) for z in places[::-1])

    def _check_pair(self, frame: drawing.Frame, z: float) -> tuple[drawing.Picture, drawing.Picture]:
        baseline = self._scans[0]
        brain = Volume.from_array(baseline.brain.astype(np.uint8), baseline.image.affine)
        mask = _resampled(brain, frame, z, self._to_scan[0], 0)
        border = drawing.Shape(drawing.outline(np.nan_to_num(mask) > 0.5), "brain-outline")
        first, second = (self._check_picture(n, scan, frame, z, border) for n, scan in enumerate(self._scans))
        return first, second

    def _check_picture(
        self, n: int, scan: ScanContent, frame: drawing.Frame, z: float, border: drawing.Shape
    ) -> drawing.Picture:
        picture = _resampled(scan.image, frame, z, self._to_scan[n], 1)
        return drawing.Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=drawing.data_uri(drawing.to_gray(picture, *self._windows[n]), quality=82),
            alt=f"Axial slice of the {scan.name} with the outline of the baseline's brain",
            shapes=(border,),
            labels=drawing.edge_labels(frame),
            caption=scan.name.capitalize(),
        )


def _resampled(
    volume: Volume, frame: drawing.Frame, depth: float, to_volume: np.ndarray, order: int
) -> np.ndarray:
    """A plane of one grid sampled from another volume, (height, width) float32; NaN outside the volume.

    Args:
        volume: to sample.
        frame: the part of the plane, in voxels of the grid.
        depth: voxel index of the plane through the grid.
        to_volume: (4, 4) voxel index of the grid -> voxel index of the volume.
        order: 0 nearest, 1 linear.
    """
    # a single resampling directly from the volume: a second one would blur small lesions
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


def render_comparison(content: ComparisonContent) -> str:
    """The page as one string: images inlined, no script, nothing fetched from anywhere."""
    pictures = RegisteredPictures(content)
    changed = [change for change in content.changes if change.status != "stable"]
    return (
        environment()
        .get_template("comparison.html")
        .render(
            content=content,
            scans=(content.baseline, content.followup),
            counts=[(status, content.count(status)) for status in STATUSES],
            drawn=[(change, pictures.thumbnails(change)) for change in changed[:MAX_DRAWN]],
            undrawn=len(changed[MAX_DRAWN:]),
            check=pictures.check(),
            location=functools.partial(location_text, trusted=True),
            field_of_view_mm=FIELD_OF_VIEW_MM,
        )
    )
