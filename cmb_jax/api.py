"""What `import cmb_jax` offers: detectors that take files, nibabel images or arrays, and predictions."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.config import Flips, Precision
from cmb_jax.errors import UserError
from cmb_jax.inference import predict as pipeline
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.options import DEFAULT_WEIGHTS, ScanOptions
from cmb_jax.inference.outputs import described_inputs, instance_labels, report_content, write_prediction
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import NativeGrid, Volume
from cmb_jax.report.drawing import data_uri, to_gray
from cmb_jax.report.html import render_report
from cmb_jax.scan.phase_range import PhaseRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from cmb_jax.scan import PhaseSign

# FileBasedImage: what nibabel's types say that `nib.load` returns
Image = Volume | str | Path | nib.filebasedimages.FileBasedImage | tuple[np.ndarray, np.ndarray]
"""A file's name, a nibabel image, an array (I, J, K) with its affine (4, 4) to RAS mm, or a Volume."""

TableColumns = Literal["kept", "all"]
_SHOWN_COLUMNS = ("id", "x_mm", "y_mm", "z_mm", "diameter_mm", "score", "category", "zone", "region", "side")


def as_volume(image: Image, role: str = "image") -> Volume:
    """An image in any of the usual forms, in RAS.

    Args:
      image: see `Image`.
      role: what messages call it.

    Raises:
      UserError: a file that cannot be read, or something that is not a volume of numbers with an affine.
    """
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | Path):
        return read_volume(image)
    source = Path(role)
    if isinstance(image, nib.spatialimages.SpatialImage):
        if image.affine is None:
            raise UserError(f"{role}: this image has no affine; give one with a place in space")
        array, affine = np.asanyarray(image.dataobj), image.affine
        source = Path(image.get_filename() or role)
    elif isinstance(image, tuple) and len(image) == 2:
        array, affine = np.asarray(image[0]), np.asarray(image[1], np.float64)
    else:
        raise UserError(
            f"{role}: {type(image).__name__} is not an image; give a file's name, a nibabel image, or "
            "(array, affine)"
        )
    if affine.shape != (4, 4) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{role}: its affine is not an invertible 4 x 4 matrix to RAS mm")
    if array.dtype.kind not in "fiub" or array.squeeze().ndim != 3:
        raise UserError(f"{role}: {array.dtype} of shape {array.shape} is not a volume; give a 3D array")
    data = np.nan_to_num(np.asarray(array.squeeze(), np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if np.all(data == data.flat[0]):
        raise UserError(f"{role}: every voxel is {data.flat[0]:g}, so there is nothing to see")
    orientation = io_orientation(affine)
    i, j, k = data.shape
    return Volume(
        data=np.ascontiguousarray(apply_orientation(data, orientation)),
        affine=affine @ inv_ornt_aff(orientation, data.shape),
        native=NativeGrid(shape=(i, j, k), affine=np.asarray(affine, np.float64), orientation=orientation),
        source=source,
        sha256=hashlib.sha256(data.tobytes() + np.asarray(affine, np.float64).tobytes()).hexdigest(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Prediction(pipeline.Prediction):
    """What was found in one scan: `kept` and `rows`, `table()`, `save(folder)`, `show()`, `labels()`.

    In a notebook it shows itself.
    """

    bundle: WeightsBundle
    inputs: tuple[tuple[str, str, str], ...]  # (role, name, sha256) of the images

    def table(self, which: TableColumns = "kept") -> Any:
        """The candidates with the columns of detections.csv.

        Args:
          which: "kept" ones, or "all" with the rejected and why.

        Returns:
          A pandas.DataFrame where pandas is installed, else a list of dicts.
        """
        records = [dataclasses.asdict(row) for row in (self.kept if which == "kept" else self.rows)]
        try:
            import pandas
        except ImportError:
            return records
        columns = [field.name for field in dataclasses.fields(self.rows[0])] if self.rows else None
        return pandas.DataFrame(records, columns=columns)

    def labels(self) -> nib.Nifti1Image:
        """Labels of the kept candidates (their `id`) on the grid of the SWI as it was given."""
        from cmb_jax.io.nifti import to_native

        return nib.Nifti1Image(to_native(instance_labels(self), self.swi.native), self.swi.native.affine)

    def save(
        self, folder: str | Path, *, subject: str = "scan", viewer: bool = True, overwrite: bool = False
    ) -> Path:
        """Write what `cmb-jax predict` writes: tables, labels, report.html, viewer.html.

        Args:
          folder: folder to make.
          subject: what the report calls the scan.
          viewer: write viewer.html too.
          overwrite: replace the folder if it exists.

        Raises:
          UserError: the folder exists or cannot be written.
        """
        write_prediction(
            self, self.bundle, Path(folder), self.inputs, subject=subject, viewer=viewer, overwrite=overwrite
        )
        return Path(folder)

    def show(self, *, browser: bool = True) -> Path:
        """Write the report into a temporary folder and open it in the browser; the page's path."""
        path = Path(tempfile.mkdtemp(prefix="cmb-jax-")) / "report.html"
        path.write_text(
            render_report(report_content(self, self.bundle, self.inputs, "scan")), encoding="utf-8"
        )
        if browser:
            webbrowser.open(path.as_uri())
        return path

    def __repr__(self) -> str:
        kept = self.kept
        definite = sum(row.category == "definite" for row in kept)
        return (
            f"<Prediction: {len(kept)} kept ({definite} definite, {len(kept) - definite} possible), "
            f"{len(self.rows) - len(kept)} rejected, {len(self.warnings)} warnings, weights "
            f"{self.bundle.name}>"
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _SHOWN_COLUMNS)
        rows = [[html.escape(str(getattr(row, name))) for name in _SHOWN_COLUMNS] for row in self.kept]
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        notes = "".join(f"<li>{html.escape(line)}</li>" for line in self.warnings)
        return (
            f"<p>{html.escape(repr(self)[1:-1])}. Research use only.</p>{self._picture()}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{notes}</ul>"
        )

    def _picture(self, slab_mm: float = 8.0) -> str:
        """The darkest of a slab of axial slices through the best candidate, with those in it in circles."""
        if not self.kept:
            return ""
        inverse = np.linalg.inv(self.swi.affine)
        at = np.array([[row.x_mm, row.y_mm, row.z_mm, 1.0] for row in self.kept]) @ inverse.T
        half = max(1, round(slab_mm / 2 / self.swi.spacing_mm[2]))
        z = int(np.clip(round(at[0, 2]), 0, self.swi.shape[2] - 1))
        slab = self.swi.data[:, :, max(0, z - half) : z + half + 1].min(axis=2)
        inside = self.swi.data[self.brain_mask]
        low, high = np.percentile(inside if inside.size else slab, (0.5, 99.0))
        width, height = (float(n * s) for n, s in zip(slab.shape, self.swi.spacing_mm[:2], strict=True))
        circles = "".join(
            f'<circle cx="{(x + 0.5) * self.swi.spacing_mm[0]:.1f}" '
            f'cy="{height - (y + 0.5) * self.swi.spacing_mm[1]:.1f}" r="4" fill="none" stroke="#ff8000"/>'
            for x, y, depth, _ in at
            if abs(depth - z) <= half
        )
        picture = data_uri(to_gray(slab[:, ::-1].T, float(low), float(high)))
        return (
            f'<svg viewBox="0 0 {width:.1f} {height:.1f}" width="360" role="img" '
            f'aria-label="axial slab through the best candidate"><image href="{picture}" width="{width:.1f}" '
            f'height="{height:.1f}" preserveAspectRatio="none"/>{circles}</svg>'
        )


class Detector(pipeline.CmbDetector):
    """A trained detector, ready for scans. Make it with `load_detector`, or with
    `Detector.load(ScanOptions(...))` for all that `cmb-jax predict` can be asked for about network, phase and
    candidates (`cmb_jax.inference.options`); regions are given scan by scan, as `region_map`."""

    def __repr__(self) -> str:
        return f"<Detector: weights {self.bundle.name}, sha256 {self.bundle.sha256[:12]}>"

    def predict(
        self,
        swi: Image,
        phase: Image | None = None,
        magnitude: Image | None = None,
        *,
        phase_sign: PhaseSign | None = None,
        phase_range: PhaseRange | None = None,
        threshold: float | None = None,
        region_map: RegionMap | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Prediction:
        """Find, locate and judge the microbleeds of one scan.

        Args:
          swi: susceptibility-weighted or T2*-weighted image: a file's name, a nibabel image, (array, affine),
            or a `Volume`.
          phase: phase image on the same grid, in any of the storage forms; without it the detector works on
            the intensity alone.
          magnitude: magnitude image on the same grid; used for the brain regions.
          phase_sign: "auto", "+1" or "-1" (what the stored phase is multiplied with, so that paramagnetic is
            positive); default: "auto", determined from the images.
          phase_range: storage range of the phase; default: found from the data.
          threshold: score from which a detection is kept; default: the weights' operating point.
          region_map: region codes to use instead of the region network's.
          progress: callback for progress messages, such as `print`.

        Raises:
          UserError: an image that cannot be used, or images that do not lie on one grid.
        """
        volumes = {
            "swi": as_volume(swi, "swi"),
            "phase": None if phase is None else as_volume(phase, "phase"),
            "magnitude": None if magnitude is None else as_volume(magnitude, "magnitude"),
        }
        assert volumes["swi"] is not None
        found = super().predict(
            volumes["swi"],
            volumes["phase"],
            volumes["magnitude"],
            phase_sign=phase_sign,
            phase_range=phase_range,
            threshold=threshold,
            region_map=region_map,
            progress=progress,
        )
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return Prediction(
            **fields, bundle=self.bundle, inputs=described_inputs(keep_identifiers=False, **volumes)
        )


def load_detector(
    weights: str | Path = DEFAULT_WEIGHTS, flips: Flips | None = None, precision: Precision | None = None
) -> Detector:
    """A detector by the name of bundled weights or from a safetensors file.

    Args:
      weights: "base", "small" or a file; several with commas between are averaged.
      flips: mirror images averaged at inference; default: as the weights say.
      precision: of the network; default: as the weights say, which is float32 for the bundled ones.

    Raises:
      UserError: no such weights, or a file that does not hold a detector.
    """
    return Detector.load(ScanOptions(weights=str(weights), flips=flips, precision=precision))


def predict(
    swi: Image,
    phase: Image | None = None,
    magnitude: Image | None = None,
    *,
    weights: str | Path = DEFAULT_WEIGHTS,
) -> Prediction:
    """Microbleeds of one scan with the bundled weights; for several scans load the detector once.

    Args:
      swi: see `Detector.predict`, as are `phase` and `magnitude`.
      phase: may be left out, at a loss.
      magnitude: may be left out.
      weights: see `load_detector`.

    Raises:
      UserError: images or weights that cannot be used.
    """
    return load_detector(weights).predict(swi, phase, magnitude)
