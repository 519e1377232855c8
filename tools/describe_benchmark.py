"""Counts over stored splits of CMB-Phantom, for its data card.

    python tools/describe_benchmark.py TREE ... --images 18

Microbleeds by size, ignored ones and focal mimics come from the truth tables of all subjects; mimic
candidates (`cmb_jax.phantom.visibility`) from the images of the first `--images` subjects of each tree, as
reading them takes 1 to 20 s per subject. Prints a table in Markdown with a column for each tree.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import region_of
from cmb_jax.phantom import PROTOCOLS, MimicKind
from cmb_jax.phantom.tree import VERSION, check_phantom_version
from cmb_jax.phantom.types import FOCAL_MIMICS, READER_MM
from cmb_jax.phantom.visibility import SURROUNDINGS_MM, mimic_candidates
from cmb_jax.progress import track


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSubject:
    """One subject of a simulated tree; images are read when asked for."""

    root: Path
    row: dict[str, str]  # of participants.tsv
    lesions: list[dict[str, str]]  # of its truth table

    @property
    def name(self) -> str:
        """Such as sub-testhard0001."""
        return self.row["participant_id"]

    @property
    def has_phase(self) -> bool:
        """Whether the protocol provides a phase, and with it an SWI."""
        return PROTOCOLS[self.row["protocol"]].phase != "none"

    def of(self, kind: str) -> list[dict[str, str]]:
        """Rows of the truth table."""
        return [row for row in self.lesions if row["kind"] == kind]

    @functools.cache  # noqa: B019 -- the file stays open, so that slices read in order are unpacked once
    def image(self, suffix: str = "") -> nib.Nifti1Image:
        """The SWI, or the magnitude where there is none; another image by its suffix."""
        suffix = suffix or ("swi" if self.has_phase else "T2starw")
        path = self.root / self.name / "anat" / f"{self.name}_{suffix}.nii.gz"
        return nib.load(path, keep_file_open=True)

    def labels(self, kind: str) -> nib.Nifti1Image:
        """The truth's label image: cmb, mimics or regions."""
        folder = self.root / "derivatives" / "truth" / self.name / "anat"
        return nib.load(folder / f"{self.name}_desc-{kind}_dseg.nii.gz")


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with tabs."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def stored_subjects(root: Path) -> list[StoredSubject]:
    """All subjects of a simulated tree."""
    check_phantom_version(root)
    rows = read_table(root / "participants.tsv")
    truth = root / "derivatives" / "truth"
    names = [row["participant_id"] for row in rows]
    tables = [read_table(truth / name / "anat" / f"{name}_desc-lesions.tsv") for name in names]
    return [StoredSubject(root, row, table) for row, table in zip(rows, tables, strict=True)]


def candidates_of(subject: StoredSubject) -> Counter[MimicKind]:
    """Mimic candidates by kind. Only the box around the brain is looked at: nothing beyond it decides."""
    image, regions = subject.image(), np.asarray(subject.labels("regions").dataobj)
    spacing = image.header.get_zooms()[:3]
    (box,) = ndimage.find_objects((region_of(regions) > 0).astype(np.uint8))
    margins = [int(np.ceil(SURROUNDINGS_MM / h)) + 1 for h in spacing]
    box = tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(box, margins, strict=True))
    cmb, mimics = (np.asarray(subject.labels(kind).dataobj)[box] for kind in ("cmb", "mimics"))
    swi = np.asarray(image.dataobj)[box].astype(np.float32)
    return Counter(mimic_candidates(swi, spacing, regions[box], cmb, mimics))


def spread(values: list[int]) -> str:
    """Least, median and most."""
    return f"{min(values)}, {int(np.median(values))}, {max(values)}"


def centiles(values: list[float]) -> str:
    """Median, 5th and 95th percentile."""
    low, middle, high = np.percentile(values, (5, 50, 95))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def truth_column(subjects: list[StoredSubject]) -> dict[str, str]:
    """What the tables of one tree say."""
    bleeds = [each.of("cmb") for each in subjects]
    rows = [row for each in bleeds for row in each]
    seen_mm = [float(row["apparent_diameter_mm"]) for row in rows]
    small = sum(mm < READER_MM[0] for mm in seen_mm)
    counts = [len(each) for each in bleeds]
    phase = sum(each.has_phase for each in subjects)
    with_phase = sum(n for n, each in zip(counts, subjects, strict=True) if each.has_phase)
    ignored = sum(len(each.of("ignored_microbleed")) for each in subjects)
    focal = [
        sum(row["kind"] not in ("cmb", "ignored_microbleed") for row in each.lesions) for each in subjects
    ]
    zones, kinds = (
        Counter(row["zone"] for row in rows),
        Counter(row["kind"] for each in subjects for row in each.lesions),
    )
    protocols: Counter[str] = Counter()
    for each, n in zip(subjects, counts, strict=True):
        protocols[each.row["protocol"]] += n
    return {
        "subjects; with a phase": f"{len(subjects)}; {phase}",
        "subjects without any microbleed that counts": str(counts.count(0)),
        "microbleeds that count; in scans with a phase": f"{len(rows)}; {with_phase}",
        "microbleeds per subject: least, median, most": spread(counts),
        "of these below 2 mm as seen; 2 to 10 mm": f"{small}; {len(rows) - small}",
        "apparent diameter, mm: median (5 to 95 %)": centiles(seen_mm),
        "true diameter, mm": centiles([float(row["diameter_mm"]) for row in rows]),
        "contrast-to-noise ratio": centiles([float(row["cnr"]) for row in rows]),
        "lobar; deep; infratentorial": "; ".join(
            str(zones[zone]) for zone in ("lobar", "deep", "infratentorial")
        ),
        "by protocol, " + ", ".join(protocols): ", ".join(map(str, protocols.values())),
        "microbleeds that are ignored": str(ignored),
        "focal mimics per subject: least, median, most": spread(focal),
        **{kind.name.lower().replace("_", " "): str(kinds[kind.name.lower()]) for kind in FOCAL_MIMICS},
    }


def candidate_column(subjects: list[StoredSubject]) -> dict[str, str]:
    """What the images of some subjects show."""
    found = []
    for each in track(subjects, subjects[0].root.name):
        found.append(candidates_of(each))
        print(each.name, dict(found[-1]), file=sys.stderr)
    kinds = sum(found, Counter())
    totals = [sum(n for kind, n in each.items() if kind != MimicKind.NONE) for each in found]
    means = {
        kind: f"{kinds[kind] / len(found):.1f}" for kind in MimicKind if kind != MimicKind.IGNORED_MICROBLEED
    }
    return {
        "subjects whose images were read": str(len(found)),
        "mimic candidates per subject: least, median, most": spread(totals),
        **{
            f"on {kind.name.lower().replace('_', ' ')}, mean per subject": means[kind]
            for kind in means
            if kind
        },
        "on nothing labeled, mean per subject": means[MimicKind.NONE],
    }


def main() -> None:
    """Read the trees and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=0)
    arguments = parser.parse_args()
    columns = []
    for root in arguments.trees:
        subjects = stored_subjects(root)
        column = truth_column(subjects)
        if arguments.images:
            column |= candidate_column(subjects[: arguments.images])
        columns.append(column)
    print(f"| CMB-Phantom {VERSION} | " + " | ".join(root.name for root in arguments.trees) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(each[name] for each in columns) + " |")


if __name__ == "__main__":
    main()
