"""Predictions and truth: found in folders of any program, read from files, or taken from a simulated scan."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from cmb_jax.anatomy.regions import Region, Zone
from cmb_jax.core.detection import RejectReason
from cmb_jax.errors import UserError
from cmb_jax.evaluation import records
from cmb_jax.io.header import decoded, open_nifti, world_affine
from cmb_jax.io.labels import is_whole
from cmb_jax.io.outside import reading
from cmb_jax.io.tables import TextTable, read_columns
from cmb_jax.phantom.settings import PROTOCOLS
from cmb_jax.phantom.tree import DESCRIPTION, check_phantom_version
from cmb_jax.phantom.types import MimicKind, PhantomSubject

MIMIC_NAMES: dict[int, str] = {int(kind): kind.name.lower() for kind in MimicKind}
# Kind of a lesion in the truth table that a reader might not see.
_IGNORED = MimicKind.IGNORED_MICROBLEED.name.lower()
# Of the components of masks and probability maps, except under the challenge's rule.
_CONNECTIVITY = 26
_BIDS_SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)(?=[_.]|$)")
_NIFTI = (".nii", ".nii.gz")
_TRUTH_LAYOUTS = (
    "DIR/derivatives/truth/sub-*/anat/*_desc-lesions.tsv (written by cmb-jax simulate), "
    "DIR/truth.csv or DIR/SUBJECT/truth.csv (cmb-jax implant), "
    "DIR/sub-*/sub-*_CMB.nii.gz (VALDO), or label images DIR/SUBJECT.nii.gz"
)
_PREDICTION_LAYOUTS = (
    "DIR/SUBJECT/detections.csv, DIR/SUBJECT/**/*_desc-cmb_detections.tsv (cmb-jax bids), "
    "DIR/SUBJECT/*.nii.gz or DIR/SUBJECT*.nii.gz"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruthSource:
    """One scan's truth on disk; nothing is read before `read` is called."""

    subject: str
    read: Callable[[], records.SubjectTruth]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionSource:
    """One scan's prediction on disk, `path` None if there is none."""

    subject: str
    path: Path | None

    def read(self, threshold: float | None = None) -> records.SubjectDetections:
        """The detections.

        Args:
            threshold: where probability maps are cut; None is 0.5. Tables are not cut here.
        """
        if self.path is None:
            return records.SubjectDetections(
                subject=self.subject,
                centers_mm=np.zeros((0, 3)),
                scores=np.zeros(0),
                diameters_mm=np.zeros(0),
                missing=True,
            )
        if self.path.suffix in (".csv", ".tsv"):
            return read_detections_csv(self.path, self.subject)
        return read_detections_volume(self.path, self.subject, 0.5 if threshold is None else threshold)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A NIfTI image of labels or probabilities with axes to Right, Anterior, Superior.

    Returns:
        (X, Y, Z) int32, or float32 if the file holds floating-point numbers (0 where they are not finite);
        and the affine (4, 4) to RAS mm. An image without any label is a scan without lesions.

    Raises:
        UserError: not a readable NIfTI volume.
    """
    file = open_nifti(path)
    affine, _ = world_affine(file)
    array = decoded(file)
    if np.prod(array.shape[3:]) != 1 or array.dtype.kind not in "iufb":
        raise UserError(
            f"{path}: is not a volume of labels but {array.dtype} {array.shape}; give one 3D image"
        )
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
    if array.min(initial=0) < 0:
        raise UserError(f"{path}: holds negative values; give labels, a mask or probabilities")
    if array.max(initial=0) >= 2**24 and is_whole(array):
        if array.max(initial=0) >= 2**31:
            raise UserError(f"{path}: holds the label {array.max():g}; give labels below {2**31}")
        array = array.astype(np.int32)  # float32 would merge neighboring numbers
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    array = array.reshape(array.shape[:3])
    orientation = io_orientation(affine)
    canonical = np.ascontiguousarray(apply_orientation(array, orientation))
    return canonical, affine @ inv_ornt_aff(orientation, array.shape)


def read_detections_volume(path: Path, subject: str, threshold: float = 0.5) -> records.SubjectDetections:
    """Detections from instance labels, a mask or a probability map.

    The score of a detection is the highest probability in it, 1 for labels and masks.

    Raises:
        UserError: see `read_labels`.
    """
    with reading(path, "give labels, a mask or probabilities"):
        volume = records.label_volume(*read_labels(path), threshold=threshold, connectivity=_CONNECTIVITY)
    return records.SubjectDetections(
        subject=subject,
        centers_mm=records.centers_mm(volume),
        scores=records.best_values(volume),
        diameters_mm=records.diameters_mm(volume),
        volume=volume,
    )


def read_detections_csv(path: Path, subject: str) -> records.SubjectDetections:
    """Detections from a table with the columns of detections.csv; .tsv has tabs instead of commas.

    Needed: x_mm, y_mm, z_mm (RAS), diameter_mm, score, status. Used if present: zone, region, reason, and
    probability, which may be empty.

    Raises:
        UserError: a missing file or column, or a value that is not a number, with file, line and column.
    """
    table = _read_table(path, "x_mm", "y_mm", "z_mm", "diameter_mm", "score", "status")
    status = []
    reasons = table.text("reason") if table.has("reason") else ("",) * len(table)
    for line, (value, reason) in enumerate(zip(table.text("status"), reasons, strict=True), start=2):
        if value == "not analysable":
            raise UserError(f"{path}: is not analysable ({reason}); leave the scan out")
        if value not in (records.KEPT, records.REJECTED):
            raise UserError(f"{path}: line {line}: status is {value!r}; write kept or rejected")
        # one below the operating point still counts in the FROC curve
        low = value == records.REJECTED and RejectReason.of(reason) is RejectReason.LOW_SCORE
        status.append(records.CANDIDATE if low else value)
    probabilities = table.optional_numbers("probability", minimum=0.0)
    if np.any(probabilities > 1.0):
        line = int(np.argmax(probabilities > 1.0)) + 2
        raise UserError(f"{path}: line {line}: probability is above 1; write a number from 0 to 1")
    return records.SubjectDetections(
        subject=subject,
        centers_mm=np.stack([table.numbers(name) for name in ("x_mm", "y_mm", "z_mm")], axis=-1),
        scores=table.numbers("score"),
        diameters_mm=table.numbers("diameter_mm", minimum=0.0),
        status=tuple(status),
        zones=table.text("zone") if table.has("zone") else None,
        regions=table.text("region") if table.has("region") else None,
        probabilities=None if np.isnan(probabilities).all() else probabilities,
        reasons=tuple(reasons),
    )


def read_truth_volume(path: Path, subject: str) -> records.SubjectTruth:
    """Truth from instance labels, a mask or a rater mean (cut at 0.5, >=).

    Raises:
        UserError: see `read_labels`.
    """
    with reading(path, "give labels, a mask or a rater mean"):
        volume = records.label_volume(*read_labels(path), connectivity=_CONNECTIVITY)
    return records.SubjectTruth(
        subject=subject,
        centers_mm=records.centers_mm(volume),
        diameters_mm=records.diameters_mm(volume),
        volume=volume,
    )


def _read_table(path: Path, *required: str) -> TextTable:
    return read_columns(path, required=required, delimiter="\t" if path.suffix == ".tsv" else ",")


def read_simulated_truth(
    anat: Path,
    subject: str,
    protocol: str | None = None,
    tier: str | None = None,
    *,
    has_phase: bool | None = None,
) -> records.SubjectTruth:
    """Truth of one simulated subject.

    Args:
        anat: its folder in the tree of derivatives: lesion table, microbleed and mimic labels.
        tier: how hard the subject is, if known.
        has_phase: whether the scan has a phase; None: as the protocol says.

    Raises:
        UserError: a file is missing or does not fit the others.
    """
    truth = _lesion_truth(
        subject,
        anat / f"{subject}_desc-lesions.tsv",
        anat / f"{subject}_desc-cmb_dseg.nii.gz",
        anat / f"{subject}_desc-mimics_dseg.nii.gz",
    )
    known = PROTOCOLS.get(protocol or "")
    if has_phase is None and known is not None:
        has_phase = known.phase != "none"
    return dataclasses.replace(truth, protocol=protocol, tier=tier, has_phase=has_phase)


def _lesion_truth(subject: str, path: Path, labels_path: Path, mimics_path: Path) -> records.SubjectTruth:
    """Truth from the phantom's lesion table and its two label images."""
    table = _read_table(
        path,
        *("id", "kind", "x_mm", "y_mm", "z_mm", "diameter_mm", "apparent_diameter_mm"),
        *("region", "zone", "cnr"),
    )
    kinds = np.array(table.text("kind"))
    rows, ignored = np.flatnonzero(kinds == "cmb"), np.flatnonzero(kinds == _IGNORED)
    values, affine = read_labels(labels_path)
    ids = table.numbers("id")[rows].astype(int)
    unknown = np.setdiff1d(np.unique(values[values > 0]), ids)
    if len(unknown):
        raise UserError(f"{labels_path}: label {unknown[0]:g} has no row in {path.name}; simulate it again")
    codes, mimics_affine = read_labels(mimics_path)
    zones = tuple(table.text("zone")[row] for row in rows)
    has_places = "unknown" not in zones  # implanted where the brain's regions could not be found
    centers = np.stack([table.numbers(name) for name in ("x_mm", "y_mm", "z_mm")], axis=-1)
    return records.SubjectTruth(
        subject=subject,
        centers_mm=centers[rows],
        diameters_mm=table.numbers("diameter_mm")[rows],
        apparent_diameters_mm=table.numbers("apparent_diameter_mm")[rows],
        regions=tuple(table.text("region")[row] for row in rows) if has_places else None,
        zones=zones if has_places else None,
        cnr=table.numbers("cnr")[rows],
        volume=records.LabeledVolume(labels=_rows_of_ids(values, ids), affine=affine),
        mimics=records.MimicMap(codes=codes.astype(np.uint8), affine=mimics_affine, names=MIMIC_NAMES),
        ignored_centers_mm=centers[ignored],
        ignored_diameters_mm=table.numbers("apparent_diameter_mm")[ignored],
    )


