"""Texts for results: what published criteria say about the counts, and methods.md for papers.

Statements are never a diagnosis.

Sources: Boston criteria 2.0, Charidimou et al. 2022, Lancet Neurol 21:714-725; baseline MRI before antibodies
against amyloid, Cummings et al. 2023, J Prev Alzheimers Dis 10:362-377 (lecanemab); size classes of BOMBS,
Cordonnier et al. 2009, Stroke 40:94-99.
"""

import dataclasses
from collections.abc import Callable, Sequence

from cmb_jax.anatomy.regions import Region
from cmb_jax.core.detection import DetectionRow
from cmb_jax.report.summary import Count, count

NOT_A_DIAGNOSIS = "Not a diagnosis."
ARIA_LIMIT = 4  # microhemorrhages at baseline; the recommendations advise against treatment with more
BOMBS_BORDER_MM = 5.0  # between its two classes of size
BOMBS_LARGEST_MM = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement with its source."""

    title: str
    text: str
    source: str


def statements(rows: Sequence[DetectionRow], partial_field_of_view: bool = False) -> tuple[Statement, ...]:
    """What the criteria say about kept detections whose zones are trusted.

    Args:
        rows: kept detections.
        partial_field_of_view: counts are then lower bounds, and absence proves nothing.
    """
    return (boston(rows, partial_field_of_view), aria(rows, partial_field_of_view))


def boston(rows: Sequence[DetectionRow], partial_field_of_view: bool = False) -> Statement:
    """The part of the Boston criteria 2.0 that concerns microbleeds.

    Only definite ones count. Cerebellar ones are neither lobar nor deep; those in the brainstem count as
    deep.
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
    """Whether there are more microbleeds than recommendations for anti-amyloid antibodies accept."""
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
        """All microbleeds of the line."""
        parts = (self.right_small, self.right_large, self.left_small, self.left_large, self.unsided)
        return sum(part.total for part in parts)


# the form has separate lines for cortex and subcortical white matter, which the region map does not separate
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
    """The form of the Brain Observer Microbleed Scale; the last line is the total.

    Detections above 10 mm, which the scale excludes, and those without a region are left out.
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


_REFERENCES = {
    "method": "Kim J-H, Noh Y, Lee H, et al. Toward automated detection of microbleeds with anatomical scale "
    "localization using deep learning. 2023. arXiv:2306.13020.",
    "mars": "Gregoire SM, Chaudhary UJ, Brown MM, et al. The Microbleed Anatomical Rating Scale (MARS): "
    "reliability of a tool to map brain microbleeds. Neurology 2009;73:1759-1766.",
    "regions": "Billot B, Greve DN, Puonti O, et al. SynthSeg: segmentation of brain MRI scans of any "
    "contrast and resolution without retraining. Med Image Anal 2023;86:102789.",
    "mni": "Fonov V, Evans AC, Botteron K, et al. Unbiased average age-appropriate atlases for pediatric "
    "studies. NeuroImage 2011;54:313-327.",
    "phase": "Haacke EM, Xu Y, Cheng Y-CN, Reichenbach JR. Susceptibility weighted imaging (SWI). Magn "
    "Reson Med 2004;52:612-618.",
}


_SCANS_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsFacts:
    """The facts behind the sentences, for one scan or for all scans processed in the same way."""

    version: str
    weights_name: str
    weights_sha256: str
    threshold: float
    calibrated: bool  # probabilities are given
    bundled: bool  # the weights come with the package
    phase: bool | None  # whether a phase was used; None: only for scans that had one
    threshold_without_phase: float | None = None  # if only some scans had a phase; None: the same threshold
    options: tuple[str, ...] = ()  # settings other than the defaults, e.g. "flips xyz"
    own_regions: bool = False  # label volumes were used instead of the region network
    made_swi: bool = False  # SWI was made here from magnitude and phase
    mni: bool = True  # MNI coordinates are given
    scans: tuple[str, ...] = ()  # names, if other scans of the cohort were processed differently


def methods_text(ways: Sequence[MethodsFacts]) -> str:
    """Markdown to be used in a paper as it is; every sentence is true of these results.

    Args:
        ways: how the results were made. Most cohorts have one way; if there are several, each names its
        scans.
    """
    used: list[str] = []

    # references are numbered in order of first mention across all paragraphs
    def cite(name: str) -> str:
        if name not in used:
            used.append(name)
        return f"[{used.index(name) + 1}]"

    total = sum(len(facts.scans) for facts in ways)
    paragraphs = []
    if len(ways) > 1:
        paragraphs.append(
            f"**These results were made in {len(ways)} ways, each described below: do not compare or pool "
            "their counts.** Make them alike with `cmb-jax bids ... participant --overwrite`."
        )
    for facts in ways:
        text = _paragraph(facts, cite)
        paragraphs.append(f"{_scans_text(facts.scans, total)} {text}" if len(ways) > 1 else text)
    references = "\n".join(f"{number}. {_REFERENCES[name]}" for number, name in enumerate(used, start=1))
    return (
        "# Methods text\n\n"
        "Written by the run itself; to be used as it is (CC0), with the brackets filled in. "
        "Research use only; not a diagnosis.\n\n"
        + "\n\n".join(paragraphs)
        + f"\n\n## References\n\n{references}\n"
    )


def _scans_text(scans: tuple[str, ...], total: int) -> str:
    named = ", ".join(scans[:_SCANS_NAMED])
    more = f" and {len(scans) - _SCANS_NAMED} more" if len(scans) > _SCANS_NAMED else ""
    return f"{len(scans)} of {total} scans ({named}{more}):"


def _paragraph(facts: MethodsFacts, cite: Callable[[str], str]) -> str:
    inputs = {
        True: "susceptibility-weighted images and phase",
        False: "susceptibility-weighted images without phase",
        None: "susceptibility-weighted images and, where there was one, phase",
    }[facts.phase]
    trained = "simulated scans only" if facts.bundled else "[say on what the weights were trained]"
    sentences = [
        f"Cerebral microbleeds were detected with cmb_jax {facts.version}, a 3D convolutional network after "
        f"Kim et al. {cite('method')} trained on {trained} (weights {facts.weights_name}, SHA-256 "
        f"{facts.weights_sha256[:16]}{''.join(f', {option}' for option in facts.options)}), from {inputs}.",
    ]
    if facts.made_swi:
        sentences.append(
            "Where no susceptibility-weighted image was stored, it was made from magnitude and phase "
            f"{cite('phase')}."
        )
    if facts.own_regions:
        sentences.append("The brain and its regions were taken from given label volumes.")
    else:
        sentences.append(
            "The brain and its regions were labeled at 2 mm by a network that was trained on "
            f"synthetic contrasts {cite('regions')}."
        )
    other = facts.threshold_without_phase
    without = "" if other in (None, facts.threshold) else f" (without a phase {other:.3f})"
    sentences.append(
        f"Candidates with a score of at least {facts.threshold:.3f}{without} in brain tissue were kept"
        + (", each with a calibrated probability" if facts.calibrated else "")
        + "; their region and zone (lobar, deep, infratentorial) follow the Microbleed Anatomical Rating "
        f"Scale {cite('mars')}."
    )
    if facts.mni:
        sentences.append(
            "Coordinates in MNI152NLin2009cAsym space "
            f"{cite('mni')} come from an affine transform between the centers of brain regions."
        )
    sentences.append(
        "The detections were [not] reviewed by [readers]. [Say here how, and cite the "
        "evaluation that you rely on.]"
    )
    return " ".join(sentences)
