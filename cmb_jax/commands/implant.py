"""cmb-jax implant: microbleeds and mimics put into a real scan's magnitude and phase, with their truth."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import cmb_jax
from cmb_jax.commands.common import StoredPhase, check_output, existing_file, use_compilation_cache
from cmb_jax.commands.implant_inputs import read_lesions
from cmb_jax.commands.implant_scan import Brain, Scan, find_brain, read_scan
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory, sha256_file
from cmb_jax.io.header import open_nifti
from cmb_jax.io.naming import shown_name
from cmb_jax.io.nifti import to_native, write_volume
from cmb_jax.io.storage import scaled_magnitude, shifted_phase, write_stored
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.bodies import phase_per_ppm
from cmb_jax.phantom.implant import effect_of_groups
from cmb_jax.phantom.placement import (
    MIN_DIAMETER_MM,
    Lesions,
    contrast_to_noise,
    depth_mm,
    joined,
    noise_sd,
    place,
    random_lesions,
    truth_labels,
    truth_rows,
)
from cmb_jax.phantom.tree import lesion_line
from cmb_jax.phantom.types import CMB_KIND, LesionRow
from cmb_jax.scan.phase_sign import field_direction

NOTICE = "Research use only; not a medical device. The lesions in truth.csv are simulated."
_MAX_LESIONS = 500
_DEFAULT_COUNT = 5
_LARGEST_MM = 20.0


def run(
    *,
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
    phase_sign: str = "auto",
    phase_range: StoredPhase = ("auto",),
    seed: int = 0,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Read, implant, write; see `cmb-jax implant --help`. Nothing is written where something is wrong.

    Raises:
      UserError: files, echo times, field strength or a table that are missing or make no sense, lesions that
        do not fit, a folder that exists.
    """
    check_output(out, overwrite)
    wanted = _wanted(count, mimics, diameters_mm, seed, lesions is not None)
    for path, role in ((magnitude, "magnitude"), (phase, "phase"), (lesions, "table"), (brain_mask, "mask")):
        if path is not None:
            existing_file(path, role)
    use_compilation_cache()
    scan = read_scan(magnitude, phase, te_ms, b0_t, phase_sign, phase_range)
    brain = find_brain(scan.like, scan.magnitude[scan.last], brain_mask)
    bodies = _bodies(scan, brain, wanted, mimics, diameters_mm, lesions, seed)
    gain, shift, labels, kinds, rows = _put_in(scan, brain, bodies)
    warnings = [*scan.like.warnings, *_doubts(scan, brain, bodies, brain_mask is not None)]
    seen = np.flatnonzero(_changes(scan, brain, bodies) >= 1.0)
    if faint := len(bodies) - len(seen):
        said = (
            f"{faint} of {len(bodies)} lesions change the image less than its noise at "
            f"{max(scan.te_ms):g} ms and {scan.b0_t:g} T"
        )
        if not len(seen):
            raise UserError(f"{said}: nothing would be seen; give larger diameters or check --te-ms, --b0-t")
        warnings.append(f"{said} and were left out")
        bodies = bodies.some(seen)
        gain, shift, labels, kinds, rows = _put_in(scan, brain, bodies)
    record = {
        "notice": NOTICE,
        "version": cmb_jax.__version__,
        "inputs": _inputs(
            keep_identifiers, magnitude=magnitude, phase=phase, lesions=lesions, brain_mask=brain_mask
        ),
        "settings": {
            "seed": seed,
            "count": wanted,
            "mimics": mimics,
            "diameters_mm": list(diameters_mm),
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
    with atomic_directory(out, overwrite=overwrite) as folder:
        changed = {
            "magnitude.nii.gz": scaled_magnitude(files[0], _native(gain, scan.like)),
            "phase.nii.gz": shifted_phase(
                files[1], _native(shift, scan.like), (scan.phase_range.low, scan.phase_range.high)
            ),
        }
        for (name, stored), file in zip(changed.items(), files, strict=True):
            write_stored(folder / name, stored, file, keep_identifiers=keep_identifiers)
        write_volume(folder / "labels.nii.gz", labels, scan.like)
        write_volume(folder / "mimics.nii.gz", kinds, scan.like)
        (folder / "truth.csv").write_text(_csv(rows), encoding="utf-8")
        (folder / "implant.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"written: {out} ({int(np.sum(bodies.kind == CMB_KIND))} microbleeds, {len(bodies)} bodies in all)")


def _put_in(
    scan: Scan, brain: Brain, bodies: Lesions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[LesionRow]]:
    """Gain and phase shift of the echoes (E, X, Y, Z), instance labels and kinds (X, Y, Z), truth rows."""
    apparent = bodies.apparent_mm(max(scan.te_ms), scan.b0_t)
    gain, shift = effect_of_groups(
        [bodies.implants(rows) for rows in bodies.groups()],
        scan.te_ms,
        scan.b0_t,
        scan.sign.sign,
        field_direction(scan.like.affine),
        scan.like.shape,
        scan.like.spacing_mm,
    )
    labels, kinds = truth_labels(bodies, apparent, scan.grid)
    rows = _rows(scan, brain, bodies, apparent, gain, shift, labels, kinds)
    return gain, shift, labels, kinds, rows


def _changes(scan: Scan, brain: Brain, bodies: Lesions) -> np.ndarray:
    """(N,) how much each lesion by itself changes the last echo's signal, over the noise.

    At its poles a ball turns the phase by 2/3 of its susceptibility's; one smaller than a voxel does so in a
    part of it.
    """
    signal = scan.magnitude[scan.last]
    noise = noise_sd(signal, brain.mask)
    if noise <= 0:
        return np.full(len(bodies), np.inf)
    turn = (
        2
        / 3
        * float(phase_per_ppm(jnp.float32(max(scan.te_ms)), jnp.float32(scan.b0_t)))
        * np.abs(bodies.chi_ppm)
    )
    share = np.minimum(4 / 3 * np.pi * bodies.radius_mm**3 / np.prod(scan.like.spacing_mm), 1.0)
    return np.minimum(turn, 2.0) * share * float(np.median(signal[brain.mask])) / noise


def _wanted(count: int | None, mimics: int, diameters_mm: tuple[float, float], seed: int, table: bool) -> int:
    """Number of microbleeds to draw, with the arguments checked."""
    wanted = (0 if table else _DEFAULT_COUNT) if count is None else count
    for name, value in (("--count", wanted), ("--mimics", mimics)):
        if not 0 <= value <= _MAX_LESIONS:
            raise UserError(f"{name} {value}: allowed are 0 to {_MAX_LESIONS}")
    if not table and wanted + mimics == 0:
        raise UserError(f"nothing to implant; give --count or --mimics of 1 to {_MAX_LESIONS}, or --lesions")
    low, high = diameters_mm
    if not MIN_DIAMETER_MM <= low <= high <= _LARGEST_MM:
        raise UserError(
            f"--diameters-mm {low:g} {high:g}: allowed are two diameters in mm, "
            f"{MIN_DIAMETER_MM:g} <= low <= high <= {_LARGEST_MM:g}"
        )
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    return wanted


def _bodies(
    scan: Scan,
    brain: Brain,
    count: int,
    mimics: int,
    diameters_mm: tuple[float, float],
    table: Path | None,
    seed: int,
) -> Lesions:
    """Those of the table and those that are drawn, microbleeds first."""
    like, te = scan.like, max(scan.te_ms)
    largest = 2 * float(depth_mm(brain.mask, like.spacing_mm).max())
    drawn = random_lesions(np.random.default_rng((seed, 1)), count, mimics, diameters_mm, scan.b0_t)
    given = None
    if table is not None:
        rng = np.random.default_rng((seed, 0))
        given = read_lesions(table, rng, like.affine, like.shape, like.spacing_mm, scan.b0_t)
    for name, widest in (
        ("--diameters-mm", diameters_mm[1]),
        (str(table), 0.0 if given is None else 2 * float(given.radius_mm.max())),
    ):
        if widest > largest and (name != "--diameters-mm" or len(drawn)):
            raise UserError(
                f"{name}: a lesion of {widest:g} mm is larger than the brain here; allowed are "
                f"{MIN_DIAMETER_MM:g} to {largest:.1f} mm"
            )
    if not len(drawn):
        assert given is not None
        return joined([given])
    placed = place(
        np.random.default_rng((seed, 2)),
        drawn,
        drawn.apparent_mm(te, scan.b0_t),
        brain.mask,
        like.spacing_mm,
        brain.solid,
        given,
        None if given is None else given.apparent_mm(te, scan.b0_t),
    )
    return joined([placed] if given is None else [given, placed])


def _rows(
    scan: Scan,
    brain: Brain,
    bodies: Lesions,
    apparent_mm: np.ndarray,
    gain: np.ndarray,
    shift: np.ndarray,
    labels: np.ndarray,
    kinds: np.ndarray,
) -> list[LesionRow]:
    before, last = scan.magnitude[scan.last], scan.last
    tissue = (brain.mask if brain.solid is None else brain.solid) & (labels == 0) & (kinds == 0)
    angle = jnp.angle(jnp.exp(1j * (scan.phase[last] + shift[last])))
    noise = noise_sd(before, brain.mask)
    cnr = contrast_to_noise(
        bodies,
        apparent_mm,
        before * gain[last],
        np.asarray(angle),
        noise,
        tissue,
        scan.grid,
        scan.sign.sign,
    )
    return truth_rows(bodies, apparent_mm, cnr, scan.like.affine, scan.like.spacing_mm, brain.code)


def _doubts(scan: Scan, brain: Brain, bodies: Lesions, masked: bool) -> list[str]:
    found = []
    index = np.rint(bodies.centre_mm / np.array(scan.like.spacing_mm)).astype(int)
    beyond = np.flatnonzero(~brain.mask[tuple(index.T)])
    if len(beyond):
        what = "the given brain mask" if masked else "what was taken for brain"
        found.append(f"lesions {', '.join(str(i + 1) for i in beyond)} of truth.csv lie outside {what}")
    return found


def _native(values: np.ndarray, like: Volume) -> np.ndarray:
    """(E, X, Y, Z) -> (I, J, K, E) on the file's grid."""
    return np.stack([to_native(echo, like.native) for echo in values], axis=-1)


def _inputs(keep_identifiers: bool, **paths: Path | None) -> list[dict[str, str]]:
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LesionRow._fields)
    writer.writerows(lesion_line(row) for row in rows)
    return text.getvalue()
