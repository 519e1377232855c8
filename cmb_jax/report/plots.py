"""Line and scatter plots as SVG, which follow the page's colors and print sharply."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cmb_jax.report.drawing import Label, Picture, Shape, glyph

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 50
FROC_TICKS: tuple[float, ...] = (0.125, 0.25, 0.5, 1, 2, 4, 8)
FEWEST_IN_A_BIN = 5
"""Detections; if any bin has fewer, no curve is drawn, because its fraction is mostly chance."""
COUNT_BINS: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20, 50)
"""First count of each bar; the last one is open."""
_FRACTIONS = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}


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
    bias: float  # mean of detections - lesions
    limit_low: float  # 95 % limits of agreement
    limit_high: float


@dataclasses.dataclass(frozen=True)
class _Axes:
    """Converts data coordinates to drawing coordinates; draws grid lines and ticks."""

    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        if self.log_x:
            share = math.log(x / self.x[0]) / math.log(self.x[1] / self.x[0])
        else:
            share = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def line(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        points = (self.at(x, y) for x, y in zip(xs, ys, strict=True))
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)

    def frame(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str
    ) -> tuple[list[Shape], list[Label]]:
        shapes, labels = [], []
        for tick in x_ticks:
            shapes.append(Shape(self.line([tick, tick], self.y), "grid"))
            labels.append(
                Label(self.at(tick, 0)[0], HEIGHT - BOTTOM + 18, _FRACTIONS.get(tick, f"{tick:g}"), "middle")
            )
        for tick in y_ticks:
            shapes.append(Shape(self.line(self.x, [tick, tick]), "grid"))
            labels.append(Label(LEFT - 8, self.at(self.x[0], tick)[1] + 4, f"{tick:g}", "end"))
        shapes.append(
            Shape(self.line([self.x[0], self.x[0], self.x[1]], [self.y[1], self.y[0], self.y[0]]), "axis")
        )
        labels.append(Label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_title, "title middle"))
        labels.append(Label(14, (TOP + HEIGHT - BOTTOM) / 2, y_title, "title middle turned"))
        return shapes, labels


def _plot(shapes: Sequence[Shape], labels: Sequence[Label], *, alt: str, caption: str) -> Picture:
    return Picture(
        width=WIDTH, height=HEIGHT, alt=alt, shapes=tuple(shapes), labels=tuple(labels), caption=caption
    )


def froc_plot(curves: Sequence[FrocLine]) -> Picture:
    """Sensitivity against false positives per scan, from 1/8 to 8 on a logarithmic axis."""
    axes = _Axes((FROC_TICKS[0], FROC_TICKS[-1]), (0.0, 1.0), log_x=True)
    shapes, labels = axes.frame(
        FROC_TICKS, np.linspace(0, 1, 6).tolist(), "False positives per scan", "Sensitivity"
    )
    # all bands first, so that none covers a curve
    for n, curve in enumerate(curves):
        if curve.band_fp_per_scan is not None and curve.band_low is not None and curve.band_high is not None:
            x, low = _clip_to(axes.x, curve.band_fp_per_scan, curve.band_low)
            _, high = _clip_to(axes.x, curve.band_fp_per_scan, curve.band_high)
            shapes.append(Shape(axes.line([*x, *x[::-1]], [*low, *high[::-1]]) + "Z", f"band s{n % 5}"))
    for n, curve in enumerate(curves):
        x, y = _clip_to(axes.x, curve.fp_per_scan, curve.sensitivity, step=True)
        if len(x):
            shapes.append(Shape(axes.line(x, y), f"curve s{n % 5}", title=curve.name))
        for rate in FROC_TICKS:
            if len(x):
                shapes.append(_froc_value(axes, curve, rate, f"value s{n % 5}"))
        if curve.operating_point is not None:
            rate, sensitivity = curve.operating_point
            px, py = axes.at(min(max(rate, axes.x[0]), axes.x[1]), sensitivity)
            title = f"{curve.name}: sensitivity {sensitivity:.2f} at {rate:.2f} false positives per scan"
            shapes.append(Shape(glyph("lobar", px, py, 5.5), f"point s{n % 5}", title=title))
    return _plot(
        shapes,
        labels,
        alt="FROC: " + "; ".join(_froc_words(curve) for curve in curves),
        caption="FROC",
    )


def _froc_value(axes: _Axes, curve: FrocLine, rate: float, style: str) -> Shape:
    """A dot on the curve at one rate; its value is shown on hover."""
    value = sensitivity_at(curve, rate)
    title = f"{curve.name}: sensitivity {value:.2f} at {rate:g} false positives per scan"
    if curve.band_fp_per_scan is not None and curve.band_low is not None and curve.band_high is not None:
        low, high = (
            float(np.interp(rate, curve.band_fp_per_scan, band)) for band in (curve.band_low, curve.band_high)
        )
        title += f", 95 % interval {low:.2f} to {high:.2f}"
    return Shape(glyph("lobar", *axes.at(rate, value), 4.0), style, title=title)


def _froc_words(curve: FrocLine) -> str:
    sensitivity = sensitivity_at(curve, 1.0)
    return f"{curve.name}, sensitivity {sensitivity:.2f} at 1 false positive per scan"


def sensitivity_at(curve: FrocLine, rate: float) -> float:
    """The highest sensitivity at up to `rate` false positives per scan; 0 without such a point."""
    reached = np.asarray(curve.sensitivity)[np.asarray(curve.fp_per_scan) <= rate]
    return float(reached.max()) if reached.size else 0.0


def _clip_to(
    limits: tuple[float, float], x: np.ndarray, y: np.ndarray, step: bool = False
) -> tuple[list[float], list[float]]:
    """The part of a curve within the limits of x.

    Points left of the axis collapse onto its start. With `step`, the curve is a staircase that continues flat
    to the end of the axis: an FROC has no operating points between its own.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    before, inside = x <= limits[0], (x > limits[0]) & (x <= limits[1])
    start = [(limits[0], float(y[before][-1]))] if before.any() else []
    points = start + list(zip(x[inside].tolist(), y[inside].tolist(), strict=True))
    if step:
        stairs: list[tuple[float, float]] = []
        for px, py in points:
            if stairs:
                stairs.append((px, stairs[-1][1]))
            stairs.append((px, py))
        if stairs:
            stairs.append((limits[1], stairs[-1][1]))
        points = stairs
    return [p[0] for p in points], [p[1] for p in points]


