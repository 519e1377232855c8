"""The HTML page of a cohort: a sortable table with one line per scan, distributions and outliers."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.outside import reading
from cmb_jax.io.volume import Volume
from cmb_jax.report import drawing
from cmb_jax.report.html import content_hash, environment
from cmb_jax.report.plots import count_histogram, scan_plot
from cmb_jax.report.summary import ZONES, Count

DONE = "done"
OUTLIER_SCORE = 3.5
"""Modified z-score above which a scan is an outlier (Iglewicz and Hoaglin 1993)."""
FEWEST_FOR_OUTLIERS = 8
_NORMAL_MAD = 0.6745  # median absolute deviation of the standard normal distribution

_PLANES = (drawing.AXIAL, drawing.SAGITTAL)
_MM_PER_PX = 0.8
_RIM_MM = 4.0  # of the brain mask that is left out, because of partial volume with the skull
_MARK_PX = 6.0
_QUALITY = 70
_SMALLEST_PX = 40


@dataclasses.dataclass(frozen=True)
class Projection:
    """Axial and sagittal minimum intensity projections side by side."""

    jpeg: bytes
    width: int
    height: int
    to_pixel: tuple[np.ndarray, ...]  # of each plane (2, 4): RAS mm and 1 -> x, y in pixels

    def to_json(self) -> dict[str, Any]:
        """Everything but the picture, as JSON values."""
        matrices = [np.round(matrix, 4).tolist() for matrix in self.to_pixel]
        return {"Width": self.width, "Height": self.height, "ToPixel": matrices}

    @classmethod
    def from_json(cls, jpeg: bytes, record: Mapping[str, Any]) -> Projection:
        """A projection from its picture and the result of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: the record is damaged.
        """
        matrices = tuple(np.array(matrix, np.float64).reshape(2, 4) for matrix in record["ToPixel"])
        return cls(jpeg=jpeg, width=int(record["Width"]), height=int(record["Height"]), to_pixel=matrices)


def make_projection(swi: Volume, brain_mask: np.ndarray) -> Projection:
    """Minimum intensity projections of the brain along two axes.

    Args:
        swi: (X, Y, Z) with axes to Right, Anterior, Superior.
        brain_mask: (X, Y, Z) bool on its grid.
    """
    window = drawing.choose_windows(swi.data, None, brain_mask).swi
    # without the rim: a single dark voxel of the skull would hide everything on its line of sight
    box = [2 * round(_RIM_MM / edge) + 1 for edge in swi.spacing_mm]
    inner = ndimage.minimum_filter(brain_mask.view(np.uint8), size=box, mode="constant").astype(bool)
    if not inner.any():
        inner = brain_mask if brain_mask.any() else np.ones_like(brain_mask)
    bounds = drawing.mask_bounds(brain_mask)
    inverse = np.linalg.inv(swi.affine)
    parts: list[np.ndarray] = []
    matrices: list[np.ndarray] = []
    left = 0
    for plane in _PLANES:
        frame = drawing.fitted_frame(plane, swi.spacing_mm, bounds, _MM_PER_PX)
        lowest = np.min(swi.data, axis=plane.through_axis, initial=np.inf, where=inner)
        lowest = np.where(np.isfinite(lowest), lowest, window[0])
        parts.append(
            drawing.to_gray(np.nan_to_num(drawing.sample_plane(lowest, frame), nan=window[0]), *window)
        )
        # Pixels are an affine function of voxel indices, determined by three points, and chained here with
        # RAS mm -> voxel index. `left` is where this plane starts in the joined picture.
        origin, column, row = (np.array(frame.to_px(*at)) for at in ((0, 0), (1, 0), (0, 1)))
        matrix = np.outer(column - origin, inverse[plane.column_axis])
        matrix += np.outer(row - origin, inverse[plane.row_axis])
        matrix[:, 3] += (origin[0] + left, origin[1])
        matrices.append(matrix)
        left += frame.width_px
    height = max(part.shape[0] for part in parts)
    picture = np.concatenate([np.pad(part, ((0, height - part.shape[0]), (0, 0))) for part in parts], axis=1)
    return Projection(
        jpeg=_jpeg(Image.fromarray(picture)), width=left, height=height, to_pixel=tuple(matrices)
    )


def marked_picture(projection: Projection, rows: Sequence[DetectionRow], name: str) -> drawing.Picture:
    """The projection with symbols of the reported microbleeds, one path per zone and category."""
    drawn: dict[tuple[str, str], str] = {}
    for row in rows:
        for matrix in projection.to_pixel:
            x, y = matrix @ (row.x_mm, row.y_mm, row.z_mm, 1.0)
            key = (row.zone, row.category)
            drawn[key] = drawn.get(key, "") + drawing.glyph(row.zone, float(x), float(y), _MARK_PX)
    shapes = []
    for (zone, category), path in sorted(drawn.items()):
        shapes += [drawing.Shape(path, "halo"), drawing.Shape(path, f"ring z-{zone} {category}")]
    return drawing.Picture(
        width=projection.width,
        height=projection.height,
        uri="data:image/jpeg;base64," + base64.b64encode(projection.jpeg).decode("ascii"),
        alt=f"{name}: minimum intensity projections from above and from the right, {len(rows)} reported",
        shapes=tuple(shapes),
    )


def shrunk(projection: Projection, most_bytes: int, source: Path) -> Projection:
    """The projection with its JPEG reduced to at most `most_bytes`; coordinates still refer to the full size.

    Raises:
        UserError: what came from the file `source` is not a picture.
    """
    # always from the original: recompressing a JPEG repeatedly degrades it
    jpeg, size = projection.jpeg, (projection.width, projection.height)
    while len(jpeg) > most_bytes and size[1] > _SMALLEST_PX:
        size = (size[0] * 3 // 4, size[1] * 3 // 4)
        with reading(source), Image.open(io.BytesIO(projection.jpeg)) as picture:
            jpeg = _jpeg(picture.resize(size, Image.Resampling.LANCZOS))
    return dataclasses.replace(projection, jpeg=jpeg)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A page of a scan; `href` is relative to the cohort's page."""

    text: str
    href: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortLine:
    """One scan, or a participant without scans."""

    name: str  # sub-01_ses-2_run-1
    details: str = ""  # e.g. "acq-hi, 3 T"
    status: str  # done, failed, not analysable, ...
    reason: str = ""
    counted: Count | None = None  # None: not counted, which is different from zero
    zones: tuple[tuple[str, Count], ...] = ()  # lobar, deep, infratentorial, none
    rejected: int | None = None
    brain_ml: float | None = None
    warnings: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    picture: drawing.Picture | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortContent:
    """Everything on the page; rendering reads nothing from disk."""

    title: str
    lines: tuple[CohortLine, ...]
    notes: tuple[str, ...] = ()  # reasons not to compare the counts as they are
    version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlier:
    """A scan that differs from the others."""

    line: int  # index
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measure:
    """A quantity in which a scan can be an outlier."""

    words: str
    of: Callable[[CohortLine], float | None]
    unit: str = ""
    root: bool = False  # use square roots of counts, whose spread does not grow with the count
    least_spread: float = 0.0  # lower limit of the spread, so that nearly equal values have no outliers


