"""Pictures and figures of the phantom for docs/realism.md, from stored splits; nothing is simulated.

    python tools/realism.py TREE ... --out docs/images

TREE: simulated trees (`cmb-jax benchmark-data`). Of each kind of lesion and mimic 12 random examples are
drawn, from as many subjects as have it, none chosen by its looks; the numbers printed are of all subjects.
Needs matplotlib (development requirements). A minute or two of one core, most of it unpacking.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from describe_benchmark import StoredSubject, centiles, stored_subjects
from PIL import Image

from cmb_jax.anatomy.regions import region_of
from cmb_jax.phantom import PROTOCOLS, MimicKind
from cmb_jax.phantom.types import READER_MM
from cmb_jax.progress import track

SEED = 17
EXAMPLES = 12  # of each kind
CROP_MM = 26.0
PROJECTION_MM = 8.0
NEAR_MM = 4.0  # a vein's direction is that of its label within this distance
END_ON_DEG = 30.0  # from the slices' normal
_PHASE_LIMITS = (-1.5, 1.5)  # radians

Place = tuple[StoredSubject, np.ndarray]  # of a scan, voxel (3,)
_Finder = Callable[[StoredSubject, np.random.Generator], np.ndarray | None]


def window(image: np.ndarray) -> tuple[float, float]:
    """Gray levels that show a magnitude."""
    return 0.0, float(np.percentile(image[image > 0.1 * image.max()], 98))


def show(axes: plt.Axes, image: np.ndarray, spacing: tuple[float, ...], limits: tuple[float, float]) -> None:
    """A slice (X, Y), anterior up, the patient's right on the left."""
    aspect = spacing[1] / spacing[0]
    axes.imshow(image[::-1].T, cmap="gray", origin="lower", vmin=limits[0], vmax=limits[1], aspect=aspect)


