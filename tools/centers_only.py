"""A site that knows centers alone from a tree of `cmb-jax simulate`: python tools/centers_only.py TREE SITE.

SITE gets the images of every subject (as links) and a table of the microbleeds' centers without diameters: an
own folder, as `cmb-jax data index` reads it, to try fine-tuning on a protocol that the weights never saw.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

IMAGES = {"swi": "swi", "part-phase_T2starw": "phase", "part-mag_T2starw": "mag", "T2starw": "t2s"}


def add_subject(tree: Path, site: Path, name: str) -> None:
    """Link a subject's images and write its table of centers."""
    folder = site / name
    folder.mkdir(parents=True)
    for suffix, word in IMAGES.items():
        image = tree / name / "anat" / f"{name}_{suffix}.nii.gz"
        if image.exists():
            (folder / f"{name}_{word}.nii.gz").symlink_to(image.resolve())
    table = tree / "derivatives" / "truth" / name / "anat" / f"{name}_desc-lesions.tsv"
    with table.open(newline="") as file:
        lesions = [row for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "cmb"]
    lines = [f"{row['x_mm']},{row['y_mm']},{row['z_mm']}" for row in lesions]
    (folder / f"{name}_points.csv").write_text("\n".join(["x_mm,y_mm,z_mm", *lines]) + "\n")


def main() -> None:
    """Write the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("site", type=Path)
    arguments = parser.parse_args()
    for anat in sorted(arguments.tree.glob("sub-*/anat")):
        add_subject(arguments.tree, arguments.site, anat.parent.name)


if __name__ == "__main__":
    main()
