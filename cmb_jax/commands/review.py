"""`cmb-jax review`: candidates to the viewers that readers use, and their verdicts back."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from cmb_jax.commands.common import check_output
from cmb_jax.errors import UserError
from cmb_jax.evaluation.present import estimate_text
from cmb_jax.io.atomic import atomic_directory, atomic_write_bytes, atomic_write_text
from cmb_jax.io.header import open_nifti
from cmb_jax.io.storage import stored_values, write_stored
from cmb_jax.review.itksnap import label_descriptions
from cmb_jax.review.markups import markups
from cmb_jax.review.record import agreement_json, read_review
from cmb_jax.review.result import load_result
from cmb_jax.review.spreadsheet import spreadsheet
from cmb_jax.review.statistics import (
    ScanReview,
    Share,
    detector_agreement,
    reader_agreement,
)
from cmb_jax.review.truth import write_truth


def export(result: Path, out: Path, subject: str | None = None, overwrite: bool = False) -> None:
    """Write what readers open: ITK-SNAP labels, 3D Slicer markups, and a spreadsheet to fill in.

    Raises:
      UserError: something wrong with the arguments or the files.
    """
    check_output(out, overwrite)
    read = load_result(result, subject)
    labels = open_nifti(read.paths.labels)
    with atomic_directory(out, overwrite=overwrite) as folder:
        write_stored(folder / "labels.nii.gz", stored_values(labels), labels)
        atomic_write_text(folder / "labels_itksnap.txt", label_descriptions(read.kept))
        atomic_write_text(folder / "microbleeds.mrk.json", markups(read))
        atomic_write_bytes(folder / "review.xlsx", spreadsheet(read))
    print(f"{read.subject}: {len(read.kept)} kept and {len(read.rows) - len(read.kept)} rejected candidates")
    print(f"written: {out} (research use only)")


def import_(
    files: tuple[Path, ...],
    result: Path,
    out: Path,
    labels: Path | None = None,
    subject: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read readers' verdicts back: truth for fine-tuning, and agreement with the detector and each other.

    Raises:
      UserError: something wrong with the arguments or the files.
    """
    record = out.with_suffix(".json")
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out}: truth is a .csv file, such as sub-01_points.csv; give such a name")
    if not files:
        raise UserError("no file of a reader was given; name at least one before --result")
    if labels is not None and not labels.name.endswith(".nii.gz"):
        raise UserError(f"{labels}: labels are a .nii.gz file, such as truth/sub-01.nii.gz; give such a name")
    check_output(out, overwrite)
    for path in (record, *(() if labels is None else (labels,))):
        check_output(path, overwrite=True)  # what may be replaced, the readings tell
    read = load_result(result, subject)
    truth = write_truth(files, read, out, labels, overwrite=overwrite)
    if truth.unread:
        print(f"warning: {unread_text(truth.unread, len(read.kept))}", file=sys.stderr)
    print(f"truth: {truth.counts}")
    print(summary([truth.scan]))
    print(f"written: {', '.join(map(str, truth.files))} (research use only)")


def unread_text(unread: int, kept: int) -> str:
    """What is wrong with truth from a reading that is not finished."""
    return (
        f"{unread} of {kept} kept candidates were read by nobody and are not in the table; do not train on "
        "this scan before they are"
    )


def agreement(files: tuple[Path, ...], out: Path, overwrite: bool = False) -> None:
    """Agreement over several scans: kappa, precision of the detector, and counts a scan with their ICC.

    Raises:
      UserError: something wrong with the arguments or the files.
    """
    check_output(out, overwrite)
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
    atomic_write_text(out, agreement_json(scans), overwrite=overwrite)
    print(summary(scans))
    print(f"written: {out} (research use only)")


def summary(scans: list[ScanReview]) -> str:
    """Agreement for people, a line each."""
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