def save(figure: plt.Figure, path: Path, dpi: int) -> None:
    """A gray PNG."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=dpi, facecolor=figure.get_facecolor())
        plt.close(figure)
        Image.open(buffer).convert("L").save(path, optimize=True)


def magnitude_slices(subject: StoredSubject, z: slice) -> np.ndarray:
    """(X, Y, n) SWI or magnitude."""
    return np.asarray(subject.image().dataobj[:, :, z], np.float32)


def phase_slice(subject: StoredSubject, z: int) -> np.ndarray | None:
    """(X, Y) radians, paramagnetic positive; None without a phase."""
    if not subject.has_phase:
        return None
    stored = np.asarray(subject.image("part-phase_T2starw").dataobj[:, :, z], np.float32)
    form = PROTOCOLS[subject.row["protocol"]].phase_storage
    radians = {"radians": stored, "pm4096": stored / 4096 * np.pi, "0-4095": (stored / 2048 - 1) * np.pi}
    return radians[form] * int(subject.row["phase_sign"])


def protocols_picture(subjects: list[StoredSubject], path: Path) -> None:
    """The first subject of each protocol: SWI or magnitude, projection, phase."""
    first: dict[str, StoredSubject] = {}
    for subject in subjects:
        first.setdefault(subject.row["protocol"], subject)
    chosen = list(first.values())
    figure, grid = plt.subplots(len(chosen), 3, figsize=(9, 3.6 * len(chosen)), facecolor="black")
    for row, subject in zip(grid, track(chosen, "protocols"), strict=True):
        spacing = subject.image().header.get_zooms()[:3]
        brain = region_of(np.asarray(subject.labels("regions").dataobj)) > 0
        k = int(np.argmax(brain.sum(axis=(0, 1)))) + round(8 / spacing[2])
        thick = max(1, round(PROJECTION_MM / spacing[2]))
        slab = magnitude_slices(subject, slice(k - thick // 2, k - thick // 2 + thick))
        swi, phase = slab[:, :, thick // 2], phase_slice(subject, k)
        for axes in row:
            axes.axis("off")
        show(row[0], swi, spacing, window(swi))
        show(row[1], slab.min(axis=2), spacing, window(swi))
        if phase is None:
            row[2].text(0.5, 0.5, "no phase", color="white", ha="center")
        else:
            show(row[2], phase, spacing, _PHASE_LIMITS)
        about = subject.row
        title = (
            f"{about['protocol']}: {about['b0_t']} T, TE {float(about['te_ms']):.0f} ms, {about['anatomy']}"
        )
        row[0].set_title(title, color="white", fontsize=9, loc="left")
    figure.tight_layout()
    save(figure, path, 70)


def of_table(kind: str, sizes_mm: tuple[float, float] = (0.0, np.inf)) -> _Finder:
    """A random lesion of a kind and apparent size."""

    def find(subject: StoredSubject, rng: np.random.Generator) -> np.ndarray | None:
        rows = [r for r in subject.of(kind) if sizes_mm[0] <= float(r["apparent_diameter_mm"]) < sizes_mm[1]]
        if not rows:
            return None
        row = rows[rng.integers(len(rows))]
        image = subject.labels("mimics")
        point = np.array([*(float(row[f"{axis}_mm"]) for axis in "xyz"), 1.0])
        voxel = np.rint((np.linalg.inv(image.affine) @ point)[:3]).astype(int)
        return voxel if ((voxel >= 0) & (voxel < image.shape)).all() else None

    return find


@functools.lru_cache(maxsize=1)
def mimic_voxels(subject: StoredSubject) -> tuple[nib.Nifti1Image, np.ndarray]:
    """The mimic labels of a subject, within the brain (X, Y, Z)."""
    image, regions = subject.labels("mimics"), subject.labels("regions")
    inside = region_of(np.asarray(regions.dataobj)) > 0
    return image, np.where(inside, np.asarray(image.dataobj), 0)


def of_label(kind: MimicKind, *, end_on: bool = False) -> _Finder:
    """A random voxel of a label in the brain; `end_on`: where the label runs along the slices' normal."""

    def find(subject: StoredSubject, rng: np.random.Generator) -> np.ndarray | None:
        image, labels = mimic_voxels(subject)
        places = np.argwhere(labels == kind)
        if not len(places):
            return None
        if not end_on:
            return places[rng.integers(len(places))]
        millimeters = places * np.array(image.header.get_zooms()[:3])
        for n in rng.permutation(len(places))[:300]:
            near = millimeters[np.abs(millimeters - millimeters[n]).max(axis=1) <= NEAR_MM]
            lengths, axes = np.linalg.eigh(np.cov(near.T) if len(near) > 4 else np.eye(3))
            if lengths[2] > 4 * lengths[1] and abs(axes[2, 2]) > np.cos(np.deg2rad(END_ON_DEG)):
                return places[n]
        return None

    return find


PICTURES: dict[str, dict[str, _Finder]] = {
    "lesions": {
        "microbleed, 2 to 10 mm": of_table("cmb", READER_MM),
        "microbleed below 2 mm": of_table("cmb", (0.0, READER_MM[0])),
        "ignored microbleed": of_table("ignored_microbleed"),
        "cavernoma": of_table("cavernoma"),
        "superficial siderosis": of_label(MimicKind.SUPERFICIAL_SIDEROSIS),
    },
    "calcifications": {
        f"calcification, {place}": of_table(f"calcification_{place}")
        for place in ("pallidum", "choroid", "pineal", "pial", "parenchymal")
    },
    "vessels": {
        "medullary vein": of_label(MimicKind.MEDULLARY_VEIN),
        "medullary vein, end-on": of_label(MimicKind.MEDULLARY_VEIN, end_on=True),
        "pial vein": of_label(MimicKind.PIAL_VEIN),
        "deep vein": of_label(MimicKind.DEEP_VEIN),
        "sinus": of_label(MimicKind.SINUS),
        "artery": of_label(MimicKind.ARTERY),
    },
    "others": {
        "iron-rich nucleus": of_label(MimicKind.IRON_NUCLEUS),
        "air-tissue border": of_label(MimicKind.AIR_TISSUE_BORDER),
        "motion ghost": of_label(MimicKind.MOTION_GHOST),
        "Gibbs ringing": of_label(MimicKind.GIBBS_RINGING),
    },
}


