"""methods.md of a cohort: from what its results say they were made with, whichever run made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cmb_jax.cohort.dataset import finished_results
from cmb_jax.cohort.result import Provenance, read_provenance
from cmb_jax.errors import UserError
from cmb_jax.inference.options import NETWORK
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.methods import MethodsFacts, methods_text

METHODS = "methods.md"
_USUAL = {
    "PhaseSign": ("auto", "phase sign"),
    "PhaseRange": ("auto", "phase range"),
    "Flips": ("none", "flips"),
    "Precision": ("float32", "precision"),
}
"""Settings that the text names only where they are not the usual ones."""
_KNOWN = {*_USUAL, "Weights", "Threshold", "Regions"}


def write_methods(out: Path) -> None:
    """Write `out`/methods.md for all finished results below `out`; nothing if there are none.

    Raises:
        UserError: it cannot be written.
    """
    ways: dict[str, list[tuple[str, Provenance]]] = {}
    for name, made in _results(out):
        how = [made.version, made.making, made.weights_bundled, made.calibrated]
        ways.setdefault(json.dumps(how, sort_keys=True), []).append((name, made))
    if ways:
        largest_first = sorted(ways.values(), key=lambda results: (-len(results), results[0][0]))
        text = methods_text([_facts(results) for results in largest_first])
        atomic_write_text(out / METHODS, text, overwrite=True)


def _results(out: Path) -> Iterator[tuple[str, Provenance]]:
    for folder in sorted(out.glob("sub-*")):
        for _, files in finished_results(out, folder.name.removeprefix("sub-")):
            try:
                yield files.stem, read_provenance(files.table_sidecar)
            except UserError:
                continue  # damaged: the group table names it


def _facts(results: list[tuple[str, Provenance]]) -> MethodsFacts:
    """Of results that were made in one way."""
    first = results[0][1]
    # scans without a phase may have a threshold of their own
    thresholds = {made.phase: made.threshold for _, made in results}
    return MethodsFacts(
        version=first.version,
        weights_name=",".join(Path(name).stem for name in first.weights_name.split(",")),
        weights_sha256=first.weights_sha256,
        threshold=thresholds.get(True, first.threshold),
        threshold_without_phase=thresholds.get(False),
        calibrated=first.calibrated,
        bundled=first.weights_bundled,
        phase=None if len(thresholds) > 1 else first.phase,
        options=(
            *(
                f"{words} {first.making[name]}"
                for name, (usual, words) in _USUAL.items()
                if first.making[name] != usual
            ),
            *(f"{name} {value}" for name, value in first.making.items() if name not in _KNOWN),
        ),
        own_regions=first.making["Regions"] != NETWORK,
        made_swi=any("swi" not in made.roles for _, made in results),
        mni=any(made.regions_trusted for _, made in results),
        scans=tuple(name for name, _ in results),
    )
