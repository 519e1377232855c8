"""What eval.py looks at: fresh simulated subjects, or the test part of an index."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from cmb_jax.commands.train_data import SPLIT_FILE, phantom_member, seen_images
from cmb_jax.config import Config
from cmb_jax.datasets.images import read_scan
from cmb_jax.datasets.lesions import lesions_of
from cmb_jax.datasets.types import Case
from cmb_jax.errors import UserError
from cmb_jax.evaluation.records import LabelledVolume, SubjectTruth
from cmb_jax.evaluation.simulated import phantom_truth
from cmb_jax.inference.scan import PhaseSign
from cmb_jax.io.volume import ScanImages
from cmb_jax.phantom import simulate_subject
from cmb_jax.phantom.tree import PackLoader
from cmb_jax.training.scans import OwnData, file_hashes, open_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationScan:
    """One scan with its truth."""

    images: ScanImages
    phase_sign: PhaseSign
    truth: SubjectTruth


def simulated_scans(config: Config) -> Iterator[EvaluationScan]:
    """Fresh simulated subjects, patient-like in their number of lesions; the phase sign is the protocol's."""
    pack_of = PackLoader()
    for index in range(config.phantom.test_subjects):
        seed = config.phantom.test_seed + index
        settings, anatomy = phantom_member(config.phantom, index)
        phantom = simulate_subject(pack_of(anatomy), seed, settings)
        yield EvaluationScan(
            images=ScanImages(swi=phantom.swi, phase=phantom.phase, magnitude=phantom.magnitude),
            phase_sign="+1" if phantom.phase_sign > 0 else "-1",
            truth=phantom_truth(phantom, f"seed-{seed}"),
        )


def open_test_part(config: Config, workdir: Path) -> OwnData:
    """The index and its split, once it is sure that the run has not seen the test part.

    Raises:
      UserError: a bad index or split, no test cases, or test cases that the run was trained or validated on.
    """
    own = open_data(config.data)
    for note in own.notes:
        print(f"note: {note}", file=sys.stderr)
    cases = own.parts["test"]
    if not cases:
        raise UserError(
            f"{config.data.index}: no case is in the test part; "
            "see --data.split-file and --data.split-fractions"
        )
    seen = seen_images(workdir)
    known = [case.case_id for case in cases if seen and _reference_hash(case, own.root) in seen]
    if known:
        raise UserError(
            f"{workdir}: this run was trained or validated on {len(known)} of the {len(cases)} test scans, "
            f"such as {known[0]}; give --data.split-file {workdir / SPLIT_FILE}, the split that it used"
        )
    return own


def _reference_hash(case: Case, root: Path) -> str:
    return file_hashes(case, root)[case.images[case.reference]]


def own_scans(own: OwnData) -> Iterator[EvaluationScan]:
    """The scans of the test part that can be read; the others are named on stderr and left out."""
    for case in own.parts["test"]:
        try:
            truth, images = case_truth(case, own.root), read_scan(case, own.root)
        except UserError as error:
            print(f"skipped: {case.case_id}: {str(error).replace(f'{own.root}/', '')}", file=sys.stderr)
            continue
        yield EvaluationScan(images=images, phase_sign="auto", truth=truth)


def case_truth(case: Case, root: Path) -> SubjectTruth:
    """The truth of a case as the evaluation takes it.

    Raises:
      UserError: see `lesions_of`.
    """
    lesions = lesions_of(case, root)
    volume = None
    if lesions.labels is not None:
        volume = LabelledVolume(labels=lesions.labels, affine=lesions.grid.affine)
    return SubjectTruth(
        subject=case.case_id,
        centers_mm=lesions.centers_mm,
        diameters_mm=lesions.diameters_mm,
        volume=volume,
    )
