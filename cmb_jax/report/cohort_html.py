"""The HTML page of a cohort: a line per scan, to sort and filter; distributions; what stands out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.cohort_content import CohortContent, CohortLine
from cmb_jax.report.html import content_hash, environment
from cmb_jax.report.plots import BarSeries, count_histogram, scan_plot
from cmb_jax.report.summary import ZONES

DONE = "done"
OUTLIER_SCORE = 3.5
"""Modified z-score from which a scan is named (Iglewicz and Hoaglin 1993)."""
FEWEST_FOR_OUTLIERS = 8
_NORMAL_MAD = 0.6745  # median absolute deviation of the standard normal distribution
_SCRIPT = "cohort.js"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlier:
    """A scan that is unlike the others."""

    line: int  # index
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measure:
    """Something of which scans can have unusually much or little."""

    words: str
    of: Callable[[CohortLine], float | None]
    unit: str = ""
    root: bool = False  # counts: their spread grows with them, that of their square roots does not
    least_spread: float = 0.0  # of a standard deviation, so that nearly equal scans have no outliers


_MEASURES = (
    _Measure(
        words="microbleeds",
        of=lambda line: None if line.counted is None else line.counted.total,
        root=True,
        least_spread=0.5,
    ),
    _Measure(words="rejected candidates", of=lambda line: line.rejected, root=True, least_spread=0.5),
    _Measure(words="brain", of=lambda line: line.brain_ml, unit=" ml", least_spread=50.0),
)


def outliers(lines: Sequence[CohortLine]) -> tuple[Outlier, ...]:
    """Scans far from the median, by the median absolute deviation; nothing for fewer than 8 scans."""
    found = []
    for measure in _MEASURES:
        known = [(n, float(v)) for n, line in enumerate(lines) if (v := measure.of(line)) is not None]
        if len(known) < FEWEST_FOR_OUTLIERS:
            continue
        values = np.array([value for _, value in known])
        shown = np.sqrt(values) if measure.root else values
        middle = np.median(shown)
        spread = max(float(np.median(np.abs(shown - middle))) / _NORMAL_MAD, measure.least_spread)
        for (n, value), score in zip(known, (shown - middle) / spread, strict=True):
            if abs(score) > OUTLIER_SCORE:
                why = f"{value:.0f}{measure.unit} {measure.words} (median {np.median(values):.0f})"
                found.append(Outlier(line=n, why=why))
    return tuple(sorted(found, key=lambda outlier: outlier.line))


def render_cohort(content: CohortContent) -> str:
    """The page as one string; one script sorts and filters its table, and nothing is fetched."""
    lines = content.lines
    counted = [line.counted for line in lines if line.counted is not None]
    found = outliers(lines)
    plots = []
    if counted:
        plots.append(
            count_histogram((BarSeries("All", [count.total for count in counted]),), "Microbleeds per scan")
        )
        by_zone = tuple(
            BarSeries(zone, [dict(line.zones)[zone].total for line in lines if line.zones]) for zone in ZONES
        )
        plots.append(count_histogram(by_zone, "Microbleeds per scan, by zone"))
        plots.append(
            scan_plot(
                [
                    (line.name, n, line.counted.total)
                    for n, line in enumerate(lines)
                    if line.counted is not None
                ],
                frozenset(outlier.line for outlier in found),
            )
        )
    script = environment().get_template(_SCRIPT).render()
    return (
        environment()
        .get_template("cohort.html")
        .render(
            content=content,
            statuses=Counter(line.status for line in lines).most_common(),
            done=DONE,
            total=sum(count.total for count in counted),
            affected=sum(count.total > 0 for count in counted),
            scans=len(counted),
            zones=ZONES,
            unplaced=any(dict(line.zones)["none"].total for line in lines if line.zones),
            outliers=found,
            outlying=frozenset(outlier.line for outlier in found),
            fewest=FEWEST_FOR_OUTLIERS,
            score=OUTLIER_SCORE,
            plots=plots,
            script=script,
            script_hash=content_hash(script),
        )
    )


def write_cohort_report(path: Path, content: CohortContent) -> None:
    """Render the page and put it at `path` in one step, over an older one.

    Raises:
        UserError: it cannot be written.
    """
    atomic_write_text(path, render_cohort(content), overwrite=True)
