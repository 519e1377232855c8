"""From the images of one scan to located detections: the whole pipeline as a Python function."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.lookup import REASON_TEXT, RejectReason, anatomical_lookup
from cmb_jax.anatomy.regions import Region, RegionMap, Side, Zone
from cmb_jax.boxes.geometry import box_centers, box_sizes
from cmb_jax.boxes.types import Detections
from cmb_jax.config import Config
from cmb_jax.data.prepare import PreparedVolume, points_from_edges, prepare
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import WeightsBundle, load_bundle
from cmb_jax.inference.proposals import ProposalFinder
from cmb_jax.inference.regions import brain_mask_on, predict_regions, region_code_on
from cmb_jax.io.nifti import check_same_grid, native_index
from cmb_jax.io.phase import PhaseRange, detect_phase_range, phase_to_radians
from cmb_jax.io.phase_sign import SignDecision, decide_phase_sign, field_direction
from cmb_jax.io.volume import Volume
from cmb_jax.report.content import DetectionRow

PhaseSign = Literal["auto", "+1", "-1"]
# The region map is right to about half of its 2 mm voxels: the sphere that votes is larger by that much.
MAP_ERROR_MM = 1.0
# Candidates under the operating point that are listed, the best of them: more would bury the report.
LISTED_BELOW_THRESHOLD = 40
LOW_SCORE = "score below the operating point"


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

    @property
    def kept(self) -> tuple[DetectionRow, ...]:
        """Only what is reported as a microbleed."""
        return tuple(row for row in self.rows if row.status == "kept")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseChoice:
    """How the stored phase was read."""

    radians: np.ndarray  # (X, Y, Z), paramagnetic positive
    sentence: str  # range and sign, and why
    warning: str | None  # when the sign could not be decided


class _Clock:
    def __init__(self) -> None:
        self.timings: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        tick = time.perf_counter()
        yield
        self.timings.append((name, round(time.perf_counter() - tick, 2)))


def read_phase(
    phase: Volume,
    reference: Volume,
    sign: PhaseSign = "auto",
    stored: PhaseRange | None = None,
    customary_sign: SignDecision | None = None,
) -> PhaseChoice:
    """Bring a stored phase image to radians with paramagnetic positive.

    Args:
      phase: as stored; radians, +-4096, 0..4095 or 0..2 pi.
      reference: SWI on the same grid, in which veins are darker than on the magnitude.
      sign: +1 or -1 multiplies the phase; "auto" lets veins and deep nuclei decide.
      stored: the storage range, if it must not be found from the data.
      customary_sign: taken if the images do not tell the sign.
    """
    try:
        found = detect_phase_range(phase.data) if stored is None else stored
    except UserError as error:
        raise UserError(f"{phase.source or 'phase'}: {error}") from error
    radians = phase_to_radians(phase.data, found)
    warning = None
    if sign == "auto":
        decision = decide_phase_sign(
            radians, reference.data, reference.spacing_mm, b0_direction=field_direction(reference.affine)
        )
        if not decision.confident and customary_sign is not None:
            decision = customary_sign
        factor, why = decision.sign, decision.reason
        if not decision.confident:
            warning = f"the sign of the phase could not be decided with confidence ({why}); give --phase-sign"
    else:
        factor, why = int(sign), "as asked"
    sentence = f"phase read as {found.value}, sign {factor:+d} ({why})"
    return PhaseChoice(radians=radians * factor, sentence=sentence, warning=warning)


class CmbDetector:
    """A trained detector, ready for scans. Make it with `cmb_jax.load_detector`."""

    def __init__(self, bundle: WeightsBundle):
        self.bundle = bundle
        self.config: Config = bundle.config
        self._finder = ProposalFinder(bundle.config, bundle.params)

    def predict(
        self,
        swi: Volume,
        phase: Volume | None = None,
        magnitude: Volume | None = None,
        *,
        phase_sign: PhaseSign = "auto",
        phase_range: PhaseRange | None = None,
        customary_sign: SignDecision | None = None,
        threshold: float | None = None,
        region_map: RegionMap | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Prediction:
        """Find, locate and judge the microbleeds of one scan.

        Args:
          swi: susceptibility-weighted or T2*-weighted image, RAS axes (see `cmb_jax.io.read_volume`).
          phase: phase image on the same grid, in any of the storage forms; without it the detector works
            on the intensity alone.
          magnitude: magnitude image on the same grid; used for the brain regions.
          phase_sign: "auto", "+1" or "-1" (what the stored phase is multiplied with, so that
            paramagnetic is positive).
          phase_range: storage range of the phase; default: found from the data.
          customary_sign: the sign to take if "auto" finds none with confidence, such as the scanner's.
          threshold: score from which a detection is kept; default: the weights' operating point.
          region_map: region codes to use instead of the region network's.
          progress: told what is being done.

        Returns:
          Rows for every candidate, with place, status and reason.

        Raises:
          UserError: the images do not lie on one grid.
        """
        say = progress or (lambda _: None)
        clock, warnings, steps = _Clock(), [f"SWI: {line}" for line in swi.warnings], []
        cut = self.config.inference.score_threshold if threshold is None else threshold
        for role, other in (("phase", phase), ("magnitude", magnitude)):
            if other is not None:
                check_same_grid(swi, other)
                warnings.extend(f"{role}: {line}" for line in other.warnings)
        anatomy = swi if magnitude is None else magnitude

        radians = None
        if phase is not None:
            say("reading the phase")
            with clock("phase"):
                choice = read_phase(phase, swi, phase_sign, phase_range, customary_sign)
            radians = choice.radians
            steps.append(choice.sentence)
            if choice.warning:
                warnings.append(choice.warning)
        else:
            warnings.append(
                "no phase was given: calcifications cannot be told from microbleeds by their sign"
            )

        say("finding brain regions")
        with clock("regions"):
            if region_map is None:
                region_map = predict_regions(anatomy)
                steps.append("brain mask and regions by the region network at 2 mm")
            else:
                steps.append("brain mask and regions from the given label volume")
            mask = brain_mask_on(swi, region_map)
            code = region_code_on(swi, region_map)
        warnings.extend(region_map.messages)

        say("preparing the images")
        with clock("preparation"):
            prepared = prepare(swi, radians, mask, spacing_mm=self.config.data.spacing_mm)
            z, y, x = prepared.spacing_mm
            steps.append(
                f"cropped to the brain, phase high-passed, resampled to {x:g} x {y:g} x {z:g} mm (x, y, z)"
            )

        say("searching for microbleeds")
        with clock("detection"):
            detections = self._finder.find(
                prepared.image, lambda done, of: say(f"searched tile {done} of {of}")
            )
        steps.append(f"network on tiles, suppression at IoU {self.config.inference.nms_iou:g}")

        say("naming the places")
        with clock("localization"):
            rows, boxes_mm = self._locate(detections, prepared, swi, region_map, mask, cut)
        steps.append("each candidate looked up in the region map; kept or rejected with a reason")

        phase_volume = None if radians is None else dataclasses.replace(swi, data=radians.astype(np.float32))
        return Prediction(
            rows=rows,
            swi=swi,
            phase=phase_volume,
            region_map=region_map,
            brain_mask=mask,
            region_code=code,
            boxes_mm=boxes_mm,
            warnings=tuple(warnings),
            settings=self._settings(cut),
            steps=tuple(steps),
            timings=tuple(clock.timings),
        )

    def _settings(self, threshold: float) -> tuple[tuple[str, str], ...]:
        inference = self.config.inference
        return (
            ("weights", self.bundle.path.stem),
            ("score_threshold", f"{threshold:.3f}"),
            ("definite_threshold", f"{inference.definite_threshold:.3f}"),
            ("candidate_threshold", f"{inference.candidate_threshold:.3f}"),
            ("nms_iou", f"{inference.nms_iou:g}"),
        )

    def _locate(
        self,
        detections: Detections,
        prepared: PreparedVolume,
        swi: Volume,
        region_map: RegionMap,
        mask: np.ndarray,
        threshold: float,
    ) -> tuple[tuple[DetectionRow, ...], np.ndarray]:
        keep = np.asarray(detections.valid)
        # best first: what the operating point leaves out is listed as far as a reader may want to look
        above = int((np.asarray(detections.scores)[keep] >= threshold).sum())
        keep = keep & (np.cumsum(keep) <= above + LISTED_BELOW_THRESHOLD)
        boxes, scores = np.asarray(detections.boxes)[keep], np.asarray(detections.scores)[keep]
        centers = points_from_edges(np.asarray(box_centers(jnp.asarray(boxes))), prepared.affine)
        edges_mm = (np.asarray(box_sizes(jnp.asarray(boxes))) * np.array(prepared.spacing_mm))[:, ::-1]
        diameters = np.cbrt(edges_mm.prod(axis=1))
        if len(boxes) == 0:
            return (), np.zeros((0, 3))

        # an untrusted map still has a brain mask, but no places
        if region_map.trusted:
            code, affine = region_map.code, region_map.affine
        else:
            code, affine = np.where(mask, np.uint8(Region.FRONTAL), np.uint8(0)), swi.affine
        located = anatomical_lookup(
            jnp.asarray(centers, jnp.float32),
            jnp.asarray(diameters + 2 * MAP_ERROR_MM, jnp.float32),
            jnp.asarray(code),
            jnp.asarray(np.linalg.inv(affine), jnp.float32),
        )
        native = native_index(
            (np.linalg.inv(swi.affine) @ np.c_[centers, np.ones(len(centers))].T).T[:, :3], swi
        )
        rows = []
        for n in range(len(boxes)):
            reason = ""
            if not bool(located.keep[n]):
                reason = REASON_TEXT[RejectReason(int(located.reason[n]))]
            elif scores[n] < threshold:
                reason = LOW_SCORE
            named = region_map.trusted and bool(located.keep[n])
            i, j, k = (int(v) for v in np.rint(native[n]))
            x_mm, y_mm, z_mm = (round(float(v), 2) for v in centers[n])
            rows.append(
                DetectionRow(
                    id=n + 1,
                    i=i,
                    j=j,
                    k=k,
                    x_mm=x_mm,
                    y_mm=y_mm,
                    z_mm=z_mm,
                    diameter_mm=round(float(diameters[n]), 2),
                    volume_mm3=round(float(np.pi / 6 * edges_mm[n].prod()), 2),
                    score=round(float(scores[n]), 4),
                    category="definite"
                    if scores[n] >= self.config.inference.definite_threshold
                    else "possible",
                    zone=Zone(int(located.zone[n])).name.lower() if named else "none",  # type: ignore[arg-type]
                    region=Region(int(located.region[n])).name.lower() if named else "none",
                    side=Side(int(located.side[n])).name.lower() if named else "none",  # type: ignore[arg-type]
                    status="rejected" if reason else "kept",
                    reason=reason,
                )
            )
        return tuple(rows), edges_mm


def load_detector(weights: str | Path = "small") -> CmbDetector:
    """A detector by the name of bundled weights or from a safetensors file.

    Raises:
      UserError: no such weights, or a file that does not hold a detector.
    """
    return CmbDetector(load_bundle(weights))
