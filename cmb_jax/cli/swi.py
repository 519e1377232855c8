"""`cmb-jax swi`: make a susceptibility-weighted image from files of magnitude and phase."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import cmb_jax
from cmb_jax.scan import PhaseSign, StoredPhase

if TYPE_CHECKING:
    from cmb_jax.io.volume import Volume

_SLAB_MM = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiOptions:
    """Make a susceptibility-weighted image from magnitude and phase (several echoes are combined)."""

    magnitude: Path
    """magnitude image, one or more echoes along the fourth axis."""
    phase: Path
    """phase image, stored in any of the usual forms."""
    out: Path
    """folder to make: swi, high-passed phase, minimum intensity projection."""
    te_ms: tuple[float, ...] = ()
    """echo times in ms; needed to combine several echoes."""
    echo: int | None = None
    """use this echo alone, counted from 1."""
    phase_sign: PhaseSign = "auto"
    """sign that makes veins positive when the stored phase is multiplied by it."""
    phase_range: StoredPhase = ("auto",)
    """how the phase is stored; auto determines it from the values (see `cmb-jax predict --help`)."""
    overwrite: bool = False
    """replace the folder if it exists."""
    keep_identifiers: bool = False
    """keep the original names of the input files in swi.json (docs/privacy.md)."""


def run(options: SwiOptions) -> None:
    """Make a susceptibility-weighted image (Haacke et al. 2004) and write it on the native grid.

    The folder then holds swi.nii.gz, phase.nii.gz (high-passed, radians within +-pi, paramagnetic positive),
    minip.nii.gz (sliding minimum over about 8 mm along the superior axis) and swi.json (how it was made).
    """
    import jax.numpy as jnp
    import numpy as np

    from cmb_jax.io.atomic import atomic_directory
    from cmb_jax.io.nifti import read_echoes, write_volume
    from cmb_jax.scan.make_swi import make_swi
    from cmb_jax.scan.phase_range import asked_range
    from cmb_jax.scan.swi import DEFAULT_WIDTH_MM, PHASE_MASK_POWER, minimum_intensity_projection

    out, keep_identifiers, echo = options.out, options.keep_identifiers, options.echo
    stated = asked_range(options.phase_range)
    # inside the `with`, so that a failure leaves neither a folder nor a half-made one
    with atomic_directory(out, overwrite=options.overwrite) as folder:
        magnitude_echoes, phase_echoes = read_echoes(options.magnitude), read_echoes(options.phase)
        like = magnitude_echoes[0]
        result = make_swi(
            magnitude_echoes,
            phase_echoes,
            te_ms=options.te_ms,
            echo=echo,
            phase_sign=options.phase_sign,
            phase_range=stated,
        )
        slab = max(1, round(_SLAB_MM / like.spacing_mm[2]))
        write_volume(folder / "swi.nii.gz", result.swi, like)
        write_volume(folder / "phase.nii.gz", result.phase, like)
        projection = minimum_intensity_projection(jnp.asarray(result.swi), min(slab, like.shape[2]))
        write_volume(folder / "minip.nii.gz", np.asarray(projection), like)
        record = {
            "notice": "Research use only; not a medical device.",
            "version": cmb_jax.__version__,
            "inputs": [
                _described("magnitude", like, keep_identifiers),
                _described("phase", phase_echoes[0], keep_identifiers),
            ],
            "echoes": len(magnitude_echoes),
            "echo_used": "all, combined" if echo is None and len(magnitude_echoes) > 1 else (echo or 1),
            "echo_times_ms": list(result.te_ms),
            "phase_range": result.phase_range.name,
            "phase_sign": result.sign.sign,
            "phase_sign_reason": result.sign.reason,
            "high_pass": f"homodyne, in plane, Hann window of {DEFAULT_WIDTH_MM:g} mm",
            "phase_mask_power": PHASE_MASK_POWER,
            "projection_slices": slab,
            "warnings": [
                *(f"magnitude: {line}" for line in like.warnings),
                *(f"phase: {line}" for line in phase_echoes[0].warnings),
            ],
        }
        (folder / "swi.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")


def _described(role: str, volume: Volume, keep_identifiers: bool) -> dict[str, str]:
    from cmb_jax.io.provenance import shown_name

    assert volume.source is not None  # read from a file, as all inputs here
    assert volume.sha256 is not None
    name = shown_name(volume.source, volume.sha256, keep_identifiers=keep_identifiers)
    return {"role": role, "file": name, "sha256": volume.sha256}
