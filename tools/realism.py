"""Pictures and figures of the phantom for docs/realism.md: python tools/realism.py --out docs/images.

Simulates two subjects of each protocol, one per tier, on the anatomies in turn, and measures on these twelve.
Needs matplotlib (development requirements). Ten minutes of two cores.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.regions import region_of, side_of
from cmb_jax.devices import keep_freed_memory, use_compilation_cache
from cmb_jax.phantom import PROTOCOLS, MimicKind, PhantomSubject, SubjectSettings, simulate_subject
from cmb_jax.phantom.benchmark import ANATOMIES, TIER_OFFSET
from cmb_jax.phantom.visibility import mimic_candidates
from cmb_jax.progress import track

SEED = 4_000_000  # in no split of CMB-Phantom
PROJECTION_MM = 8.0
CROP_MM = 26.0
EXAMPLES = 12  # of each kind


def simulate() -> list[PhantomSubject]:
    """Two subjects of each protocol."""
    packs, subjects = functools.cache(load_pack), []
    jobs = [(protocol, tier) for protocol in PROTOCOLS for tier in TIER_OFFSET]
    for index, (protocol, tier) in enumerate(track(jobs, "simulating")):
        settings = SubjectSettings(protocol=protocol, tier=tier, mean_cmbs=25.0)
        anatomy = ANATOMIES[index % len(ANATOMIES)]
        subjects.append(simulate_subject(packs(anatomy), SEED + index, settings))
    return subjects


def window(image: np.ndarray) -> tuple[float, float]:
    """Gray levels that show a magnitude."""
    return 0.0, float(np.percentile(image[image > 0.1 * image.max()], 98))


def show(
    axes: plt.Axes, image: np.ndarray, spacing: tuple[float, float], limits: tuple[float, float]
) -> None:
    """A slice (X, Y), anterior up, the patient's right on the left."""
    axes.imshow(
        image[::-1].T,
        cmap="gray",
        origin="lower",
        vmin=limits[0],
        vmax=limits[1],
        aspect=spacing[1] / spacing[0],
    )
    axes.set_xticks([])
    axes.set_yticks([])


