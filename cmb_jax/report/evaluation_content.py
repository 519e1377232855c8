"""What an evaluation report is made from: plain numbers and arrays, of whatever made them."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """One large number at the top of the page."""

    label: str  # e.g. "Sensitivity"
    value: str  # e.g. "0.93"
    note: str = ""  # e.g. "95 % interval 0.90 to 0.96"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]  # None and NaN are shown as a dash
    note: str = ""  # rule, threshold, connectivity, denominator

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrocLine:
    """One FROC curve, with a bootstrap band where there is one."""

    name: str
    fp_per_scan: np.ndarray  # (P,) ascending
    sensitivity: np.ndarray  # (P,) 0..1
    band_fp_per_scan: np.ndarray | None = None  # (Q,) ascending, where the band is known
    band_low: np.ndarray | None = None  # (Q,)
    band_high: np.ndarray | None = None  # (Q,)
    operating_point: tuple[float, float] | None = None  # (false positives per scan, sensitivity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityLine:
    """Share of true detections against their probability, by bins."""

    probability: np.ndarray  # (B,) mean of each bin, ascending
    share: np.ndarray  # (B,) of true detections
    detections: np.ndarray  # (B,) int, in each bin
    note: str = ""  # bins, calibration error


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectLine:
    """One scan at the operating point."""

    subject: str
    group: str = ""  # e.g. the protocol
    lesions: int
    detections: int
    tp: int
    fp: int
    fn: int
    note: str = ""  # e.g. "no prediction found"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountAgreementText:
    """Agreement of the counts per scan, computed elsewhere."""

    icc: float
    icc_name: str = "ICC(2,1)"
    bias: float  # mean of detections - lesions
    limit_low: float  # 95 % limits of agreement
    limit_high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationContent:
    """Everything that the evaluation page shows."""

    title: str
    subtitle: str = ""  # e.g. matching rule, operating point, number of scans
    headlines: tuple[Headline, ...] = ()
    tables: tuple[Table, ...] = ()
    curves: tuple[FrocLine, ...] = ()
    curve_note: str = ""  # matching rule, denominator, what the band is
    reliability: ReliabilityLine | None = None
    subjects: tuple[SubjectLine, ...] = ()
    agreement: CountAgreementText | None = None
    warnings: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    inputs: tuple[tuple[str, str, str], ...] = ()  # (role, file name, sha256)
    weights_sha256: str = ""
    version: str = ""
    steps: tuple[str, ...] = ()
    timings: tuple[tuple[str, float], ...] = ()  # (name, seconds)