def phantom_truth(phantom: PhantomSubject, subject: str) -> records.SubjectTruth:
    """What `read_simulated_truth` reads, without writing files first."""
    lesions = phantom.lesions
    rows = np.flatnonzero(lesions.is_cmb)
    ignored = lesions.is_ignored
    return records.SubjectTruth(
        subject=subject,
        centers_mm=lesions.center_mm[rows],
        diameters_mm=lesions.diameter_mm[rows],
        apparent_diameters_mm=lesions.apparent_diameter_mm[rows],
        regions=tuple(Region(int(code)).name.lower() for code in lesions.region[rows]),
        zones=tuple(Zone(int(code)).name.lower() for code in lesions.zone[rows]),
        cnr=lesions.cnr[rows],
        protocol=phantom.protocol,
        tier=phantom.tier,
        has_phase=phantom.phase is not None,
        volume=records.LabeledVolume(
            labels=_rows_of_ids(phantom.cmb_labels, lesions.id[rows]), affine=phantom.swi.affine
        ),
        mimics=records.MimicMap(codes=phantom.mimic_labels, affine=phantom.swi.affine, names=MIMIC_NAMES),
        ignored_centers_mm=lesions.center_mm[ignored],
        ignored_diameters_mm=lesions.apparent_diameter_mm[ignored],
    )