def reliability_plot(line: ReliabilityLine) -> Picture:
    """Fraction of true detections against probability; larger dots are bins with more detections."""
    axes = _Axes((0.0, 1.0), (0.0, 1.0))
    ticks = np.linspace(0, 1, 6).round(1).tolist()
    shapes, labels = axes.frame(ticks, ticks, "Mean probability", "Share of true detections")
    shapes.append(Shape(axes.line([0, 1], [0, 1]), "identity"))
    if line.detections.min() >= FEWEST_IN_A_BIN:  # otherwise a zigzag of chance
        shapes.append(Shape(axes.line(line.probability.tolist(), line.share.tolist()), "curve s0"))
    largest = int(line.detections.max())
    for probability, share, detections in zip(line.probability, line.share, line.detections, strict=True):
        x, y = axes.at(float(probability), float(share))
        counted = "1 detection" if detections == 1 else f"{detections} detections"
        title = f"{counted}: probability {probability:.2f}, {share:.2f} of them true"
        radius = 3.0 + 5.0 * math.sqrt(detections / largest)
        shapes.append(Shape(glyph("lobar", x, y, radius), "spot", title=title))
        if line.detections.min() >= FEWEST_IN_A_BIN:
            above = y - radius - 4
            labels.append(Label(x, above if above > TOP + 10 else y + radius + 13, str(detections), "middle"))
    return _plot(
        shapes,
        labels,
        alt="Reliability diagram: " + line.note,
        caption="Spots: bins, the larger the more detections; on the dashed line probabilities are right. "
        + line.note,
    )


def count_plot(subjects: Sequence[SubjectLine]) -> Picture:
    """Detections against true lesions per scan; the area of a dot is the number of scans on it."""
    pairs = Counter((s.lesions, s.detections) for s in subjects)
    top = _round_up(max((max(pair) for pair in pairs), default=1))
    axes = _Axes((0.0, top), (0.0, top))
    ticks = _linear_ticks(0.0, top)
    shapes, labels = axes.frame(ticks, ticks, "True microbleeds", "Reported microbleeds")
    shapes.append(Shape(axes.line([0, top], [0, top]), "identity"))
    for (lesions, detections), scans in sorted(pairs.items()):
        x, y = axes.at(lesions, detections)
        title = f"{scans} scan{'s' if scans > 1 else ''}: {lesions} true, {detections} reported"
        shapes.append(Shape(glyph("lobar", x, y, 4.0 * math.sqrt(scans)), "spot", title=title))
    return _plot(
        shapes,
        labels,
        alt=f"Reported against true microbleeds of {len(subjects)} scans; the dashed line is agreement",
        caption="The dashed line is perfect agreement",
    )


def difference_plot(subjects: Sequence[SubjectLine], agreement: CountAgreementText) -> Picture:
    """Bland-Altman plot of the counts: difference against mean, with bias and 95 % limits of agreement."""
    pairs = Counter(((s.lesions + s.detections) / 2, s.detections - s.lesions) for s in subjects)
    limits = [v for v in (agreement.limit_low, agreement.limit_high) if math.isfinite(v)]
    # symmetric about 0, so that over- and undercounting can be compared
    half = _round_up(max([abs(d) for _, d in pairs] + [abs(v) for v in limits] + [1.0]))
    right = _round_up(max((m for m, _ in pairs), default=1.0))
    axes = _Axes((0.0, right), (-half, half))
    shapes, labels = axes.frame(
        _linear_ticks(0.0, right),
        _linear_ticks(-half, half),
        "Mean of true and reported",
        "Reported minus true",
    )
    shapes.append(Shape(axes.line([0, right], [0, 0]), "axis"))
    for value in (agreement.bias, *limits):
        if math.isfinite(value):
            shapes.append(Shape(axes.line([0, right], [value, value]), "identity", title=f"{value:.2f}"))
    for (mean, difference), scans in sorted(pairs.items()):
        x, y = axes.at(mean, difference)
        title = f"{scans} scan{'s' if scans > 1 else ''}: difference {difference}"
        shapes.append(Shape(glyph("lobar", x, y, 4.0 * math.sqrt(scans)), "spot", title=title))
    return _plot(
        shapes,
        labels,
        alt=f"Bland-Altman plot: bias {agreement.bias:.2f}, 95 % limits "
        f"{agreement.limit_low:.2f} to {agreement.limit_high:.2f}",
        caption="Dashed: bias and 95 % limits of agreement",
    )