_MEASURES = (
    _Measure(
        words="microbleeds",
        of=lambda line: None if line.counted is None else line.counted.total,
        root=True,
        least_spread=0.5,
    ),
    _Measure(words="rejected candidates", of=lambda line: line.rejected, root=True, least_spread=0.5),
    _Measure(words="brain", of=lambda line: line.brain_ml, unit=" ml", least_spread=50.0),
)


def outliers(lines: Sequence[CohortLine]) -> tuple[Outlier, ...]:
    """Scans far from the median, in median absolute deviations; none among fewer than 8 scans."""
    found = []
    for measure in _MEASURES:
        known = [(n, float(v)) for n, line in enumerate(lines) if (v := measure.of(line)) is not None]
        if len(known) < FEWEST_FOR_OUTLIERS:
            continue
        # median and its absolute deviation: an extreme scan would inflate an SD and hide itself
        values = np.array([value for _, value in known])
        shown = np.sqrt(values) if measure.root else values
        middle = np.median(shown)
        spread = max(float(np.median(np.abs(shown - middle))) / _NORMAL_MAD, measure.least_spread)
        for (n, value), score in zip(known, (shown - middle) / spread, strict=True):
            if abs(score) > OUTLIER_SCORE:
                why = f"{value:.0f}{measure.unit} {measure.words} (median {np.median(values):.0f})"
                found.append(Outlier(line=n, why=why))
    return tuple(sorted(found, key=lambda outlier: outlier.line))


def render_cohort(content: CohortContent) -> str:
    """The page as one string; its inline script sorts and filters the table, and nothing is fetched."""
    lines = content.lines
    counted = [line.counted for line in lines if line.counted is not None]
    found = outliers(lines)
    plots = []
    if counted:
        plots.append(count_histogram({"All": [count.total for count in counted]}, "Microbleeds per scan"))
        by_zone = {zone: [dict(line.zones)[zone].total for line in lines if line.zones] for zone in ZONES}
        plots.append(count_histogram(by_zone, "Microbleeds per scan, by zone"))
        plots.append(
            scan_plot(
                [
                    (line.name, n, line.counted.total)
                    for n, line in enumerate(lines)
                    if line.counted is not None
                ],
                frozenset(outlier.line for outlier in found),
            )
        )
    # the page's content security policy allows only this script, by its hash
    script = environment().get_template("cohort.js").render()
    return (
        environment()
        .get_template("cohort.html")
        .render(
            content=content,
            statuses=Counter(line.status for line in lines).most_common(),
            done=DONE,
            total=sum(count.total for count in counted),
            affected=sum(count.total > 0 for count in counted),
            scans=len(counted),
            zones=ZONES,
            unplaced=any(dict(line.zones)["none"].total for line in lines if line.zones),
            outliers=found,
            outlying=frozenset(outlier.line for outlier in found),
            fewest=FEWEST_FOR_OUTLIERS,
            score=OUTLIER_SCORE,
            plots=plots,
            script=script,
            script_hash=content_hash(script),
        )
    )
