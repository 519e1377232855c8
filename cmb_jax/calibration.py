"""`cmb-jax calibrate`: scores of weights made probabilities, and their operating point, from labeled scans.

Predictions of the weights on scans whose microbleeds are known are read, a map from score to probability is
fitted, thresholds are chosen, and the weights are written again with both, and a record beside them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cmb_jax.cohort.result import read_provenance
from cmb_jax.config import Config
from cmb_jax.errors import UserError
from cmb_jax.evaluation.calibration import DEFINITE_PROBABILITY, Calibration, calibrate, reliability
from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, choose_threshold, collect_events, froc_curve
from cmb_jax.evaluation.matching import CENTER3, events, pairs_of
from cmb_jax.evaluation.metrics import json_text, reliability_values
from cmb_jax.evaluation.read import PredictionSource, find_predictions, find_truth, listed
from cmb_jax.evaluation.records import SubjectDetections
from cmb_jax.evaluation.statistics import Counts, Estimate, bootstrap_counts
from cmb_jax.followup.time_point import read_record
from cmb_jax.inference.bundle import WeightsBundle, load_bundle, read_weights_record, record_path, with_config
from cmb_jax.inference.predict import LISTED_BELOW_THRESHOLD
from cmb_jax.io.atomic import atomic_write_bytes, atomic_write_text
from cmb_jax.io.outside import read_json_object
from cmb_jax.phantom.benchmark import TIER_OFFSET, BenchmarkSplit, Split
from cmb_jax.progress import track
from cmb_jax.review.result import result_paths

OWN_SCANS = "own labeled scans"
_TEST = "test"
# Results state their threshold with three digits.
_ROUNDING = 1e-3
# With fewer, neither a curve nor an operating point says anything about other scans.
FEWEST = 20
FEWEST_SCANS = 5
SEED = 0
_INTERVALS = "95 %, percentile bootstrap over scans, 2000 resamples"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledCandidates:
    """The candidates of S scans, each true or false by the rule of 3 mm, one to one."""

    events: FrocEvents
    tree_names: tuple[str, ...]  # of the benchmark's split, else `OWN_SCANS`
    tree: np.ndarray  # (S,) int, of `tree_names`, that each scan is from
    phase: np.ndarray  # (S,) bool, whether the detector had one
    list_ends: np.ndarray  # (S,) score below which the scan's list was cut short; 0: it was not

    @property
    def data(self) -> list[dict[str, Any]]:
        """What each tree of truth contributes, for the record."""
        return [
            {
                "name": self.tree_names[tree],
                "scans": int(np.sum(self.tree == tree)),
                "lesions": int(self.events.lesions[self.tree == tree].sum()),
            }
            for tree in np.unique(self.tree)
        ]

    @property
    def complete_from(self) -> float:
        """The score from which no scan's list was cut short."""
        return float(self.list_ends.max())

    def of_scans(self, chosen: np.ndarray) -> LabeledCandidates:
        """Only those of the chosen scans, (S,) bool."""
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

    Raises:
        UserError: folders that do not fit each other or cannot be read, scans without a prediction,
            predictions of other weights, or the benchmark's test split.
    """
    names = tuple(map(tree_name, truth))
    scans = [
        (number, *scan)
        for number, (name, folders) in enumerate(zip(names, zip(pred, truth, strict=True), strict=True))
        for scan in _scans_of(*folders, name, bundle)
    ]
    tree, scan_events, lesions, phase, list_ends = zip(*scans, strict=True)
    return LabeledCandidates(
        events=collect_events(scan_events, lesions),
        tree_names=names,
        tree=np.array(tree),
        phase=np.array(phase),
        list_ends=np.array(list_ends),
    )


def _scans_of(
    pred: Path, truth: Path, name: str, bundle: WeightsBundle
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], int, bool, float]]:
    """Events, lesions, whether there is a phase, and the end of its list, for each scan of a tree."""
    truths = find_truth(truth)
    sources = find_predictions(pred, [each.subject for each in truths])
    missing = [each.subject for each in sources if each.path is None]
    if missing:
        raise UserError(
            f"{pred}: no prediction for {len(missing)} of the {len(truths)} scans of {truth}: "
            f"{listed(missing)}; predict all of them first"
        )
    settings = [_settings_of(each, bundle) for each in sources]
    pairs = zip(sources, truths, settings, strict=True)
    for source, true, (threshold, has_phase) in track(pairs, name, total=len(truths)):
        found, lesion_table = source.read(), true.read()
        candidates = found.candidates()
        scan_events = events(pairs_of(CENTER3, candidates, lesion_table), candidates.scores)
        list_end = listed_from(found, threshold, bundle)
        yield scan_events, len(lesion_table.centers_mm), has_phase, list_end


def tree_name(truth: Path) -> str:
    """The name of a tree of truth in the record: the benchmark's split, or no more than "own labeled scans".

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
        threshold: of the prediction; only a limited number of candidates below it is listed.
    """
    below = int(np.sum(found.scores < threshold + _ROUNDING))
    cut = below >= LISTED_BELOW_THRESHOLD or len(found.scores) >= bundle.config.inference.max_detections
    return float(found.scores.min()) if cut else 0.0


def _settings_of(source: PredictionSource, bundle: WeightsBundle) -> tuple[float, bool]:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The highest sensitivity at no more than so many false positives per scan, on the scans it was chosen
    on."""

    max_fp_per_scan: float
    threshold: float
    sensitivity: Estimate
    fp_per_scan: Estimate
    precision: Estimate


