"""What an observer could reach who knows all but one thing: without a phase, blood from calcium.

    python tools/observer_ceiling.py TREE --learn OTHER-TREE

TREE is a simulated tree (`cmb-jax benchmark-data`). The observer finds every microbleed, knows every vein,
artery and artefact, and where there is a phase every calcification. In scans without a phase a calcification
is a microbleed to it, except for what is said of each line:

- "looks alone": in those scans it reports microbleeds and calcifications in a random order;
- "and place": it knows those in CSF (choroid, pineal, pial), where no microbleed is;
- "and size, contrast, region": it ranks by a logistic regression on the true ones of OTHER-TREE's scans
  without a phase; it knows them exactly, as no detector does.

Noise and veins are left out, so a detector on the same scans will do worse. That microbleeds and
calcifications look alike on magnitude is taken for granted; the last line is one model's estimate.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression

from cmb_jax.commands.common import run_for_people
from cmb_jax.errors import UserError
from cmb_jax.evaluation.froc import FROC_RATES

IN_CSF = ("calcification_choroid", "calcification_pineal", "calcification_pial")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is looked at."""

    tree: tyro.conf.Positional[Path]
    """Simulated tree."""
    learn: Path
    """Another one, for the observer that has learnt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """One simulated scan."""

    has_phase: bool
    rows: tuple[dict[str, str], ...]  # of its lesion table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spots:
    """Microbleeds and calcifications of a tree's scans without a phase."""

    scans: int  # of the whole tree
    with_phase: int  # microbleeds of the other scans
    is_cmb: np.ndarray  # (N,) bool
    kind: np.ndarray  # (N,) str
    features: np.ndarray  # (N, F): log diameter, log contrast, their product, region one-hot


def tables_of(root: Path) -> list[Scan]:
    """The scans of a tree with their truth."""
    scans = []
    for folder in sorted(root.glob("sub-*")):
        anat = root / "derivatives" / "truth" / folder.name / "anat"
        with (anat / f"{folder.name}_desc-lesions.tsv").open(encoding="utf-8") as file:
            rows = tuple(csv.DictReader(file, delimiter="\t"))
        has_phase = any((folder / "anat").glob("*_part-phase_*.nii.gz"))
        scans.append(Scan(has_phase=has_phase, rows=rows))
    return scans


def spots_of(root: Path, scans: list[Scan], regions: list[str]) -> Spots:
    """What can be mistaken for each other in a tree's scans, and what they look like.

    Raises:
        UserError: no scan there, or none without a phase.
    """
    with_phase = sum(row["kind"] == "cmb" for scan in scans if scan.has_phase for row in scan.rows)
    rows = [
        row
        for scan in scans
        if not scan.has_phase
        for row in scan.rows
        if row["kind"] == "cmb" or row["kind"].startswith("calcification")
    ]
    if not rows:
        raise UserError(f"{root}: no scan without a phase; give a tree of the benchmark")
    size = np.log([float(row["apparent_diameter_mm"]) for row in rows])
    contrast = np.log(np.maximum([float(row["cnr"]) for row in rows], 1e-3))
    region = np.array([[row["region"] == name for name in regions] for row in rows], float)
    return Spots(
        scans=len(scans),
        with_phase=with_phase,
        is_cmb=np.array([row["kind"] == "cmb" for row in rows]),
        kind=np.array([row["kind"] for row in rows]),
        features=np.column_stack([size, contrast, size * contrast, region]),
    )


def sensitivities(spots: Spots, score: np.ndarray) -> list[float]:
    """At `FROC_RATES`: what is found first are all of the scans with a phase; ties in score share alike."""
    lesions = spots.with_phase + spots.is_cmb.sum()
    values, step = np.unique(-score, return_inverse=True)
    true = np.bincount(step, weights=spots.is_cmb, minlength=len(values))
    false = np.bincount(step, weights=~spots.is_cmb, minlength=len(values))
    found = spots.with_phase + np.concatenate([[0.0], np.cumsum(true)])
    rate = np.concatenate([[0.0], np.cumsum(false)]) / spots.scans
    # Straight lines between steps: a random order within each. Of equal rates the last holds.
    return [float(np.interp(wanted, rate, found)) / lesions for wanted in FROC_RATES]


def main(arguments: Arguments) -> None:
    """Print sensitivities by rate."""
    trees = {root: tables_of(root) for root in (arguments.tree, arguments.learn)}
    regions = sorted({row["region"] for scans in trees.values() for scan in scans for row in scan.rows})
    spots, others = (spots_of(root, trees[root], regions) for root in (arguments.tree, arguments.learn))
    model = LogisticRegression(max_iter=5000).fit(others.features, others.is_cmb)
    scores = {
        "looks alone": np.zeros(len(spots.is_cmb)),
        "and place": -np.isin(spots.kind, IN_CSF).astype(float),
        "and size, contrast, region": model.decision_function(spots.features),
    }
    cmbs = int(spots.is_cmb.sum())
    print(
        f"{spots.scans} scans; {spots.with_phase} microbleeds with a phase; {cmbs} without, beside "
        f"{len(spots.is_cmb) - cmbs} calcifications"
    )
    print(f"{'sensitivity at FP a scan':30s}" + "".join(f"{rate:>8g}" for rate in FROC_RATES))
    for name, score in scores.items():
        print(f"{name:30s}" + "".join(f"{value:8.3f}" for value in sensitivities(spots, score)))


if __name__ == "__main__":
    run_for_people(lambda: main(tyro.cli(Arguments, description=__doc__)))
