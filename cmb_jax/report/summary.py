"""The content of a report on one subject: its counts, MARS table and plain sentences."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Zone
from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.volume import Volume


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything on the page of one subject; rendering reads nothing from disk."""

    subject: str
    rows: tuple[DetectionRow, ...]  # kept and rejected alike
    swi: Volume  # (X, Y, Z), axes R, A, S
    phase: Volume | None  # prepared phase in radians, paramagnetic positive, on swi's grid
    brain_mask: np.ndarray  # (X, Y, Z) bool on swi's grid
    region_code: np.ndarray | None  # (X, Y, Z) uint8 on swi's grid, 16 * side + region
    warnings: tuple[str, ...] = ()  # one line each
    settings: tuple[tuple[str, str], ...] = ()  # (name, value)
    inputs: tuple[tuple[str, str, str], ...] = ()  # (role, file name, sha256)
    weights_sha256: str = ""
    version: str = ""
    steps: tuple[str, ...] = ()  # processing steps in order
    timings: tuple[tuple[str, float], ...] = ()  # (name, seconds)
    partial_field_of_view: bool = False
    unlisted: int = 0  # rejected candidates beyond those in rows, which are the best
    viewer: str = ""  # name of the viewer's page beside the report, if there is one
    regions_trusted: bool = True  # False: zones, regions and sides are not reported

    def __post_init__(self) -> None:
        grids = {"brain_mask": self.brain_mask, "region_code": self.region_code}
        if self.phase is not None:
            grids["phase"] = self.phase.data
        for name, array in grids.items():
            if array is not None and array.shape != self.swi.shape:
                raise ValueError(f"{name} has shape {array.shape}, but swi has {self.swi.shape}")


ZONES: tuple[str, ...] = ("lobar", "deep", "infratentorial")

# The order of the published form (Gregoire et al. 2009, Neurology 73:1759).
MARS_ORDER: tuple[str, ...] = ("infratentorial", "deep", "lobar")

_REGION_NAMES = {
    Region.DEEP_WHITE_MATTER: "Deep and periventricular white matter",
}


class Pattern(enum.StrEnum):
    """Which zones the counted microbleeds lie in."""

    NONE = "none"
    STRICTLY_LOBAR = "strictly lobar"
    STRICTLY_DEEP = "strictly deep"
    INFRATENTORIAL = "infratentorial only"
    MIXED = "mixed"


_SINGLE_ZONE_PATTERN = {
    "lobar": Pattern.STRICTLY_LOBAR,
    "deep": Pattern.STRICTLY_DEEP,
    "infratentorial": Pattern.INFRATENTORIAL,
}


@dataclasses.dataclass(frozen=True)
class Count:
    """Definite and possible microbleeds."""

    definite: int = 0
    possible: int = 0

    @property
    def total(self) -> int:
        """Definite and possible together."""
        return self.definite + self.possible


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarsLine:
    """One line of the rating form: a region, a zone's subtotal, or the whole brain."""

    name: str
    zone: str  # "lobar", "deep", "infratentorial", "none", or "all" for the last line
    kind: str  # "region", "zone" or "total"
    right: Count
    left: Count
    unsided: Count

    @property
    def both(self) -> Count:
        """All sides together."""
        parts = (self.right, self.left, self.unsided)
        return Count(sum(p.definite for p in parts), sum(p.possible for p in parts))


def kept_rows(rows: Iterable[DetectionRow]) -> tuple[DetectionRow, ...]:
    """The reported rows, by id."""
    return tuple(sorted((row for row in rows if row.status == "kept"), key=lambda row: row.id))


def rejected_rows(rows: Iterable[DetectionRow]) -> tuple[DetectionRow, ...]:
    """The rejected rows, the highest score first."""
    return tuple(sorted((row for row in rows if row.status != "kept"), key=lambda row: (-row.score, row.id)))


def count(rows: Iterable[DetectionRow]) -> Count:
    """Definite and possible rows."""
    categories = Counter(row.category for row in rows)
    return Count(categories["definite"], categories["possible"])


def pattern_of(rows: Iterable[DetectionRow]) -> Pattern:
    """The pattern of the given rows; rows without a zone say nothing."""
    zones = {row.zone for row in rows} - {"none"}
    if not zones:
        return Pattern.NONE
    if len(zones) == 1:
        return _SINGLE_ZONE_PATTERN[zones.pop()]
    return Pattern.MIXED


def describe_pattern(rows: Sequence[DetectionRow]) -> str:
    """One plain sentence on the pattern of the kept rows.

    The definite microbleeds decide, as in MARS; when the possible ones would change the answer, it says so.
    """
    definite = [row for row in rows if row.category == "definite"]
    if pattern_of(rows) is Pattern.NONE:
        return "No pattern: no reported microbleed has a zone."
    if pattern_of(definite) is Pattern.NONE:
        return f"Possible microbleeds only: {_pattern_words(rows)}."
    sentence = f"Definite microbleeds: {_pattern_words(definite)}"
    if _zones_of(definite) != _zones_of(rows):
        sentence += f"; with the possible ones: {_pattern_words(rows)}"
    return sentence + "."


