"""The trained detector as the pipeline of the participant level, on one or several devices."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from cmb_jax.cohort.region_labels import RegionLabels
from cmb_jax.cohort.scan_images import ScanImages
from cmb_jax.cohort.scan_work import Pipeline, Say
from cmb_jax.inference.bundle import WeightsBundle, load_bundle
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.predict import CmbDetector, FoundBoxes, Prediction
from cmb_jax.inference.scan import PreparedScan, prepare_scan
from cmb_jax.io import volume


class DeviceDetector:
    """`CmbDetector` on one device."""

    def __init__(self, bundle: WeightsBundle, device: jax.Device, options: ScanOptions) -> None:
        self.device: jax.Device | None = device
        self._detector = CmbDetector(bundle, device, options)

    def prepare(self, images: ScanImages, say: Say) -> PreparedScan:
        """Phase, regions, working grid."""
        return prepare_scan(
            volume.ScanImages(swi=images.swi, phase=images.phase, magnitude=images.magnitude),
            spacing_mm=self._detector.config.data.spacing_mm,
            phase_sign=images.phase_sign,
            phase_range=images.phase_range,
            region_map=images.region_map,
            progress=say,
        )

    def search(self, prepared: PreparedScan) -> FoundBoxes:
        """The network."""
        return self._detector.search(prepared)

    def conclude(self, images: ScanImages, prepared: PreparedScan, found: FoundBoxes) -> Prediction:
        """Places and reasons."""
        return self._detector.conclude(images.swi, prepared, found)


def detector_pipeline(
    options: ScanOptions, devices: Sequence[jax.Device], regions: RegionLabels | None = None
) -> Pipeline:
    """The detector on each of the devices; `regions` take the place of the region network.

    Raises:
      UserError: no such weights, or no such range of the phase.
    """
    options.stated_range()
    bundle = load_bundle(options.weights, options.flips, options.precision)
    return Pipeline(
        bundle=bundle,
        detectors=tuple(DeviceDetector(bundle, device, options) for device in devices),
        options=options,
        regions=regions,
    )