def above(events: FrocEvents, threshold: float) -> FrocEvents:
    """The events with a score of at least `threshold`; the scans stay."""
    inside = events.scores >= threshold
    return dataclasses.replace(
        events, scores=events.scores[inside], true=events.true[inside], subject=events.subject[inside]
    )


def operating_point(
    events: FrocEvents,
    max_fp_per_scan: float,
    *,
    complete_from: float = 0.0,
    samples: int = 2000,
) -> OperatingPoint | None:
    """The operating point by a limit on the false positives, None if the lists end before it is reached.

    The 95 % intervals over scans take the threshold as given: they leave out that it was chosen on the same
    scans.

    Args:
        events: of S scans.
        max_fp_per_scan: the limit.
        complete_from: below this score detections may be missing from the lists: no threshold lies there.
        samples: resamples of the scans.
    """
    known = above(events, complete_from)
    curve = froc_curve(known)
    if complete_from > 0.0 and not np.any(curve.fp_per_scan > max_fp_per_scan):
        return None
    threshold = choose_threshold(curve, max_fp_per_scan)
    found = bootstrap_counts(counts_at(known, threshold), samples=samples, seed=SEED)
    del found["f1"]
    return OperatingPoint(max_fp_per_scan=max_fp_per_scan, threshold=threshold, **found)


def operating_table(
    events: FrocEvents, *, complete_from: float = 0.0, samples: int = 2000
) -> tuple[OperatingPoint, ...]:
    """The operating points at `FROC_RATES`, without those that the lists do not reach."""
    points = [
        operating_point(events, rate, complete_from=complete_from, samples=samples) for rate in FROC_RATES
    ]
    return tuple(point for point in points if point is not None)