def draw_examples(subjects: list[StoredSubject], finders: dict[str, _Finder]) -> dict[str, list[Place]]:
    """Random places by kind: one of each of 12 random subjects, more of each where fewer have the kind.

    Kinds that are labels alone are looked for in 12 random subjects, as labels are slow to unpack.
    """
    rng = np.random.default_rng(SEED)
    order = [subjects[n] for n in rng.permutation(len(subjects))]
    found: dict[str, list[Place]] = {name: [] for name in finders}
    further: dict[str, list[Place]] = {name: [] for name in finders}
    for number, subject in enumerate(track(order, "looking for examples")):
        for name, finder in finders.items():
            labeled = finder.__qualname__.startswith("of_label")
            if len(found[name]) == EXAMPLES or (labeled and number >= EXAMPLES):
                continue
            voxels = (finder(subject, rng) for _ in range(EXAMPLES))
            places = {tuple(voxel): (subject, voxel) for voxel in voxels if voxel is not None}
            found[name] += list(places.values())[:1]
            further[name] += list(places.values())[1:]
    for name, places in found.items():
        more = rng.permutation(len(further[name]))[: EXAMPLES - len(places)]
        places += [further[name][n] for n in more]
    return found


def examples_picture(found: dict[str, list[Place]], path: Path) -> None:
    """A row of SWI and a row of phase for each kind, the example in the middle of its crop."""
    size = (1.05 * EXAMPLES, 2.5 * len(found))
    figure, grid = plt.subplots(2 * len(found), EXAMPLES, figsize=size, facecolor="black")
    for axes in grid.flat:
        axes.axis("off")
    shown = []
    for row, (name, places) in enumerate(found.items()):
        grid[2 * row, 0].set_title(name, color="white", fontsize=9, loc="left")
        shown += [(subject, voxel, row, column) for column, (subject, voxel) in enumerate(places)]
    shown.sort(key=lambda each: (each[0].name, each[1][2]))  # images are packed slice by slice
    for subject, (x, y, z), row, column in track(shown, "drawing"):
        spacing = subject.image().header.get_zooms()[:3]
        swi, phase = magnitude_slices(subject, slice(z, z + 1))[:, :, 0], phase_slice(subject, z)
        half = [round(CROP_MM / 2 / h) for h in spacing[:2]]

        def crop(image: np.ndarray, center=(x, y), half=half) -> np.ndarray:
            padded = np.pad(image, [(h, h) for h in half])
            return padded[tuple(slice(c, c + 2 * h + 1) for c, h in zip(center, half, strict=True))]

        top, bottom = grid[2 * row : 2 * row + 2, column]
        show(top, crop(swi), spacing, window(swi))
        if phase is None:
            bottom.text(0.5, 0.5, "no phase", color="0.6", fontsize=6, ha="center", va="center")
        else:
            show(bottom, crop(phase), spacing, _PHASE_LIMITS)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.004, top=0.96, wspace=0.03, hspace=0.25)
    save(figure, path, 95)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of all subjects of one tier."""

    apparent_mm: np.ndarray  # (M,) microbleeds that count
    true_mm: np.ndarray
    cnr: np.ndarray
    focal: list[int]  # calcifications and cavernomas, per subject
    snr: list[float]

    @classmethod
    def of(cls, subjects: list[StoredSubject]) -> Measured:
        """From their tables."""
        rows = [row for each in subjects for row in each.of("cmb")]
        names = ("apparent_diameter_mm", "diameter_mm", "cnr")
        columns = (np.array([float(row[name]) for row in rows]) for name in names)
        return cls(
            *columns,
            focal=[int(each.row["focal_mimics"]) for each in subjects],
            snr=[float(each.row["snr"]) for each in subjects],
        )

    def summary(self) -> dict[str, object]:
        """Medians with 5th and 95th percentiles."""
        return {
            "microbleeds that count": len(self.cnr),
            "apparent diameter, mm": centiles(self.apparent_mm),
            "true diameter, mm": centiles(self.true_mm),
            "apparent over true": centiles(self.apparent_mm / self.true_mm),
            "contrast-to-noise ratio": centiles(self.cnr),
            "focal mimics per subject": centiles(self.focal),
            "signal-to-noise ratio": [min(self.snr), max(self.snr)],
        }


def histograms(measured: dict[str, Measured], path: Path) -> None:
    """Six panels, the published ranges as bars."""
    figure, grid = plt.subplots(2, 3, figsize=(13, 7))
    panels = (
        ("apparent_mm", "apparent diameter, mm", "microbleeds", np.arange(0, 11, 0.5)),
        ("true_mm", "true diameter, mm", "microbleeds", np.arange(0, 6, 0.25)),
        ("cnr", "contrast-to-noise ratio on SWI", "microbleeds", np.arange(0, 60, 2.5)),
        ("focal", "calcifications and cavernomas per subject", "subjects", np.arange(0, 26)),
        ("snr", "signal-to-noise ratio of the brain", "subjects", np.arange(0, 50, 5)),
    )
    colors = dict(zip(measured, ("tab:blue", "tab:red"), strict=False))
    grid[0, 0].axvspan(*READER_MM, color="0.9", zorder=0, label="definition: 2 to 10 mm")
    grid[0, 0].axvline(2.6, color="0.4", ls="--", label="mode in CAA, 0.009 cm3 (Greenberg 2009)")
    for axes, (name, label, unit, bins) in zip(grid.flat, panels, strict=False):
        for tier, each in measured.items():
            axes.hist(getattr(each, name), bins, histtype="step", color=colors[tier], label=tier)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
        axes.legend(fontsize=7)
    for tier, each in measured.items():
        grid[1, 2].plot(each.true_mm, each.apparent_mm, ".", color=colors[tier], ms=4, label=tier)
    grid[1, 2].plot([0, 5], [0, 5], "0.5", lw=1, label="no blooming")
    grid[1, 2].set_xlabel("true diameter, mm")
    grid[1, 2].set_ylabel("apparent diameter, mm")
    grid[1, 2].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Read, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    choices = ("histograms", "protocols", *PICTURES)
    parser.add_argument("--pictures", nargs="+", choices=choices, default=choices)
    arguments = parser.parse_args()
    out, pictures = arguments.out, arguments.pictures
    out.mkdir(parents=True, exist_ok=True)
    subjects = [each for root in arguments.trees for each in stored_subjects(root)]
    tiers = {
        tier: [each for each in subjects if each.row["tier"] == tier]
        for tier in dict.fromkeys(each.row["tier"] for each in subjects)
    }
    if "histograms" in pictures:
        measured = {tier: Measured.of(some) for tier, some in tiers.items()}
        print(json.dumps({tier: each.summary() for tier, each in measured.items()}, indent=1))
        histograms(measured, out / "realism-histograms.png")
    if "protocols" in pictures:
        protocols_picture(tiers.get("hard", subjects), out / "realism-protocols.png")
    for picture in (name for name in pictures if name in PICTURES):
        found = draw_examples(subjects, PICTURES[picture])
        examples_picture(
            {name: places for name, places in found.items() if places}, out / f"realism-{picture}.png"
        )
        print(json.dumps({name: len(places) for name, places in found.items()}))


if __name__ == "__main__":
    main()
