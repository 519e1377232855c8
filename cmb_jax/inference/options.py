"""How a scan is worked on: options that the command line, the cohort and Python share; light to import."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmb_jax.config import Flips, Precision
from cmb_jax.scan import PhaseSign, StoredPhase

if TYPE_CHECKING:
    from cmb_jax.inference.bundle import WeightsBundle
    from cmb_jax.scan.phase_range import PhaseRange

NETWORK = "network"
"""Where regions come from if no label volumes are given."""

DEFAULT_WEIGHTS = "base"
"""The bundled weights that are used unless others are named."""

_NOT_BY_NAME = {
    # recorded as what they come to: see `ScanOptions.record`
    *("weights", "flips", "threshold", "precision", "phase_sign", "phase_range", "regions", "region_labels"),
    # they do not change any number
    *("viewer", "save_regions"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What `cmb-jax predict`, `cmb-jax bids` and `cmb_jax.load_detector` can be asked for alike.

    To add one: a field here, with its help below it, and the place where it acts, such as
    `CmbDetector.conclude`, which finds it in `self.options`. Both commands then offer it, and results record
    it wherever it is not at its default (a number, a word or several; the content of a file would have to be
    recorded in `record`).
    """

    weights: str = DEFAULT_WEIGHTS
    """name of bundled weights, or a .safetensors file; several with commas between are averaged."""
    flips: Flips | None = None
    """average scores with those of mirror images: x takes twice the network's time, xyz four times; default:
    as the weights say."""
    threshold: float | None = None
    """score from which a candidate is kept; default: the weights' operating point."""
    precision: Precision | None = None
    """of the network; default: as the weights say. mixed is faster where the device multiplies bfloat16, and
    changes scores a little (docs/performance.md)."""
    phase_sign: PhaseSign = "auto"
    """sign that makes veins positive when the stored phase is multiplied by it."""
    phase_range: StoredPhase = ("auto",)
    """how the phase is stored: radians, pm4096 (+-4096), 0-4095, milliradians, 0-2pi, or the two numbers that
    stand for one turn, such as 0 255; auto determines it from the values."""
    regions: Path | None = None
    """label volume in the scan's space that takes the place of the region network: SynthSeg with --parc,
    FreeSurfer's aparc+aseg, or own labels (docs/regions.md)."""
    region_labels: Path | None = None
    """CSV with the columns label, region, side for own labels."""
    viewer: bool = True
    """write viewer.html, which holds the images of the head: scroll, window, judge (docs/review.md)."""
    save_regions: bool = False
    """write the brain mask (brain.nii.gz) and the region map (regions.nii.gz, regions.csv)."""

    def stated_range(self) -> PhaseRange | None:
        """How the phase is stored; None: determined from the values.

        Raises:
          UserError: `phase_range` names no range.
        """
        from cmb_jax.scan.phase_range import asked_range

        return asked_range(self.phase_range)

    def further(self) -> dict[str, Any]:
        """Options that are recorded by their name, those at their default left out."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(ScanOptions)
            if field.name not in _NOT_BY_NAME and getattr(self, field.name) != field.default
        }
        # as they come back from JSON
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def record(self, bundle: WeightsBundle, label_table_sha256: str | None = None) -> dict[str, Any]:
        """What results depend on besides the images, as the cohort's results keep it.

        Args:
          bundle: the weights as they are used.
          label_table_sha256: of the table of own labels; None: the network gives the regions.
        """
        inference, stated = bundle.config.inference, self.stated_range()
        threshold = inference.score_threshold if self.threshold is None else self.threshold
        return {
            "Weights": {"Name": bundle.file_name, "SHA256": bundle.sha256},
            "Threshold": round(threshold, 6),
            **({} if inference.flips == "none" else {"Flips": inference.flips}),  # older results lack it
            "PhaseSign": self.phase_sign,
            "PhaseRange": "auto" if stated is None else stated.name,
            "Precision": inference.precision,
            "Regions": NETWORK if label_table_sha256 is None else {"LabelTableSHA256": label_table_sha256},
            **{name.title().replace("_", ""): value for name, value in self.further().items()},
        }
