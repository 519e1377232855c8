"""`cmb-jax data`: check what a data set holds, and write its index."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from cmb_jax.errors import UserError
from cmb_jax.progress import track

if TYPE_CHECKING:
    from cmb_jax.datasets.cases import Case
    from cmb_jax.datasets.inspection import Inspection
    from cmb_jax.datasets.lesions import Lesions
    from cmb_jax.io.volume import Volume

_LISTED = 200

Kind = Literal["valdo", "csiro", "dou", "yonsei", "bids", "folder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Report what a data set holds, what is missing or wrong, and how many lesions it has.

    Every image is read. Exit code 0 as long as one case can be used; what cannot is listed at the end.
    """

    path: tyro.conf.Positional[Path]
    """folder of the data set."""
    kind: Kind | None = None
    """its layout; default: guessed."""
    out: Path | None = None
    """.png or .html to write: a contact sheet of lesions."""
    connectivity: Literal[6, 18, 26] = 26
    """neighbors of a voxel when lesions of masks are counted."""
    overwrite: bool = False
    """replace the contact sheet if it exists."""
    keep_identifiers: bool = False
    """keep the file names of own folders' cases in the sheet, instead of numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Write the index of a data set: cases, patients, images by role and truth, ready to be split.

    Headers, tables and masks are read, images are not: run `cmb-jax data check` first.
    """

    path: tyro.conf.Positional[Path]
    """folder of the data set."""
    out: Path
    """JSON file to write; paths in it are relative to the data set's folder."""
    kind: Kind | None = None
    """its layout; default: guessed."""
    overwrite: bool = False
    """replace the file if it exists."""


def check(options: CheckOptions) -> None:
    """Read, count, print; draw the sheet."""
    from cmb_jax.datasets.find import find
    from cmb_jax.datasets.inspection import inspect
    from cmb_jax.io.provenance import is_pseudonym
    from cmb_jax.report.lesion_sheet import LesionSheet, check_suffix

    path, out, overwrite = options.path, options.out, options.overwrite
    if out is not None:
        check_suffix(out)
    index = find(path, options.kind)
    sheet = LesionSheet(f"{index.kind}: {len(index.cases)} cases")
    # public data sets use pseudonyms; names in a folder of one's own may be those of patients
    named = options.keep_identifiers or index.kind != "folder"
    shown = {
        case.case_id: case.case_id if named or is_pseudonym(case.case_id) else f"case {number}"
        for number, case in enumerate(index.cases, start=1)
    }

    def draw(case: Case, volume: Volume, lesions: Lesions) -> None:
        sheet.add(shown[case.case_id], volume, lesions.centers_mm, lesions.diameters_mm)

    inspection = inspect(
        index, path, connectivity=options.connectivity, on_case=draw if out else None, progress=_progress
    )
    _refuse_if_empty(inspection, path)
    print(summary(inspection))
    if out is None:
        return
    if sheet.tiles:
        sheet.write(out, overwrite=overwrite)
        print(f"written: {out}")
    else:
        print(f"not written: {out}: there is no lesion to show")


def index(options: IndexOptions) -> None:
    """Read, write, print."""
    from cmb_jax.datasets.find import find
    from cmb_jax.datasets.index import write_index
    from cmb_jax.datasets.inspection import inspect

    path, out = options.path, options.out
    inspection = inspect(find(path, options.kind), path, read_images=False, progress=_progress)
    _refuse_if_empty(inspection, path)
    write_index(out, inspection.index, path, overwrite=options.overwrite)
    print(summary(inspection))
    print(f"written: {out}")


def _progress(cases: Iterable[Case]) -> Iterable[Case]:
    return track(cases, "reading")


def _refuse_if_empty(inspection: Inspection, path: Path) -> None:
    if not inspection.index.cases:
        from cmb_jax.datasets.find import nothing_usable

        raise UserError(nothing_usable(path, inspection.index))


def summary(inspection: Inspection) -> str:
    """What was found, as text: counts by cohort, lesions and how they were counted, problems."""
    from cmb_jax.datasets.inspection import median
    from cmb_jax.datasets.lesions import DEFAULT_DIAMETER_MM

    index = inspection.index
    roles = Counter(role for case in index.cases for role in case.images)
    lines = [
        f"{index.kind}: {len(index.cases)} cases of {len(index.patients)} patients",
        "images: " + ", ".join(f"{role} {count}" for role, count in roles.most_common()),
    ]
    for cohort in sorted({case.cohort for case in index.cases}):
        cases = [case for case in index.cases if case.cohort == cohort]
        counts = [inspection.lesions[case.case_id] for case in cases if case.case_id in inspection.lesions]
        lines.append(
            f"  {cohort}: {len(cases)} cases, {len(counts)} with truth, "
            f"{sum(count > 0 for count in counts)} with lesions, {sum(counts)} lesions"
        )
    how = "; ".join(inspection.counted) or "no truth"
    most = max(inspection.lesions.values(), default=0)
    lines.append(f"lesions: {inspection.total} ({how}); at most {most} in a case")
    if inspection.default_diameters:
        lines.append(
            f"diameters: {inspection.default_diameters} not measured, {DEFAULT_DIAMETER_MM:g} mm is taken"
        )
    if len(inspection.contrast):
        lines.append(
            f"the image is {median(inspection.contrast):.1f} local standard deviations darker at the centers "
            "(median)"
        )
    return "\n".join([*lines, *_problem_lines(inspection)])


def _problem_lines(inspection: Inspection) -> list[str]:
    lines = []
    for level, title in (("skipped", "skipped"), ("left out", "left out"), ("note", "to be known")):
        found = [problem for problem in inspection.index.problems if problem.level == level]
        if not found:
            continue
        lines.append(f"{title} ({len(found)}):")
        lines += [f"  {problem.where}: {problem.what}" for problem in found[:_LISTED]]
        if len(found) > _LISTED:
            lines.append(f"  and {len(found) - _LISTED} more")
    return lines
