"""What `cmb-jax implant` reads besides the images: echo times, field strength, a table of lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.commands.common import existing_file
from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json_object
from cmb_jax.io.tables import read_columns
from cmb_jax.phantom.placement import KINDS, MIN_DIAMETER_MM, VEIN_KINDS, Lesions, make_lesions
from cmb_jax.phantom.types import CALCIFICATIONS
from cmb_jax.scan.units import check_echo_times, check_number

_B0_T = (0.1, 14.0)


def sidecar(images: Sequence[Path]) -> dict[str, Any]:
    """The JSON object beside the first of these images that has one; {} without.

    Raises:
      UserError: it is no JSON object.
    """
    for image in images:
        path = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")
        if not path.is_file():
            continue
        return read_json_object(path, "repair or move it")
    return {}


def echo_times(given: Sequence[float], notes: dict[str, Any], echoes: int, image: Path) -> tuple[float, ...]:
    """(E,) echo times in ms, as given or from EchoTime (seconds) of the sidecar.

    Raises:
      UserError: none is known, one is impossible, they do not rise, or there are not as many as echoes.
    """
    times = _numbers(given) if given else _numbers(notes.get("EchoTime"), 1000.0)
    if times is None:
        raise UserError(
            f"{image}: the echo time is not known; give --te-ms (ms, one an echo; here {echoes}), "
            "or a JSON sidecar with EchoTime (s) beside the image"
        )
    check_echo_times(times)
    if len(times) != echoes:
        raise UserError(
            f"{image}: {echoes} echoes but {len(times)} echo times; give one an echo with --te-ms"
        )
    return times


def field_strength(given: float | None, notes: dict[str, Any], image: Path) -> float:
    """Tesla, as given or from MagneticFieldStrength of the sidecar.

    Raises:
      UserError: not known, or no field of a scanner.
    """
    values = _numbers(given if given is not None else notes.get("MagneticFieldStrength"))
    if values is None or len(values) != 1:
        raise UserError(
            f"{image}: the field strength is not known; give --b0-t (tesla, such as 1.5, 3 or 7), "
            "or a JSON sidecar with MagneticFieldStrength beside the image"
        )
    check_number("--b0-t", values[0], _B0_T, "tesla")
    return values[0]


def _numbers(value: object, scale: float = 1.0) -> tuple[float, ...] | None:
    items: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not items or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in items
    ):
        return None
    return tuple(round(float(v) * scale, 6) for v in items)


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
    table = read_columns(existing_file(path, "table of lesions"), required=needed)
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
    centre = np.clip(index, 0, np.array(shape) - 1) * np.array(spacing_mm)
    return make_lesions(rng, kind, diameter, b0_t, centre, chi)
