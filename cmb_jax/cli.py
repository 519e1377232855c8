"""The command line `cmb-jax`: one subcommand a task.

Examples:
  cmb-jax predict --swi swi.nii.gz --phase phase.nii.gz --out result
  cmb-jax predict --dicom examination --out result --dicom-out
  cmb-jax simulate --out phantoms --subjects 4 --seed 1
  cmb-jax evaluate --pred results --truth phantoms --out metrics.json
  cmb-jax calibrate --pred results --truth validation --weights small --out calibrated.safetensors
  cmb-jax swi --magnitude mag.nii.gz --phase phase.nii.gz --out swi
  cmb-jax implant --magnitude mag.nii.gz --phase phase.nii.gz --te-ms 20 --b0-t 3 --out implanted
  cmb-jax data check valdo/Task2 --out sheet.png
  cmb-jax bids study study/derivatives/cmb-jax participant --participant-label 01 02
  cmb-jax predict-cohort --bids study --out study/derivatives/cmb-jax
  cmb-jax compare --baseline r1 --followup r2 --baseline-image 1.nii.gz --followup-image 2.nii.gz --out change
  cmb-jax review export result --out for_readers
  cmb-jax review import for_readers/review.xlsx --result result --out sub-01_points.csv
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import cmb_jax
from cmb_jax.commands.common import StoredPhase, run_for_people
from cmb_jax.commands.implant_arguments import implant
from cmb_jax.commands.participant_options import ParticipantOptions
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
    phase_range: StoredPhase = "auto",
    weights: str = "small",
    threshold: float | None = None,
    regions: Path | None = None,
    region_labels: Path | None = None,
    dicom_out: bool = False,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Find, locate and report the microbleeds of one scan, given as NIfTI (--swi) or DICOM (--dicom).

    Writes detections.csv, detections.json, labels.nii.gz and report.html into a new folder.

    Args:
      out: folder to make.
      swi: susceptibility-weighted or T2*-weighted image (NIfTI).
      dicom: folder with the scan's DICOM series, sorted or not; `cmb-jax dicom` shows what is in it.
      series: series to use if several fit: numbers as `cmb-jax dicom` lists them, or series UIDs.
      phase: phase image on the same grid.
      magnitude: magnitude image on the same grid, for the brain regions.
      phase_sign: what the stored phase is multiplied with, so that veins are positive.
      phase_range: how the phase is stored (pm4096: +-4096; symmetric: its largest value is pi); auto
        tells it from the data.
      weights: name of bundled weights, or a .safetensors file.
      threshold: score from which a candidate is kept; default: the weights' operating point.
      regions: label volume in the scan's space that takes the place of the region network: SynthSeg with
        --parc, FreeSurfer's aparc+aseg, or own labels (docs/regions.md).
      region_labels: CSV with the columns label, region, side for own labels.
      dicom_out: write segmentation.dcm and report.dcm too, which refer to the DICOM series.
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
            threshold=threshold,
            regions=regions,
            region_labels=region_labels,
            dicom_out=dicom_out,
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
        threshold=threshold,
        regions=regions,
        region_labels=region_labels,
        overwrite=overwrite,
        keep_identifiers=keep_identifiers,
    )


def dicom(folder: tyro.conf.Positional[Path], series: tuple[str, ...] = ()) -> None:
    """List the DICOM series of a folder: what each is and why, and which `predict --dicom` would use.

    Args:
      folder: folder with DICOM files, sorted or not.
      series: look at the choice among these only: numbers as listed, or series UIDs.
    """
    from cmb_jax.commands.dicom import run

    run(folder, series)


def simulate(
    out: Path,
    subjects: int = 1,
    seed: int = 0,
    protocol: str = "iso05",
    tier: str = "easy",
    anatomy: tuple[str, ...] = ("mni2009c",),
    mean_cmbs: float | None = None,
    te_ms: tuple[float, float] | None = None,
    b0_t: float | None = None,
    snr: tuple[float, float] | None = None,
    diameters_mm: tuple[float, float] | None = None,
    gap_mm: float = 1.0,
    overwrite: bool = False,
) -> None:
    """Simulate subjects with known microbleeds and mimics; the same seed gives the same bytes.

    Args:
      out: folder to make: a BIDS-like tree with the truth in derivatives/truth.
      subjects: how many.
      seed: of the first subject; the next ones count up.
      protocol: acquisition by name: iso05, iso08, sabre, rss, thick3, swi7t.
      tier: easy or hard: how faint the microbleeds, how many the mimics, how good the scan.
      anatomy: heads, taken in turn.
      mean_cmbs: mean number of microbleeds; default: as in patients.
      te_ms: range of the echo time in ms; default: the protocol's.
      b0_t: field strength in T; default: the protocol's.
      snr: range of the signal-to-noise ratio; default: the protocol's.
      diameters_mm: smallest and largest true diameter of a microbleed, used as they are.
      gap_mm: least distance between the borders of two lesions; negative lets them overlap.
      overwrite: replace the folder if it exists.
    """
    from cmb_jax.commands.simulate import run
    from cmb_jax.phantom.types import SubjectSettings

    settings = SubjectSettings(
        protocol=protocol,
        tier=tier,
        mean_cmbs=mean_cmbs,
        te_ms=te_ms,
        b0_t=b0_t,
        snr=snr,
        diameters_mm=diameters_mm,
        gap_mm=gap_mm,
    )
    run(out=out, subjects=subjects, seed=seed, settings=settings, anatomies=anatomy, overwrite=overwrite)


def benchmark_data(
    out: Path,
    split: Literal["train", "validation", "test"] = "test",
    tier: Literal["easy", "hard"] = "hard",
    subjects: int | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> None:
    """Generate a split of CMB-Phantom, the benchmark; compare its files with the published checksums.

    Args:
      out: folder to make; with --verify: the folder to check.
      split: train (seeds without an end: say how many subjects), validation (40) or test (60).
      tier: easy or hard.
      subjects: only the first so many; train: how many.
      verify: generate nothing, compare the folder with the checksum list.
      overwrite: replace the folder if it exists.
    """
    from cmb_jax.commands.benchmark_data import run

    run(out=out, split=split, tier=tier, subjects=subjects, verify=verify, overwrite=overwrite)


def evaluate(
    pred: Path,
    truth: Path,
    out: Path,
    rule: Literal["center3", "center5", "touch", "box_iou", "valdo"] = "center3",
    threshold: float | None = None,
    report: Path | None = None,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Score predictions against truth: sensitivity, false positives, FROC, with intervals.

    Args:
      pred: folder with one folder (detections.csv) or one NIfTI a subject.
      truth: a simulated tree, VALDO's Task2 folder, or a folder of label images.
      out: JSON file to write.
      rule: matching rule of the headline figures; all rules are in the file.
      threshold: operating point; default: what the predictions say they keep.
      report: HTML page to write too, with FROC, reliability and counts drawn.
      overwrite: replace the file if it exists.
      keep_identifiers: name scans as their folders are named, not by number (docs/privacy.md).
    """
    from cmb_jax.commands.evaluate import run

    run(
        pred=pred,
        truth=truth,
        out=out,
        rule=rule,
        threshold=threshold,
        report=report,
        overwrite=overwrite,
        keep_identifiers=keep_identifiers,
    )


