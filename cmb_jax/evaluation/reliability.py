"""Do probabilities mean what they say? Reliability curve and expected calibration error.

The expected calibration error is the mean over bins of |mean probability - share of true detections|, each
bin weighing as much as it holds (Naeini et al. 2015, AAAI; Guo et al. 2017, ICML). It depends on the bins:
here 10, once of equal numbers of detections, once of equal width. A perfect forecast of few detections has
an error above 0 by chance alone (Bröcker & Smith 2007, Weather and Forecasting): `error_by_chance` says how
much.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cmb_jax.evaluation.bootstrap import Estimate, estimates, resample_weights

BINS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Detections of similar probability; there is at least one."""

    low: float  # the least and the greatest probability in it
    high: float
    detections: int
    true: int
    mean_probability: float

    @property
    def share(self) -> float:
        """Share of true detections."""
        return self.true / self.detections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration of a set of detections."""

    detections: int
    true: int
    mean_probability: float
    bins: int  # that were asked for; empty ones are not listed
    equal_mass: tuple[ReliabilityBin, ...]
    equal_width: tuple[ReliabilityBin, ...]
    ece_equal_mass: Estimate
    ece_equal_width: Estimate
    by_chance_equal_mass: float  # what perfect probabilities would be expected to have here
    by_chance_equal_width: float


def equal_mass_bins(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin (n,) of each detection so that bins hold equal numbers; equal probabilities share a bin."""
    edges = np.quantile(probabilities, np.arange(1, bins) / bins)
    return np.searchsorted(edges, probabilities, side="right")


def equal_width_bins(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin (n,) of each detection, [k / bins, (k + 1) / bins); 1 belongs to the last."""
    return np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)


def calibration_error(probabilities: np.ndarray, true: np.ndarray, bin_of: np.ndarray) -> float:
    """Expected calibration error of n detections.

    Args:
        probabilities: (n,).
        true: (n,) bool.
        bin_of: (n,) int, see `equal_mass_bins` and `equal_width_bins`.
    """
    gaps = np.bincount(bin_of, weights=np.asarray(probabilities) - np.asarray(true, float))
    return float(np.abs(gaps).sum() / len(bin_of))


def error_by_chance(probabilities: np.ndarray, bin_of: np.ndarray) -> float:
    """Expected calibration error that n detections would have if their probabilities were perfect.

    The gap of a bin is then a sum of independent terms of mean 0 and variance p (1 - p); the mean of its
    absolute value is sqrt(2 / pi) standard deviations of the normal distribution that it comes near to.

    Args:
        probabilities: (n,).
        bin_of: (n,) int, as for `calibration_error`.
    """
    p = np.asarray(probabilities, float)
    deviation = np.sqrt(np.bincount(bin_of, weights=p * (1 - p)))
    return float(np.sqrt(2 / np.pi) * deviation.sum() / len(p))


def reliability(
    probabilities: np.ndarray,
    true: np.ndarray,
    subject: np.ndarray,
    scans: int,
    *,
    bins: int = BINS,
    samples: int = 2000,
    seed: int = 0,
) -> Reliability | None:
    """Reliability of n detections, None without any.

    Args:
        probabilities: (n,).
        true: (n,) bool, whether each is a true lesion.
        subject: (n,) int, index of its scan.
        scans: that there are, those without detections counted.
        bins: of either kind.
        samples: resamples of the scans for the 95 % intervals; the bins stay those of all detections.
        seed: of the resampling.
    """
    if not len(probabilities):
        return None
    by_mass, by_width = equal_mass_bins(probabilities, bins), equal_width_bins(probabilities, bins)
    values = [calibration_error(probabilities, true, bin_of) for bin_of in (by_mass, by_width)]
    gaps = [_scan_gaps(probabilities, true, subject, scans, bin_of, bins) for bin_of in (by_mass, by_width)]
    counts = np.bincount(subject, minlength=scans)
    blocks = []
    for weights in resample_weights(scans, samples, seed):
        drawn = weights @ counts
        with np.errstate(invalid="ignore"):  # a resample without any detection has no error
            blocks.append(np.stack([np.abs(weights @ gap).sum(axis=1) / drawn for gap in gaps], axis=1))
    mass, width = estimates(np.array(values), np.concatenate(blocks) if blocks else None)
    return Reliability(
        detections=len(probabilities),
        true=int(np.sum(true)),
        mean_probability=float(np.mean(probabilities)),
        bins=bins,
        equal_mass=_bins(probabilities, true, by_mass),
        equal_width=_bins(probabilities, true, by_width),
        ece_equal_mass=mass,
        ece_equal_width=width,
        by_chance_equal_mass=error_by_chance(probabilities, by_mass),
        by_chance_equal_width=error_by_chance(probabilities, by_width),
    )


def _scan_gaps(
    probabilities: np.ndarray,
    true: np.ndarray,
    subject: np.ndarray,
    scans: int,
    bin_of: np.ndarray,
    bins: int,
) -> np.ndarray:
    """Sum of probability - truth by scan and bin, (scans, bins)."""
    gap = np.asarray(probabilities) - np.asarray(true, float)
    return np.bincount(subject * bins + bin_of, weights=gap, minlength=scans * bins).reshape(scans, bins)


def _bins(probabilities: np.ndarray, true: np.ndarray, bin_of: np.ndarray) -> tuple[ReliabilityBin, ...]:
    found = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        found.append(
            ReliabilityBin(
                low=float(probabilities[inside].min()),
                high=float(probabilities[inside].max()),
                detections=int(inside.sum()),
                true=int(np.sum(true[inside])),
                mean_probability=float(probabilities[inside].mean()),
            )
        )
    return tuple(found)
