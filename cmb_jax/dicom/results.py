"""Writes the DICOM files of a result."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.dicom.convert import FrameMapping
from cmb_jax.dicom.identity import source_headers
from cmb_jax.dicom.objects import Source, findings_of, make_key_images, make_report, make_segmentation
from cmb_jax.dicom.stacks import Stack
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume

_NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID")
_SERIES_OFFSET = 9000  # results are numbered after their source, beyond the scanner's own series


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The source of DICOM results. It is checked before the prediction, which takes minutes."""

    reference: Stack
    source: Source  # headers of its objects, in the order of its frames

    def write(
        self,
        folder: Path,
        rows: tuple[DetectionRow, ...],
        labels_xyz: np.ndarray,
        mapping: FrameMapping,
        weights_sha256: str,
        *,
        swi: Volume,
        brain_mask: np.ndarray,
        trusted: bool,
    ) -> None:
        """Write report.dcm and, if anything was kept, segmentation.dcm and key_images/*.dcm.

        Args:
            folder: existing folder to write into.
            rows: all detections; the kept ones go into the files.
            labels_xyz: (X, Y, Z) ids of the kept rows, on the volume that `mapping` belongs to.
            mapping: from the volume to the frames of the reference.
            weights_sha256: of the detector.
            swi: (X, Y, Z) image that was searched.
            brain_mask: (X, Y, Z) bool on its grid.
            trusted: whether the region map is trusted; otherwise regions are not named.
        """
        findings = findings_of(rows)
        source = dataclasses.replace(self.source, serial_number=weights_sha256[:16])
        segmentation = None
        with _without_warnings():
            if findings:
                frame_numbers = [frame.number for frame in self.reference.frames]
                planes = mapping.to_frames(labels_xyz)
                segmentation = make_segmentation(source, frame_numbers, planes, findings)
                segmentation.save_as(folder / "segmentation.dcm")
            make_report(source, segmentation, findings).save_as(folder / "report.dcm")
            if findings:
                (folder / "key_images").mkdir()
                best_first = sorted(findings, key=lambda finding: -finding.row.score)
                pictures = make_key_images(source, swi, brain_mask, best_first, trusted=trusted)
                for number, picture in enumerate(pictures, start=1):
                    picture.save_as(folder / "key_images" / f"{number:03d}.dcm")


def prepare_results(reference: Stack, *, keep_identifiers: bool) -> Results:
    """Read the headers that results copy from the stack that they refer to.

    Args:
        reference: the stack.
        keep_identifiers: also copy name, ID and other attributes of patient and study.

    Raises:
        UserError: its headers are too incomplete or inconsistent for results.
    """
    with _without_warnings():
        source = Source(
            headers=source_headers(reference.instances, keep_identifiers),
            series_number=_SERIES_OFFSET + (reference.instance.series_number or 0),
            keep_identifiers=keep_identifiers,
        )
        missing = [keyword for keyword in _NEEDED if not source.headers[0].get(keyword)]
        if missing:
            raise _no_results(reference, f"without {' and '.join(missing)}")
        try:
            make_report(source, None, ())  # a trial run, to find whatever else the headers may lack
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise _no_results(reference, f"{type(error).__name__} while reading them") from error
    return Results(reference=reference, source=source)


def _no_results(reference: Stack, why: str) -> UserError:
    return UserError(
        f"series {reference.key}: DICOM results cannot refer to its headers ({why}); leave out --dicom-out"
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the libraries' warnings: they quote odd values, which may include the patient's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
