"""What `cmb-jax calibrate` learns from: predictions of the weights on scans whose microbleeds are known."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from cmb_jax.cohort.result import read_provenance
from cmb_jax.errors import UserError
from cmb_jax.evaluation.froc import FrocEvents, collect_events
from cmb_jax.evaluation.matching import CENTER3, events, pairs_of
from cmb_jax.evaluation.read import PredictionSource, find_predictions, find_truth, listed
from cmb_jax.evaluation.records import SubjectDetections
from cmb_jax.followup.time_point import read_record
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.predict import LISTED_BELOW_THRESHOLD
from cmb_jax.io.outside import read_json_object
from cmb_jax.phantom.benchmark import TIER_OFFSET, BenchmarkSplit, Split
from cmb_jax.progress import track
from cmb_jax.review.files import result_paths

OWN_SCANS = "own labeled scans"
_TEST = "test"
# Results say their threshold with three digits.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledTree:
    """One tree of truth with its predictions."""

    name: str  # of the benchmark's split, else `OWN_SCANS`
    scans: int
    lesions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledCandidates:
    """The candidates of all scans, each true or false by the rule of 3 mm, one to one."""

    events: FrocEvents
    tree_names: tuple[str, ...]
    tree: np.ndarray  # (S,) int, of `tree_names`, that each scan is from
    phase: np.ndarray  # (S,) bool, whether the detector had one
    list_ends: np.ndarray  # (S,) score below which the scan's list was cut short; 0: it was not

    @property
    def trees(self) -> tuple[LabeledTree, ...]:
        """The trees that the scans are from, each with what it has of them."""
        return tuple(
            LabeledTree(
                name=self.tree_names[tree],
                scans=int(np.sum(self.tree == tree)),
                lesions=int(self.events.lesions[self.tree == tree].sum()),
            )
            for tree in np.unique(self.tree)
        )

    @property
    def complete_from(self) -> float:
        """The score from which no scan's list was cut short."""
        return float(self.list_ends.max())

    def of_scans(self, chosen: np.ndarray) -> LabeledCandidates:
        """Those of some scans, (S,) bool, alone."""
        events = self.events
        inside = chosen[events.subject]
        return dataclasses.replace(
            self,
            events=FrocEvents(
                scores=events.scores[inside],
                true=events.true[inside],
                subject=(np.cumsum(chosen) - 1)[events.subject[inside]],
                lesions=events.lesions[chosen],
            ),
            tree=self.tree[chosen],
            phase=self.phase[chosen],
            list_ends=self.list_ends[chosen],
        )


def read_labeled(pred: Sequence[Path], truth: Sequence[Path], bundle: WeightsBundle) -> LabeledCandidates:
    """Read predictions and truth, pair by pair.

    Candidates that a rule removed for their place are left out: the score decides nothing about them.

    Args:
        pred: folders of predictions.
        truth: folders of truth, in the same order.
        bundle: the weights that the predictions must be of.

    Raises:
        UserError: folders that do not fit each other or cannot be read, scans without a prediction,
            predictions of other weights, or the benchmark's test split.
    """
    happened: list[tuple[np.ndarray, np.ndarray]] = []
    lesions: list[int] = []
    tree_names: list[str] = []
    tree: list[int] = []
    phase: list[bool] = []
    list_ends: list[float] = []
    for pred_dir, truth_dir in zip(pred, truth, strict=True):
        name = tree_name(truth_dir)
        truths = find_truth(truth_dir)
        sources = find_predictions(pred_dir, [each.subject for each in truths])
        missing = [each.subject for each in sources if each.path is None]
        if missing:
            raise UserError(
                f"{pred_dir}: no prediction for {len(missing)} of the {len(truths)} scans of {truth_dir}: "
                f"{listed(missing)}; predict all of them first"
            )
        made = [_made_with(each, bundle) for each in sources]
        pairs = zip(sources, truths, made, strict=True)
        for source, true, (threshold, has_phase) in track(pairs, name, total=len(truths)):
            found, lesion_table = source.read(), true.read()
            phase.append(has_phase)
            list_ends.append(listed_from(found, threshold, bundle))
            candidates = found.candidates()
            happened.append(events(pairs_of(CENTER3, candidates, lesion_table), candidates.scores))
            lesions.append(len(lesion_table.centers_mm))
        tree += [len(tree_names)] * len(truths)
        tree_names.append(name)
    return LabeledCandidates(
        events=collect_events(happened, lesions),
        tree_names=tuple(tree_names),
        tree=np.array(tree),
        phase=np.array(phase),
        list_ends=np.array(list_ends),
    )


def tree_name(truth: Path) -> str:
    """What a tree of truth is called in the record: the benchmark's split, or no more than own scans.

    Raises:
        UserError: it is the benchmark's test split, on which nothing may be chosen.
    """
    try:
        title = read_json_object(truth / "dataset_description.json").get("Name")
    except UserError:
        return OWN_SCANS
    for split, tier in itertools.product(get_args(Split), TIER_OFFSET):
        if title == BenchmarkSplit(split=split, tier=tier).title:
            if split == _TEST:
                raise UserError(
                    f"{truth}: is the test split of the benchmark, on which nothing is chosen; "
                    "give the validation split (cmb-jax benchmark-data --split validation)"
                )
            return str(title)
    return OWN_SCANS


def listed_from(found: SubjectDetections, threshold: float, bundle: WeightsBundle) -> float:
    """The score from which a scan's list holds every candidate; 0 if it holds all that there are.

    Args:
        found: all rows of the scan.
        threshold: that the prediction was made with; so many below it are listed at most.
        bundle: the weights that it was made with.
    """
    below = int(np.sum(found.scores < threshold + _ROUNDING))
    cut = below >= LISTED_BELOW_THRESHOLD or len(found.scores) >= bundle.config.inference.max_detections
    return float(found.scores.min()) if cut else 0.0


def _made_with(source: PredictionSource, bundle: WeightsBundle) -> tuple[float, bool]:
    """The threshold that a prediction was made with, and whether with a phase.

    Raises:
        UserError: it holds no scores, or was made with other weights.
    """
    path = source.path
    if path is None or path.suffix not in (".csv", ".tsv"):
        raise UserError(f"{path}: holds no scores; give predictions of cmb-jax bids or predict")
    sidecar = path.with_suffix(".json")
    if path.suffix == ".tsv":
        provenance = read_provenance(sidecar)
        digest, threshold, phase = provenance.weights_sha256, provenance.threshold, provenance.phase
    else:
        record = read_record(result_paths(path.parent))
        digest, threshold, phase = record.weights_sha256, float(record.threshold), record.phase
    if digest != bundle.sha256:
        raise UserError(
            f"{sidecar}: was made with other weights (sha256 {digest[:8]}...) than {bundle.path.name} "
            f"({bundle.sha256[:8]}...); predict the scans with the weights that are to be calibrated"
        )
    return threshold, phase
