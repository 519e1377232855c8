"""cmb-jax benchmark-data: CMB-Phantom's splits, generated and checked."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmb_jax.cli.common import check_output
from cmb_jax.errors import UserError

if TYPE_CHECKING:
    from cmb_jax.phantom.benchmark import Comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkDataOptions:
    """Generate a split of CMB-Phantom, the benchmark; compare its files with the published checksums."""

    out: Path
    """folder to make; with --verify: the folder to check."""
    split: Literal["train", "validation", "test"] = "test"
    """train (seeds without an end: say how many subjects), validation (40) or test (60)."""
    tier: Literal["easy", "hard"] = "hard"
    """easy or hard."""
    subjects: int | None = None
    """only the first so many; train: how many."""
    verify: bool = False
    """generate nothing, compare the folder with the checksum list."""
    overwrite: bool = False
    """replace the folder if it exists."""


def run(options: BenchmarkDataOptions) -> None:
    """Generate a split into a new folder, or check one that is there.

    Raises:
      UserError: unknown split or tier, more subjects than there are, a folder that exists (generating) or
        does not (checking), files that differ from the published ones (checking).
    """
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
        print(describe(comparison))
        if not comparison.identical or not comparison.subjects:
            raise UserError(f"{out}: not the published files; first: {first_difference(comparison)}")
        return
    members = chosen.members(options.subjects)
    check_output(out, options.overwrite)
    use_one_instruction_set()
    use_compilation_cache()
    with atomic_directory(out, overwrite=options.overwrite) as root:
        write_cohort(root, chosen.title, members, functools.cache(load_pack))
        if chosen.checksum_file.is_file():
            print(describe(compare(root, read_checksums(chosen.checksum_file))))
    print(f"written: {out}")


def use_one_instruction_set() -> None:
    """Have XLA compile for the instruction set that nearly all x86-64 processors share.

    Sums in another order would change last bits, and some of the stored integers with them. It must be called
    before JAX's first computation.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_max_isa" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_max_isa=AVX2".strip()


def describe(comparison: Comparison) -> str:
    """One line for people."""
    counts = f"{len(comparison.equal)} files as published"
    if comparison.different:
        counts += f", {len(comparison.different)} different"
    if comparison.missing:
        counts += f", {len(comparison.missing)} missing"
    return f"{comparison.subjects} subjects: {counts}"


def first_difference(comparison: Comparison) -> str:
    """A file to look at."""
    return next(iter((*comparison.different, *comparison.missing)), "no subject was found")
