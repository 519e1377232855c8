"""A susceptibility-weighted image from the magnitude and phase of one or more echoes (Haacke et al. 2004)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.volume import Volume
from cmb_jax.scan.judge import judge_grid, judge_intensity, judge_name, judge_phase
from cmb_jax.scan.phase_range import PhaseRange, phase_to_radians, range_of
from cmb_jax.scan.phase_sign import SignDecision, decide_phase_sign, field_direction
from cmb_jax.scan.units import check_echo_times
from cmb_jax.swi import PHASE_MASK_POWER, combine_echoes, homodyne_phase, phase_mask


class OpenSignError(UserError):
    """The images do not tell the sign of the phase, and a mask with the wrong one hides microbleeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeSwi:
    """A susceptibility-weighted image and what it was made from, on the grid of the magnitude."""

    swi: np.ndarray  # (X, Y, Z)
    phase: np.ndarray  # (X, Y, Z) high-passed, radians within +-pi, paramagnetic positive
    magnitude: np.ndarray  # (X, Y, Z), echoes combined
    te_ms: tuple[float, ...]  # of the echoes used, () for a single one of unknown time
    phase_range: PhaseRange
    sign: SignDecision


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Echoes:
    """The echoes of one acquisition that are used."""

    magnitudes: np.ndarray  # (E, X, Y, Z)
    phases: np.ndarray  # (E, X, Y, Z) radians, sign as stored
    te_ms: tuple[float, ...]  # (E,), or () for a single echo of unknown time
    phase_range: PhaseRange


def make_swi(
    magnitudes: Sequence[Volume],
    phases: Sequence[Volume],
    *,
    te_ms: tuple[float, ...] = (),
    echo: int | None = None,
    phase_sign: str = "auto",
    phase_range: PhaseRange | None = None,
) -> MadeSwi:
    """Makes a susceptibility-weighted image of volumes; no files.

    Args:
        magnitudes: one volume an echo.
        phases: as stored, of the same echoes.
        te_ms: echo times in ms, one an echo; needed to combine several.
        echo: use this echo alone, counted from 1; None combines all there are.
        phase_sign: "auto", "+1" or "-1": the sign of paramagnetic phase as stored.
        phase_range: how phase is stored; None: told from its extremes.

    Raises:
        UserError: images that do not fit together, echo times that are missing or do not fit.
        NotAnalysableError: images that are not what they are called.
        OpenSignError: the sign of the phase cannot be told.
    """
    if phase_sign not in ("auto", "+1", "-1"):
        raise UserError(f"phase sign {phase_sign!r} is unknown; use auto, +1 or -1")
    echoes = _select(magnitudes, phases, te_ms, echo, phase_range)
    like = magnitudes[0]
    combined, stored_phase = _one_echo(echoes, like.spacing_mm)
    decision = _sign(phase_sign, stored_phase, combined, like)
    if not decision.confident:
        raise OpenSignError(
            f"the sign of the phase is open ({decision.reason}), so that no SWI can be made; "
            "look at the veins and give --phase-sign +1 or -1"
        )
    filtered = decision.sign * stored_phase
    return MadeSwi(
        swi=np.asarray(combined * phase_mask(filtered) ** PHASE_MASK_POWER),
        # combined echoes may pass pi a little; as everywhere, the range of stored phase says its unit
        phase=np.clip(np.asarray(filtered), -np.pi, np.pi),
        magnitude=np.asarray(combined),
        te_ms=echoes.te_ms,
        phase_range=echoes.phase_range,
        sign=decision,
    )


def _select(
    magnitudes: Sequence[Volume],
    phases: Sequence[Volume],
    te_ms: tuple[float, ...],
    echo: int | None,
    phase_range: PhaseRange | None,
) -> _Echoes:
    """Checks that everything fits together and is what it is called; phase in radians; the chosen echoes."""
    names = f"{magnitudes[0].source} and {phases[0].source}"
    count = len(magnitudes)
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
    stored = np.stack([volume.data for volume in phases])
    try:
        phase_range = range_of(stored, phase_range)  # over all echoes: the first may not reach the extremes
    except NotAnalysableError as error:
        raise NotAnalysableError(f"{phases[0].source}: {error}") from None
    radians = phase_to_radians(stored, phase_range)
    for volume, angle, magnitude in zip(phases, radians, magnitudes, strict=True):
        judged = judge_phase(volume.data, angle, magnitude.data)
        if said := (*judged.reasons, *judged.warnings):
            raise NotAnalysableError(f"the phase is not analysable: {said[0]}")
    chosen = slice(None) if echo is None else slice(echo - 1, echo)
    return _Echoes(
        magnitudes=np.stack([volume.data for volume in magnitudes[chosen]]),
        phases=radians[chosen],
        te_ms=tuple(te_ms)[chosen],
        phase_range=phase_range,
    )


def _one_echo(echoes: _Echoes, spacing_mm: Sequence[float]) -> tuple[jax.Array, jax.Array]:
    """Magnitude and high-passed phase (X, Y, Z), of the single echo or combined; sign as stored."""
    magnitudes = jnp.asarray(echoes.magnitudes)
    filtered = [
        homodyne_phase(jnp.asarray(phase), magnitude, spacing_mm)
        for phase, magnitude in zip(echoes.phases, magnitudes, strict=True)
    ]
    if len(filtered) == 1:
        return magnitudes[0], filtered[0]
    return combine_echoes(magnitudes, jnp.stack(filtered), echoes.te_ms)


def _sign(phase_sign: str, filtered: jax.Array, magnitude: jax.Array, like: Volume) -> SignDecision:
    if phase_sign != "auto":
        return SignDecision(sign=int(phase_sign), confident=True, reason="as given")
    direction = field_direction(like.affine)
    return decide_phase_sign(np.asarray(filtered), np.asarray(magnitude), like.spacing_mm, direction)
