"""Counts over a generated split of CMB-Phantom for its data card: python tools/describe_benchmark.py DIR.

Microbleeds, unseen ones, focal mimics and mimic candidates (`cmb_jax.phantom.candidates`) of every subject,
and their ranges. Some seconds a subject.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from cmb_jax.phantom import MimicKind
from cmb_jax.phantom.candidates import mimic_candidates


def labels(path: Path) -> np.ndarray:
    """A label image as it is stored."""
    return np.asarray(nib.load(path).dataobj)


def describe(root: Path, name: str) -> tuple[int, int, Counter[MimicKind]]:
    """Microbleeds, unseen ones and mimic candidates by kind of one subject."""
    anat, truth = root / name / "anat", root / "derivatives" / "truth" / name / "anat"
    swi = anat / f"{name}_swi.nii.gz"
    image = nib.load(swi if swi.exists() else anat / f"{name}_T2starw.nii.gz")
    cmb, mimics, regions = (
        labels(truth / f"{name}_desc-{kind}_dseg.nii.gz") for kind in ("cmb", "mimics", "regions")
    )
    unseen = ndimage.label(mimics == MimicKind.UNSEEN_MICROBLEED, np.ones((3, 3, 3)))[1]
    spacing = image.header.get_zooms()[:3]
    found = mimic_candidates(image.get_fdata(dtype=np.float32), spacing, regions, cmb, mimics)
    return len(np.unique(cmb)) - 1, unseen, Counter(found)


def spread(values: list[int]) -> str:
    """Least, median and most."""
    return f"{min(values)} / {int(np.median(values))} / {max(values)}"


def main() -> None:
    """Read a split and print a line a subject, then the ranges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    with (root / "participants.tsv").open(encoding="utf-8") as file:
        participants = list(csv.DictReader(file, delimiter="\t"))
    bleeds, unseen, focal, candidates = [], [], [], []
    kinds: Counter[MimicKind] = Counter()
    for row in tqdm(participants, unit="subject"):
        counts = describe(root, row["participant_id"])
        bleeds.append(counts[0])
        unseen.append(counts[1])
        focal.append(int(row["focal_mimics"]))
        candidates.append(sum(n for kind, n in counts[2].items() if kind != MimicKind.NONE))
        kinds.update(counts[2])
        print(row["participant_id"], row["protocol"], row["anatomy"], bleeds[-1], unseen[-1], candidates[-1])
    print(f"microbleeds: {sum(bleeds)}, a subject {spread(bleeds)}; without any: {bleeds.count(0)} subjects")
    print(f"unseen: {sum(unseen)}; focal mimics a subject {spread(focal)}")
    print(f"mimic candidates a subject {spread(candidates)}")
    for kind, count in kinds.most_common():
        print(f"  {kind.name.lower()}: {count / len(participants):.1f} a subject")


if __name__ == "__main__":
    main()