def counts_at(events: FrocEvents, threshold: float) -> Counts:
    """What a threshold gives in each scan."""
    reported = above(events, threshold)
    scans = len(events.lesions)
    return Counts(
        tp=np.bincount(reported.subject[reported.true], minlength=scans),
        fp=np.bincount(reported.subject[~reported.true], minlength=scans),
        lesions=events.lesions,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Map and operating point of one kind of scans, and what they were learned from."""

    labeled: LabeledCandidates
    known: FrocEvents  # the candidates above the end of every list
    fitted: Calibration
    chosen: OperatingPoint

    @property
    def definite(self) -> float:
        """Score from which a detection is definite.

        There the map reaches `DEFINITE_PROBABILITY`; never below the operating point, and above every score
        if no score reaches that probability.
        """
        start = min(self.fitted.map.score_at(DEFINITE_PROBABILITY), float(np.nextafter(1.0, 2.0)))
        return max(start, self.chosen.threshold)


def calibrate_weights(
    pred: Sequence[Path],
    truth: Sequence[Path],
    weights: str,
    out: Path,
    *,
    max_fp: float,
    max_fp_magnitude: float,
) -> None:
    """Fit, choose, write the weights and the record beside them.

    Scans with and without a phase have levels of their own where there are enough of both: without one,
    calcifications look like blood, so that the same score is worth less.

    Args:
        weights: name of bundled weights, or a file.
        out: weights to write, with their record beside them.

    Raises:
        UserError: folders that do not fit each other, too little to learn from.
    """
    bundle = load_bundle(weights)
    if bundle.others:
        raise UserError(f"{weights}: only one network's weights can be calibrated; give one file")
    record = read_weights_record(bundle.record_path) or {}
    labeled = read_labeled(pred, truth, bundle)
    with_phase, without = labeled.of_scans(labeled.phase), labeled.of_scans(~labeled.phase)
    magnitude = None
    if _shortage(with_phase) is None and _shortage(without) is None:
        levels = learn_levels(with_phase, bundle, max_fp, "--max-fp")
        magnitude = learn_levels(without, bundle, max_fp_magnitude, "--max-fp-magnitude")
    else:
        levels = learn_levels(labeled, bundle, max_fp, "--max-fp")
    config = calibrated_config(bundle.config, levels, magnitude)
    content = with_config(bundle, config)
    record.pop("magnitude_alone", None)
    record |= {
        "calibrated_from": {"name": bundle.path.stem, "sha256": bundle.sha256},
        "sha256": hashlib.sha256(content).hexdigest(),
        **_levels_record(levels, max_fp, "scans with a phase" if magnitude else "all scans"),
    }
    if magnitude is not None:
        record["magnitude_alone"] = _levels_record(magnitude, max_fp_magnitude, "scans without a phase")
    # a run killed between the two leaves a record alone, which the next one may replace
    atomic_write_text(record_path(out), json_text(record), overwrite=True)
    atomic_write_bytes(out, content, overwrite=True)


def learn_levels(labeled: LabeledCandidates, bundle: WeightsBundle, max_fp: float, option: str) -> Levels:
    """Operating point and map of these scans.

    Args:
        option: name of `max_fp` on the command line.

    Raises:
        UserError: there is too little to learn from.
    """
    if shortage := _shortage(labeled):
        raise UserError(shortage)
    known = above(labeled.events, labeled.complete_from)
    chosen = operating_point(known, max_fp, complete_from=labeled.complete_from)
    if chosen is None:
        raise UserError(
            f"{option}: the candidates end before {max_fp:g} false positives per scan; predict again "
            f"with --threshold {bundle.config.inference.candidate_threshold:g}, so that all are listed"
        )
    if not chosen.sensitivity.value:
        raise UserError(f"{option} {max_fp:g}: no microbleed is found at so few false positives; give more")
    return Levels(labeled=labeled, known=known, fitted=calibrate(known, seed=SEED), chosen=chosen)


def calibrated_config(config: Config, levels: Levels, magnitude: Levels | None = None) -> Config:
    """The configuration with maps and thresholds; `magnitude`: of scans without a phase, None: the same."""
    changes: dict[str, Any] = {}
    for prefix, each in (("", levels), ("magnitude_", magnitude)):
        changes |= {
            f"{prefix}score_threshold": each.chosen.threshold if each else None,
            f"{prefix}definite_threshold": each.definite if each else None,
            f"{prefix}calibration_scores": each.fitted.map.scores if each else (),
            f"{prefix}calibration_probabilities": each.fitted.map.probabilities if each else (),
        }
    return dataclasses.replace(config, inference=dataclasses.replace(config.inference, **changes))


def _shortage(labeled: LabeledCandidates) -> str | None:
    """What there is too little of to calibrate with, in words; None if there is enough."""
    if not len(labeled.list_ends):
        return "no scans to calibrate with; give labeled scans"
    events = above(labeled.events, labeled.complete_from)
    found = int(events.true.sum())
    for count, least, what in (
        (len(np.unique(events.subject)), FEWEST_SCANS, "scans with candidates"),
        (int(events.lesions.sum()), FEWEST, "microbleeds"),
        (found, FEWEST, "microbleeds found"),
        (len(events.true) - found, FEWEST, "false candidates"),
    ):
        if count < least:
            return f"only {count} {what} to calibrate with, {least} are the least; give more labeled scans"
    return None


def _levels_record(levels: Levels, max_fp: float, scans: str) -> dict[str, Any]:
    """Levels for the record beside the weights, with what they were learned from."""
    source = {"rule": CENTER3.title, "data": levels.labeled.data}
    table = operating_table(levels.known, complete_from=levels.labeled.complete_from)
    return {
        "operating_point": f"the highest sensitivity at no more than {max_fp:g} false positives per scan, "
        f"{CENTER3.title}, of the calibration's data ({scans})",
        "score_threshold": levels.chosen.threshold,
        "definite_threshold": levels.definite,
        "calibration": {
            "what": "probability that a candidate is a true microbleed",
            "method": levels.fitted.method,
            **source,
            **_fit_record(levels),
        },
        "operating_points": {
            **source,
            "measured_on": "the scans that the thresholds were chosen on",
            "intervals": _INTERVALS,
            "chosen": dataclasses.asdict(levels.chosen),
            "table": [dataclasses.asdict(point) for point in table],
        },
    }


def _fit_record(levels: Levels) -> dict[str, Any]:
    """What the map was fitted on, and how good it was on scans that it was not fitted on."""
    known, fitted = levels.known, levels.fitted
    scans = len(known.lesions)
    kept = known.scores >= levels.chosen.threshold

    def measured(probabilities: np.ndarray, rows: np.ndarray) -> dict[str, Any] | None:
        found = reliability(probabilities[rows], known.true[rows], known.subject[rows], scans, seed=SEED)
        return None if found is None else reliability_values(found)

    definite = dataclasses.replace(known, scores=np.where(kept, fitted.held_out, 0.0))
    counts = counts_at(definite, DEFINITE_PROBABILITY)
    return {
        "scans": scans,
        "lesions": int(known.lesions.sum()),
        "candidates": len(known.true),
        "true_candidates": int(known.true.sum()),
        "scores_from": levels.labeled.complete_from,
        "held_out": f"{fitted.folds}-fold cross-validation over scans, seed {SEED}",
        "held_out_log_loss": fitted.log_loss,
        "held_out_kept": measured(fitted.held_out, kept),
        "held_out_all": measured(fitted.held_out, np.ones(len(kept), bool)),
        "uncalibrated_kept": measured(known.scores, kept),
        "intervals": _INTERVALS,
        "definite": {
            "probability": DEFINITE_PROBABILITY,
            "threshold": levels.definite,
            "held_out_detections": int(counts.tp.sum() + counts.fp.sum()),
            "held_out_precision": dataclasses.asdict(bootstrap_counts(counts, seed=SEED)["precision"]),
        },
    }