def swi(
    magnitude: Path,
    phase: Path,
    out: Path,
    te_ms: tuple[float, ...] = (),
    echo: int | None = None,
    phase_sign: Literal["auto", "+1", "-1"] = "auto",
    phase_range: StoredPhase = "auto",
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
      phase_range: how the phase is stored; auto tells it from the data.
      overwrite: replace the folder if it exists.
      keep_identifiers: let swi.json name the input files as they are named (docs/privacy.md).
    """
    from cmb_jax.inference.swi_command import run_swi
    from cmb_jax.io.phase import PhaseRange

    stored = None if phase_range == "auto" else PhaseRange(phase_range)
    folder = run_swi(
        magnitude,
        phase,
        out,
        te_ms,
        echo,
        phase_sign,
        overwrite,
        stored,
        keep_identifiers=keep_identifiers,
    )
    print(f"written: {folder}")


def demo(out: Path = Path("demo_output"), overwrite: bool = False) -> None:
    """Run detection on the bundled phantom, score it against its truth and write the report.

    Args:
      out: folder to make.
      overwrite: replace the folder if it exists.
    """
    from cmb_jax.commands.demo import run

    run(out=out, overwrite=overwrite)


def calibrate(
    pred: tuple[Path, ...],
    truth: tuple[Path, ...],
    out: Path,
    weights: str = "small",
    max_fp: float = 0.5,
    overwrite: bool = False,
) -> None:
    """Make scores of weights probabilities and choose their operating point, on labelled validation scans.

    Args:
      pred: folders that `cmb-jax bids` wrote with these weights.
      truth: folders of truth as `cmb-jax evaluate` reads them, in the same order.
      out: weights to write (.safetensors), with their record (.json) beside them.
      weights: name of bundled weights, or a .safetensors file.
      max_fp: operating point: the highest sensitivity at no more than so many false positives a scan.
      overwrite: replace the files if they exist.
    """
    from cmb_jax.commands.calibrate import run

    run(pred=pred, truth=truth, weights=weights, out=out, max_fp=max_fp, overwrite=overwrite)


def weights() -> None:
    """What weights are: `weights show NAME` tells training, operating points, calibration."""


def benchmark(
    case: tuple[str, ...] = (),
    json: Path | None = None,
    repeats: int = 9,
    scaling: bool = False,
    overwrite: bool = False,
    keep_memory: bool | None = None,
) -> None:
    """Time this package against PyTorch, MONAI and NumPy on the same cores (source checkout only).

    Args:
      case: names of cases, such as train-small; default: all.
      json: file for the rows with facts about the machine.
      repeats: of each side of a case; they take turns.
      scaling: also measure time and memory against volume size and number of candidates.
      overwrite: replace the file if it exists.
      keep_memory: whether both sides' allocator keeps freed memory; default: in training, as train.py does.
    """
    from cmb_jax.commands.benchmark import run

    run(
        case=case,
        json=json,
        repeats=repeats,
        scaling=scaling,
        overwrite=overwrite,
        keep_memory=keep_memory,
    )


def plan(
    mesh: str = "1x1",
    hardware: Literal["v5e", "v5p", "h100", "cpu"] = "cpu",
    config: Path | None = None,
    batch_size: int | None = None,
    compute_dtype: Literal["float32", "bfloat16"] | None = None,
    remat: bool = False,
    accumulate: int = 1,
    measure: bool = False,
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Plan a training: compile its step for a mesh of devices and predict memory, messages and time.

    Args:
      mesh: devices that share the batch x devices that share the depth of each patch, such as 32x4.
      hardware: TPU v5e, TPU v5p, H100, or this machine's processor.
      config: configuration file, as for train.py; default: the small detector.
      batch_size: patches for each of the devices that share the batch; default: the configuration's.
      compute_dtype: type of activations; default: the configuration's.
      remat: compute the inside of each block again in the backward pass.
      accumulate: parts that the batch is computed in.
      measure: also run the step here (with --mesh 1x1 --hardware cpu).
      json: file for the plan with every message.
      overwrite: replace the file if it exists.
    """
    from cmb_jax.commands.plan import run

    run(
        mesh=mesh,
        hardware=hardware,
        config=config,
        batch_size=batch_size,
        compute_dtype=compute_dtype,
        remat=remat,
        accumulate=accumulate,
        measure=measure,
        out=json,
        overwrite=overwrite,
    )


def bids(
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    level: tyro.conf.Positional[Literal["participant", "group"]],
    scans: tyro.conf.OmitArgPrefixes[ParticipantOptions] = _ALL_PARTICIPANTS,
) -> None:
    """Find microbleeds in a BIDS data set and write BIDS derivatives (a BIDS App).

    Run `participant` first, as often as needed: finished scans are left as they are. Then `group` makes one
    table. Exit code 0: all done; 1: some scans failed, and are listed; 2: nothing was done.

    Args:
      data: folder of the BIDS data set; it is not changed.
      out: folder of the derivatives, such as DIR/derivatives/cmb-jax.
      level: participant or group.
      scans: which scans, and how.
    """
    from cmb_jax.commands.bids import run

    run(data=data, out=out, level=level, options=scans)


def predict_cohort(
    bids: Path,
    out: Path,
    process: str | None = None,
    distributed: bool = False,
    scans: tyro.conf.OmitArgPrefixes[ParticipantOptions] = _ALL_PARTICIPANTS,
) -> None:
    """Find microbleeds in all scans of a cohort, on all devices; run again to go on after a stop.

    The same results as `cmb-jax bids BIDS OUT participant`. Several processes may work into one folder: none
    does what another does or has done. Exit codes as for `bids`.

    Args:
      bids: folder of the BIDS data set; it is not changed.
      out: folder of the derivatives.
      process: number and count, such as 0/8 to 7/8 for eight processes: each takes its share of the
        participants.
      distributed: take number and count from jax.distributed, which Slurm, Open MPI, Kubernetes or Cloud TPU
        tell it.
      scans: which scans, and how.
    """
    from cmb_jax.commands.predict_cohort import run

    run(bids=bids, out=out, process=process, distributed=distributed, options=scans)


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


def data() -> None:
    """Look into a data set (VALDO, CSIRO, Dou, Yonsei, BIDS, own folders): `data check`, `data index`."""


def review() -> None:
    """Hand candidates to readers and take their verdicts back: `review export`, `import`, `agreement`."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "dicom": dicom,
    "simulate": simulate,
    "benchmark-data": benchmark_data,
    "evaluate": evaluate,
    "swi": swi,
    "implant": implant,
    "demo": demo,
    "calibrate": calibrate,
    "weights": weights,
    "data": data,
    "plan": plan,
    "bids": bids,
    "predict-cohort": predict_cohort,
    "compare": compare,
    "review": review,
    "benchmark": benchmark,
}

GROUPS = ("data", "review", "weights")
"""Commands with subcommands of their own: `COMMANDS` of the module of that name."""


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"cmb-jax {cmb_jax.__version__} (research use only)")
        return

    def command() -> None:
        if arguments[:1] and arguments[0] in GROUPS:
            group = importlib.import_module(f"cmb_jax.commands.{arguments[0]}")
            tyro.extras.subcommand_cli_from_dict(
                group.COMMANDS, prog=f"cmb-jax {arguments[0]}", args=arguments[1:] or ["--help"]
            )
            return
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="cmb-jax", description=__doc__, args=arguments or ["--help"]
        )

    run_for_people(command)


if __name__ == "__main__":
    main()
