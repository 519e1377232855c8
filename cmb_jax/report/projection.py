"""One small picture of a scan for the page of a cohort: minimum intensity projections with marks."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.outside import reading
from cmb_jax.io.volume import Volume
from cmb_jax.report.shapes import Picture, Shape, glyph
from cmb_jax.report.slices import (
    AXIAL,
    SAGITTAL,
    choose_windows,
    fitted_frame,
    mask_bounds,
    sample_plane,
    to_gray,
)

_PLANES = (AXIAL, SAGITTAL)
_MM_PER_PX = 0.8
_RIM_MM = 4.0
"""Edge of the brain mask that is left out: the skull's partial volume would hide what lies behind it."""
_MARK_PX = 6.0
_QUALITY = 70
_SMALLEST_PX = 40


@dataclasses.dataclass(frozen=True)
class Projection:
    """Axial and sagittal projections side by side."""

    jpeg: bytes
    width: int
    height: int
    to_pixel: tuple[np.ndarray, ...]  # of each plane (2, 4): RAS mm and 1 -> x, y in pixels

    def to_json(self) -> dict[str, Any]:
        """Everything but the picture."""
        matrices = [np.round(matrix, 4).tolist() for matrix in self.to_pixel]
        return {"Width": self.width, "Height": self.height, "ToPixel": matrices}

    @classmethod
    def from_json(cls, jpeg: bytes, record: Mapping[str, Any]) -> Projection:
        """A projection from its picture and what `to_json` said of it.

        Raises:
            ValueError, KeyError, TypeError: the record is damaged.
        """
        matrices = tuple(np.array(matrix, np.float64).reshape(2, 4) for matrix in record["ToPixel"])
        return cls(jpeg=jpeg, width=int(record["Width"]), height=int(record["Height"]), to_pixel=matrices)


def make_projection(swi: Volume, brain_mask: np.ndarray) -> Projection:
    """Minimum intensity over the brain along two axes.

    Args:
        swi: (X, Y, Z) with axes to Right, Anterior, Superior.
        brain_mask: (X, Y, Z) bool on its grid.
    """
    window = choose_windows(swi.data, None, brain_mask).swi
    box = [2 * round(_RIM_MM / edge) + 1 for edge in swi.spacing_mm]
    inner = ndimage.minimum_filter(brain_mask.view(np.uint8), size=box, mode="constant").astype(bool)
    if not inner.any():
        inner = brain_mask if brain_mask.any() else np.ones_like(brain_mask)
    bounds = mask_bounds(brain_mask)
    inverse = np.linalg.inv(swi.affine)
    parts: list[np.ndarray] = []
    matrices: list[np.ndarray] = []
    left = 0
    for plane in _PLANES:
        frame = fitted_frame(plane, swi.spacing_mm, bounds, _MM_PER_PX)
        lowest = np.min(swi.data, axis=plane.through_axis, initial=np.inf, where=inner)
        lowest = np.where(np.isfinite(lowest), lowest, window[0])
        parts.append(to_gray(np.nan_to_num(sample_plane(lowest, frame), nan=window[0]), *window))
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


def marked_picture(projection: Projection, rows: Sequence[DetectionRow], name: str) -> Picture:
    """The projection with the symbols of reported microbleeds, one path for all of a zone and category."""
    drawn: dict[tuple[str, str], str] = {}
    for row in rows:
        for matrix in projection.to_pixel:
            x, y = matrix @ (row.x_mm, row.y_mm, row.z_mm, 1.0)
            key = (row.zone, row.category)
            drawn[key] = drawn.get(key, "") + glyph(row.zone, float(x), float(y), _MARK_PX)
    shapes = []
    for (zone, category), path in sorted(drawn.items()):
        shapes += [Shape(path, "halo"), Shape(path, f"ring z-{zone} {category}")]
    return Picture(
        width=projection.width,
        height=projection.height,
        uri="data:image/jpeg;base64," + base64.b64encode(projection.jpeg).decode("ascii"),
        alt=f"{name}: minimum intensity projections from above and from the right, {len(rows)} reported",
        shapes=tuple(shapes),
    )


def shrunk(projection: Projection, most_bytes: int, source: Path) -> Projection:
    """The projection with a picture of at most so many bytes, coarser where need be; places stay the same.

    Raises:
        UserError: what came from the file `source` is no picture.
    """
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
