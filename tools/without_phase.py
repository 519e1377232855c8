"""What a detector loses without the phase: the same prepared subjects with it and with a zero channel.

    python tools/without_phase.py FOLDER [--weights small]

FOLDER holds prepared subjects (`seed-*`), as training keeps them. Those whose phase is zero anyway are left
out. Centre within 3 mm, one to one, without localization; paired bootstrap over scans.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from cmb_jax.commands.common import run_for_people, use_compilation_cache
from cmb_jax.commands.train import prepared_events
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.errors import UserError
from cmb_jax.evaluation.bootstrap import froc_metrics, paired_bootstrap_froc
from cmb_jax.evaluation.froc import FROC_RATES
from cmb_jax.inference.bundle import load_bundle

PHASE = 1  # channel


@dataclasses.dataclass(frozen=True)
class WithoutPhase(StoredSubject):
    """The same subject, its phase not measured."""

    def image(self) -> np.ndarray:
        """(Z, Y, X, 2) with a zero phase."""
        image = np.array(super().image())
        image[..., PHASE] = 0
        return image


def main() -> None:
    """Detect twice, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="small", help="name of bundled weights, or a .safetensors file")
    arguments = parser.parse_args()
    folders = sorted(arguments.folder.glob("seed-*"))
    subjects = [StoredSubject(folder=folder) for folder in folders]
    subjects = [subject for subject in subjects if np.any(subject.image()[..., PHASE])]
    if not subjects:
        raise UserError(f"{arguments.folder}: no prepared subject (seed-*) with a phase in it")
    use_compilation_cache()
    bundle = load_bundle(arguments.weights)
    silent = [WithoutPhase(folder=subject.folder) for subject in subjects]
    with_phase, without = (
        prepared_events(bundle.config, bundle.params, those) for those in (subjects, silent)
    )
    names = [*(f"sensitivity at {rate:g} FP a scan" for rate in FROC_RATES), "average precision"]
    everyone = np.ones((1, len(subjects)), int)
    values = [froc_metrics(side, everyone)[0] for side in (with_phase, without)]
    print(f"{len(subjects)} subjects, {int(with_phase.lesions.sum())} microbleeds")
    print(f"{'':30s}{'with':>8s}{'without':>9s}  difference, p")
    for name, a, b, row in zip(names, *values, paired_bootstrap_froc(without, with_phase), strict=True):
        change = row.difference
        print(
            f"{name:30s}{a:8.3f}{b:9.3f}  {change.value:.3f} [{change.low:.3f}, {change.high:.3f}], "
            f"{row.p_value:.3f}"
        )


if __name__ == "__main__":
    run_for_people(main)
