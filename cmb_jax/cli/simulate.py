"""`simulate` makes subjects, `benchmark-data` a split of CMB-Phantom; `implant` puts lesions into a scan."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cmb_jax
from cmb_jax.errors import UserError
from cmb_jax.scan import PhaseSign, StoredPhase

if TYPE_CHECKING:
    import numpy as np

    from cmb_jax.io.volume import Volume
    from cmb_jax.phantom.benchmark import Comparison

NOTICE = "Research use only; not a medical device. The lesions in truth.csv are simulated."
_MAX_LESIONS = 500
_DEFAULT_COUNT = 5
_LARGEST_MM = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Simulate subjects with known microbleeds and mimics; the same seed gives the same bytes."""

    out: Path
    """folder to make: a BIDS-like tree with the truth in derivatives/truth."""
    subjects: int = 1
    """how many."""
    seed: int = 0
    """of the first subject; the next ones count up."""
    protocol: str = "iso05"
    """acquisition by name: iso05, iso08, sabre, rss, thick3, swi7t, gre5."""
    tier: str = "easy"
    """easy or hard: how faint the microbleeds, how many the mimics, how good the scan; end_on: microbleeds
    among veins of their own caliber that cross the slices."""
    anatomy: tuple[str, ...] = ("mni2009c",)
    """heads, taken in turn."""
    mean_cmbs: float | None = None
    """mean number of microbleeds; default: as in patients."""
    te_ms: tuple[float, float] | None = None
    """range of the echo time in ms; default: the protocol's."""
    b0_t: float | None = None
    """field strength in T; default: the protocol's."""
    snr: tuple[float, float] | None = None
    """range of the signal-to-noise ratio; default: the protocol's."""
    diameters_mm: tuple[float, float] | None = None
    """smallest and largest true diameter of a microbleed, used as they are."""
    gap_mm: float = 1.0
    """least distance between the borders of two lesions; negative lets them overlap."""
    overwrite: bool = False
    """replace the folder if it exists."""


