"""Readings of one scan with their statistics as a JSON file, and such files read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cmb_jax
from cmb_jax.errors import UserError
from cmb_jax.evaluation.metrics import json_values
from cmb_jax.report.content import DetectionRow
from cmb_jax.review.marks import MIMIC_KINDS, Mark, Verdict
from cmb_jax.review.reading import Reading
from cmb_jax.review.statistics import ScanReview, detector_agreement, reader_agreement

FORMAT = "cmb-jax review"
VERSION = 1
NOTICE = (
    "Research use only; not a diagnosis. The readers saw the detector's marks: its figures are flattered."
)


def agreement(scans: Sequence[ScanReview]) -> dict[str, Any]:
    """Statistics of every reader against the detector and of every two readers, as JSON values."""
    readers = range(len(scans[0].readings))
    content = {
        "scans": len(scans),
        "intervals": "95 %: Wilson for proportions, percentile bootstrap for kappa",
        "detector": [{"reader": a + 1, **dataclasses.asdict(detector_agreement(scans, a))} for a in readers],
        "readers": [
            {"first": a + 1, "second": b + 1, **dataclasses.asdict(reader_agreement(scans, a, b))}
            for a in readers
            for b in readers
            if a < b
        ],
    }
    return json_values(content)


def review_json(scan: ScanReview) -> str:
    """Candidates, readings and statistics of one scan as text. Readers are numbered, comments left out."""
    content = {
        "format": FORMAT,
        "format_version": VERSION,
        "notice": NOTICE,
        "version": cmb_jax.__version__,
        "subject": scan.subject,
        "coordinates": "RAS mm",
        "candidates": [dataclasses.asdict(row) for row in scan.rows],
        "readings": [
            {
                "reader": number,
                "marks": [_mark_json(mark) for mark in reading.marks],
                "added": [_mark_json(mark) for mark in reading.added],
            }
            for number, reading in enumerate(scan.readings, start=1)
        ],
        "agreement": agreement([scan]),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def agreement_json(scans: Sequence[ScanReview]) -> str:
    """Statistics over several scans as text."""
    content = {
        "notice": NOTICE,
        "version": cmb_jax.__version__,
        "subjects": [scan.subject for scan in scans],
        **agreement(scans),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def read_review(path: Path) -> ScanReview:
    """A file of `review_json`.

    Raises:
        UserError: missing, damaged, or another kind of file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["format_version"] != VERSION:
            raise ValueError("another format")
        rows = tuple(DetectionRow(**row) for row in content["candidates"])
        if not content["readings"] or any(len(each["marks"]) != len(rows) for each in content["readings"]):
            raise ValueError("not one mark for each candidate")
        return ScanReview(
            subject=str(content["subject"]),
            rows=rows,
            readings=tuple(
                Reading(
                    marks=tuple(_mark_from(mark) for mark in each["marks"]),
                    added=tuple(_mark_from(mark) for mark in each["added"]),
                )
                for each in content["readings"]
            ),
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with cmb-jax review import") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is no file of cmb-jax review import ({reason}); import it again") from error


def _mark_json(mark: Mark) -> dict[str, Any]:
    content = dataclasses.asdict(mark)
    del content["where"]
    return content


def _mark_from(entry: dict[str, Any]) -> Mark:
    x, y, z = (float(value) for value in entry["position_mm"])
    if entry["mimic"] not in ("", *MIMIC_KINDS):
        raise ValueError(f"mimic {entry['mimic']!r}")
    return Mark(
        candidate=entry["candidate"],
        verdict=None if entry["verdict"] is None else Verdict(entry["verdict"]),
        position_mm=(x, y, z),
        mimic=entry["mimic"],
        certainty=str(entry.get("certainty", "")),  # records of earlier versions lack it
        diameter_mm=entry["diameter_mm"],
    )
