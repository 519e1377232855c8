"""Commands that work on scans: predict, dicom, swi, bids, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from cmb_jax.commands.common import StoredPhase
from cmb_jax.commands.participant_options import ParticipantOptions
from cmb_jax.config import Flips
from cmb_jax.errors import UserError

_ALL_PARTICIPANTS = ParticipantOptions()


def predict(
    out: Path,
    swi: Path | None = None,
    dicom: Path | None = None,
    series: tuple[str, ...] = (),
    phase: Path | None = None,
    magnitude: Path | None = None,
    phase_sign: Literal["auto", "+1", "-1"] = "auto",
    phase_range: StoredPhase = ("auto",),
    weights: str = "small",
    flips: Flips | None = None,
    threshold: float | None = None,
    precision: Literal["float32", "mixed", "bfloat16"] | None = None,
    regions: Path | None = None,
    region_labels: Path | None = None,
    dicom_out: bool = False,
    viewer: bool = True,
    save_regions: bool = False,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Find, locate and report the microbleeds of one scan, given as NIfTI (--swi) or DICOM (--dicom).

    Writes detections.csv, detections.json, labels.nii.gz, report.html, viewer.html, methods.md (text for a
    paper) and prov.jsonld into a new folder.

    Args:
      out: folder to make.
      swi: susceptibility-weighted or T2*-weighted image (NIfTI).
      dicom: folder with the scan's DICOM series, sorted or not; `cmb-jax dicom` shows what is in it.
      series: series to use if several fit: numbers as `cmb-jax dicom` lists them, or series UIDs.
      phase: phase image on the same grid.
      magnitude: magnitude image on the same grid, for the brain regions.
      phase_sign: what the stored phase is multiplied with, so that veins are positive.
      phase_range: how the phase is stored: radians, pm4096 (+-4096), 0-4095, milliradians, 0-2pi, or the two
        numbers that stand for one turn, such as 0 255; auto tells it from the values.
      weights: name of bundled weights, or a .safetensors file; several with commas between are averaged.
      flips: average scores with those of mirror images: x takes twice the network's time, xyz four times;
        default: as the weights say.
      threshold: score from which a candidate is kept; default: the weights' operating point.
      precision: of the network; default: as the weights say. mixed is faster where the device multiplies
        bfloat16, and changes scores a little (docs/performance.md).
      regions: label volume in the scan's space that takes the place of the region network: SynthSeg with
        --parc, FreeSurfer's aparc+aseg, or own labels (docs/regions.md).
      region_labels: CSV with the columns label, region, side for own labels.
      dicom_out: write segmentation.dcm, report.dcm and key_images too, which refer to the DICOM series.
      viewer: write viewer.html, which holds the images of the head: scroll, window, judge (docs/review.md).
      save_regions: write the brain mask (brain.nii.gz) and the region map (regions.nii.gz, regions.csv).
      overwrite: replace the folder if it exists.
      keep_identifiers: let the results name the input files as they are named, and DICOM results the
        patient and the study, as a PACS needs it (docs/privacy.md, docs/dicom.md).
    """
    if region_labels is not None and regions is None:
        raise UserError("--region-labels goes with --regions VOLUME")
    if dicom is not None:
        if swi is not None or phase is not None or magnitude is not None:
            raise UserError("--dicom: the folder takes the place of --swi, --phase and --magnitude; give one")
        from cmb_jax.commands.predict_dicom import run as run_dicom

        run_dicom(
            dicom=dicom,
            out=out,
            series=series,
            phase_sign=phase_sign,
            phase_range=phase_range,
            weights=weights,
            flips=flips,
            threshold=threshold,
            precision=precision,
            regions=regions,
            region_labels=region_labels,
            dicom_out=dicom_out,
            viewer=viewer,
            save_regions=save_regions,
            keep_identifiers=keep_identifiers,
            overwrite=overwrite,
        )
        return
    if swi is None:
        raise UserError("give the scan: --swi IMAGE (NIfTI), or --dicom FOLDER")
    if series or dicom_out:
        raise UserError("--series and --dicom-out go with --dicom FOLDER")
    from cmb_jax.commands.predict import run

    run(
        swi=swi,
        out=out,
        phase=phase,
        magnitude=magnitude,
        phase_sign=phase_sign,
        phase_range=phase_range,
        weights=weights,
        flips=flips,
        threshold=threshold,
        precision=precision,
        regions=regions,
        region_labels=region_labels,
        viewer=viewer,
        save_regions=save_regions,
        overwrite=overwrite,
        keep_identifiers=keep_identifiers,
    )


