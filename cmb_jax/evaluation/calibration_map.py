"""From a detector's score to a probability: a piecewise linear map, as it travels with the weights."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationMap:
    """Straight lines between knots, constant beyond the first and the last; it never falls.

    Raises:
        ValueError: fewer than two knots, scores that do not rise, probabilities that fall or leave 0..1.
    """

    scores: tuple[float, ...]  # of the knots, rising, 0..1
    probabilities: tuple[float, ...]  # that a detection with such a score is a true microbleed

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.probabilities) or len(self.scores) < 2:
            raise ValueError("a calibration map needs two knots or more, a probability for each score")
        if not all(a < b for a, b in itertools.pairwise(self.scores)):
            raise ValueError("the scores of a calibration map must rise")
        if not all(a <= b for a, b in itertools.pairwise((0.0, *self.probabilities, 1.0))):
            raise ValueError("the probabilities of a calibration map must not fall and must lie in 0..1")

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of scores (n,)."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)

    def score_at(self, probability: float) -> float:
        """The lowest score with at least this probability; infinite if there is none."""
        knots = np.array(self.probabilities)
        if probability > knots[-1]:
            return math.inf
        upper = int(np.argmax(knots >= probability))
        if upper == 0:
            return 0.0  # the map is constant below its first knot
        low, high = knots[upper - 1], knots[upper]
        share = (probability - low) / (high - low)
        return float(self.scores[upper - 1] + share * (self.scores[upper] - self.scores[upper - 1]))
