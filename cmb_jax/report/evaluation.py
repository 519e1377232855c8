"""Self-contained HTML pages for an evaluation and for an ablation, from plain numbers and arrays."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cmb_jax.report.drawing import (
    AXIAL,
    PLANES,
    Picture,
    Shape,
    centered_frame,
    crosshair,
    data_uri,
    glyph,
    sample_plane,
    take_plane,
    to_gray,
)
from cmb_jax.report.html import environment
from cmb_jax.report.plots import (
    CountAgreementText,
    FrocLine,
    ReliabilityLine,
    SubjectLine,
    count_plot,
    difference_plot,
    froc_plot,
    reliability_plot,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """One large number at the top of the page."""

    label: str  # e.g. "Sensitivity"
    value: str  # e.g. "0.93"
    note: str = ""  # e.g. "95 % interval 0.90 to 0.96"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text and numbers."""

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
class EvaluationContent:
    """Everything on the evaluation page."""

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


def cell_text(value: str | float | int | None) -> str:
    """The text of a table cell: floats with up to three decimals, a dash for unknown values."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def numeric_columns(table: Table) -> list[bool]:
    """Which columns contain only numbers, and are therefore right-aligned."""
    return [all(not isinstance(row[n], str) for row in table.rows) for n in range(len(table.columns))]


def render_evaluation_report(content: EvaluationContent) -> str:
    """The page as one string: drawings inlined, no script, nothing fetched from anywhere."""
    plots = [] if content.reliability is None else [("Reliability", reliability_plot(content.reliability))]
    if content.subjects:
        plots.append(("Counts per scan", count_plot(content.subjects)))
        if content.agreement is not None and len(content.subjects) > 1:
            plots.append(("Bland-Altman", difference_plot(content.subjects, content.agreement)))
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            content=content,
            froc=froc_plot(content.curves) if content.curves else None,
            plots=plots,
            tables=[(table, numeric_columns(table)) for table in content.tables],
            cell_text=cell_text,
        )
    )


_MAP_PX, _MAP_MARGIN_PX = 420, 16
_CLASS_STYLES = ("s0", "s1")
_CLASS_NAMES = ("microbleed", "hard negative")
_CLASS_GLYPHS = ("lobar", "deep")  # a circle and a diamond: `glyph` names its symbols by zones
_EXAMPLE_MM, _EXAMPLE_PX = 20.0, 96
_SWI_WINDOW, _PHASE_WINDOW = (0.0, 1.25), (-0.35, 0.35)  # intensity over that of the brain; radians over pi
_CURVES_PER_PLOT = 3  # more bands hide each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """Samples and prototypes in a plane. S samples, P prototypes; class 0 = CMB, 1 = hard negative."""

    title: str
    points: np.ndarray  # (S, 2)
    classes: np.ndarray  # (S,)
    prototypes: np.ndarray  # (P, 2)
    prototype_classes: np.ndarray  # (P,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A picture of one place with its caption."""

    picture: Picture
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A place in a scan, with pictures of it and of the places that it is compared with."""

    title: str
    note: str
    views: tuple[View, ...]


def example_picture(
    image: np.ndarray,
    center_mm: Sequence[float] | np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    brief: bool = False,
) -> Picture:
    """One place in three planes, SWI above phase; brief: the axial plane alone, SWI beside phase.

    Args:
        image: (Z, Y, X, 2) as prepared for the network.
        center_mm: z, y, x from the image's first corner.
        spacing_mm: z, y, x.
        brief: one plane.
    """
    # the network's arrays are (Z, Y, X), pictures expect (X, Y, Z); the center of voxel 0 is half a voxel
    # from the corner
    spacing = (spacing_mm[2], spacing_mm[1], spacing_mm[0])
    center = np.array([center_mm[axis] / spacing_mm[axis] for axis in (2, 1, 0)]) - 0.5
    planes = (AXIAL,) if brief else PLANES
    rows: list[list[np.ndarray]] = []
    for channel, window in enumerate((_SWI_WINDOW, _PHASE_WINDOW)):
        data = image[..., channel].transpose(2, 1, 0)
        rows.append([])
        for plane in planes:
            frame = centered_frame(plane, spacing, center, _EXAMPLE_MM, _EXAMPLE_PX)
            picture = sample_plane(take_plane(data, plane, center[plane.through_axis]), frame)
            rows[-1].append(to_gray(picture, *window))
    gray = np.hstack([row[0] for row in rows]) if brief else np.vstack([np.hstack(row) for row in rows])
    height, width = gray.shape
    marks = "".join(
        crosshair(x + _EXAMPLE_PX / 2, y + _EXAMPLE_PX / 2, (16, 16), 8)
        for x in range(0, width, _EXAMPLE_PX)
        for y in range(0, height, _EXAMPLE_PX)
    )
    shown = "axial plane" if brief else "three planes"
    return Picture(
        width=width,
        height=height,
        alt=f"SWI and phase, {shown}, {_EXAMPLE_MM:g} mm around the place",
        uri=data_uri(gray),
        shapes=(Shape(marks, "halo"), Shape(marks, "mark")),
    )


def embedding_plot(shown: EmbeddingMap) -> Picture:
    """Samples as small symbols (circle or diamond by class), prototypes as large outlined ones.

    Both axes have the same scale, without numbers, because the embedding has no unit.
    """
    together = np.concatenate([shown.points, shown.prototypes])
    low, high = together.min(axis=0), together.max(axis=0)
    scale = (_MAP_PX - 2 * _MAP_MARGIN_PX) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2

    def place(point: np.ndarray) -> tuple[float, float]:
        x, y = (point - middle) * scale
        return _MAP_PX / 2 + float(x), _MAP_PX / 2 - float(y)

    shapes = [Shape(f"M1 1H{_MAP_PX - 1}V{_MAP_PX - 1}H1Z", "axis")]
    for kind in np.unique(shown.classes):
        # one path per class: hundreds of elements would make the page slow
        spots = (
            glyph(_CLASS_GLYPHS[kind], *place(point), 2.6) for point in shown.points[shown.classes == kind]
        )
        shapes.append(Shape("".join(spots), f"sample {_CLASS_STYLES[kind]}", title=_CLASS_NAMES[kind]))
    for point, kind in zip(shown.prototypes, shown.prototype_classes, strict=True):
        shapes.append(
            Shape(
                glyph(_CLASS_GLYPHS[kind], *place(point), 8.0),
                f"prototype {_CLASS_STYLES[kind]}",
                title=f"prototype of the class {_CLASS_NAMES[kind]}",
            )
        )
    return Picture(
        width=_MAP_PX,
        height=_MAP_PX,
        alt=f"{shown.title}: {len(shown.points)} samples and {len(shown.prototypes)} prototypes",
        shapes=tuple(shapes),
        caption=shown.title,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationContent:
    """Everything on the ablation page."""

    title: str
    sentences: tuple[str, ...]  # rule, thresholds, subjects, reference
    curves: tuple[FrocLine, ...]  # of the variants, the reference first
    curve_note: str
    tables: tuple[Table, ...]
    maps: tuple[EmbeddingMap, ...]
    examples: tuple[tuple[str, str, tuple[Example, ...]], ...]  # title, explanation, examples
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str, str], ...]  # (run, file name, sha256) of the weights
    version: str


def curve_groups(curves: tuple[FrocLine, ...]) -> list[tuple[FrocLine, ...]]:
    """The curves in groups, one per plot; each group starts with the reference, the first curve."""
    others_per_plot = _CURVES_PER_PLOT - 1
    reference, others = curves[:1], curves[1:]
    starts = range(0, max(1, len(others)), others_per_plot)
    return [(*reference, *others[start : start + others_per_plot]) for start in starts]


def render_ablation(content: AblationContent) -> str:
    """The page as one string: drawings inlined, no script, nothing fetched from anywhere."""
    return (
        environment()
        .get_template("ablation.html")
        .render(
            content=content,
            froc=[(group, froc_plot(group)) for group in curve_groups(content.curves)],
            maps=[embedding_plot(shown) for shown in content.maps],
            tables=[(table, numeric_columns(table)) for table in content.tables],
            cell_text=cell_text,
        )
    )
