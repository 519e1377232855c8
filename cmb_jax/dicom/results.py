"""The DICOM files of a result: segmentation, structured report and key images."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from cmb_jax.core.detection import DetectionRow
from cmb_jax.dicom.findings import Maker, findings_of
from cmb_jax.dicom.grid import FrameMapping
from cmb_jax.dicom.identity import source_headers
from cmb_jax.dicom.key_images import make_key_images
from cmb_jax.dicom.measurement_report import make_report
from cmb_jax.dicom.segmentation import make_segmentation
from cmb_jax.dicom.stacks import Stack
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume

SEGMENTATION_FILE, REPORT_FILE, KEY_IMAGES = "segmentation.dcm", "report.dcm", "key_images"
_NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID")
_SERIES_OFFSET = 9000  # results are numbered after their source, beyond the scanner's own series


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What DICOM results are made with; checked before minutes go into a prediction."""

    reference: Stack
    sources: tuple[Dataset, ...]  # headers of its objects, in the order of its frames
    keep_identifiers: bool

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
        """Writes report.dcm and, if anything was kept, segmentation.dcm and key_images/*.dcm.

        Args:
            folder: existing folder to write into.
            rows: all detections; the kept ones go into the files.
            labels_xyz: (X, Y, Z) ids of the kept rows, on the volume that `mapping` belongs to.
            mapping: from the volume to the frames of the reference.
            weights_sha256: of the detector.
            swi: (X, Y, Z) image that was searched.
            brain_mask: (X, Y, Z) bool on its grid.
            trusted: whether places are told.
        """
        findings, maker = findings_of(rows), _maker(self.reference, weights_sha256)
        keep = self.keep_identifiers
        segmentation = None
        with _without_warnings():
            if findings:
                segmentation = make_segmentation(
                    self.sources,
                    [frame.number for frame in self.reference.frames],
                    mapping.to_frames(labels_xyz),
                    findings,
                    maker,
                    keep_identifiers=keep,
                )
                segmentation.save_as(folder / SEGMENTATION_FILE)
            report = make_report(self.sources, segmentation, findings, maker, keep_identifiers=keep)
            report.save_as(folder / REPORT_FILE)
            if findings:
                (folder / KEY_IMAGES).mkdir()
                best = sorted(findings, key=lambda finding: -finding.row.score)
                pictures = make_key_images(
                    self.sources, swi, brain_mask, best, maker, trusted=trusted, keep_identifiers=keep
                )
                for number, picture in enumerate(pictures, start=1):
                    picture.save_as(folder / KEY_IMAGES / f"{number:03d}.dcm")


def prepare_results(reference: Stack, *, keep_identifiers: bool) -> Results:
    """Reads what results take over from the stack that they refer to.

    Args:
        reference: the stack.
        keep_identifiers: take over name, ID and the rest about patient and study.

    Raises:
        UserError: its headers are too incomplete or too odd for results that refer to them.
    """
    with _without_warnings():
        sources = source_headers(reference.instances, keep_identifiers)
        missing = [keyword for keyword in _NEEDED if not sources[0].get(keyword)]
        if missing:
            raise _no_results(reference, f"without {' and '.join(missing)}")
        try:
            make_report(sources, None, (), _maker(reference, ""), keep_identifiers=keep_identifiers)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise _no_results(reference, f"{type(error).__name__} while reading them") from error
    return Results(reference=reference, sources=tuple(sources), keep_identifiers=keep_identifiers)


def _maker(reference: Stack, weights_sha256: str) -> Maker:
    return Maker(
        series_number=_SERIES_OFFSET + (reference.instance.series_number or 0),
        serial_number=weights_sha256[:16],
    )


def _no_results(reference: Stack, why: str) -> UserError:
    return UserError(
        f"series {reference.key}: DICOM results cannot refer to its headers ({why}); leave --dicom-out away"
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The libraries' remarks on odd values quote them, names included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
