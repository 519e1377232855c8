"""cmb-jax predict: images of one scan in, a folder of results out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cmb_jax.anatomy.own_regions import LabelTable, label_table, regions_from_labels
from cmb_jax.commands.common import (
    Progress,
    StoredPhase,
    check_output,
    check_threshold,
    existing_file,
    stopwatch,
    use_compilation_cache,
)
from cmb_jax.config import Flips, Precision
from cmb_jax.errors import NotAnalysableError
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.outputs import described_inputs, write_not_analysable, write_prediction
from cmb_jax.inference.predict import Prediction, load_detector
from cmb_jax.inference.scan import PhaseSign
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.memory import check_fits
from cmb_jax.io.naming import stem
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan.phase_range import PhaseRange, asked_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanInput:
    """One scan as it goes into the detector, whatever files it came from."""

    swi: Volume
    phase: Volume | None
    magnitude: Volume | None
    phase_sign: PhaseSign
    phase_range: PhaseRange | None
    subject: str  # what the report calls it
    inputs: tuple[tuple[str, str, str], ...]  # (role, name, sha256) of what was read
    steps: tuple[str, ...] = ()  # done before the detector
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnRegions:
    """A label volume that takes the place of the region network."""

    volume: Volume
    table: LabelTable

    @classmethod
    def read(cls, path: Path, table: Path | None) -> OwnRegions:
        """The volume and its table; without one that of FreeSurfer and SynthSeg.

        Raises:
          UserError: a file that is missing or cannot be read.
        """
        if table is not None:
            existing_file(table, "label table")
        return cls(volume=read_volume(existing_file(path, "regions")), table=label_table(table))


FurtherFiles = Callable[[Path, Prediction, WeightsBundle], None]


def summary(prediction: Prediction) -> str:
    """What was found, in a sentence or two."""
    kept = prediction.kept
    rejected = len(prediction.rows) - len(kept)
    definite = sum(row.category == "definite" for row in kept)
    if not kept:
        found = "No microbleed was kept."
    else:
        noun = "microbleed" if len(kept) == 1 else "microbleeds"
        found = f"{len(kept)} {noun} kept ({definite} definite, {len(kept) - definite} possible)."
        if prediction.region_map.trusted:
            zones = {
                zone: sum(row.zone == zone for row in kept) for zone in ("lobar", "deep", "infratentorial")
            }
            found += " " + ", ".join(f"{zone} {count}" for zone, count in zones.items()) + "."
    noun = "candidate" if rejected == 1 else "candidates"
    best = "" if not prediction.unlisted else f" (the best of {rejected + prediction.unlisted})"
    return f"{found} {rejected} {noun} rejected{best}, each with its reason in detections.csv."


def run(
    *,
    swi: Path,
    out: Path,
    phase: Path | None = None,
    magnitude: Path | None = None,
    phase_sign: PhaseSign = "auto",
    phase_range: StoredPhase = ("auto",),
    weights: str = "small",
    flips: Flips | None = None,
    threshold: float | None = None,
    precision: Precision | None = None,
    regions: Path | None = None,
    region_labels: Path | None = None,
    viewer: bool = True,
    save_regions: bool = False,
    overwrite: bool = False,
    keep_identifiers: bool = False,
    announce: bool = True,
) -> Prediction:
    """Read, predict, write; progress on stderr, the summary and the report's place on stdout (`announce`).

    Raises:
      UserError: anything wrong with the files or the arguments.
    """
    say = stopwatch()
    check_output(out, overwrite)
    check_threshold(threshold)
    existing_file(swi, "SWI")
    # what even the header rules out: nothing is known of the image but its bytes
    files = {"the SWI": swi, "the phase": phase, "the magnitude": magnitude}
    with refusal_recorded(out, (("swi", "swi", sha256_file(swi)),), "scan", overwrite, files):
        check_fits(swi, None if phase is None else existing_file(phase, "phase"))
        swi_volume = read_volume(swi, reduced="mean")
        phase_volume = None if phase is None else read_volume(phase, reduced="first")
        magnitude_volume = (
            None if magnitude is None else read_volume(existing_file(magnitude, "magnitude"), reduced="mean")
        )
    own = None if regions is None else OwnRegions.read(regions, region_labels)
    inputs = described_inputs(
        keep_identifiers=keep_identifiers,
        swi=swi_volume,
        phase=phase_volume,
        magnitude=magnitude_volume,
        regions=None if own is None else own.volume,
    )
    scan = ScanInput(
        swi=swi_volume,
        phase=phase_volume,
        magnitude=magnitude_volume,
        phase_sign=phase_sign,
        phase_range=asked_range(phase_range),
        subject=stem(inputs[0][1]),
        inputs=inputs,
    )
    return predict_scan(
        scan,
        out,
        weights=weights,
        flips=flips,
        threshold=threshold,
        precision=precision,
        regions=own,
        viewer=viewer,
        save_regions=save_regions,
        overwrite=overwrite,
        announce=announce,
        say=say,
    )


@contextmanager
def refusal_recorded(
    out: Path,
    inputs: tuple[tuple[str, str, str], ...],
    subject: str,
    overwrite: bool,
    files: Mapping[str, Path | None] | None = None,
) -> Iterator[None]:
    """Writes results that say why if the body of the `with` finds images not analysable, and raises on.

    `files` are written by their roles, the keys: names of files may identify a person.
    """
    try:
        yield
    except NotAnalysableError as error:
        reason = str(error)
        for role, path in (files or {}).items():
            reason = reason if path is None else reason.replace(str(path), role)
        write_not_analysable(out, reason, inputs, subject=subject, overwrite=overwrite)
        raise


def predict_scan(
    scan: ScanInput,
    out: Path,
    *,
    weights: str,
    flips: Flips | None = None,
    threshold: float | None,
    precision: Precision | None = None,
    overwrite: bool,
    say: Progress,
    regions: OwnRegions | None = None,
    viewer: bool = True,
    save_regions: bool = False,
    announce: bool = True,
    further: FurtherFiles | None = None,
) -> Prediction:
    """Predict and write the results of one scan; `further` adds files to the folder.

    `regions` takes the place of the region network; `viewer`: write viewer.html;
    `save_regions`: write brain mask and region map.

    Raises:
      UserError: the images do not fit together, no such weights, or a folder that cannot be written.
      NotAnalysableError: no count can be given; the results say why.
    """
    region_map = None if regions is None else regions_from_labels(regions.volume, regions.table, scan.swi)
    use_compilation_cache()
    detector = load_detector(weights, flips, precision)
    with refusal_recorded(out, scan.inputs, scan.subject, overwrite):
        prediction = detector.predict(
            scan.swi,
            scan.phase,
            scan.magnitude,
            phase_sign=scan.phase_sign,
            phase_range=scan.phase_range,
            threshold=threshold,
            region_map=region_map,
            progress=say,
        )
    prediction = dataclasses.replace(
        prediction,
        steps=(*scan.steps, *prediction.steps),
        warnings=(*scan.warnings, *prediction.warnings),
    )
    say("writing the report")
    write_prediction(
        prediction,
        detector.bundle,
        out,
        scan.inputs,
        subject=scan.subject,
        overwrite=overwrite,
        viewer=viewer,
        save_regions=save_regions,
        also=None if further is None else lambda folder: further(folder, prediction, detector.bundle),
    )
    for line in prediction.warnings:
        print(f"warning: {line}", file=sys.stderr)
    if announce:
        print(summary(prediction))
        print(f"Report: {out / 'report.html'} (research use only)")
        if viewer:
            print(f"Scroll and judge: cmb-jax view {out}")
    return prediction
