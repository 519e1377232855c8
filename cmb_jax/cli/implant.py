"""cmb-jax implant: microbleeds and mimics put into a real scan's magnitude and phase, with their truth."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cmb_jax
from cmb_jax.cli.common import check_output, existing_file
from cmb_jax.errors import UserError
from cmb_jax.inference.options import PhaseSign, StoredPhase

if TYPE_CHECKING:
    import numpy as np

    from cmb_jax.io.volume import Volume
    from cmb_jax.phantom.types import LesionRow

NOTICE = "Research use only; not a medical device. The lesions in truth.csv are simulated."
_MAX_LESIONS = 500
_DEFAULT_COUNT = 5
_LARGEST_MM = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplantOptions:
    """Put simulated microbleeds and mimics into a real scan, with their truth.

    Writes magnitude.nii.gz and phase.nii.gz in the form of the input, labels.nii.gz (microbleeds by id),
    mimics.nii.gz (by kind), truth.csv and implant.json.
    """

    magnitude: Path
    """magnitude image, one or more echoes along the fourth axis."""
    phase: Path
    """phase image of the same echoes, stored in any of the usual forms; not high-passed."""
    out: Path
    """folder to make."""
    te_ms: tuple[float, ...] = ()
    """echo times in ms, one an echo; default: EchoTime of the JSON file beside the image."""
    b0_t: float | None = None
    """field strength in tesla; default: MagneticFieldStrength of that file."""
    count: int | None = None
    """microbleeds to draw; default: 5, or none with a table."""
    mimics: int = 0
    """calcifications and vein segments to draw, in turn."""
    diameters_mm: tuple[float, float] = (1.5, 4.0)
    """smallest and largest true diameter that is drawn."""
    lesions: Path | None = None
    """CSV with x_mm, y_mm, z_mm (RAS) and diameter_mm, and if wanted kind and chi_ppm."""
    brain_mask: Path | None = None
    """image on the same grid, above 0 in the brain; default: found in the magnitude."""
    phase_sign: PhaseSign = "auto"
    """+1 where paramagnetic tissue has positive phase as stored, -1 where negative."""
    phase_range: StoredPhase = ("auto",)
    """how the phase is stored; auto tells it from the values (see `cmb-jax predict --help`)."""
    seed: int = 0
    """of every draw; the same seed gives the same bytes."""
    overwrite: bool = False
    """replace the folder if it exists."""
    keep_identifiers: bool = False
    """keep the texts of the NIfTI headers and the names of the inputs (docs/privacy.md)."""


def run(options: ImplantOptions) -> None:
    """Read, implant, write. Nothing is written where something is wrong.

    Raises:
      UserError: files, echo times, field strength or a table that are missing or make no sense, lesions that
        do not fit, a folder that exists.
    """
    magnitude, phase, out = options.magnitude, options.phase, options.out
    lesions, brain_mask = options.lesions, options.brain_mask
    check_output(out, options.overwrite)
    wanted = _wanted(options)
    for path, role in ((magnitude, "magnitude"), (phase, "phase"), (lesions, "table"), (brain_mask, "mask")):
        if path is not None:
            existing_file(path, role)
    import numpy as np

    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.implant.lesions import lesions_for
    from cmb_jax.implant.scan import find_brain, read_scan
    from cmb_jax.implant.truth import changes, outside_brain, put_in
    from cmb_jax.io.atomic import atomic_directory
    from cmb_jax.io.header import open_nifti
    from cmb_jax.io.nifti import write_volume
    from cmb_jax.io.storage import scaled_magnitude, shifted_phase, write_stored
    from cmb_jax.phantom.types import CMB_KIND
    from cmb_jax.scan.phase_sign import field_direction

    use_compilation_cache()
    scan = read_scan(magnitude, phase, options.te_ms, options.b0_t, options.phase_sign, options.phase_range)
    brain = find_brain(scan.like, scan.magnitude[scan.last], brain_mask)
    bodies = lesions_for(scan, brain, wanted, options.mimics, options.diameters_mm, lesions, options.seed)
    gain, shift, labels, kinds, rows = put_in(scan, brain, bodies)
    warnings = [*scan.like.warnings, *outside_brain(scan, brain, bodies, brain_mask is not None)]
    seen = np.flatnonzero(changes(scan, brain, bodies) >= 1.0)
    if faint := len(bodies) - len(seen):
        said = (
            f"{faint} of {len(bodies)} lesions change the image less than its noise at "
            f"{max(scan.te_ms):g} ms and {scan.b0_t:g} T"
        )
        if not len(seen):
            raise UserError(f"{said}: nothing would be seen; give larger diameters or check --te-ms, --b0-t")
        warnings.append(f"{said} and were left out")
        bodies = bodies.some(seen)
        gain, shift, labels, kinds, rows = put_in(scan, brain, bodies)
    record = {
        "notice": NOTICE,
        "version": cmb_jax.__version__,
        "inputs": _inputs(
            options.keep_identifiers, magnitude=magnitude, phase=phase, lesions=lesions, brain_mask=brain_mask
        ),
        "settings": {
            "seed": options.seed,
            "count": wanted,
            "mimics": options.mimics,
            "diameters_mm": list(options.diameters_mm),
            "te_ms": list(scan.te_ms),
            "b0_t": scan.b0_t,
            "b0_direction": [round(v, 6) for v in field_direction(scan.like.affine)],
            "phase_range": scan.phase_range.name,
            "phase_sign": scan.sign.sign,
            "phase_sign_reason": scan.sign.reason,
            "brain_mask": brain.source,
        },
        "implanted": {"cmb": int(np.sum(bodies.kind == CMB_KIND)), "all": len(bodies)},
        "warnings": warnings,
    }
    files = open_nifti(magnitude), open_nifti(phase)
    with atomic_directory(out, overwrite=options.overwrite) as folder:
        changed = {
            "magnitude.nii.gz": scaled_magnitude(files[0], _native(gain, scan.like)),
            "phase.nii.gz": shifted_phase(
                files[1], _native(shift, scan.like), (scan.phase_range.low, scan.phase_range.high)
            ),
        }
        for (name, stored), file in zip(changed.items(), files, strict=True):
            write_stored(folder / name, stored, file, keep_identifiers=options.keep_identifiers)
        write_volume(folder / "labels.nii.gz", labels, scan.like)
        write_volume(folder / "mimics.nii.gz", kinds, scan.like)
        (folder / "truth.csv").write_text(_csv(rows), encoding="utf-8")
        (folder / "implant.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"written: {out} ({int(np.sum(bodies.kind == CMB_KIND))} microbleeds, {len(bodies)} bodies in all)")


def _wanted(options: ImplantOptions) -> int:
    """Number of microbleeds to draw, with the arguments checked."""
    from cmb_jax.implant.lesions import MIN_DIAMETER_MM

    count, mimics, seed, table = options.count, options.mimics, options.seed, options.lesions is not None
    wanted = (0 if table else _DEFAULT_COUNT) if count is None else count
    for name, value in (("--count", wanted), ("--mimics", mimics)):
        if not 0 <= value <= _MAX_LESIONS:
            raise UserError(f"{name} {value}: allowed are 0 to {_MAX_LESIONS}")
    if not table and wanted + mimics == 0:
        raise UserError(f"nothing to implant; give --count or --mimics of 1 to {_MAX_LESIONS}, or --lesions")
    low, high = options.diameters_mm
    if not MIN_DIAMETER_MM <= low <= high <= _LARGEST_MM:
        raise UserError(
            f"--diameters-mm {low:g} {high:g}: allowed are two diameters in mm, "
            f"{MIN_DIAMETER_MM:g} <= low <= high <= {_LARGEST_MM:g}"
        )
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    return wanted


def _native(values: np.ndarray, like: Volume) -> np.ndarray:
    """(E, X, Y, Z) -> (I, J, K, E) on the file's grid."""
    import numpy as np

    from cmb_jax.io.nifti import to_native

    return np.stack([to_native(echo, like.native) for echo in values], axis=-1)


def _inputs(keep_identifiers: bool, **paths: Path | None) -> list[dict[str, str]]:
    from cmb_jax.io.atomic import sha256_file
    from cmb_jax.io.naming import shown_name

    given = {role: (path, sha256_file(path)) for role, path in paths.items() if path is not None}
    return [
        {
            "role": role,
            "file": shown_name(path, digest, keep_identifiers=keep_identifiers),
            "sha256": digest,
        }
        for role, (path, digest) in given.items()
    ]


def _csv(rows: list[LesionRow]) -> str:
    from cmb_jax.phantom.tree import lesion_line
    from cmb_jax.phantom.types import LesionRow

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LesionRow._fields)
    writer.writerows(lesion_line(row) for row in rows)
    return text.getvalue()