def run(options: SimulateOptions) -> None:
    """Simulate and write."""
    if options.subjects < 1:
        raise UserError(f"--subjects {options.subjects}: give at least 1")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.phantom import SubjectSettings, simulate_tree
    from cmb_jax.phantom.settings import check_settings

    settings = SubjectSettings(
        protocol=options.protocol,
        tier=options.tier,
        mean_cmbs=options.mean_cmbs,
        te_ms=options.te_ms,
        b0_t=options.b0_t,
        snr=options.snr,
        diameters_mm=options.diameters_mm,
        gap_mm=options.gap_mm,
    )
    check_settings(settings)
    use_compilation_cache()
    simulate_tree(
        options.out,
        options.subjects,
        options.seed,
        settings,
        anatomies=options.anatomy,
        overwrite=options.overwrite,
    )
    print(f"written: {options.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkDataOptions:
    """Generate a split of CMB-Phantom, the benchmark; compare its files with the published checksums."""

    out: Path
    """folder to make; with --verify: the folder to check."""
    split: Literal["train", "validation", "test"] = "test"
    """train (unlimited: set --subjects), validation (40 subjects) or test (60)."""
    tier: Literal["easy", "hard"] = "hard"
    """easy or hard."""
    subjects: int | None = None
    """number of subjects; default: all (required for train)."""
    verify: bool = False
    """generate nothing, compare the folder with the checksum list."""
    overwrite: bool = False
    """replace the folder if it exists."""


def benchmark_data(options: BenchmarkDataOptions) -> None:
    """Generate a split into a new folder, or check one that is there."""
    from cmb_jax.anatomy.assets import load_pack
    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.io.atomic import atomic_directory
    from cmb_jax.phantom.benchmark import BenchmarkSplit, compare, read_checksums
    from cmb_jax.phantom.tree import check_phantom_version, write_cohort

    out = options.out
    chosen = BenchmarkSplit(split=options.split, tier=options.tier)
    if options.verify:
        if not out.is_dir():
            raise UserError(f"{out}: no such folder; generate it first, without --verify")
        check_phantom_version(out)
        comparison = compare(out, read_checksums(chosen.checksum_file))
        print(_described(comparison))
        if not comparison.identical or not comparison.subjects:
            raise UserError(f"{out}: not the published files; first: {_first_difference(comparison)}")
        return
    members = chosen.members(options.subjects)
    use_one_instruction_set()
    use_compilation_cache()
    with atomic_directory(out, overwrite=options.overwrite) as root:
        write_cohort(root, chosen.title, members, functools.cache(load_pack))
        if chosen.checksum_file.is_file():
            print(_described(compare(root, read_checksums(chosen.checksum_file))))
    print(f"written: {out}")


def use_one_instruction_set() -> None:
    """Make XLA compile for an instruction set that nearly all x86-64 processors have.

    With another one, sums have another order and other last bits, which change some of the stored integers.
    Must be called before JAX's first computation.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_max_isa" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_max_isa=AVX2".strip()


def _described(comparison: Comparison) -> str:
    """One line for people."""
    counts = f"{len(comparison.equal)} files as published"
    if comparison.different:
        counts += f", {len(comparison.different)} different"
    if comparison.missing:
        counts += f", {len(comparison.missing)} missing"
    if comparison.unlisted:
        counts += f"; {comparison.unlisted} subjects are not in the list"
    return f"{comparison.subjects} subjects: {counts}"


def _first_difference(comparison: Comparison) -> str:
    """The first file that differs or is missing."""
    return next(iter((*comparison.different, *comparison.missing)), "no subject was found")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplantOptions:
    """Put simulated microbleeds and mimics into a real scan, with their truth.

    Writes magnitude.nii.gz and phase.nii.gz in the form of the input, labels.nii.gz (microbleeds by id),
    mimics.nii.gz (by kind), truth.csv and implant.json.
    """

    magnitude: Path
    """magnitude image, one or more echoes along the fourth axis."""
    phase: Path
    """phase image of the same echoes, stored in any of the usual forms; not high-passed."""
    out: Path
    """folder to make."""
    te_ms: tuple[float, ...] = ()
    """echo times in ms, one an echo; default: EchoTime of the JSON file beside the image."""
    b0_t: float | None = None
    """field strength in tesla; default: MagneticFieldStrength of that file."""
    count: int | None = None
    """microbleeds to draw; default: 5, or none with a table."""
    mimics: int = 0
    """calcifications and vein segments to draw, in turn."""
    diameters_mm: tuple[float, float] = (1.5, 4.0)
    """smallest and largest true diameter that is drawn."""
    lesions: Path | None = None
    """CSV with x_mm, y_mm, z_mm (RAS) and diameter_mm, and if wanted kind and chi_ppm."""
    brain_mask: Path | None = None
    """image on the same grid, above 0 in the brain; default: found in the magnitude."""
    phase_sign: PhaseSign = "auto"
    """+1 where paramagnetic tissue has positive phase as stored, -1 where negative."""
    phase_range: StoredPhase = ("auto",)
    """how the phase is stored; auto determines it from the values (see `cmb-jax predict --help`)."""
    seed: int = 0
    """of every draw; the same seed gives the same bytes."""
    overwrite: bool = False
    """replace the folder if it exists."""
    keep_identifiers: bool = False
    """keep the texts of the NIfTI headers and the names of the inputs (docs/privacy.md)."""


def implant(options: ImplantOptions) -> None:
    """Read, implant, write; nothing is written if anything fails."""
    magnitude, phase, out = options.magnitude, options.phase, options.out
    lesions, brain_mask = options.lesions, options.brain_mask
    wanted = _wanted(options)
    import numpy as np

    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.implant.lesions import lesions_for
    from cmb_jax.implant.scan import find_brain, read_scan
    from cmb_jax.implant.truth import changes, outside_brain, put_in
    from cmb_jax.io.atomic import atomic_directory
    from cmb_jax.io.header import open_nifti
    from cmb_jax.io.nifti import scaled_magnitude, shifted_phase, write_stored, write_volume
    from cmb_jax.io.tables import table_text
    from cmb_jax.phantom.tree import lesion_line
    from cmb_jax.phantom.types import CMB_KIND, LesionRow
    from cmb_jax.scan.phase_sign import field_direction

    use_compilation_cache()
    scan = read_scan(magnitude, phase, options.te_ms, options.b0_t, options.phase_sign, options.phase_range)
    brain = find_brain(scan.like, scan.magnitude[scan.last], brain_mask)
    bodies = lesions_for(scan, brain, wanted, options.mimics, options.diameters_mm, lesions, options.seed)
    gain, shift, labels, kinds, rows = put_in(scan, brain, bodies)
    warnings = [*scan.like.warnings, *outside_brain(scan, brain, bodies, brain_mask is not None)]
    # Truth must not hold lesions that nobody can see: those below the noise are taken out, and the rest is
    # put in anew, as the fields of neighbors overlap.
    seen = np.flatnonzero(changes(scan, brain, bodies) >= 1.0)
    if faint := len(bodies) - len(seen):
        warning = (
            f"{faint} of {len(bodies)} lesions change the image less than its noise at "
            f"{max(scan.te_ms):g} ms and {scan.b0_t:g} T"
        )
        if not len(seen):
            raise UserError(
                f"{warning}: nothing would be seen; give larger diameters or check --te-ms, --b0-t"
            )
        warnings.append(f"{warning} and were left out")
        bodies = bodies.some(seen)
        gain, shift, labels, kinds, rows = put_in(scan, brain, bodies)
    record = {
        "notice": NOTICE,
        "version": cmb_jax.__version__,
        "inputs": _inputs(
            options.keep_identifiers, magnitude=magnitude, phase=phase, lesions=lesions, brain_mask=brain_mask
        ),
        "settings": {
            "seed": options.seed,
            "count": wanted,
            "mimics": options.mimics,
            "diameters_mm": list(options.diameters_mm),
            "te_ms": list(scan.te_ms),
            "b0_t": scan.b0_t,
            "b0_direction": [round(v, 6) for v in field_direction(scan.like.affine)],
            "phase_range": scan.phase_range.name,
            "phase_sign": scan.sign.sign,
            "phase_sign_reason": scan.sign.reason,
            "brain_mask": brain.source,
        },
        "implanted": {"cmb": int(np.sum(bodies.kind == CMB_KIND)), "all": len(bodies)},
        "warnings": warnings,
    }
    # in the form of the inputs (type, scaling, grid): voxels that no lesion reaches keep their stored numbers
    files = open_nifti(magnitude), open_nifti(phase)
    with atomic_directory(out, overwrite=options.overwrite) as folder:
        changed = {
            "magnitude.nii.gz": scaled_magnitude(files[0], _native(gain, scan.like)),
            "phase.nii.gz": shifted_phase(
                files[1], _native(shift, scan.like), (scan.phase_range.low, scan.phase_range.high)
            ),
        }
        for (name, stored), file in zip(changed.items(), files, strict=True):
            write_stored(folder / name, stored, file, keep_identifiers=options.keep_identifiers)
        write_volume(folder / "labels.nii.gz", labels, scan.like)
        write_volume(folder / "mimics.nii.gz", kinds, scan.like)
        truth = table_text(LesionRow._fields, map(lesion_line, rows))
        (folder / "truth.csv").write_text(truth, encoding="utf-8")
        (folder / "implant.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"written: {out} ({int(np.sum(bodies.kind == CMB_KIND))} microbleeds, {len(bodies)} bodies in all)")


def _wanted(options: ImplantOptions) -> int:
    """Check the arguments; return the number of microbleeds to draw."""
    from cmb_jax.implant.lesions import MIN_DIAMETER_MM

    count, mimics, seed, table = options.count, options.mimics, options.seed, options.lesions is not None
    wanted = (0 if table else _DEFAULT_COUNT) if count is None else count
    for name, value in (("--count", wanted), ("--mimics", mimics)):
        if not 0 <= value <= _MAX_LESIONS:
            raise UserError(f"{name} {value}: allowed are 0 to {_MAX_LESIONS}")
    if not table and wanted + mimics == 0:
        raise UserError(f"nothing to implant; give --count or --mimics of 1 to {_MAX_LESIONS}, or --lesions")
    low, high = options.diameters_mm
    if not MIN_DIAMETER_MM <= low <= high <= _LARGEST_MM:
        raise UserError(
            f"--diameters-mm {low:g} {high:g}: allowed are two diameters in mm, "
            f"{MIN_DIAMETER_MM:g} <= low <= high <= {_LARGEST_MM:g}"
        )
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    return wanted


def _native(values: np.ndarray, like: Volume) -> np.ndarray:
    """(E, X, Y, Z) -> (I, J, K, E) on the file's grid."""
    import numpy as np

    from cmb_jax.io.nifti import to_native

    return np.stack([to_native(echo, like.native) for echo in values], axis=-1)


def _inputs(keep_identifiers: bool, **paths: Path | None) -> list[dict[str, str]]:
    from cmb_jax.io.atomic import sha256_file
    from cmb_jax.io.provenance import shown_name

    given = {role: (path, sha256_file(path)) for role, path in paths.items() if path is not None}
    return [
        {
            "role": role,
            "file": shown_name(path, digest, keep_identifiers=keep_identifiers),
            "sha256": digest,
        }
        for role, (path, digest) in given.items()
    ]
