"""Agreement of readers with the detector and with each other, over one scan or many, and its JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

import cmb_jax
from cmb_jax.core.detection import DetectionRow
from cmb_jax.evaluation import statistics
from cmb_jax.evaluation.metrics import json_values
from cmb_jax.io.outside import a_number, a_text, read_json_object, reading
from cmb_jax.report.summary import ZONES
from cmb_jax.review.reading import Reading, added_groups
from cmb_jax.review.result import checked_row
from cmb_jax.review.verdicts import MIMIC_KINDS, Mark, Verdict

FORMAT = "cmb-jax review"
VERSION = 1
NOTICE = (
    "Research use only; not a diagnosis. The readers saw the detector's marks: its figures are flattered."
)

_SAMPLES, _SEED = 2000, 0
_WORDS = tuple(Verdict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanReview:
    """One scan's candidates with the readings of all readers, who come in the same order in every scan."""

    subject: str
    rows: tuple[DetectionRow, ...]
    readings: tuple[Reading, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A proportion with its 95 % Wilson interval (Wilson 1927, JASA 22:209); NaN for no trials."""

    count: int
    of: int
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Verdicts on some of the kept candidates."""

    name: str
    kept: int
    microbleed: int
    mimic: int
    uncertain: int
    not_read: int
    precision: Share  # microbleeds among those called microbleed or mimic


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorAgreement:
    """One reader against the detector."""

    kept: Group
    by_category: tuple[Group, ...]
    by_zone: tuple[Group, ...]
    rejected_microbleeds: int  # rejected candidates that the reader calls microbleeds
    added_microbleeds: int  # microbleeds that were not among the candidates
    found: Share  # fraction of the reader's microbleeds that the detector kept
    counts: statistics.CountAgreement  # kept candidates and the reader's microbleeds per scan


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderAgreement:
    """Two readers, on the candidates that both judged."""

    confusion: tuple[tuple[int, ...], ...]  # first reader by second: microbleed, mimic, uncertain
    agreement: Share  # same verdict
    kappa: statistics.Estimate  # Cohen's, unweighted, over the three verdicts
    resampled: str  # what the bootstrap of kappa draws
    added_both: int  # lesions that both added, less than 3 mm apart
    added_first: int
    added_second: int
    counts: statistics.CountAgreement  # microbleeds per scan of the two


def share(count: int, of: int) -> Share:
    """The proportion count / of with its interval."""
    if of == 0:
        return Share(count=0, of=0, value=np.nan, low=np.nan, high=np.nan)
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Share(count=count, of=of, value=count / of, low=float(interval.low), high=float(interval.high))


def detector_agreement(scans: Sequence[ScanReview], reader: int) -> DetectorAgreement:
    """How often the reader confirms what the detector keeps, overall and by category and zone.

    The reader saw the detector's marks, so all figures favor the detector compared with a blinded reading.
    """
    pairs = [pair for scan in scans for pair in zip(scan.rows, scan.readings[reader].marks, strict=True)]
    added = [mark for scan in scans for mark in scan.readings[reader].added]
    kept = [pair for pair in pairs if pair[0].status == "kept"]
    overall = _group("kept", [mark for _, mark in kept])
    rejected = sum(mark.verdict is Verdict.MICROBLEED for row, mark in pairs if row.status == "rejected")
    missed = sum(mark.verdict is Verdict.MICROBLEED for mark in added)
    return DetectorAgreement(
        kept=overall,
        by_category=tuple(
            _group(name, [mark for row, mark in kept if row.category == name])
            for name in ("definite", "possible")
        ),
        by_zone=tuple(
            _group(name, [mark for row, mark in kept if row.zone == name]) for name in (*ZONES, "none")
        ),
        rejected_microbleeds=rejected,
        added_microbleeds=missed,
        found=share(overall.microbleed, overall.microbleed + rejected + missed),
        counts=statistics.count_agreement(
            np.array([sum(row.status == "kept" for row in scan.rows) for scan in scans]),
            _microbleeds(scans, reader),
        ),
    )


def _group(name: str, marks: Sequence[Mark]) -> Group:
    number = {word: sum(mark.verdict is word for mark in marks) for word in (*_WORDS, None)}
    microbleed, mimic = number[Verdict.MICROBLEED], number[Verdict.MIMIC]
    return Group(
        name=name,
        kept=len(marks),
        microbleed=microbleed,
        mimic=mimic,
        uncertain=number[Verdict.UNCERTAIN],
        not_read=number[None],
        precision=share(microbleed, microbleed + mimic),
    )


def _microbleeds(scans: Sequence[ScanReview], reader: int) -> np.ndarray:
    return np.array([len(scan.readings[reader].microbleeds) for scan in scans])


def reader_agreement(scans: Sequence[ScanReview], first: int, second: int) -> ReaderAgreement:
    """Agreement of two readers. The interval of kappa resamples scans, or candidates if there is one scan."""
    by_scan = [
        [
            _confusion(a, b)
            for a, b in zip(scan.readings[first].marks, scan.readings[second].marks, strict=True)
        ]
        for scan in scans
    ]
    # candidates of one scan are correlated: with several scans, whole scans are resampled
    units = [sum(tables, np.zeros((3, 3), int)) for tables in by_scan] if len(scans) > 1 else by_scan[0]
    tables = np.array(units, int).reshape(-1, 3, 3)
    total = tables.sum(axis=0)
    added = [added_groups((scan.readings[first], scan.readings[second])) for scan in scans]
    both = sum(len(group) == 2 for groups in added for group in groups)
    return ReaderAgreement(
        confusion=tuple(tuple(int(n) for n in line) for line in total),
        agreement=share(int(np.trace(total)), int(total.sum())),
        kappa=_kappa(tables),
        resampled="scans" if len(scans) > 1 else "candidates of the one scan",
        added_both=both,
        added_first=sum(len(scan.readings[first].added) for scan in scans) - both,
        added_second=sum(len(scan.readings[second].added) for scan in scans) - both,
        counts=statistics.count_agreement(_microbleeds(scans, first), _microbleeds(scans, second)),
    )


def _confusion(a: Mark, b: Mark) -> np.ndarray:
    """One candidate as a table (3, 3); all zero if one of the two did not read it."""
    table = np.zeros((3, 3), int)
    if a.verdict is not None and b.verdict is not None:
        table[_WORDS.index(a.verdict), _WORDS.index(b.verdict)] = 1
    return table


def _kappa(tables: np.ndarray) -> statistics.Estimate:
    """Cohen's kappa of the summed tables (U, 3, 3) with a percentile interval over the U."""
    # unweighted: microbleed, mimic and uncertain have no order
    value = statistics.cohen_kappa(tables.sum(axis=0))
    if len(tables) < 2:
        return statistics.Estimate(float(value))
    drawn = [
        statistics.cohen_kappa(np.tensordot(weights, tables, axes=1))
        for weights in statistics.resample_weights(len(tables), _SAMPLES, _SEED)
    ]
    return statistics.estimates(np.array([value]), np.concatenate(drawn)[:, None])[0]


def agreement(scans: Sequence[ScanReview]) -> dict[str, Any]:
    """Statistics of every reader against the detector and of every pair of readers, as JSON values."""
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
    """Candidates, readings and statistics of one scan as JSON text, without names of readers and comments."""
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
    """Statistics over several scans as JSON text."""
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
    remedy = "it is not a file of cmb-jax review import: import it again"
    with reading(path, remedy, missing="no such file; make it with cmb-jax review import"):
        content = read_json_object(path, remedy)
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
