"""Coarser grids for the region network's samples."""

import pytest

from cmb_jax.regions import samples


def patch_grids(patch: pytest.MonkeyPatch, **constants: object) -> None:
    """Set GRID_SHAPE, GRID_MM, MATERIAL_MM or CODE_MM where samples are made."""
    for name, value in constants.items():
        patch.setattr(samples, name, value)