def count_histogram(series: Mapping[str, Sequence[int]], caption: str) -> Picture:
    """Histogram of microbleeds per scan; bars of several series (name: counts) are side by side."""
    starts = np.array(COUNT_BINS)
    names = [
        str(low) if high == low + 1 else f"{low} to {high - 1}"
        for low, high in itertools.pairwise(COUNT_BINS)
    ] + [f"{COUNT_BINS[-1]} or more"]
    heights = [
        np.bincount(np.searchsorted(starts, counts, side="right") - 1, minlength=len(starts))
        for counts in series.values()
    ]
    top = _round_up(max(int(height.max()) for height in heights))
    axes = _Axes((0.0, len(starts)), (0.0, top))
    shapes, labels = axes.frame((), _linear_ticks(0.0, top), "Microbleeds", "Scans")
    width = 0.8 / len(series)
    for n, (title, height) in enumerate(zip(series, heights, strict=True)):
        for position, scans in enumerate(height):
            if not scans:
                continue
            left = position + 0.1 + n * width
            corners = [left, left, left + width * 0.94, left + width * 0.94]
            tooltip = f"{title}: {scans} scan{'s' if scans > 1 else ''} with {names[position]} microbleeds"
            bar = axes.line(corners, [0.0, float(scans), float(scans), 0.0]) + "Z"
            shapes.append(Shape(bar, f"bar {'all' if len(series) == 1 else f's{n}'}", title=tooltip))
            if len(series) == 1:
                x, y = axes.at(left + width / 2, float(scans))
                labels.append(Label(x, y - 5, str(scans), "middle"))
    for position, name in enumerate(names):
        shown = name.replace(" to ", "–").replace(" or more", "+")
        labels.append(Label(axes.at(position + 0.5, 0.0)[0], HEIGHT - BOTTOM + 18, shown, "middle"))
    words = "; ".join(
        f"{title}: " + ", ".join(f"{scans} with {name}" for scans, name in zip(height, names, strict=True))
        for title, height in zip(series, heights, strict=True)
    )
    return _plot(
        shapes,
        labels,
        alt=f"{caption}: {words}",
        caption=caption,
    )


def scan_plot(points: Sequence[tuple[str, int, int]], marked: frozenset[int]) -> Picture:
    """The count of each scan in the order of the table: differences between sites or scanners show as steps.

    Args:
        points: (name, position in the table from 0, count) of each scan.
        marked: positions to draw as outliers.
    """
    last = max(position for _, position, _ in points) + 1
    top = _round_up(max(count for _, _, count in points))
    axes = _Axes((0.0, last + 1.0), (0.0, top))
    ticks = [tick for tick in _linear_ticks(0.0, last + 1.0) if tick > 0]
    shapes, labels = axes.frame(ticks, _linear_ticks(0.0, top), "Scan, as listed", "Microbleeds")
    # outliers last, on top of the others
    for name, position, count in sorted(points, key=lambda point: point[1] in marked):
        x, y = axes.at(position + 1.0, float(count))
        if position in marked:
            shapes.append(Shape(glyph("deep", x, y, 6.0), "point s1", title=f"{name}: {count}, stands out"))
        else:
            shapes.append(Shape(glyph("lobar", x, y, 3.5), "spot", title=f"{name}: {count}"))
    return _plot(
        shapes,
        labels,
        alt=f"Microbleeds of each of {len(points)} scans, 0 to {max(count for _, _, count in points)}",
        caption="Microbleeds of each scan, in the order of the table; diamonds stand out",
    )


def _round_up(value: float) -> float:
    """The next round number above the value, with some room, at least 1."""
    value = max(value * 1.05, 1.0)
    size = 10.0 ** math.floor(math.log10(value))
    return next(size * m for m in (1, 2, 3, 4, 5, 6, 8, 10) if size * m >= value)


def _linear_ticks(low: float, high: float) -> list[float]:
    # at most six ticks, spaced by 1, 2 or 5 times a power of ten; counts need no ticks between integers
    least = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(least))
    step = max(1.0, next(size * m for m in (1, 2, 5, 10) if size * m >= least))
    first = math.ceil(low / step) * step
    return [first + n * step for n in range(int((high - first) / step + 1e-9) + 1)]
