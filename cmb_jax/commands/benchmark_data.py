"""cmb-jax benchmark-data: CMB-Phantom's splits, generated and checked."""

from __future__ import annotations

import os
from pathlib import Path

from cmb_jax.commands.common import check_output, use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.phantom.benchmark import BenchmarkSplit, Comparison, Split, compare, read_checksums
from cmb_jax.phantom.tree import PackLoader, write_cohort
from cmb_jax.phantom.version import check_phantom_version


def run(
    *,
    out: Path,
    split: Split,
    tier: str,
    subjects: int | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> None:
    """Generate a split into a new folder, or check one that is there.

    Raises:
      UserError: unknown split or tier, more subjects than there are, a folder that exists (generating) or
        does not (checking), files that differ from the published ones (checking).
    """
    chosen = BenchmarkSplit(split=split, tier=tier)
    if verify:
        if not out.is_dir():
            raise UserError(f"{out}: no such folder; generate it first, without --verify")
        check_phantom_version(out)
        comparison = compare(out, read_checksums(chosen.checksum_file))
        print(describe(comparison))
        if not comparison.identical or not comparison.subjects:
            raise UserError(f"{out}: not the published files; first: {first_difference(comparison)}")
        return
    members = chosen.members(subjects)
    check_output(out, overwrite)
    use_one_instruction_set()
    use_compilation_cache()
    with atomic_directory(out, overwrite=overwrite) as root:
        write_cohort(root, chosen.title, members, PackLoader())
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