def view(
    result: tyro.conf.Positional[Path],
    swi: Path | None = None,
    phase: Path | None = None,
    browser: bool = True,
    port: int = 0,
) -> None:
    """Scroll through a scan and judge its candidates in the browser; verdicts are saved as they are given.

    Runs a small server for this machine alone until Ctrl-C, and opens the browser. Verdicts go to
    RESULT/verdicts/READER.json, which `cmb-jax review import` reads, and the truth that you ask for to
    RESULT/truth. Nothing else is written, and nothing leaves the machine.

    Args:
      result: folder that cmb-jax predict wrote.
      swi: the image that was searched, if the result holds no viewer.html with the images (or for the whole
        image in full depth).
      phase: its phase image.
      browser: open the browser; else the address is only printed.
      port: to listen on; default: one that is free.
    """
    from cmb_jax.commands.view import run

    run(result=result, swi=swi, phase=phase, browser=browser, port=port)


def dicom(folder: tyro.conf.Positional[Path], series: tuple[str, ...] = ()) -> None:
    """List the DICOM series of a folder: what each is and why, and which `predict --dicom` would use.

    Args:
      folder: folder with DICOM files, sorted or not.
      series: look at the choice among these only: numbers as listed, or series UIDs.
    """
    from cmb_jax.commands.dicom import run

    run(folder, series)


def swi(
    magnitude: Path,
    phase: Path,
    out: Path,
    te_ms: tuple[float, ...] = (),
    echo: int | None = None,
    phase_sign: Literal["auto", "+1", "-1"] = "auto",
    phase_range: StoredPhase = ("auto",),
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Make a susceptibility-weighted image from magnitude and phase (several echoes are combined).

    Args:
      magnitude: magnitude image, one or more echoes along the fourth axis.
      phase: phase image, stored in any of the usual forms.
      out: folder to make: swi, high-passed phase, minimum intensity projection.
      te_ms: echo times in ms; needed to combine several echoes.
      echo: use this echo alone, counted from 1.
      phase_sign: what the stored phase is multiplied with, so that veins are positive.
      phase_range: how the phase is stored; auto tells it from the values (see `cmb-jax predict --help`).
      overwrite: replace the folder if it exists.
      keep_identifiers: let swi.json name the input files as they are named (docs/privacy.md).
    """
    from cmb_jax.inference.swi_command import run_swi
    from cmb_jax.scan.phase_range import asked_range

    folder = run_swi(
        magnitude,
        phase,
        out,
        te_ms,
        echo,
        phase_sign,
        overwrite,
        asked_range(phase_range),
        keep_identifiers=keep_identifiers,
    )
    print(f"written: {folder}")


def bids(
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    level: tyro.conf.Positional[Literal["participant", "group"]],
    scans: tyro.conf.OmitArgPrefixes[ParticipantOptions] = _ALL_PARTICIPANTS,
) -> None:
    """Find microbleeds in a BIDS data set and write BIDS derivatives (a BIDS App).

    Run `participant` first; rerun it to resume: finished scans are left as they are. All devices are used;
    `--process` splits a cohort over several processes or machines. Then `group` makes one table. Exit code 0:
    all done; 1: some scans failed and are listed; 2: nothing was done; 3: none failed, but some are not
    analysable.

    Args:
      data: folder of the BIDS data set; it is not changed.
      out: folder of the derivatives, such as DIR/derivatives/cmb-jax.
      level: participant or group.
      scans: which scans, and how.
    """
    from cmb_jax.commands.bids import run

    run(data=data, out=out, level=level, options=scans)


def compare(
    baseline: Path,
    followup: Path,
    baseline_image: Path,
    followup_image: Path,
    out: Path,
    match_mm: float = 4.0,
    overwrite: bool = False,
) -> None:
    """Compare two scans of one patient: which microbleeds are new, resolved, stable or uncertain.

    Args:
      baseline: folder that `cmb-jax predict` wrote for the earlier scan.
      followup: that of the later scan.
      baseline_image: the image that was --swi of the baseline's prediction.
      followup_image: the image that was --swi of the follow-up's prediction.
      out: folder to make: comparison.csv, comparison.json, report.html.
      match_mm: greatest distance in mm of one lesion at two times, after registration.
      overwrite: replace the folder if it exists.
    """
    from cmb_jax.commands.compare import run

    run(
        baseline=baseline,
        followup=followup,
        baseline_image=baseline_image,
        followup_image=followup_image,
        out=out,
        match_mm=match_mm,
        overwrite=overwrite,
    )
