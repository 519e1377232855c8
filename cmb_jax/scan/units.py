"""Numbers from outside: what they may be, with their unit, on both sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from cmb_jax.errors import UserError

TE_MS = (1.0, 200.0)
"""Echo times of gradient echoes of the brain."""
_SAME_TE_MS = 0.05


def check_number(name: str, value: float, limits: tuple[float, float], unit: str, hint: str = "") -> None:
    """Refuses a number outside of both limits.

    Raises:
        UserError: names the number, its unit and what is allowed.
    """
    if not (math.isfinite(value) and limits[0] <= value <= limits[1]):
        raise UserError(f"{name} {value:g}: allowed are {limits[0]:g} to {limits[1]:g} {unit}{hint}")


def check_echo_times(te_ms: Sequence[float]) -> None:
    """Refuses echo times (ms) that no gradient echo has, or that do not rise.

    Raises:
        UserError: says which and what is allowed.
    """
    for te in te_ms:
        hint = "; give milliseconds, not seconds" if 0 < te < TE_MS[0] else ""
        check_number("--te-ms", te, TE_MS, "ms", hint)
    for earlier, later in itertools.pairwise(te_ms):
        if later - earlier < _SAME_TE_MS:
            told = " ".join(f"{te:g}" for te in te_ms)
            raise UserError(f"--te-ms {told}: echo times (ms) must rise from echo to echo")
