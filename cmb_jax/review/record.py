"""Readings of one scan with their statistics as a JSON file, and such files read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cmb_jax
from cmb_jax.evaluation.metrics import json_values
from cmb_jax.io.outside import a_number, a_text, read_json_object, reading
from cmb_jax.review.marks import MIMIC_KINDS, Mark, Verdict
from cmb_jax.review.reading import Reading
from cmb_jax.review.result import checked_row
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
    todo = "it is no file of cmb-jax review import: import it again"
    with reading(path, todo, missing="no such file; make it with cmb-jax review import"):
        content = read_json_object(path, todo)
        if content["format"] != FORMAT or content["format_version"] != VERSION:
            raise ValueError("another format")
        rows = tuple(checked_row(row) for row in content["candidates"])
        if not content["readings"] or any(len(each["marks"]) != len(rows) for each in content["readings"]):
            raise ValueError("not one mark for each candidate")
        return ScanReview(
            subject=a_text(content["subject"], "subject"),
            rows=rows,
            readings=tuple(
                Reading(
                    marks=tuple(_mark_from(mark) for mark in each["marks"]),
                    added=tuple(_mark_from(mark) for mark in each["added"]),
                )
                for each in content["readings"]
            ),
        )


def _mark_json(mark: Mark) -> dict[str, Any]:
    content = dataclasses.asdict(mark)
    del content["where"]
    return content


def _mark_from(entry: dict[str, Any]) -> Mark:
    x, y, z = (a_number(value, "position_mm", -1e6, 1e6) for value in entry["position_mm"])
    if entry["mimic"] not in ("", *MIMIC_KINDS):
        raise ValueError(f"mimic {entry['mimic']!r}")
    return Mark(
        candidate=None if entry["candidate"] is None else int(a_number(entry["candidate"], "candidate", 1)),
        verdict=None if entry["verdict"] is None else Verdict(entry["verdict"]),
        position_mm=(x, y, z),
        mimic=entry["mimic"],
        certainty=str(entry.get("certainty", "")),  # records of earlier versions lack it
        diameter_mm=None
        if entry["diameter_mm"] is None
        else a_number(entry["diameter_mm"], "diameter_mm", 0, 1e4),
    )
