"""Gradient-echo series: one volume an echo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.io.nifti import check_same_grid, read_series, read_volume
from cmb_jax.io.volume import Volume


def read_echoes(path_or_paths: str | Path | Sequence[str | Path]) -> list[Volume]:
    """Reads the echoes of one acquisition, in the order given.

    Args:
        path_or_paths: one 4D (or 3D) file, or one 3D file an echo.

    Returns:
        One volume an echo, all on one grid.

    Raises:
        UserError: as `read_volume`; no file at all; echoes on different grids.
    """
    if isinstance(path_or_paths, str | Path):
        return read_series(path_or_paths)
    if not path_or_paths:
        raise UserError("no echo was given; name one 4D file, or one file an echo")
    echoes = [read_volume(path) for path in path_or_paths]
    for echo in echoes[1:]:
        check_same_grid(echoes[0], echo)
    return echoes
