"""Options of `cmb-jax bids`; a light import for the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from cmb_jax.commands.common import StoredPhase
from cmb_jax.config import Flips


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParticipantOptions:
    """Which scans, and how they are worked on."""

    participant_label: tuple[str, ...] = ()
    """Participants, with or without sub-; default: all."""
    session_label: tuple[str, ...] = ()
    """Sessions, with or without ses-; default: all."""
    acq_label: str | None = None
    """Take only images with this acq-, where a scan has several."""
    bids_filter_file: Path | None = None
    """JSON of entities that images must have, as for fMRIPrep, with the queries swi, mag and phase."""
    phase_sign: Literal["auto", "+1", "-1"] = "auto"
    """What the stored phase is multiplied with, so that veins are positive."""
    phase_range: StoredPhase = ("auto",)
    """How the phase is stored: as for `cmb-jax predict`."""
    weights: str = "small"
    """Name of bundled weights, or a .safetensors file; several with commas between are averaged."""
    flips: Flips | None = None
    """Average scores with those of mirror images: x takes twice the network's time, xyz four times;
    default: as the weights say."""
    threshold: float | None = None
    """Score from which a candidate is kept; default: the weights' operating point."""
    precision: Literal["float32", "mixed", "bfloat16"] | None = None
    """Of the network; default: as the weights say (docs/performance.md)."""
    regions: Path | None = None
    """Derivatives with label volumes (*_dseg.nii.gz) in place of the region network (docs/regions.md)."""
    region_labels: Path | None = None
    """CSV with the columns label, region, side for own labels."""
    viewer: bool = False
    """Write a viewer of each scan too, which holds the images (about 10 MB each)."""
    save_regions: bool = False
    """Write the brain mask and the region map of each scan too."""
    process: str | None = None
    """Share of the participants to process: 0/8 to 7/8 for eight processes."""
    distributed: bool = False
    """Take the share from jax.distributed (Slurm, Open MPI, Kubernetes, Cloud TPU)."""
    overwrite: bool = False
    """Process finished scans again."""