def protocols_picture(subjects: list[PhantomSubject], path: Path) -> None:
    """One hard subject a protocol: SWI or magnitude, projection, phase."""
    chosen = [s for s in subjects if s.tier == "hard"]
    figure, grid = plt.subplots(len(chosen), 3, figsize=(9, 3.6 * len(chosen)), facecolor="black")
    for row, subject in zip(grid, chosen, strict=True):
        swi, spacing = subject.swi.data, subject.swi.spacing_mm
        brain = (region_of(subject.region_code) > 0).sum(axis=(0, 1))
        k = int(np.argmax(brain)) + round(8 / spacing[2])
        slab = max(1, round(PROJECTION_MM / spacing[2]))
        limits = window(swi)
        show(row[0], swi[:, :, k], spacing[:2], limits)
        show(row[1], swi[:, :, k - slab // 2 : k - slab // 2 + slab].min(axis=2), spacing[:2], limits)
        if subject.phase is None:
            row[2].axis("off")
            row[2].text(0.5, 0.5, "no phase", color="white", ha="center")
        else:
            show(row[2], subject.phase.data[:, :, k] * subject.phase_sign, spacing[:2], (-1.5, 1.5))
        title = f"{subject.protocol}: {subject.b0_t:g} T, TE {subject.te_ms:.0f} ms, {subject.anatomy}"
        row[0].set_title(title, color="white", fontsize=9, loc="left")
    for axes, name in zip(grid[-1], ("SWI or magnitude", "8 mm projection", "phase"), strict=True):
        axes.set_xlabel(name, color="white")
    figure.tight_layout()
    figure.savefig(path, dpi=70, facecolor="black")
    plt.close(figure)


def _places(subject: PhantomSubject, kind: MimicKind) -> np.ndarray:
    """(N, 3) voxels where a kind can be looked at; NONE stands for microbleeds that count."""
    row_kind = int(kind)  # of a microbleed that counts it is 0, as in the table
    rows = subject.lesions.kind == row_kind
    if rows.any():
        to_voxel = np.linalg.inv(subject.swi.affine)
        places = np.rint(subject.lesions.center_mm[rows] @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    elif kind == MimicKind.NONE:
        return np.zeros((0, 3), int)
    else:
        mask = (subject.mimic_labels == kind) & (region_of(subject.region_code) > 0)
        places = np.argwhere(mask)
    inside = ((places >= 0) & (places < subject.swi.data.shape)).all(axis=1)
    return places[inside]


def examples(
    subjects: list[PhantomSubject], kind: MimicKind, rng: np.random.Generator
) -> list[tuple[PhantomSubject, np.ndarray]]:
    """`EXAMPLES` random places of a kind, from as many subjects as have it, none chosen by its looks."""
    having = [(subject, places) for subject in subjects if len(places := _places(subject, kind))]
    turns = [having[i % len(having)] for i in rng.permutation(max(EXAMPLES, len(having)))] if having else []
    return [(subject, places[rng.integers(len(places))]) for subject, places in turns[:EXAMPLES]]


def mimics_picture(subjects: list[PhantomSubject], path: Path) -> None:
    """Random microbleeds and random examples of each kind of mimic: SWI, and the phase below it."""
    rng = np.random.default_rng(SEED)
    rows = [(kind, found) for kind in MimicKind if (found := examples(subjects, kind, rng))]
    size = (1.05 * EXAMPLES, 2.35 * len(rows))
    figure, grid = plt.subplots(2 * len(rows), EXAMPLES, figsize=size, facecolor="black")
    for axes in grid.flat:
        axes.axis("off")
    for row, (kind, found) in enumerate(rows):
        name = "microbleed" if kind == MimicKind.NONE else kind.name.lower().replace("_", " ")
        grid[2 * row, 0].set_title(name, color="white", fontsize=9, loc="left")
        for column, (subject, (x, y, z)) in enumerate(found):
            sx, sy, _ = subject.swi.spacing_mm
            half = (round(CROP_MM / 2 / sx), round(CROP_MM / 2 / sy))
            crop = (slice(max(0, x - half[0]), x + half[0]), slice(max(0, y - half[1]), y + half[1]), z)
            top, bottom = grid[2 * row, column], grid[2 * row + 1, column]
            show(top, subject.swi.data[crop], (sx, sy), window(subject.swi.data))
            if subject.phase is None:
                bottom.text(0.5, 0.5, "no phase", color="0.6", fontsize=6, ha="center", va="center")
                continue
            show(bottom, subject.phase.data[crop] * subject.phase_sign, (sx, sy), (-1.5, 1.5))
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.002, top=0.988, wspace=0.04, hspace=0.12)
    figure.savefig(path, dpi=75, facecolor="black")
    plt.close(figure)


def measure(subjects: list[PhantomSubject]) -> list[dict[str, object]]:
    """What is compared with publications, a subject."""
    rows = []
    for subject in track(subjects, "measuring"):
        lesions = subject.lesions
        bleeds = lesions.is_cmb
        candidates = mimic_candidates(
            subject.swi.data,
            subject.swi.spacing_mm,
            subject.region_code,
            subject.cmb_labels,
            subject.mimic_labels,
        )
        region, medullary = region_of(subject.region_code), subject.mimic_labels == MimicKind.MEDULLARY_VEIN
        white = np.isin(region, (8,)).sum() * np.prod(subject.swi.spacing_mm) / 1000
        right = side_of(subject.region_code) == 2
        rows.append(
            {
                "protocol": subject.protocol,
                "tier": subject.tier,
                "anatomy": subject.anatomy,
                "snr": subject.snr,
                "te_ms": subject.te_ms,
                "b0_t": subject.b0_t,
                "true_mm": lesions.diameter_mm[bleeds].tolist(),
                "apparent_mm": lesions.apparent_diameter_mm[bleeds].tolist(),
                "cnr": lesions.cnr[bleeds].tolist(),
                "focal_mimics": int(lesions.is_mimic.sum()),
                "candidates": {k.name.lower(): v for k, v in candidates.items()},
                "candidates_total": sum(v for k, v in candidates.items() if k != MimicKind.NONE),
                "medullary_mm3_per_cm3_deep_white": float(
                    medullary.sum() * np.prod(subject.swi.spacing_mm) / max(white, 1e-6)
                ),
                "medullary_right_voxels": int((medullary & right).sum()),
            }
        )
    return rows


def histograms(rows: list[dict], path: Path) -> None:
    """Six panels, the published ranges as bars."""
    figure, grid = plt.subplots(2, 3, figsize=(13, 7))
    colors = {"easy": "tab:blue", "hard": "tab:red"}

    def together(name: str, tier: str) -> np.ndarray:
        return np.concatenate([np.atleast_1d(r[name]) for r in rows if r["tier"] == tier])

    panels = (
        ("apparent_mm", "apparent diameter, mm", np.arange(0, 11, 0.5)),
        ("true_mm", "true diameter, mm", np.arange(0, 6, 0.25)),
        ("cnr", "contrast-to-noise ratio on SWI", np.arange(0, 60, 2.5)),
    )
    for axes, (name, label, bins) in zip(grid.flat, panels, strict=False):
        for tier, color in colors.items():
            axes.hist(together(name, tier), bins, histtype="step", color=color, label=tier)
        axes.set_xlabel(label)
        axes.set_ylabel("microbleeds")
    grid[0, 0].axvspan(2, 10, color="0.9", zorder=0, label="definition: 2 to 10 mm")
    grid[0, 0].axvline(2.6, color="0.4", ls="--", label="mode in CAA, 0.009 cm3 (Greenberg 2009)")
    for tier, color in colors.items():
        grid[1, 0].plot(together("true_mm", tier), together("apparent_mm", tier), ".", color=color, ms=4)
        total = [r["candidates_total"] for r in rows if r["tier"] == tier]
        grid[1, 1].plot(range(len(total)), total, "o", color=color, label=tier)
        snr = [r["snr"] for r in rows if r["tier"] == tier]
        grid[1, 2].hist(snr, np.arange(0, 50, 5), histtype="step", color=color)
    grid[1, 0].plot([0, 5], [0, 5], "0.5", lw=1, label="no blooming")
    grid[1, 0].set_xlabel("true diameter, mm")
    grid[1, 0].set_ylabel("apparent diameter, mm")
    grid[1, 1].axhline(30, color="0.4", ls="--", label="asked of the hard tier")
    grid[1, 1].set_xticks(range(len(PROTOCOLS)), list(PROTOCOLS), rotation=30)
    grid[1, 1].set_ylabel("mimic candidates per subject")
    grid[1, 2].set_xlabel("signal-to-noise ratio of the brain")
    for axes in (grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1]):
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Simulate, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    keep_freed_memory()
    use_compilation_cache()
    subjects = simulate()
    out.mkdir(parents=True, exist_ok=True)
    protocols_picture(subjects, out / "realism-protocols.png")
    mimics_picture(subjects, out / "realism-mimics.png")
    rows = measure(subjects)
    histograms(rows, out / "realism-histograms.png")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
