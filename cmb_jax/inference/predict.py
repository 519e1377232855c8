"""From the images of one scan to located detections: the whole pipeline as a Python function."""

import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.lookup import REACH_MM, SPACE, fit_mni, look_up
from cmb_jax.anatomy.regions import Region, RegionMap, Side, Zone
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.core.detection import DetectionRow, RejectReason
from cmb_jax.data.prepare import points_from_edges
from cmb_jax.detector.anchors import Detections, box_centers, box_sizes
from cmb_jax.inference.bundle import WeightsBundle, calibration_of, load_bundle
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.proposals import ProposalFinder
from cmb_jax.inference.scan import Clock, PreparedScan, prepare_scan
from cmb_jax.io.nifti import native_index
from cmb_jax.io.volume import ScanImages, Volume
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.phase_range import PhaseRange

# The region map is right to about half of its 2 mm voxels: the sphere that votes is larger by that much.
MAP_ERROR_MM = 1.0
# Candidates under the operating point that are listed, the best of them: more would bury the report.
LISTED_BELOW_THRESHOLD = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one scan, with everything that a report or a check needs."""

    rows: tuple[DetectionRow, ...]  # kept and rejected, best score first
    swi: Volume
    phase: Volume | None  # radians, paramagnetic positive
    region_map: RegionMap
    brain_mask: np.ndarray  # (X, Y, Z) bool on swi's grid
    region_code: np.ndarray  # (X, Y, Z) uint8 on swi's grid
    boxes_mm: np.ndarray  # (N, 3) edge lengths (x, y, z) in mm of the rows' boxes
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]
    timings: tuple[tuple[str, float], ...]
    unlisted: int = 0  # candidates under the operating point beyond those in rows

    @property
    def kept(self) -> tuple[DetectionRow, ...]:
        """Only what is reported as a microbleed."""
        return tuple(row for row in self.rows if row.status == "kept")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundBoxes:
    """What the network found in a prepared scan, in NumPy arrays."""

    detections: Detections
    complete: bool  # all that reach the threshold are in it
    timings: tuple[tuple[str, float], ...]


class CmbDetector:
    """A trained detector, ready for scans. Make it with `cmb_jax.load_detector`.

    `predict` is `prepare_scan`, `search` and `conclude` in a row; a cohort runs the three side by side, each
    for another scan.

    Args:
      bundle: the weights.
      device: that holds the weights and runs the network; default: JAX's default device.
      options: how scans are worked on; `bundle` holds those that change the weights' settings.
    """

    def __init__(
        self,
        bundle: WeightsBundle,
        device: jax.Device | None = None,
        options: ScanOptions | None = None,
    ):
        self.bundle = bundle
        self.options = options or ScanOptions()
        self.config: Config = bundle.config
        self._finder = ProposalFinder(
            bundle.config, bundle.params, device, others=[other.params for other in bundle.others]
        )

    @classmethod
    def load(cls, options: ScanOptions) -> Self:
        """The detector of `options.weights`, with all the other options.

        Raises:
          UserError: no such weights, or a file that does not hold a detector.
        """
        return cls(load_bundle(options.weights, options.flips, options.precision), options=options)

    def predict(
        self,
        swi: Volume,
        phase: Volume | None = None,
        magnitude: Volume | None = None,
        *,
        phase_sign: PhaseSign | None = None,
        phase_range: PhaseRange | None = None,
        threshold: float | None = None,
        region_map: RegionMap | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Prediction:
        """Find, locate and judge the microbleeds of one scan.

        Args:
          swi: susceptibility-weighted or T2*-weighted image, RAS axes (see `cmb_jax.read_volume`).
          phase: phase image on the same grid, in any of the storage forms; without it the detector works
            on the intensity alone.
          magnitude: magnitude image on the same grid; used for the brain regions.
          phase_sign: "auto", "+1" or "-1" (what the stored phase is multiplied with, so that
            paramagnetic is positive); default, as of the next two: that of the detector's options.
          phase_range: storage range of the phase.
          threshold: score from which a detection is kept.
          region_map: region codes to use instead of the region network's.
          progress: callback for progress messages.

        Returns:
          Rows for every candidate, with place, status and reason.

        Raises:
          UserError: the images do not lie on one grid.
        """
        say = progress or (lambda _: None)
        scan = prepare_scan(
            ScanImages(swi=swi, phase=phase, magnitude=magnitude),
            spacing_mm=self.config.data.spacing_mm,
            phase_sign=phase_sign or self.options.phase_sign,
            phase_range=phase_range or self.options.stated_range(),
            region_map=region_map,
            progress=say,
        )
        say("searching for microbleeds")
        found = self.search(scan, threshold, lambda done, of: say(f"searched tile {done} of {of}"))
        say("naming the places")
        return self.conclude(swi, scan, found, threshold)

    def search(
        self,
        scan: PreparedScan,
        threshold: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> FoundBoxes:
        """The network on a prepared scan; `progress` is called with (windows done, windows in all)."""
        clock, least = Clock(), self._levels(scan, threshold).score_threshold
        with clock("detection"):
            found, complete = self._finder.find_all(scan.prepared.image, least, progress)
            found = jax.device_get(found)
        return FoundBoxes(detections=found, complete=complete, timings=tuple(clock.timings))

    def _levels(self, scan: PreparedScan, threshold: float | None) -> InferenceConfig:
        """The thresholds for one scan."""
        # whether a phase was used is known only now: one that is noise has been left out
        levels = self.config.inference.for_scan(phase=scan.phase_rad is not None)
        asked = self.options.threshold if threshold is None else threshold
        if asked is None:
            return levels
        # nothing below it is listed, so that 0 asks for all that there are
        return dataclasses.replace(levels, score_threshold=max(asked, levels.candidate_threshold))

    def conclude(
        self, swi: Volume, scan: PreparedScan, found: FoundBoxes, threshold: float | None = None
    ) -> Prediction:
        """Place, status and reason of every candidate.

        Args:
          swi: the image that `scan` was prepared from.
          scan: the prepared scan.
          found: in it, with the same threshold.
          threshold: as for `predict`.
        """
        levels = self._levels(scan, threshold)
        clock = Clock((*scan.timings, *found.timings))
        with clock("localization"):
            rows, boxes_mm, unlisted = self._locate(found.detections, scan, swi, levels)
            full = () if found.complete else (_full_list(found.detections),)
            rows, mni = _with_mni(rows, scan.region_map)
        steps = (
            *scan.steps,
            f"network on tiles, suppression at IoU {self.config.inference.nms_iou:g}",
            "each candidate looked up in the region map; kept or rejected with a reason",
            *mni,
        )
        radians = scan.phase_rad
        phase_volume = None if radians is None else dataclasses.replace(swi, data=radians.astype(np.float32))
        return Prediction(
            rows=rows,
            swi=swi,
            phase=phase_volume,
            region_map=scan.region_map,
            brain_mask=scan.brain_mask,
            region_code=scan.region_code,
            boxes_mm=boxes_mm,
            warnings=(*scan.warnings, *full),
            settings=self._settings(levels, scan.phase_rad is not None),
            steps=steps,
            timings=tuple(clock.timings),
            unlisted=unlisted,
        )

    def _settings(self, inference: InferenceConfig, phase: bool) -> tuple[tuple[str, str], ...]:
        return (
            ("weights", self.bundle.name),
            ("phase", "used" if phase else "none"),
            ("score_threshold", f"{inference.score_threshold:.3f}"),
            ("definite_threshold", f"{inference.definite_threshold:.3f}"),
            ("calibrated", "no" if calibration_of(inference) is None else "yes"),
            ("candidate_threshold", f"{inference.candidate_threshold:.3f}"),
            ("nms_iou", f"{inference.nms_iou:g}"),
            ("flips", inference.flips),
            ("precision", self._finder.config.inference.precision),
            *((name, str(value)) for name, value in self.options.further().items()),
        )

    def _locate(
        self, detections: Detections, scan: PreparedScan, swi: Volume, levels: InferenceConfig
    ) -> tuple[tuple[DetectionRow, ...], np.ndarray, int]:
        """Rows, edges (N, 3) of their boxes in mm along (x, y, z), and how many candidates are not listed."""
        # All boxes, valid or not, are looked up: one shape for every scan, so that nothing is compiled anew.
        boxes = jnp.asarray(detections.boxes)
        centers = points_from_edges(np.asarray(box_centers(boxes)), scan.prepared.affine)
        edges_mm = (np.asarray(box_sizes(boxes)) * np.array(scan.prepared.spacing_mm))[:, ::-1]
        diameters = np.cbrt(edges_mm.prod(axis=1))
        trusted, region_map = scan.region_map.trusted, scan.region_map
        if not trusted:  # it still has a brain mask, but no places
            code = np.where(scan.brain_mask, np.uint8(Region.FRONTAL), np.uint8(0))
            region_map = RegionMap(code=code, affine=swi.affine)
        # The sphere is widened by the error of the map, so that a lesion at the edge of the cortex still
        # meets the tissue that it belongs to.
        located = look_up(centers, diameters + 2 * MAP_ERROR_MM, region_map)
        homogeneous = np.c_[centers, np.ones(len(centers))]
        voxels = native_index((np.linalg.inv(swi.affine) @ homogeneous.T).T[:, :3], swi)
        border_mm = np.minimum(np.asarray(located.zone_border_mm), REACH_MM)
        scores, valid = np.asarray(detections.scores), np.asarray(detections.valid)
        calibration = calibration_of(levels)
        probabilities = None if calibration is None else calibration.probability(scores)

        def row(number: int, n: int) -> DetectionRow:
            reason = RejectReason(int(located.reason[n]))  # type: ignore[call-arg]
            if reason is RejectReason.NONE and scores[n] < levels.score_threshold:
                reason = RejectReason.LOW_SCORE
            # A place is named only where the map is trusted and holds brain. An untrusted map keeps what lies
            # in its mask, but says nothing about zone, region or side.
            in_tissue = bool(located.keep[n])
            named = trusted and in_tissue
            somewhere = located.region[n] > 0 or not trusted
            definite = scores[n] >= levels.definite_threshold and somewhere
            i, j, k = (int(v) for v in np.rint(voxels[n]))
            x_mm, y_mm, z_mm = (round(float(v), 2) for v in centers[n])
            return DetectionRow(
                id=number,
                i=i,
                j=j,
                k=k,
                x_mm=x_mm,
                y_mm=y_mm,
                z_mm=z_mm,
                diameter_mm=round(float(diameters[n]), 2),
                volume_mm3=round(float(np.pi / 6 * edges_mm[n].prod()), 2),
                score=round(float(scores[n]), 4),
                # where no microbleed can be, the score alone says nothing
                probability=None
                if probabilities is None or not in_tissue
                else round(float(probabilities[n]), 4),
                category="definite" if definite else "possible",
                zone=Zone(int(located.zone[n])).name.lower() if named else "none",  # type: ignore[arg-type]
                region=Region(int(located.region[n])).name.lower() if named else "none",
                side=Side(int(located.side[n])).name.lower() if named else "none",  # type: ignore[arg-type]
                status="rejected" if reason else "kept",
                reason=reason.sentence,
                zone_border_mm=round(float(border_mm[n]), 1) if named else 0.0,
            )

        # best first: what the operating point leaves out is listed as far as a reader may want to look
        above = int((scores[valid] >= levels.score_threshold).sum())
        listed = np.flatnonzero(valid)[: above + LISTED_BELOW_THRESHOLD]
        rows = tuple(row(number, n) for number, n in enumerate(listed, start=1))
        return rows, edges_mm[listed], int(valid.sum()) - len(listed)


def _full_list(found: Detections) -> str:
    return f"the list of candidates is full with {np.sum(found.valid)}: the count may be too low"


def _with_mni(
    rows: tuple[DetectionRow, ...], region_map: RegionMap
) -> tuple[tuple[DetectionRow, ...], tuple[str, ...]]:
    """The rows with MNI coordinates, and how they came about; as they are where the map gives none."""
    affine = fit_mni(region_map)
    if affine is None:
        return rows, ()
    found = affine(np.array([[row.x_mm, row.y_mm, row.z_mm] for row in rows]).reshape(-1, 3)).round(1)
    step = (
        f"{SPACE} coordinates by an affine from the centers of {affine.landmarks} regions, "
        f"which it brings to {affine.residual_mm:.1f} mm (root mean square) of the template's"
    )
    return tuple(
        dataclasses.replace(row, mni_x_mm=float(x), mni_y_mm=float(y), mni_z_mm=float(z))
        for row, (x, y, z) in zip(rows, found, strict=True)
    ), (step,)
