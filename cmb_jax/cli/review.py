"""`cmb-jax review`: export candidates to readers' viewers, import their verdicts, measure agreement."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cmb_jax.cli.common import check_output
from cmb_jax.errors import UserError

if TYPE_CHECKING:
    from cmb_jax.review.statistics import ScanReview, Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write what readers open: ITK-SNAP labels, 3D Slicer markups, and a spreadsheet to fill in."""

    result: tyro.conf.Positional[Path]
    """folder that cmb-jax predict wrote."""
    out: Path
    """folder to make: labels.nii.gz, labels_itksnap.txt, microbleeds.mrk.json, review.xlsx."""
    subject: str | None = None
    """name of the scan in these files, such as its folder's in the viewer; default: its BIDS name, or one
    made from the image's hash."""
    overwrite: bool = False
    """replace the folder if it exists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Read readers' verdicts back: truth for fine-tuning, and agreement with the detector and each other.

    Each file is one reader's: verdicts of cmb-jax view (.json), review.xlsx filled in, markups saved by
    3D Slicer, labels painted in ITK-SNAP, or an export of Microbleed-review-viewer (which may hold several
    readers).
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """what the readers saved, readers in the same order for every scan."""
    result: Path
    """folder that cmb-jax predict wrote."""
    out: Path
    """CSV file of truth to write; readings and agreement go beside it as .json."""
    labels: Path | None = None
    """label image (.nii.gz) of the microbleeds to write too, for cmb-jax evaluate and calibrate."""
    subject: str | None = None
    """as given to review export."""
    overwrite: bool = False
    """replace the files if they exist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementOptions:
    """Agreement over several scans: kappa, precision of the detector, and counts per scan with their ICC."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """.json files that review import wrote, with the same readers in the same order."""
    out: Path
    """JSON file to write."""
    overwrite: bool = False
    """replace the file if it exists."""


def export(options: ExportOptions) -> None:
    """Write the folder."""
    from cmb_jax.io.atomic import atomic_directory, atomic_write_bytes, atomic_write_text
    from cmb_jax.io.header import open_nifti
    from cmb_jax.io.nifti import stored_values, write_stored
    from cmb_jax.review.outside_viewers import label_descriptions, markups
    from cmb_jax.review.result import load_result
    from cmb_jax.review.spreadsheet import spreadsheet

    out = options.out
    read = load_result(options.result, options.subject)
    labels = open_nifti(read.paths.labels)
    with atomic_directory(out, overwrite=options.overwrite) as folder:
        write_stored(folder / "labels.nii.gz", stored_values(labels), labels)
        atomic_write_text(folder / "labels_itksnap.txt", label_descriptions(read.kept))
        atomic_write_text(folder / "microbleeds.mrk.json", markups(read))
        atomic_write_bytes(folder / "review.xlsx", spreadsheet(read))
    print(f"{read.subject}: {len(read.kept)} kept and {len(read.rows) - len(read.kept)} rejected candidates")
    print(f"written: {out} (research use only)")


def import_(options: ImportOptions) -> None:
    """Read, write, print."""
    from cmb_jax.review.result import load_result
    from cmb_jax.review.truth import write_truth

    files, out, labels = options.files, options.out, options.labels
    record = out.with_suffix(".json")
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out}: truth is a .csv file, such as sub-01_points.csv; give such a name")
    if not files:
        raise UserError("no file of a reader was given; name at least one before --result")
    if labels is not None and not labels.name.endswith(".nii.gz"):
        raise UserError(f"{labels}: labels are a .nii.gz file, such as truth/sub-01.nii.gz; give such a name")
    check_output(record, overwrite=True)  # which files may be replaced depends on the readings
    read = load_result(options.result, options.subject)
    truth = write_truth(files, read, out, labels, overwrite=options.overwrite)
    if truth.unread:
        print(f"warning: {unread_text(truth.unread, len(read.kept))}", file=sys.stderr)
    print(f"truth: {truth.counts}")
    print(summary([truth.scan]))
    print(f"written: {', '.join(map(str, truth.files))} (research use only)")


def unread_text(unread: int, kept: int) -> str:
    """The warning about truth from an unfinished reading."""
    return (
        f"{unread} of {kept} kept candidates were read by nobody and are not in the table; do not train on "
        "this scan before they are"
    )


def agreement(options: AgreementOptions) -> None:
    """Read, write, print."""
    from cmb_jax.io.atomic import atomic_write_text
    from cmb_jax.review.statistics import agreement_json, read_review

    files, out = options.files, options.out
    if not files:
        raise UserError("no file was given; name the .json files of cmb-jax review import before --out")
    scans = [read_review(path) for path in files]
    numbers = {len(scan.readings) for scan in scans}
    if len(numbers) > 1:
        raise UserError(
            f"the scans have {' and '.join(map(str, sorted(numbers)))} readers; give scans that the same "
            "readers have read"
        )
    twice = [scan.subject for scan in scans if [each.subject for each in scans].count(scan.subject) > 1]
    if twice:
        raise UserError(f"{twice[0]}: two of the files are of this scan; give each scan once")
    atomic_write_text(out, agreement_json(scans), overwrite=options.overwrite)
    print(summary(scans))
    print(f"written: {out} (research use only)")


def summary(scans: list[ScanReview]) -> str:
    """Agreement as text: lines for each reader, then for each pair of readers."""
    from cmb_jax.evaluation.statistics import estimate_text
    from cmb_jax.review.statistics import detector_agreement, reader_agreement

    lines = []
    readers = range(len(scans[0].readings))
    for reader in readers:
        found = detector_agreement(scans, reader)
        kept = found.kept
        lines.append(
            f"reader {reader + 1}: of {kept.kept} kept {kept.microbleed} microbleeds, {kept.mimic} mimics, "
            f"{kept.uncertain} uncertain, {kept.not_read} not read; precision {_shown(kept.precision)}"
        )
        for group in (*found.by_category, *found.by_zone):
            if group.kept:
                lines.append(f"  {group.name}: {group.microbleed} of {group.kept}, {_shown(group.precision)}")
        lines.append(
            f"  not kept: {found.rejected_microbleeds} rejected candidates and {found.added_microbleeds} "
            f"added lesions are microbleeds; kept of the reader's {_shown(found.found)}"
        )
    for first in readers:
        for second in readers[first + 1 :]:
            pair = reader_agreement(scans, first, second)
            icc = "undefined" if math.isnan(pair.counts.icc) else f"{pair.counts.icc:.3f}"
            lines.append(
                f"readers {first + 1} and {second + 1}: same verdict {_shown(pair.agreement)}, "
                f"kappa {estimate_text(pair.kappa)}; ICC of counts {icc}; added by both {pair.added_both}, "
                f"by one {pair.added_first} and {pair.added_second}"
            )
    return "\n".join(lines)


def _shown(part: Share) -> str:
    if not part.of:
        return "- (none)"
    return f"{part.value:.3f} [{part.low:.3f}, {part.high:.3f}] of {part.of}"
