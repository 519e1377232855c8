"""Which runs the comparison consists of, in the order in which they are made."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from benchmarks.peers.contest import CONTESTANTS
from cmb_jax.errors import UserError

FEW = (4, 8, 16, 32)  # subjects, beside all of them
ALL = 72
PRETRAINED = "base-masked"
LEARN_FROM_FEW = ("base", "nnunet")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def budget_seconds(text: str) -> float:
    """Seconds of a budget such as 90s, 2m or 1h.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or float(found[1]) == 0:
        raise UserError(
            f"--budget {text}: give a number of CPU seconds, minutes or hours, such as 90s, 2m or 1h"
        )
    return float(found[1]) * _UNITS[found[2]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one contestant."""

    contestant: str
    budget: str
    seed: int
    subjects: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.contestant}-{self.budget}-s{self.seed}-n{self.subjects}"

    def folder(self, work: Path) -> Path:
        """Where it lies."""
        return work / "runs" / self.name


def _all(budget: str, seed: int) -> tuple[Run, ...]:
    names = [name for name in CONTESTANTS if name != PRETRAINED]
    return tuple(Run(contestant=name, budget=budget, seed=seed, subjects=ALL) for name in names)


PLAN = (
    *_all("1h", 0),
    *(Run(contestant=name, budget="1h", seed=0, subjects=n) for n in FEW for name in LEARN_FROM_FEW),
    *(Run(contestant=PRETRAINED, budget="1h", seed=0, subjects=n) for n in FEW[:2]),
    *_all("1h", 1),
    *_all("4h", 0),
)
