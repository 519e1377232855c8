"""Counts over generated splits of CMB-Phantom for its data card.

    python tools/describe_benchmark.py EASY-TEST HARD-TEST

Microbleeds by size, ignored ones, focal mimics and mimic candidates (`cmb_jax.phantom.visibility`), a column
for each folder, as a table in Markdown; a line for each subject goes to stderr. Some seconds per subject.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np

from cmb_jax.phantom import MimicKind
from cmb_jax.phantom.tree import VERSION, check_phantom_version
from cmb_jax.phantom.visibility import mimic_candidates
from cmb_jax.progress import track


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one subject."""

    small: int  # microbleeds that count, below 2 mm as seen
    readers: int  # of 2 to 10 mm
    ignored: int
    focal: int  # calcifications and cavernomas
    candidates: Counter[MimicKind]


def labels(path: Path) -> np.ndarray:
    """A label image as it is stored."""
    return np.asarray(nib.load(path).dataobj)


def describe(root: Path, row: dict[str, str]) -> Counts:
    """Counts of the subject of one line of participants.tsv."""
    name = row["participant_id"]
    anat, truth = root / name / "anat", root / "derivatives" / "truth" / name / "anat"
    swi = anat / f"{name}_swi.nii.gz"
    image = nib.load(swi if swi.exists() else next(anat.glob(f"{name}*_T2starw.nii.gz")))
    cmb, mimics, regions = (
        labels(truth / f"{name}_desc-{kind}_dseg.nii.gz") for kind in ("cmb", "mimics", "regions")
    )
    found = mimic_candidates(
        image.get_fdata(dtype=np.float32), image.header.get_zooms()[:3], regions, cmb, mimics
    )
    return Counts(
        small=int(row["cmbs_below_2_mm"]),
        readers=int(row["cmbs_2_to_10_mm"]),
        ignored=int(row["ignored_microbleeds"]),
        focal=int(row["focal_mimics"]),
        candidates=Counter(found),
    )


def spread(values: list[int]) -> str:
    """Least, median and most."""
    return f"{min(values)}, {int(np.median(values))}, {max(values)}"


def column(root: Path) -> dict[str, str]:
    """What is said of one folder."""
    check_phantom_version(root)
    with (root / "participants.tsv").open(encoding="utf-8") as file:
        participants = list(csv.DictReader(file, delimiter="\t"))
    subjects = []
    for row in track(participants, root.name):
        each = describe(root, row)
        subjects.append(each)
        print(row["participant_id"], row["protocol"], row["anatomy"], each, file=sys.stderr)
    small, readers = (sum(getattr(each, name) for each in subjects) for name in ("small", "readers"))
    ignored = sum(each.ignored for each in subjects)
    bleeds = [each.small + each.readers for each in subjects]
    kinds = sum((each.candidates for each in subjects), Counter[MimicKind]())
    seen = [sum(n for kind, n in each.candidates.items() if kind != MimicKind.NONE) for each in subjects]
    return {
        "subjects; without any microbleed that counts": f"{len(subjects)}; {bleeds.count(0)}",
        "microbleeds that count": str(small + readers),
        "of these below 2 mm as seen": str(small),
        "of these 2 to 10 mm as seen": str(readers),
        "microbleeds per subject (least, median, most)": spread(bleeds),
        "microbleeds that are ignored": str(ignored),
        "focal mimics per subject": spread([each.focal for each in subjects]),
        "mimic candidates per subject": spread(seen),
        **{
            f"on {kind.name.lower().replace('_', ' ')}, mean per subject": f"{n / len(subjects):.1f}"
            for kind, n in kinds.most_common()
            if kind != MimicKind.NONE
        },
    }


def main() -> None:
    """Read the folders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    folders = parser.parse_args().folders
    columns = [column(root) for root in folders]
    print(f"| CMB-Phantom {VERSION} | " + " | ".join(root.name for root in folders) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name in dict.fromkeys(name for each in columns for name in each):
        print(f"| {name} | " + " | ".join(each.get(name, "0") for each in columns) + " |")


if __name__ == "__main__":
    main()
