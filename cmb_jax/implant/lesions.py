"""Lesions put into a scan: those of a table and those that are drawn, their effect on it, their truth."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.implant.scan import Brain, Scan
from cmb_jax.io.tables import read_columns
from cmb_jax.phantom.bodies import phase_per_ppm
from cmb_jax.phantom.implant import effect_of_groups
from cmb_jax.phantom.placement import (
    KINDS,
    MIN_DIAMETER_MM,
    VEIN_KINDS,
    Lesions,
    contrast_to_noise,
    depth_mm,
    joined,
    make_lesions,
    noise_sd,
    place,
    random_lesions,
    truth_labels,
    truth_rows,
)
from cmb_jax.phantom.types import CALCIFICATIONS, LesionRow
from cmb_jax.scan.phase_sign import field_direction


def put_in(
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


def changes(scan: Scan, brain: Brain, bodies: Lesions) -> np.ndarray:
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


def lesions_for(
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


def outside_brain(scan: Scan, brain: Brain, bodies: Lesions, masked: bool) -> list[str]:
    """A warning about lesions that do not lie in the brain, whose mask was given if `masked`."""
    found = []
    index = np.rint(bodies.center_mm / np.array(scan.like.spacing_mm)).astype(int)
    beyond = np.flatnonzero(~brain.mask[tuple(index.T)])
    if len(beyond):
        what = "the given brain mask" if masked else "what was taken for brain"
        found.append(f"lesions {', '.join(str(i + 1) for i in beyond)} of truth.csv lie outside {what}")
    return found


def read_lesions(
    path: Path,
    rng: np.random.Generator,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    b0_t: float,
) -> Lesions:
    """Lesions of a table: x_mm, y_mm, z_mm (RAS), diameter_mm; kind and chi_ppm where they are to be chosen.

    affine (4, 4): voxel index of the volume of `shape` to RAS mm. What the table leaves open is drawn.

    Raises:
      UserError: names file, line and column, and what is allowed.
    """
    needed = ("x_mm", "y_mm", "z_mm", "diameter_mm")
    table = read_columns(path, required=needed)
    if not len(table):
        raise UserError(f"{path}: holds no lesion; give one a line with {', '.join(needed)}")
    world = np.stack([table.numbers(name) for name in needed[:3]], axis=1)
    inverse = np.linalg.inv(affine)
    index = world @ inverse[:3, :3].T + inverse[:3, 3]
    outside = np.flatnonzero(((index < -1e-3) | (index > np.array(shape) - 1 + 1e-3)).any(axis=1))
    if len(outside):
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
        corners = corners @ affine[:3, :3].T + affine[:3, 3]
        box = ", ".join(
            f"{axis} {low:.1f} to {high:.1f}"
            for axis, low, high in zip("xyz", corners.min(axis=0), corners.max(axis=0), strict=True)
        )
        at = ", ".join(f"{v:g}" for v in world[outside[0]])
        raise UserError(
            f"{path}: line {outside[0] + 2}: ({at}) lies outside the image; it covers {box} (RAS mm)"
        )
    kinds = table.text("kind") if table.has("kind") else ("cmb",) * len(table)
    for line, name in enumerate(kinds, start=2):
        if name not in KINDS:
            raise UserError(f"{path}: line {line}: kind is {name!r}; allowed: {', '.join(KINDS)}")
    kind = np.array([KINDS[name] for name in kinds], int)
    chi = table.numbers("chi_ppm") if table.has("chi_ppm") else np.full(len(table), np.nan)
    wrong = np.flatnonzero((chi == 0) | (np.sign(chi) == np.where(np.isin(kind, CALCIFICATIONS), 1, -1)))
    if len(wrong) or np.any(np.abs(chi) > 10):
        row = wrong[0] if len(wrong) else int(np.nanargmax(np.abs(chi)))
        raise UserError(
            f"{path}: line {row + 2}: chi_ppm is {chi[row]:g} for {kinds[row]}; allowed: above 0 to 10, "
            "and for a calcification -10 to below 0"
        )
    diameter = table.numbers("diameter_mm", minimum=MIN_DIAMETER_MM)
    wide = np.flatnonzero(np.isin(kind, VEIN_KINDS) & (diameter > 3))
    if len(wide):
        raise UserError(
            f"{path}: line {wide[0] + 2}: a vein of {diameter[wide[0]]:g} mm; "
            f"allowed: {MIN_DIAMETER_MM:g} to 3 mm"
        )
    center = np.clip(index, 0, np.array(shape) - 1) * np.array(spacing_mm)
    return make_lesions(rng, kind, diameter, b0_t, center, chi)
