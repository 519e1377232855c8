"""Commands that simulate, score, calibrate, plan and time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


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
      protocol: acquisition by name: iso05, iso08, sabre, rss, thick3, swi7t, gre5.
      tier: easy or hard: how faint the microbleeds, how many the mimics, how good the scan; end_on:
        microbleeds among veins of their own caliber that cross the slices.
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
    baseline: Path | None = None,
    report: Path | None = None,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Score predictions against truth: sensitivity, false positives, FROC, with intervals.

    With --baseline two folders of predictions, of any programs, are compared on the same scans.

    Args:
      pred: folder with one folder (detections.csv) or one NIfTI a subject.
      truth: a simulated tree, VALDO's Task2 folder, or a folder of label images.
      out: JSON file to write.
      rule: matching rule of the headline figures; all rules are in the file.
      threshold: operating point; default: what the predictions say they keep.
      baseline: predictions of another program on the same scans, compared with --pred scan by scan; the
        result goes beside --out as NAME.comparison.json.
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
        baseline=baseline,
        overwrite=overwrite,
        keep_identifiers=keep_identifiers,
    )


def calibrate(
    pred: tuple[Path, ...],
    truth: tuple[Path, ...],
    out: Path,
    weights: str = "small",
    max_fp: float = 0.5,
    max_fp_magnitude: float = 3.0,
    overwrite: bool = False,
) -> None:
    """Make scores of weights probabilities and choose their operating point, on labelled validation scans.

    Args:
      pred: folders that `cmb-jax bids` wrote with these weights.
      truth: folders of truth as `cmb-jax evaluate` reads them, in the same order.
      out: weights to write (.safetensors), with their record (.json) beside them.
      weights: name of bundled weights, or a .safetensors file.
      max_fp: operating point: the highest sensitivity at no more than so many false positives per scan.
      max_fp_magnitude: the same for scans without a phase, where there are enough of both kinds; without a
        phase, calcifications cannot be told from microbleeds.
      overwrite: replace the files if they exist.
    """
    from cmb_jax.commands.calibrate import run

    run(
        pred=pred,
        truth=truth,
        weights=weights,
        out=out,
        max_fp=max_fp,
        max_fp_magnitude=max_fp_magnitude,
        overwrite=overwrite,
    )


def demo(out: Path = Path("demo_output"), details: bool = False, overwrite: bool = False) -> None:
    """Run detection on the bundled phantom, score it against its truth and write the report.

    Args:
      out: folder to make.
      details: print every table of the evaluation.
      overwrite: replace the folder if it exists.
    """
    from cmb_jax.commands.demo import run

    run(out=out, details=details, overwrite=overwrite)


def benchmark(
    case: tuple[str, ...] = (),
    json: Path | None = None,
    repeats: int = 9,
    scaling: bool = False,
    overwrite: bool = False,
    keep_memory: bool | None = None,
    self_test: bool = False,
) -> None:
    """Time this package against PyTorch, MONAI and NumPy on the same cores (source checkout only).

    Args:
      case: names of cases, such as train-small; default: all.
      json: file for the rows with facts about the machine.
      repeats: of each side of a case; they take turns.
      scaling: also measure time and memory against volume size and number of candidates.
      overwrite: replace the file if it exists.
      keep_memory: whether both sides' allocator keeps freed memory; default: in training, as `cmb-jax train`
        does.
      self_test: instead compare the convolution kernels of every instruction set with sums in float64.
    """
    from cmb_jax.commands.benchmark import run

    run(
        case=case,
        json=json,
        repeats=repeats,
        scaling=scaling,
        overwrite=overwrite,
        keep_memory=keep_memory,
        self_test=self_test,
    )


def plan(
    mesh: str = "1x1",
    hardware: Literal["v5e", "v5p", "h100", "cpu"] = "cpu",
    config: Path | None = None,
    batch_size: int | None = None,
    precision: Literal["float32", "mixed", "bfloat16"] | None = None,
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
      config: configuration file, as for `cmb-jax train`; default: the small detector.
      batch_size: patches for each of the devices that share the batch; default: the configuration's.
      precision: type of maps and products; default: the configuration's.
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
        precision=precision,
        remat=remat,
        accumulate=accumulate,
        measure=measure,
        out=json,
        overwrite=overwrite,
    )
