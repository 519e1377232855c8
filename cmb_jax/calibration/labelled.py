"""What `cmb-jax calibrate` learns from: predictions of the weights on scans whose microbleeds are known."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from cmb_jax.bids_app.result import read_provenance
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

OWN_SCANS = "own labelled scans"
_TEST = "test"
# Results say their threshold with three digits.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTree:
    """One tree of truth with its predictions."""

    name: str  # of the benchmark's split, else `OWN_SCANS`
    scans: int
    lesions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledCandidates:
    """The candidates of all scans, each true or false by the rule of 3 mm, one to one."""

    events: FrocEvents
    trees: tuple[LabelledTree, ...]
    complete_from: float  # below this score some scan's list was cut short; 0: none was


def read_labelled(pred: Sequence[Path], truth: Sequence[Path], bundle: WeightsBundle) -> LabelledCandidates:
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
    trees = []
    complete_from = 0.0
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
        thresholds = [_threshold_of(each, bundle) for each in sources]
        before = len(lesions)
        pairs = zip(sources, truths, thresholds, strict=True)
        for source, true, threshold in track(pairs, name, total=len(truths)):
            found, lesion_table = source.read(), true.read()
            complete_from = max(complete_from, listed_from(found, threshold, bundle))
            candidates = found.candidates()
            happened.append(events(pairs_of(CENTER3, candidates, lesion_table), candidates.scores))
            lesions.append(len(lesion_table.centers_mm))
        trees.append(LabelledTree(name=name, scans=len(truths), lesions=sum(lesions[before:])))
    return LabelledCandidates(
        events=collect_events(happened, lesions), trees=tuple(trees), complete_from=complete_from
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


def _threshold_of(source: PredictionSource, bundle: WeightsBundle) -> float:
    """The threshold that a prediction was made with.

    Raises:
        UserError: it holds no scores, or was made with other weights.
    """
    path = source.path
    if path is None or path.suffix not in (".csv", ".tsv"):
        raise UserError(f"{path}: holds no scores; give predictions of cmb-jax bids or predict")
    sidecar = path.with_suffix(".json")
    if path.suffix == ".tsv":
        provenance = read_provenance(sidecar)
        digest, threshold = provenance.weights_sha256, float(provenance.making["Threshold"])
    else:
        record = read_record(result_paths(path.parent))
        digest, threshold = record.weights_sha256, float(record.threshold)
    if digest != bundle.sha256:
        raise UserError(
            f"{sidecar}: was made with other weights (sha256 {digest[:8]}...) than {bundle.path.name} "
            f"({bundle.sha256[:8]}...); predict the scans with the weights that are to be calibrated"
        )
    return threshold