def _rows_of_ids(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Instance labels (X, Y, Z) renumbered to rows from 1, int32; every label must be one of `ids` (M,)."""
    row = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    row[ids] = np.arange(1, len(ids) + 1)
    return row[labels.astype(np.int32)]


def find_truth(folder: Path) -> list[TruthSource]:
    """The scans with truth in a folder, in order of their names.

    Raises:
        UserError: the folder is missing or empty, holds no known layout, one scan twice, or simulated
            subjects of another version of CMB-Phantom.
    """
    _check_folder(folder, _TRUTH_LAYOUTS)
    # from the most telling layout to the least: any folder of images would pass for the last
    for root in (folder / "derivatives" / "truth", folder):
        if any(root.glob("sub-*/anat/*_desc-lesions.tsv")):
            return _simulated_sources(root, folder)
    implanted = [folder] if (folder / "truth.csv").is_file() else []
    implanted = implanted or sorted(path.parent for path in folder.glob("*/truth.csv"))
    if implanted:
        return [_implanted_source(path.resolve()) for path in implanted]
    valdo = sorted(path for path in folder.glob("*/*_CMB.nii*") if _is_nifti(path))
    if valdo:
        return _volume_sources({path: path.parent.name for path in valdo})
    images = sorted(path for path in folder.iterdir() if _is_nifti(path))
    if images:
        return _volume_sources({path: _subject_of_file(path) for path in images})
    raise UserError(f"{folder}: no truth found; expected {_TRUTH_LAYOUTS}")


def find_predictions(folder: Path, subjects: Sequence[str]) -> list[PredictionSource]:
    """The prediction for every scan that has a truth; `path` is None where there is none.

    Args:
        folder: see `_PREDICTION_LAYOUTS`; for a single scan it may be the folder of detections.csv itself.

    Raises:
        UserError: the folder is missing or empty, holds two predictions for one scan, or one for a scan
            that has no truth.
    """
    _check_folder(folder, _PREDICTION_LAYOUTS)
    tables = [*folder.glob("detections.csv"), *folder.glob("*_desc-cmb_detections.tsv")]
    if len(tables) == len(subjects) == 1:
        return [PredictionSource(subject=subjects[0], path=tables[0])]
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        path = _prediction_in(entry)
        if path is not None:
            name = entry.name if entry.is_dir() else _stem(entry)
            found.setdefault(_longest_match(name, subjects) or name, []).append(path)
    extra = [name for name in found if name not in subjects]
    if extra:
        raise UserError(f"{folder}: predictions without a truth: {listed(extra)}; remove or rename them")
    if not found:
        raise UserError(f"{folder}: no predictions found; expected {_PREDICTION_LAYOUTS}")
    for name, paths in found.items():
        if len(paths) > 1:
            names = listed(path.name for path in paths)
            raise UserError(f"{folder}: several predictions for {name}: {names}; keep one")
    return [PredictionSource(subject=name, path=found.get(name, [None])[0]) for name in subjects]


def _prediction_in(entry: Path) -> Path | None:
    """The file with the prediction, if `entry` is such a file or a folder with one, else None."""
    if entry.name.startswith("."):
        return None
    if not entry.is_dir():
        return entry if _is_nifti(entry) else None
    if (entry / "detections.csv").is_file():
        return entry / "detections.csv"
    tables = sorted(entry.glob("**/anat/*_desc-cmb_detections.tsv"))
    if len(tables) > 1:
        raise UserError(f"{entry}: holds {len(tables)} results (sessions or runs); leave one to be scored")
    if tables:
        return tables[0]
    images = sorted(path for path in entry.iterdir() if _is_nifti(path) and not path.name.startswith("."))
    if len(images) > 1:
        raise UserError(
            f"{entry}: holds {len(images)} images and no detections.csv; keep only the prediction in it"
        )
    return images[0] if images else None


def _longest_match(name: str, subjects: Sequence[str]) -> str | None:
    """The longest subject that a name is or begins with, followed by _ or a dot."""
    fitting = [s for s in subjects if name == s or (name.startswith(s) and name[len(s)] in "_.")]
    return max(fitting, key=len, default=None)


def _implanted_source(folder: Path) -> TruthSource:
    """What `cmb-jax implant` wrote: the microbleeds that it put into the scan, and no others."""
    files = (folder / name for name in ("truth.csv", "labels.nii.gz", "mimics.nii.gz"))
    return TruthSource(subject=folder.name, read=partial(_lesion_truth, folder.name, *files))


def _simulated_sources(root: Path, folder: Path) -> list[TruthSource]:
    roots = (folder, root, folder.parent.parent)
    check_phantom_version(folder, next((each for each in roots if (each / DESCRIPTION).is_file()), folder))
    drawn = _participants(folder)
    return [
        TruthSource(
            subject=path.name,
            read=partial(
                read_simulated_truth,
                path / "anat",
                path.name,
                *drawn.get(path.name, (None, None)),
                has_phase=_has_phase(folder, path.name),
            ),
        )
        for path in sorted(root.glob("sub-*"))
        if path.is_dir()
    ]


def _has_phase(folder: Path, subject: str) -> bool | None:
    """Whether a phase is among a subject's images in a simulated tree; None where there are no images."""
    for root in (folder, folder.parent.parent):
        images = [path.name for path in (root / subject / "anat").glob("*_T2starw.nii*")]
        if images:
            return any("_part-phase_" in name for name in images)
    return None


def _participants(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Protocol and tier of each subject, from participants.tsv at the root of a simulated tree."""
    for root in (folder, folder.parent.parent):
        path = root / "participants.tsv"
        if path.is_file():
            table = _read_table(path, "participant_id")
            names = table.text("participant_id")
            columns = [
                table.text(name) if table.has(name) else (None,) * len(names) for name in ("protocol", "tier")
            ]
            return dict(zip(names, zip(*columns, strict=True), strict=True))
    return {}


def _volume_sources(subjects: dict[Path, str]) -> list[TruthSource]:
    sources: dict[str, TruthSource] = {}
    for path, name in subjects.items():
        if name in sources:
            raise UserError(f"{path.parent}: two truth images for {name}; keep the one with the microbleeds")
        sources[name] = TruthSource(subject=name, read=partial(read_truth_volume, path, name))
    return list(sources.values())


def _subject_of_file(path: Path) -> str:
    named = _BIDS_SUBJECT.match(path.name)
    return named.group(1) if named else _stem(path)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.endswith(_NIFTI)


def _check_folder(folder: Path, expected: str) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected {expected}")
    if not any(folder.iterdir()):
        raise UserError(f"{folder}: the folder is empty; expected {expected}")


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
