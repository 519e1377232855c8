"""The picture at the top of README: what the demo finds, on its scan. Run by `make figures`.

    python tools/readme_picture.py demo_output docs/images/result.png

Beside it goes result.json, which says what it was made from; a test compares that with what is bundled.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects

from cmb_jax.cli.predict import BUNDLED, SUBJECT
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.nifti import read_volume

SWI = BUNDLED / SUBJECT / "anat" / f"{SUBJECT}_swi.nii.gz"
COLORS = {"lobar": "#ffb000", "deep": "#4cc3ff", "infratentorial": "#ff7ab6"}
SLAB_MM = 10.0
SLABS = 3
BACKGROUND = "#111418"


def made_from(result: Path) -> dict[str, str]:
    """SHA-256 of the scan and of the weights that a prediction used."""
    record = json.loads((result / "detections.json").read_text(encoding="utf-8"))
    return {"swi": sha256_file(SWI), "weights": record["weights"]["sha256"]}


def chosen_heights(z: np.ndarray, half: float) -> list[float]:
    """Middles of slabs that do not overlap and hold the most candidates, from top to bottom."""
    left, heights = z.copy(), []
    while len(heights) < SLABS and len(left):
        counts = [(np.abs(left - each) <= half).sum() for each in left]
        middle = float(left[int(np.argmax(counts))])
        heights.append(middle)
        left = left[np.abs(left - middle) > 2 * half]
    return sorted(heights, reverse=True)


def draw(result: Path, out: Path) -> None:
    """Draw the slabs and their candidates."""
    volume = read_volume(SWI)
    with (result / "detections.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "kept"]
    at = np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] + [1.0] for row in rows])
    x, y, z = (at @ np.linalg.inv(volume.affine).T)[:, :3].T
    dx, dy, dz = volume.spacing_mm
    half = SLAB_MM / 2 / dz
    head = volume.data > np.percentile(volume.data, 60)
    columns, lines = (np.flatnonzero(head.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    low, high = np.percentile(volume.data[head], (1, 99.7))

    figure, axes = plt.subplots(1, SLABS, figsize=(12.8, 5.0), dpi=100, facecolor=BACKGROUND)
    for axis in axes:
        axis.set_axis_off()
    for axis, height in zip(axes, chosen_heights(z, half), strict=False):
        first, last = max(0, round(height - half)), round(height + half) + 1
        slab = volume.data[:, :, first:last].min(axis=2)
        axis.imshow(slab.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=dy / dx)
        axis.set_xlim(columns[0] - 4, columns[-1] + 4)
        axis.set_ylim(lines[0] - 4, lines[-1] + 4)
        for row, i, j, k in zip(rows, x, y, z, strict=True):
            if first <= round(k) < last:
                color = COLORS.get(row["zone"], "white")
                style = "-" if row["category"] == "definite" else ":"
                axis.scatter(i, j, s=420, facecolors="none", edgecolors=color, linewidths=2, linestyles=style)
                text = f"{row['region'].replace('_', ' ')}\n{float(row['diameter_mm']):.1f} mm"
                leftwards = i > columns[-1] - 60
                note = axis.annotate(
                    text,
                    (i, j),
                    (-13 if leftwards else 13, 0),
                    textcoords="offset points",
                    color=color,
                    fontsize=9,
                    va="center",
                    ha="right" if leftwards else "left",
                )
                note.set_path_effects([patheffects.withStroke(linewidth=3, foreground="black")])
    counts = {zone: sum(row["zone"] == zone for row in rows) for zone in COLORS}
    definite = sum(row["category"] == "definite" for row in rows)
    figure.text(
        0.02,
        0.045,
        f"{len(rows)} microbleeds kept: {definite} definite (full circles), {len(rows) - definite} possible",
        color="white",
        fontsize=12,
    )
    for n, (zone, count) in enumerate(counts.items()):
        figure.text(0.60 + 0.12 * n, 0.045, f"{zone} {count}", color=COLORS[zone], fontsize=12)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.985, bottom=0.1, wspace=0.02)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, facecolor=BACKGROUND, metadata={"Software": None})
    plt.close(figure)
    out.with_suffix(".json").write_text(json.dumps(made_from(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) / SUBJECT, Path(sys.argv[2]))
