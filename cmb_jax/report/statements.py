"""What published criteria say about the counted microbleeds, as plain statements: never a diagnosis.

Sources: Boston criteria 2.0, Charidimou et al. 2022, Lancet Neurol 21:714-725; baseline MRI before antibodies
against amyloid, Cummings et al. 2023, J Prev Alzheimers Dis 10:362-377 (lecanemab); size classes of BOMBS,
Cordonnier et al. 2009, Stroke 40:94-99.
"""

import dataclasses
from collections.abc import Sequence

from cmb_jax.anatomy.regions import Region
from cmb_jax.core.detection import DetectionRow
from cmb_jax.report.summary import Count, count

NOT_A_DIAGNOSIS = "Not a diagnosis."
ARIA_LIMIT = 4  # microhemorrhages at baseline; more speak against treatment in the recommendations
BOMBS_BORDER_MM = 5.0  # between its two classes of size
BOMBS_LARGEST_MM = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement with its source."""

    title: str
    text: str
    source: str


def statements(rows: Sequence[DetectionRow], partial_field_of_view: bool = False) -> tuple[Statement, ...]:
    """What the criteria say about kept rows whose zones are trusted.

    Args:
        rows: kept detections.
        partial_field_of_view: counts are lower bounds then, and absence proves nothing.
    """
    return (boston(rows, partial_field_of_view), aria(rows, partial_field_of_view))


def boston(rows: Sequence[DetectionRow], partial_field_of_view: bool = False) -> Statement:
    """The microbleeds' part of the Boston criteria 2.0.

    Definite microbleeds count. Those of the cerebellum are neither lobar nor deep; those of the brainstem
    count with the deep ones.
    """
    definite = [row for row in rows if row.category == "definite"]
    cerebellar = sum(row.region == Region.CEREBELLUM.name.lower() for row in definite)
    lobar = sum(row.zone == "lobar" for row in definite)
    deep = sum(row.zone in ("deep", "infratentorial") for row in definite) - cerebellar
    counts = (
        f"Definite microbleeds: {lobar} lobar, {deep} deep or in the brainstem, {cerebellar} cerebellar "
        "(counted as neither)."
    )
    if deep:
        says = "Deep ones are present: the pattern is not strictly lobar."
    elif lobar >= 2:
        says = (
            "Two or more strictly lobar hemorrhagic lesions: the microbleeds alone meet this item of "
            "probable cerebral amyloid angiopathy."
        )
    elif lobar == 1:
        says = (
            "One strictly lobar hemorrhagic lesion: the microbleeds meet this item of possible cerebral "
            "amyloid angiopathy."
        )
    else:
        says = "No lobar ones: the microbleeds meet no item."
    unseen = " The scan covers a part of the brain only: deep ones may lie outside it." * (
        partial_field_of_view and not deep
    )
    return Statement(
        title="Microbleeds in the Boston criteria 2.0",
        text=(
            f"{counts} {says}{unseen} Age, presentation, larger hemorrhages, superficial siderosis and "
            f"white matter, which the criteria also ask for, are not judged here. {NOT_A_DIAGNOSIS}"
        ),
        source="Charidimou et al. 2022, Lancet Neurol 21:714",
    )


def aria(rows: Sequence[DetectionRow], partial_field_of_view: bool = False) -> Statement:
    """Whether there are more microbleeds than recommendations for antibodies against amyloid accept."""
    counted = count(rows)
    noun = "microbleed" if counted.total == 1 else "microbleeds"
    counts = f"{counted.total} {noun}, {counted.definite} definite"
    if counted.definite > ARIA_LIMIT:
        says = f"more than {ARIA_LIMIT}, by the definite ones alone"
    elif counted.total > ARIA_LIMIT:
        says = f"more than {ARIA_LIMIT} only with the possible ones"
    else:
        says = f"not more than {ARIA_LIMIT}"
    partial = " The scan covers a part of the brain only: the count is a lower bound." * partial_field_of_view
    return Statement(
        title="Baseline count for ARIA-H",
        text=(
            f"{counts}: {says}. Appropriate use recommendations speak against treatment when there are more "
            f"than {ARIA_LIMIT} microhemorrhages before it begins. Superficial siderosis and larger "
            f"hemorrhages, which count as well, are not judged here.{partial} {NOT_A_DIAGNOSIS}"
        ),
        source="Cummings et al. 2023, J Prev Alzheimers Dis 10:362",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BombsLine:
    """One location of the BOMBS form: certain and uncertain microbleeds by side and size."""

    name: str
    right_small: Count  # below 5 mm
    right_large: Count  # 5 to 10 mm
    left_small: Count
    left_large: Count
    unsided: Count

    @property
    def total(self) -> int:
        """All of the line."""
        parts = (self.right_small, self.right_large, self.left_small, self.left_large, self.unsided)
        return sum(part.total for part in parts)


# Cortex and subcortical white matter, two lines of the form, are one here: the region map does not part them.
BOMBS_LOCATIONS: tuple[tuple[str, tuple[Region, ...]], ...] = (
    (
        "Lobes: cortex, gray-white junction, subcortical white matter",
        (Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL, Region.INSULA),
    ),
    ("Deep white matter and corpus callosum", (Region.DEEP_WHITE_MATTER, Region.CORPUS_CALLOSUM)),
    ("Basal ganglia gray matter", (Region.BASAL_GANGLIA,)),
    ("Internal and external capsule", (Region.INTERNAL_CAPSULE, Region.EXTERNAL_CAPSULE)),
    ("Thalamus", (Region.THALAMUS,)),
    ("Brainstem", (Region.BRAINSTEM,)),
    ("Cerebellum", (Region.CEREBELLUM,)),
)


def bombs_table(rows: Sequence[DetectionRow]) -> tuple[BombsLine, ...]:
    """The form of the Brain Observer Microbleed Scale, with its sum as the last line.

    Rows above 10 mm, which the scale does not count, and rows without a region are left out.
    """
    lines = []
    counted: list[DetectionRow] = []
    for name, regions in BOMBS_LOCATIONS:
        names = {region.name.lower() for region in regions}
        here = [row for row in rows if row.region in names and row.diameter_mm <= BOMBS_LARGEST_MM]
        lines.append(_bombs_line(name, here))
        counted += here
    return (*lines, _bombs_line("Whole brain", counted))


def _bombs_line(name: str, rows: Sequence[DetectionRow]) -> BombsLine:
    def part(side: str, large: bool) -> Count:
        return count(r for r in rows if r.side == side and (r.diameter_mm >= BOMBS_BORDER_MM) == large)

    return BombsLine(
        name=name,
        right_small=part("right", False),
        right_large=part("right", True),
        left_small=part("left", False),
        left_large=part("left", True),
        unsided=count(row for row in rows if row.side == "none"),
    )
