"""What a detector loses without the phase: the same prepared subjects with it and with a zero channel.

    python tools/without_phase.py FOLDER [--weights small]

FOLDER holds prepared subjects (`seed-*`), as training keeps them. Those whose phase is zero anyway are not
compared; they stand in the last table alone: which mimics are taken for microbleeds at 2 false positives a
scan of each group. Center within 3 mm, one to one, without localization; paired bootstrap over scans.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmb_jax.cli.common import run_cli
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.devices import use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import name_by_mimic
from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents
from cmb_jax.evaluation.statistics import froc_metrics, paired_bootstrap_froc
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.inference.proposals import ProposalFinder, detect, mimics_of, truth_of
from cmb_jax.research.findings import SetDetections
from cmb_jax.research.scores import RunScores, score_run

PHASE = 1  # channel
FALSE_POSITIVES = 2.0  # a scan, where kinds are counted


@dataclasses.dataclass(frozen=True)
class WithoutPhase(StoredSubject):
    """The same subject, its phase not measured."""

    def image(self) -> np.ndarray:
        """(Z, Y, X, 2) with a zero phase."""
        image = np.array(super().image())
        image[..., PHASE] = 0
        return image


def look_at(name: str, finder: ProposalFinder, subjects: Sequence[StoredSubject]) -> RunScores:
    """Hits, and false positives by kind of mimic at `FALSE_POSITIVES` a scan of these very subjects."""
    spacing = finder.config.data.spacing_mm
    scans = tuple(detect(finder, each) for each in subjects)
    mimics = tuple(
        tuple(name_by_mimic(found.centers_mm, mimics_of(each, spacing)))
        for found, each in zip(scans, subjects, strict=True)
    )
    found = SetDetections(scans=scans, mimics=mimics)
    truths = [truth_of(each, spacing) for each in subjects]
    return score_run(name, found, truths, found, truths, max_fp_per_scan=FALSE_POSITIVES)


def main() -> None:
    """Detect, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="small", help="name of bundled weights, or a .safetensors file")
    arguments = parser.parse_args()
    subjects = [StoredSubject(folder=folder) for folder in sorted(arguments.folder.glob("seed-*"))]
    measured = [bool(np.any(subject.image()[..., PHASE])) for subject in subjects]
    with_phase = [subject for subject, there in zip(subjects, measured, strict=True) if there]
    if not with_phase:
        raise UserError(f"{arguments.folder}: no prepared subject (seed-*) with a phase in it")
    use_compilation_cache()
    bundle = load_bundle(arguments.weights)
    finder = ProposalFinder(bundle.config, bundle.params)
    groups: dict[str, Sequence[StoredSubject]] = {
        "with phase": with_phase,
        "phase left out": [WithoutPhase(folder=subject.folder) for subject in with_phase],
        "never had one": [subject for subject, there in zip(subjects, measured, strict=True) if not there],
    }
    looked = {name: look_at(name, finder, group) for name, group in groups.items() if group}
    compare(looked["with phase"].events, looked["phase left out"].events, len(with_phase))
    print(f"\nfalse positives by kind of mimic, at {FALSE_POSITIVES:g} a scan of each group")
    for name, scores in looked.items():
        listed = ", ".join(f"{kind} {count}" for kind, count in scores.false_positives.most_common())
        print(f"{name}, {len(groups[name])} scans, {int(scores.events.lesions.sum())} microbleeds: {listed}")


def compare(with_phase: FrocEvents, without: FrocEvents, scans: int) -> None:
    """Print both sides and their paired differences."""
    names = [*(f"sensitivity at {rate:g} FP per scan" for rate in FROC_RATES), "average precision"]
    everyone = np.ones((1, scans), int)
    values = [froc_metrics(side, everyone)[0] for side in (with_phase, without)]
    print(f"{scans} subjects, {int(with_phase.lesions.sum())} microbleeds")
    print(f"{'':30s}{'with':>8s}{'without':>9s}  difference, p")
    for name, a, b, row in zip(names, *values, paired_bootstrap_froc(without, with_phase), strict=True):
        change = row.difference
        print(
            f"{name:30s}{a:8.3f}{b:9.3f}  {change.value:.3f} [{change.low:.3f}, {change.high:.3f}], "
            f"{row.p_value:.3f}"
        )


if __name__ == "__main__":
    run_cli(main)
