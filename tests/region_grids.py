"""Coarser grids for the region network's samples, in every module that knows them."""

import pytest

from cmb_jax.data import region_artefacts, region_samples, region_warps


def patch_grids(patch: pytest.MonkeyPatch, **constants: object) -> None:
    """Set GRID_SHAPE, GRID_MM, MATERIAL_MM or CODE_MM wherever samples are made."""
    for module in (region_artefacts, region_samples, region_warps):
        for name, value in constants.items():
            if hasattr(module, name):
                patch.setattr(module, name, value)