def _zones_of(rows: Iterable[DetectionRow]) -> list[str]:
    present = {row.zone for row in rows}
    return [zone for zone in ZONES if zone in present]


def _pattern_words(rows: Sequence[DetectionRow]) -> str:
    pattern = pattern_of(rows)
    if pattern is not Pattern.MIXED:
        return pattern.value
    *first, last = _zones_of(rows)
    return f"mixed ({', '.join(first)} and {last})"


def region_title(name: str) -> str:
    """The title of a region, e.g. "Basal ganglia"; of an unknown name, the name without underscores."""
    try:
        region = Region[name.upper()]
    except KeyError:
        return name.replace("_", " ").capitalize()
    return _REGION_NAMES.get(region, region.name.replace("_", " ").capitalize())


def location_text(row: DetectionRow, trusted: bool) -> str:
    """Side and region in words, e.g. "right frontal"."""
    if not trusted:
        return "location not reported"
    region = region_title(row.region).lower() if row.zone != "none" else "no region"
    return f"{row.side} {region}" if row.side != "none" else region


def mars_table(rows: Sequence[DetectionRow]) -> tuple[MarsLine, ...]:
    """The rating form of the kept rows: regions with subtotals by zone, then the whole brain.

    Rows without a zone, if any, get a line of their own, so that the totals add up.
    """
    lines: list[MarsLine] = []
    for zone in MARS_ORDER:
        in_zone = [row for row in rows if row.zone == zone]
        lines.append(_line(zone.capitalize(), zone, "zone", in_zone))
        named = [Region(i).name.lower() for i in Region if ZONE_OF_REGION[i] == Zone[zone.upper()]]
        # regions that are not on the form also get lines, so that the lines add up to the zone
        unlisted = sorted({row.region for row in in_zone} - set(named))
        for name in (*named, *unlisted):
            in_region = [row for row in in_zone if row.region == name]
            lines.append(_line(region_title(name), zone, "region", in_region))
    if unplaced := [row for row in rows if row.zone not in ZONES]:
        lines.append(_line("No zone", "none", "zone", unplaced))
    lines.append(_line("Whole brain", "all", "total", rows))
    return tuple(lines)


def _line(name: str, zone: str, kind: str, rows: Sequence[DetectionRow]) -> MarsLine:
    by_side = {side: count(r for r in rows if r.side == side) for side in ("right", "left", "none")}
    return MarsLine(
        name=name,
        zone=zone,
        kind=kind,
        right=by_side["right"],
        left=by_side["left"],
        unsided=by_side["none"],
    )


def reason_text(reason: str) -> str:
    """A reason in words: codes such as IN_VENTRICLE are spelled out, sentences are kept."""
    if not reason:
        return "no reason recorded"
    return reason if " " in reason else reason.replace("_", " ").lower().replace("csf", "CSF")


def probability_text(probability: float | None) -> str:
    """A probability as text; a dash without one."""
    return "–" if probability is None else f"{probability:.2f}"


def reason_counts(rows: Iterable[DetectionRow]) -> tuple[tuple[str, int], ...]:
    """The number of rejected rows per reason, the most common first."""
    return tuple(Counter(reason_text(row.reason) for row in rejected_rows(rows)).most_common())


def setting(content: ReportContent, name: str) -> str | None:
    """The value of a setting by the last part of its name, e.g. score_threshold."""
    for key, value in content.settings:
        if key.rsplit(".", 1)[-1] == name:
            return value
    return None


def empty_explanation(content: ReportContent) -> tuple[str, ...]:
    """Why a report shows no microbleed, in sentences; empty if it shows any."""
    if kept_rows(content.rows):
        return ()
    threshold = setting(content, "score_threshold")
    operating_point = f" The score threshold was {threshold}." if threshold else ""
    rejected = rejected_rows(content.rows)
    if not rejected:
        lowest = setting(content, "candidate_threshold")
        above = f" above the listing threshold of {lowest}" if lowest else ""
        sentences = [
            f"The detector proposed no candidate{above}, so there was nothing to reject.{operating_point}"
        ]
    else:
        reasons = ", ".join(f"{number} {reason}" for reason, number in reason_counts(rejected))
        noun = "candidate was" if len(rejected) == 1 else "candidates were"
        sentences = [
            f"{len(rejected)} {noun} examined and rejected: {reasons}.{operating_point}",
            f"The highest score among them was {rejected[0].score:.2f}. "
            "All of them are listed under Rejected candidates.",
        ]
    sentences.append("An empty list does not prove that there are no microbleeds.")
    return tuple(sentences)


def all_warnings(content: ReportContent) -> tuple[str, ...]:
    """General warnings that follow from the content, then those of the scan, without repeats."""
    general = []
    if content.partial_field_of_view:
        general.append(
            "Partial field of view: the scan does not cover the whole brain, so every count is a lower bound."
        )
    if not content.regions_trusted:
        general.append(
            "The region map is not trusted for this scan: zones, regions, sides and pattern are not reported."
        )
    if content.phase is None:
        general.append(
            "No phase image: calcifications cannot be told from microbleeds by their phase, "
            "so expect more false positives."
        )
    return tuple(dict.fromkeys((*general, *content.warnings)))
