"""cmb-jax dicom: list the series in a folder, what each is and why, and which would be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cmb_jax.errors import UserError

if TYPE_CHECKING:
    from cmb_jax.datasets.cases import Problem
    from cmb_jax.dicom.choose import Candidate, Choice
    from cmb_jax.dicom.folder import FolderContent
    from cmb_jax.dicom.stacks import Stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """List the DICOM series of a folder: what each is and why, and which `predict --dicom` would use."""

    folder: tyro.conf.Positional[Path]
    """folder with DICOM files, sorted or not."""
    series: tuple[str, ...] = ()
    """look at the choice among these only: numbers as listed, or series UIDs."""


def read_candidates(folder: Path) -> tuple[FolderContent, tuple[Candidate, ...]]:
    """What a folder holds, and its stacks with their roles."""
    from cmb_jax.dicom.choose import candidates
    from cmb_jax.dicom.folder import read_folder
    from cmb_jax.dicom.stacks import sort_into_stacks

    content = read_folder(folder)
    return content, candidates(sort_into_stacks(content.frames))


def problem_lines(problems: Sequence[Problem], found: Sequence[Candidate]) -> list[str]:
    """Lines about what was left out of a folder: files, and series that do not make a volume."""
    from cmb_jax.dicom.choose import Role
    from cmb_jax.dicom.identity import scrubbed

    names = _identifiers(found)
    lines = [f"{problem.level}: {scrubbed(problem.where, names)}: {problem.what}" for problem in problems]
    lines += [
        f"skipped: series {candidate.stack.key}: {candidate.stack.fault}"
        for candidate in found
        if candidate.stack.fault and candidate.role is not Role.OTHER
    ]
    return lines


def run(options: DicomOptions) -> None:
    """List the series, what is wrong in the folder, and what `cmb-jax predict --dicom` would use."""
    from cmb_jax.dicom.choose import choose, described
    from cmb_jax.dicom.identity import scrubbed

    content, found = read_candidates(options.folder)
    studies = {candidate.stack.instance.study_uid for candidate in found}
    names = _identifiers(found)
    noun = "study" if len(studies) == 1 else "studies"
    print(f"{len(found)} series or parts of series, {len(studies)} {noun}:")
    for candidate in found:
        print(f"  {described(candidate, scrubbed(candidate.stack.instance.description, names))}")
    for line in problem_lines(content.problems, found):
        print(line)
    try:
        print(f"`cmb-jax predict --dicom` would use: {_used(choose(found, options.series))}")
    except UserError as error:
        raise UserError(f"nothing would be used: {error}") from None


def _identifiers(found: Sequence[Candidate]) -> set[str]:
    """Parts of the names and IDs of all patients in a folder."""
    return {part for candidate in found for part in candidate.stack.instance.identifiers}


def _used(choice: Choice) -> str:
    def keys(stacks: Sequence[Stack]) -> str:
        return ", ".join(stack.key for stack in stacks)

    parts = {
        "swi": () if choice.swi is None else (choice.swi,),
        "phase": choice.phase,
        "magnitude": choice.magnitude,
        "real": choice.real,
        "imaginary": choice.imaginary,
    }
    used = "; ".join(f"{role} {keys(stacks)}" for role, stacks in parts.items() if stacks)
    return " - ".join((used, *choice.notes))
