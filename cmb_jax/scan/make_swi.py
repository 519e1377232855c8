"""A susceptibility-weighted image from the magnitude and phase of one or more echoes (Haacke et al. 2004)."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.volume import Volume
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.judge import judge_grid, judge_intensity, judge_name, judge_phase
from cmb_jax.scan.phase_range import PhaseRange, phase_to_radians, range_of
from cmb_jax.scan.phase_sign import SignDecision, decide_phase_sign, field_direction
from cmb_jax.scan.swi import PHASE_MASK_POWER, combine_echoes, homodyne_phase, phase_mask

TE_MS = (1.0, 200.0)
"""Echo times of gradient echoes of the brain."""
_SAME_TE_MS = 0.05


class OpenSignError(UserError):
    """The sign of the phase cannot be determined, and a mask with the wrong sign hides microbleeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeSwi:
    """A susceptibility-weighted image and what it was made from, on the grid of the magnitude."""

    swi: np.ndarray  # (X, Y, Z)
    phase: np.ndarray  # (X, Y, Z) high-passed, radians within +-pi, paramagnetic positive
    magnitude: np.ndarray  # (X, Y, Z), echoes combined
    te_ms: tuple[float, ...]  # of the echoes used, () for a single one of unknown time
    phase_range: PhaseRange
    sign: SignDecision


def make_swi(
    magnitudes: Sequence[Volume],
    phases: Sequence[Volume],
    *,
    te_ms: tuple[float, ...] = (),
    echo: int | None = None,
    phase_sign: PhaseSign = "auto",
    phase_range: PhaseRange | None = None,
) -> MadeSwi:
    """Make a susceptibility-weighted image from volumes; reads and writes no files.

    Args:
        magnitudes: one volume per echo.
        phases: as stored, of the same echoes.
        te_ms: echo times in ms, one per echo; needed to combine several.
        echo: use this echo alone, counted from 1; None combines all there are.
        phase_sign: "auto", "+1" or "-1": the sign of paramagnetic phase as stored.
        phase_range: how phase is stored; None: determined from its values.

    Raises:
        UserError: images that do not fit together, echo times that are missing or do not fit.
        NotAnalysableError: images of another kind than they are given as.
        OpenSignError: the sign of the phase cannot be determined.
    """
    if phase_sign not in ("auto", "+1", "-1"):
        raise UserError(f"phase sign {phase_sign!r} is unknown; use auto, +1 or -1")
    _check_echoes(magnitudes, phases, te_ms, echo)
    radians, phase_range = _in_radians(magnitudes, phases, phase_range)
    chosen = slice(None) if echo is None else slice(echo - 1, echo)
    te_ms, like = tuple(te_ms)[chosen], magnitudes[0]
    combined, stored_phase = _one_echo(
        np.stack([volume.data for volume in magnitudes[chosen]]), radians[chosen], te_ms, like.spacing_mm
    )
    if phase_sign == "auto":
        decision = decide_phase_sign(
            np.asarray(stored_phase), np.asarray(combined), like.spacing_mm, field_direction(like.affine)
        )
    else:
        decision = SignDecision(sign=int(phase_sign), confident=True, reason="as given")
    if not decision.confident:
        raise OpenSignError(
            f"the sign of the phase is open ({decision.reason}), so that no SWI can be made; "
            "look at the veins and give --phase-sign +1 or -1"
        )
    filtered = decision.sign * stored_phase
    return MadeSwi(
        swi=np.asarray(combined * phase_mask(filtered) ** PHASE_MASK_POWER),
        # combined echoes may pass pi a little, but the range of a stored phase is what says its unit
        phase=np.clip(np.asarray(filtered), -np.pi, np.pi),
        magnitude=np.asarray(combined),
        te_ms=te_ms,
        phase_range=phase_range,
        sign=decision,
    )


def _check_echoes(
    magnitudes: Sequence[Volume], phases: Sequence[Volume], te_ms: Sequence[float], echo: int | None
) -> None:
    """Refuse echoes that do not fit each other, their echo times, or the echo asked for."""
    names, count = f"{magnitudes[0].source} and {phases[0].source}", len(magnitudes)
    if len(phases) != count:
        raise UserError(
            f"{names}: {count} and {len(phases)} echoes; give magnitude and phase of the same echoes"
        )
    check_same_grid(magnitudes[0], phases[0])
    judge_grid(magnitudes[0], head=False).enforce("magnitude")
    for volume in magnitudes:
        judge_name(volume.source).enforce("magnitude")
        judge_intensity(volume.data).enforce("magnitude")
    if te_ms and len(te_ms) != count:
        raise UserError(f"{names}: {count} echoes but {len(te_ms)} echo times; give one an echo with --te-ms")
    check_echo_times(te_ms)
    if echo is not None and not 1 <= echo <= count:
        raise UserError(f"{names}: there is no echo {echo}; choose --echo from 1 to {count}")
    if count > 1 and echo is None and not te_ms:
        raise UserError(f"{names}: {count} echoes; give their times with --te-ms, or choose one with --echo")


def _in_radians(
    magnitudes: Sequence[Volume], phases: Sequence[Volume], stated: PhaseRange | None
) -> tuple[np.ndarray, PhaseRange]:
    """The phases (E, X, Y, Z) in radians, sign as stored, and how they are stored."""
    stored = np.stack([volume.data for volume in phases])
    try:
        phase_range = range_of(stored, stated)  # over all echoes: the first may not reach the extremes
    except NotAnalysableError as error:
        raise NotAnalysableError(f"{phases[0].source}: {error}") from None
    radians = phase_to_radians(stored, phase_range)
    for volume, angle, magnitude in zip(phases, radians, magnitudes, strict=True):
        judged = judge_phase(volume.data, angle, magnitude.data)
        if doubts := (*judged.reasons, *judged.warnings):
            raise NotAnalysableError(f"the phase is not analysable: {doubts[0]}")
    return radians, phase_range


def _one_echo(
    magnitudes: np.ndarray, radians: np.ndarray, te_ms: Sequence[float], spacing_mm: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Magnitude and high-passed phase (X, Y, Z) of echoes (E, X, Y, Z), combined; sign as stored."""
    # each echo is high-passed by itself: that removes wraps and offsets, so that phase grows linearly with TE
    echoes = jnp.asarray(magnitudes)
    filtered = [
        homodyne_phase(jnp.asarray(phase), magnitude, spacing_mm)
        for phase, magnitude in zip(radians, echoes, strict=True)
    ]
    if len(filtered) == 1:
        return echoes[0], filtered[0]
    return combine_echoes(echoes, jnp.stack(filtered), te_ms)


def check_number(name: str, value: float, limits: tuple[float, float], unit: str, hint: str = "") -> None:
    """Refuse a number outside its limits. Raises UserError with its unit and what is allowed."""
    if not (math.isfinite(value) and limits[0] <= value <= limits[1]):
        raise UserError(f"{name} {value:g}: allowed are {limits[0]:g} to {limits[1]:g} {unit}{hint}")


def check_echo_times(te_ms: Sequence[float]) -> None:
    """Refuse echo times (ms) that no gradient echo has, or that do not rise. Raises UserError."""
    for te in te_ms:
        hint = "; give milliseconds, not seconds" if 0 < te < TE_MS[0] else ""
        check_number("--te-ms", te, TE_MS, "ms", hint)
    for earlier, later in itertools.pairwise(te_ms):
        if later - earlier < _SAME_TE_MS:
            stated = " ".join(f"{te:g}" for te in te_ms)
            raise UserError(f"--te-ms {stated}: echo times (ms) must rise from echo to echo")
