"""`cmb-jax swi`: a susceptibility-weighted image from magnitude and phase, files in and files out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import cmb_jax
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.io.multi_echo import read_echoes
from cmb_jax.io.naming import shown_name
from cmb_jax.io.nifti import check_same_grid, write_volume
from cmb_jax.io.phase import (
    PhaseRange,
    SignDecision,
    decide_phase_sign,
    detect_phase_range,
    field_direction,
    phase_to_radians,
)
from cmb_jax.io.volume import Volume
from cmb_jax.swi import (
    DEFAULT_WIDTH_MM,
    PHASE_MASK_POWER,
    combine_echoes,
    homodyne_phase,
    minimum_intensity_projection,
    phase_mask,
)

_SLAB_MM = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Echoes:
    """The echoes of one acquisition that are used."""

    magnitudes: np.ndarray  # (E, X, Y, Z)
    phases: np.ndarray  # (E, X, Y, Z) radians, sign as stored
    te_ms: tuple[float, ...]  # (E,), or () for a single echo of unknown time
    phase_range: PhaseRange


def run_swi(
    magnitude: Path,
    phase: Path,
    out: Path,
    te_ms: tuple[float, ...] = (),
    echo: int | None = None,
    phase_sign: str = "auto",
    overwrite: bool = False,
    phase_range: PhaseRange | None = None,
    keep_identifiers: bool = False,
) -> Path:
    """Makes a susceptibility-weighted image (Haacke et al. 2004) and writes it on the native grid.

    The folder then holds swi.nii.gz, phase.nii.gz (high-passed, radians within +-pi, paramagnetic positive),
    minip.nii.gz (sliding minimum over about 8 mm along the superior axis) and swi.json (how it was made).

    Args:
        magnitude: 3D image, or 4D with one volume an echo.
        phase: phase of the same shape, in any of the usual ranges.
        out: folder to make.
        te_ms: echo times in ms, one an echo; needed to combine several.
        echo: use this echo alone, counted from 1; None combines all there are.
        phase_sign: "auto", "+1" or "-1": the sign of paramagnetic phase as stored.
        overwrite: replace what an earlier run wrote to `out`.
        phase_range: how phase is stored; None: told from its extremes.
        keep_identifiers: let swi.json name the input files as they are named.

    Returns:
        `out`.

    Raises:
        UserError: bad input, images that do not fit together, echo times that are missing or do not fit, a
            folder that exists or cannot be written. Nothing is written then.
    """
    out = Path(out)
    if phase_sign not in ("auto", "+1", "-1"):
        raise UserError(f"phase sign {phase_sign!r} is unknown; use auto, +1 or -1")
    with atomic_directory(out, overwrite=overwrite) as folder:
        magnitude_echoes, phase_echoes = read_echoes(magnitude), read_echoes(phase)
        like = magnitude_echoes[0]
        echoes = _select(magnitude_echoes, phase_echoes, te_ms, echo, phase_range)
        combined, stored_phase = _one_echo(echoes, like.spacing_mm)
        decision = _sign(phase_sign, stored_phase, combined, like)
        filtered = decision.sign * stored_phase
        swi = combined * phase_mask(filtered) ** PHASE_MASK_POWER
        slab = max(1, round(_SLAB_MM / like.spacing_mm[2]))
        write_volume(folder / "swi.nii.gz", np.asarray(swi), like)
        # combined echoes may pass pi a little; as everywhere, the range of stored phase says its unit
        stored = np.clip(np.asarray(filtered), -np.pi, np.pi)
        write_volume(folder / "phase.nii.gz", stored, like)
        projection = minimum_intensity_projection(swi, min(slab, like.shape[2]))
        write_volume(folder / "minip.nii.gz", np.asarray(projection), like)
        record = {
            "notice": "Research use only; not a medical device.",
            "version": cmb_jax.__version__,
            "inputs": [
                _described("magnitude", like, keep_identifiers),
                _described("phase", phase_echoes[0], keep_identifiers),
            ],
            "echoes": len(magnitude_echoes),
            "echo_used": "all, combined" if len(echoes.magnitudes) > 1 else (echo or 1),
            "echo_times_ms": list(echoes.te_ms),
            "phase_range": echoes.phase_range.value,
            "phase_sign": decision.sign,
            "phase_sign_confident": decision.confident,
            "phase_sign_reason": decision.reason,
            "high_pass": f"homodyne, in plane, Hann window of {DEFAULT_WIDTH_MM:g} mm",
            "phase_mask_power": PHASE_MASK_POWER,
            "projection_slices": slab,
            "warnings": [
                *(f"magnitude: {line}" for line in like.warnings),
                *(f"phase: {line}" for line in phase_echoes[0].warnings),
                *_doubts(decision),
            ],
        }
        (folder / "swi.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return out


def _described(role: str, volume: Volume, keep_identifiers: bool) -> dict[str, str]:
    assert volume.source is not None  # read from a file, as all inputs here
    assert volume.sha256 is not None
    name = shown_name(volume.source, volume.sha256, keep_identifiers=keep_identifiers)
    return {"role": role, "file": name, "sha256": volume.sha256}


def _doubts(decision: SignDecision) -> list[str]:
    if decision.confident:
        return []
    return [
        f"the sign of the phase is not certain ({decision.reason}); look at the veins and give --phase-sign"
    ]


def _select(
    magnitudes: Sequence[Volume],
    phases: Sequence[Volume],
    te_ms: tuple[float, ...],
    echo: int | None,
    phase_range: PhaseRange | None,
) -> _Echoes:
    """Checks that everything fits together; phase in radians; the chosen echoes."""
    names = f"{magnitudes[0].source} and {phases[0].source}"
    count = len(magnitudes)
    if len(phases) != count:
        raise UserError(
            f"{names}: {count} and {len(phases)} echoes; give magnitude and phase of the same echoes"
        )
    check_same_grid(magnitudes[0], phases[0])
    if te_ms and len(te_ms) != count:
        raise UserError(f"{names}: {count} echoes but {len(te_ms)} echo times; give one an echo with --te-ms")
    if te_ms and min(te_ms) <= 0:
        raise UserError("echo times must be positive; give them in ms with --te-ms")
    if echo is not None and not 1 <= echo <= count:
        raise UserError(f"{names}: there is no echo {echo}; choose --echo from 1 to {count}")
    if count > 1 and echo is None and not te_ms:
        raise UserError(f"{names}: {count} echoes; give their times with --te-ms, or choose one with --echo")
    stored = np.stack([volume.data for volume in phases])
    if phase_range is None:
        try:
            phase_range = detect_phase_range(stored)  # over all echoes: the first may not reach the extremes
        except UserError as error:
            raise UserError(f"{phases[0].source}: {error}") from None
    chosen = slice(None) if echo is None else slice(echo - 1, echo)
    return _Echoes(
        magnitudes=np.stack([volume.data for volume in magnitudes[chosen]]),
        phases=phase_to_radians(stored, phase_range)[chosen],
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
