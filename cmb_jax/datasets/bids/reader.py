"""BIDS data sets with microbleeds marked in derivatives.

sub-01/ses-2/anat/sub-01_ses-2_swi.nii.gz                                           see docs/bids.md
derivatives/truth/sub-0001/anat/sub-0001_desc-cmb_dseg.nii.gz                       cmb-jax simulate
derivatives/manual/sub-01/ses-2/anat/sub-01_ses-2_label-cmb_mask.nii.gz             marked by people
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmb_jax.datasets.bids.choice import Choice, ChoiceKind, choose
from cmb_jax.datasets.bids.layout import NO_IMAGES, BidsName, Scan, parse_name, read_layout
from cmb_jax.datasets.cases import (
    Case,
    Collector,
    DatasetIndex,
    MaskTruth,
    Role,
    is_nifti,
    relative,
    visible,
    walk,
)
from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json_object, reading

RESULTS_OF = "cmb-jax bids"
"""Name of this program in dataset_description.json; its results are never taken for truth."""

_TRUTH_SUFFIXES = {"mask": False, "dseg": False, "probseg": True}  # suffix -> whether values are soft
_TRUTH_LABELS = {"cmb", "cmbs", "microbleed", "microbleeds"}  # of desc- or label-


def find(root: Path) -> DatasetIndex:
    """The scans of a data set. Those without truth are kept: predictions can be made on them.

    Raises:
        UserError: the folder is missing or empty, or has no folder sub-*.
    """
    layout = read_layout(root)
    found = Collector(problems=list(layout.problems))
    for participant in layout.participants:
        with found.skipping(f"sub-{participant}"):
            scans = layout.scans(participant)
            if not scans:
                raise UserError(NO_IMAGES)
            truths = list(_truths(root, participant))
            for scan in scans:
                with found.skipping(scan.name):
                    found.cases.append(_case(scan, scans, truths, root))
    return found.index("bids")


def _truths(root: Path, participant: str) -> Iterator[tuple[Path, BidsName]]:
    """Images in derivatives that mark a participant's microbleeds, except results of this program."""
    derivatives = root / "derivatives"
    for data_set in visible(derivatives) if derivatives.is_dir() else ():
        folder = data_set / f"sub-{participant}"
        if not folder.is_dir() or is_result(data_set):
            continue
        for path in walk(folder):
            name = parse_name(path.name) if is_nifti(path) else None
            if name is None or name.suffix not in _TRUTH_SUFFIXES:
                continue
            if _TRUTH_LABELS & {(name.get(key) or "").casefold() for key in ("desc", "label")}:
                yield path, name


def is_result(data_set: Path) -> bool:
    """Whether a folder's dataset_description.json says that `cmb-jax bids` wrote it."""
    path = data_set / "dataset_description.json"
    try:
        content = read_json_object(path)
        with reading(path):
            return any(entry["Name"] == RESULTS_OF for entry in content["GeneratedBy"])
    except UserError:
        return False


def _case(scan: Scan, scans: tuple[Scan, ...], truths: list[tuple[Path, BidsName]], root: Path) -> Case:
    choice = choose(scan, root)
    truth = _truth(scan, scans, truths, root)
    notes = [*choice.notes]
    if choice.left:
        left = "; ".join(f"not {image.file.relative} ({image.why})" for image in choice.left)
        notes.append(f"taken: {choice.reference.file.relative} ({choice.why}); {left}")
    if truth is None:
        notes.append("no truth")
    return Case(
        case_id=scan.name,
        patient_id=f"sub-{scan.participant}",
        cohort="bids",
        images=_images(choice),
        truth=truth,
        notes=tuple(notes),
    )


def _truth(
    scan: Scan, scans: tuple[Scan, ...], truths: list[tuple[Path, BidsName]], root: Path
) -> MaskTruth | None:
    """The truth whose name has the entities of the scan; it may lack the run of a session's only scan."""
    alone = sum(other.session == scan.session for other in scans) == 1
    fitting = [
        (path, name)
        for path, name in truths
        if name.get("ses") == scan.session
        and name.get("chunk") == scan.chunk
        and (name.get("run") == scan.run or (name.get("run") is None and alone))
    ]
    if not fitting:
        return None
    if len(fitting) > 1:
        names = ", ".join(relative(path, root) for path, _ in fitting)
        raise UserError(f"two truths ({names}); keep one in derivatives")
    path, name = fitting[0]
    return MaskTruth(path=relative(path, root), soft=_TRUTH_SUFFIXES[name.suffix])


def _images(choice: Choice) -> dict[Role, str]:
    """Images by role; of several echoes the last, which shows susceptibility best."""
    images: dict[Role, str] = {}
    if choice.swi is not None:
        images["swi"] = choice.swi.file.relative
    if choice.magnitudes:
        role: Role = "t2s" if choice.kind is ChoiceKind.MAGNITUDE_ALONE else "magnitude"
        images[role] = choice.magnitudes[-1].file.relative
    if choice.phases:
        images["phase"] = choice.phases[-1].file.relative
    return images
