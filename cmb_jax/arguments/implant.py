"""The arguments of `cmb-jax implant`, apart from its work so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cmb_jax.commands.common import StoredPhase


def implant(
    magnitude: Path,
    phase: Path,
    out: Path,
    te_ms: tuple[float, ...] = (),
    b0_t: float | None = None,
    count: int | None = None,
    mimics: int = 0,
    diameters_mm: tuple[float, float] = (1.5, 4.0),
    lesions: Path | None = None,
    brain_mask: Path | None = None,
    phase_sign: Literal["auto", "+1", "-1"] = "auto",
    phase_range: StoredPhase = ("auto",),
    seed: int = 0,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Put simulated microbleeds and mimics into a real scan, with their truth.

    Writes magnitude.nii.gz and phase.nii.gz in the form of the input, labels.nii.gz (microbleeds by id),
    mimics.nii.gz (by kind), truth.csv and implant.json.

    Args:
      magnitude: magnitude image, one or more echoes along the fourth axis.
      phase: phase image of the same echoes, stored in any of the usual forms; not high-passed.
      out: folder to make.
      te_ms: echo times in ms, one an echo; default: EchoTime of the JSON file beside the image.
      b0_t: field strength in tesla; default: MagneticFieldStrength of that file.
      count: microbleeds to draw; default: 5, or none with a table.
      mimics: calcifications and vein segments to draw, in turn.
      diameters_mm: smallest and largest true diameter that is drawn.
      lesions: CSV with x_mm, y_mm, z_mm (RAS) and diameter_mm, and if wanted kind and chi_ppm.
      brain_mask: image on the same grid, above 0 in the brain; default: found in the magnitude.
      phase_sign: +1 where paramagnetic tissue has positive phase as stored, -1 where negative.
      phase_range: how the phase is stored; auto tells it from the values (see `cmb-jax predict --help`).
      seed: of every draw; the same seed gives the same bytes.
      overwrite: replace the folder if it exists.
      keep_identifiers: keep the texts of the NIfTI headers and the names of the inputs (docs/privacy.md).
    """
    from cmb_jax.commands.implant import run

    run(
        magnitude=magnitude,
        phase=phase,
        out=out,
        te_ms=te_ms,
        b0_t=b0_t,
        count=count,
        mimics=mimics,
        diameters_mm=diameters_mm,
        lesions=lesions,
        brain_mask=brain_mask,
        phase_sign=phase_sign,
        phase_range=phase_range,
        seed=seed,
        overwrite=overwrite,
        keep_identifiers=keep_identifiers,
    )
