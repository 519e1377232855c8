"""The images of a case that the detector looks at."""

from __future__ import annotations

from pathlib import Path

from cmb_jax.datasets.types import Case
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import ScanImages

DARK_ROLES = ("swi", "t2s", "magnitude")
"""Images on which a microbleed is dark."""


def read_scan(case: Case, root: Path) -> ScanImages:
    """Read the image that lesions are given on, and phase and magnitude where there are any.

    Args:
        case: of an index.
        root: of the data set.

    Raises:
        UserError: no image on which a microbleed is dark, or one of the images cannot be read.
    """
    if case.reference not in DARK_ROLES:
        raise UserError(f"{case.case_id}: has no SWI, T2*-weighted or magnitude image to look at")
    volumes = {
        role: read_volume(Path(root) / case.images[role])
        for role in {case.reference, "phase", "magnitude"}
        if role in case.images
    }
    return ScanImages(
        swi=volumes[case.reference],
        phase=volumes.get("phase"),
        magnitude=volumes["magnitude"] if "magnitude" in volumes and case.reference != "magnitude" else None,
    )
