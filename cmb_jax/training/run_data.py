"""What a run learns from: simulated subjects, own scans by their index, or both; prepared once and kept."""

import dataclasses
import functools
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.config import Config, DataConfig, PhantomConfig
from cmb_jax.data.prepare import boxes_of_lesions, boxes_on_working_grid, edge_coordinates
from cmb_jax.data.subjects import STORE_VERSION, StoredSubject, is_stored, store_scan, stored_subjects
from cmb_jax.datasets.cases import Case, DatasetIndex, MaskTruth
from cmb_jax.datasets.images import read_scan
from cmb_jax.datasets.index import SPLITS, read_index, read_split, split_by_patient
from cmb_jax.datasets.lesions import CONNECTIVITY, DEFAULT_DIAMETER_MM, lesions_of
from cmb_jax.datasets.tables import read_csv
from cmb_jax.errors import UserError
from cmb_jax.inference.scan import prepare_scan
from cmb_jax.io.atomic import atomic_write_text, sha256_file
from cmb_jax.io.tables import table_text
from cmb_jax.io.weights import INPUT_VERSION
from cmb_jax.phantom import SubjectSettings, simulate_subject
from cmb_jax.phantom.tree import VERSION
from cmb_jax.progress import track
from cmb_jax.regions.predict import BUNDLED_WEIGHTS as REGION_WEIGHTS
from cmb_jax.scan import VERSION as JUDGE_VERSION

SPLIT_FILE = "split.csv"
_SPLIT_COLUMNS = ("case_id", "patient_id", "split", "image_sha256")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Prepared subjects by their use, and words about them for the training record."""

    training: tuple[StoredSubject, ...]
    validation: tuple[StoredSubject, ...]  # none: nothing is validated
    phantoms: tuple[StoredSubject, ...] = ()  # `data.phantom_share` of the patches are from these
    use: str
    trained_on: str
    validated_on: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnData:
    """An index with its cases split; all scans of a patient are in one part."""

    index: DatasetIndex
    root: Path  # that the index' paths are relative to
    parts: Mapping[str, tuple[Case, ...]]  # by name in SPLITS; cases with a truth alone
    notes: tuple[str, ...]  # what is left out and why, for people


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPart:
    """The cases of one part that could be prepared."""

    cases: tuple[Case, ...]
    subjects: tuple[StoredSubject, ...]  # one per case
    image_sha256: tuple[str, ...]  # one per case, of the file of the image that lesions are given on
    skipped: tuple[tuple[str, str], ...]  # case ID and reason
    notes: tuple[tuple[str, str], ...]  # case ID and note for people, of the cases prepared now

    @property
    def lesions(self) -> int:
        """True lesions of all its scans."""
        return sum(len(subject.boxes()) for subject in self.subjects)


def training_data(config: Config, workdir: Path) -> TrainingData:
    """The subjects that a configuration names, prepared where the caches do not hold them yet.

    Raises:
      UserError: an index or a split that cannot be used, or a training part without scans or lesions.
    """
    if config.data.index is not None:
        return _own_scans(config, workdir)
    if config.data.phantom_share > 0:
        raise UserError(
            "data.phantom_share mixes simulated subjects into own scans: give --data.index FILE too"
        )
    return _simulated(config, workdir)


def phantom_member(
    phantom: PhantomConfig, index: int, mean_cmbs: float | None = None, variety: float = 0.0
) -> tuple[SubjectSettings, str]:
    """Settings and anatomy of subject `index`: protocols in turn, other tiers and heads in each round."""
    turn, protocol = divmod(index, len(phantom.protocols))
    tier = phantom.tiers[turn % len(phantom.tiers)]
    settings = SubjectSettings(
        protocol=phantom.protocols[protocol], tier=tier, mean_cmbs=mean_cmbs, variety=variety
    )
    # the protocol shifts the turn, so that no protocol is seen on one head only
    return settings, phantom.anatomies[(turn + protocol) % len(phantom.anatomies)]


def phantom_subjects(config: Config, workdir: Path, which: str) -> tuple[StoredSubject, ...]:
    """The subjects of a configuration for "training", "validation" or "test", simulated where not cached."""
    first, members = _members(config.phantom, which)
    pack_of = functools.cache(load_pack)

    def simulate(index: int, seed: int):
        settings, anatomy = members[index]
        return simulate_subject(pack_of(anatomy), seed, settings)

    folders, seeds = phantom_folders(config, workdir, which), range(first, first + len(members))
    return stored_subjects(folders, seeds, simulate, config.data.spacing_mm, which)


def phantom_folders(config: Config, workdir: Path, which: str) -> list[Path]:
    """Where `phantom_subjects` keeps the subjects, whether they are simulated yet or not."""
    phantom = config.phantom
    first, members = _members(phantom, which)
    root = Path(phantom.cache_dir) if phantom.cache_dir else workdir / "phantoms"
    return [
        root / which / f"seed-{first + index}-{_digest(config.data.spacing_mm, settings, anatomy)}"
        for index, (settings, anatomy) in enumerate(members)
    ]


def _members(phantom: PhantomConfig, which: str) -> tuple[int, list[tuple[SubjectSettings, str]]]:
    """First seed, settings and anatomies of a part."""
    count, first, mean = {
        "training": (phantom.train_subjects, phantom.train_seed, phantom.mean_cmbs),
        "validation": (phantom.validation_subjects, phantom.validation_seed, None),
        "test": (phantom.test_subjects, phantom.test_seed, None),
    }[which]
    variety = phantom.variety if which == "training" else 0.0
    return first, [phantom_member(phantom, index, mean, variety) for index in range(count)]


def _digest(spacing_mm: tuple[float, float, float], settings: SubjectSettings, anatomy: str) -> str:
    """Hash of all that a stored subject of a given seed depends on."""
    # a change of what is stored, of the phantom or of the network's input must not find subjects made before
    # it
    versions = [STORE_VERSION, VERSION, INPUT_VERSION]
    described = json.dumps([*versions, spacing_mm, dataclasses.asdict(settings), anatomy])
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _described_phantoms(config: Config) -> str:
    phantom = config.phantom
    last = phantom.train_seed + phantom.train_subjects - 1
    protocols = ", ".join(phantom.protocols)
    return f"{phantom.train_subjects} simulated subjects ({protocols}), seeds {phantom.train_seed} to {last}"


def _simulated(config: Config, workdir: Path) -> TrainingData:
    phantom = config.phantom
    return TrainingData(
        training=phantom_subjects(config, workdir, "training"),
        validation=phantom_subjects(config, workdir, "validation"),
        use="research use only; trained on simulated subjects, never on patients",
        trained_on=_described_phantoms(config),
        validated_on=(
            f"{phantom.validation_subjects} simulated subjects, seeds from {phantom.validation_seed}"
        ),
    )


def _own_scans(config: Config, workdir: Path) -> TrainingData:
    own = open_data(config.data)
    for note in own.notes:
        print(f"note: {note}", file=sys.stderr)
    _check_split(own, workdir)
    parts = {name: _prepared(own, name, config, workdir) for name in ("train", "val")}
    training, validation = parts["train"], parts["val"]
    mixed = config.data.phantom_share > 0
    _check_training(training, own, mixed)
    atomic_write_text(workdir / SPLIT_FILE, _split_text(own, parts), overwrite=True)
    if not validation.lesions:
        print(
            f"note: no lesion in the {len(validation.subjects)} validation scans, so nothing is validated; "
            "give data.split_file or another data.split_seed",
            file=sys.stderr,
        )
    phantoms = phantom_subjects(config, workdir, "training") if mixed else ()
    sha256 = sha256_file(Path(str(config.data.index)))
    trained_on = f"{_described(training)} of an index of kind {own.index.kind} (sha256 {sha256})"
    if mixed:
        trained_on += f"; {config.data.phantom_share:.0%} of the patches from {_described_phantoms(config)}"
    return TrainingData(
        training=training.subjects,
        validation=validation.subjects if validation.lesions else (),
        phantoms=phantoms,
        use="research use only; trained on the scans of the index named below",
        trained_on=trained_on,
        validated_on=_described(validation),
    )


def _described(part: PreparedPart) -> str:
    patients = len({case.patient_id for case in part.cases})
    return f"{len(part.cases)} scans of {patients} patients with {part.lesions} microbleeds"


def _prepared(own: OwnData, name: str, config: Config, workdir: Path) -> PreparedPart:
    """One part, with progress; skipped cases and notes go to stderr."""
    part = prepare_cases(
        own.parts[name], own.root, workdir / "scans", config.data.spacing_mm, f"{name} scans"
    )
    for case_id, reason in part.skipped:
        print(f"skipped: {case_id}: {reason}", file=sys.stderr)
    by_text: dict[str, list[str]] = defaultdict(list)
    for case_id, text in part.notes:
        by_text[text].append(case_id)
    for text, cases in by_text.items():
        where = cases[0] if len(cases) == 1 else f"{len(cases)} {name} scans"
        print(f"note: {where}: {text}", file=sys.stderr)
    print(f"{name}: {_described(part)}", file=sys.stderr)
    return part


def _check_training(training: PreparedPart, own: OwnData, mixed: bool) -> None:
    if not training.subjects:
        if training.skipped:
            case_id, reason = training.skipped[0]
            raise UserError(f"no scan of the training part can be used; {case_id}: {reason}")
        raise UserError(
            f"no scan of the {len(own.index.cases)} cases is in the training part; see data.split_*"
        )
    if not training.lesions and not mixed:
        raise UserError(
            f"the {len(training.subjects)} scans of the training part hold no lesion, so there is nothing to "
            "learn; add scans with microbleeds or mix simulated subjects in (data.phantom_share)"
        )


def _split_rows(own: OwnData) -> list[tuple[str, str, str]]:
    return [(case.case_id, case.patient_id, name) for name in SPLITS for case in own.parts[name]]


def _split_text(own: OwnData, parts: dict[str, PreparedPart]) -> str:
    hashes = {
        case.case_id: sha256
        for part in parts.values()
        for case, sha256 in zip(part.cases, part.image_sha256, strict=True)
    }
    return table_text(_SPLIT_COLUMNS, ((*row, hashes.get(row[0], "")) for row in _split_rows(own)))


def _check_split(own: OwnData, workdir: Path) -> None:
    """Refuse to continue with another split, which could train on scans meant for the test."""
    path = workdir / SPLIT_FILE
    if not path.exists():
        return
    before = {(row["case_id"], row["split"]) for row in read_csv(path, _SPLIT_COLUMNS)}
    if before != {(case_id, name) for case_id, _, name in _split_rows(own)}:
        raise UserError(
            f"{workdir}: this run was begun with another split; give --data.split-file {path} to go on with "
            "that one, or choose a new --workdir"
        )


def seen_images(workdir: Path) -> set[str]:
    """SHA-256 of the image files that a run has trained or validated on; empty for simulated subjects."""
    path = workdir / SPLIT_FILE
    if not path.exists():
        return set()
    return {row["image_sha256"] for row in read_csv(path, _SPLIT_COLUMNS)} - {""}


def open_data(config: DataConfig) -> OwnData:
    """Read the index that a configuration names, and split its cases.

    Cases without a truth (nobody has looked) are in no part.

    Raises:
      UserError: a bad index, a file of it that is gone, a bad split, or no case with a truth.
      ValueError: the configuration names no index.
    """
    if config.index is None:
        raise ValueError("data.index is not set")
    path = Path(config.index)
    index, root = read_index(path)
    known = [case for case in index.cases if case.truth is not None]
    notes = []
    unread = len(index.cases) - len(known)
    if unread:
        notes.append(f"not used, because they have no truth: {unread} of {len(index.cases)} cases")
    if not known:
        raise UserError(f"{path}: no case has a truth; add masks or tables of centers and make it again")
    if config.split_file is None:
        fractions = dict(zip(SPLITS, config.split_fractions, strict=True))
        parts = split_by_patient(known, fractions, seed=config.split_seed)
    else:
        named = read_split(Path(config.split_file), index.cases)
        parts = {name: tuple(case for case in part if case.truth is not None) for name, part in named.items()}
        unnamed = len(known) - sum(map(len, parts.values()))
        if unnamed:
            notes.append(
                f"not used, because the split file lacks them: {unnamed} of {len(known)} cases with a truth"
            )
    return OwnData(index=index, root=root, parts=parts, notes=tuple(notes))


def prepare_cases(
    cases: Sequence[Case],
    root: Path,
    cache: Path,
    spacing_mm: tuple[float, float, float],
    what: str = "scans",
) -> PreparedPart:
    """Prepare the cases that the cache does not hold yet; those that cannot be used are listed.

    Args:
      cases: with a truth.
      root: of the data set.
      cache: folder of prepared scans; a scan is found again while its files, truth and settings are the same.
      spacing_mm: working grid (z, y, x).
      what: shown beside the progress bar.
    """
    kept: list[Case] = []
    subjects: list[StoredSubject] = []
    hashes: list[str] = []
    skipped: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    # the prepared image is cropped to the brain that the region network finds, so its weights are part of the
    # key
    region_weights = sha256_file(REGION_WEIGHTS)
    for case in track(cases, what):
        try:
            files = file_hashes(case, root)
            key = _key(case, files, spacing_mm, region_weights)
            stored = StoredSubject(folder=cache / key[:16])
            if not is_stored(stored.folder):
                found = _prepare_case(case, root, stored.folder, spacing_mm, seed=int(key[:8], 16))
                notes += [(case.case_id, note) for note in found]
        except UserError as error:
            skipped.append((case.case_id, str(error).replace(f"{root}/", "")))
            continue
        kept.append(case)
        subjects.append(stored)
        hashes.append(files[case.images[case.reference]])
    return PreparedPart(
        cases=tuple(kept),
        subjects=tuple(subjects),
        image_sha256=tuple(hashes),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def file_hashes(case: Case, root: Path) -> dict[str, str]:
    """SHA-256 of every file of a case by its path in the index.

    Raises:
      UserError: one of them cannot be read.
    """
    names = [*case.images.values(), *([case.truth.path] if isinstance(case.truth, MaskTruth) else [])]
    try:
        return {name: sha256_file(root / name) for name in names}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _key(
    case: Case, files: Mapping[str, str], spacing_mm: tuple[float, float, float], region_weights: str
) -> str:
    """Hash of all that a stored scan depends on: content of images and truth, not their names."""
    truth = dataclasses.asdict(case.truth) if case.truth is not None else {}
    if "path" in truth:
        truth["path"] = files[truth["path"]]
    truth.pop("source", None)
    described = [
        STORE_VERSION,
        INPUT_VERSION,
        JUDGE_VERSION,
        spacing_mm,
        region_weights,
        CONNECTIVITY,
        DEFAULT_DIAMETER_MM,
        {role: files[name] for role, name in case.images.items()},
        truth,
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _prepare_case(
    case: Case, root: Path, folder: Path, spacing_mm: tuple[float, float, float], seed: int
) -> list[str]:
    """Write one prepared scan; returns notes about it for people."""
    lesions = lesions_of(case, root)  # first, because the rest takes seconds
    images = read_scan(case, root)
    scan = prepare_scan(images, spacing_mm=spacing_mm)
    if lesions.labels is None:
        boxes = boxes_of_lesions(lesions.centers_mm, lesions.diameters_mm, scan.prepared)
    else:
        boxes = boxes_on_working_grid(lesions.boxes, lesions.grid.affine, scan.prepared)
    store_scan(
        folder,
        scan.prepared,
        boxes=boxes,
        mimics_mm=lesions.mimics_mm,
        brain_mask=scan.brain_mask,
        affine=images.swi.affine,
        seed=seed,
    )
    # reported, not refused: one lesion outside should not cost the others of the scan
    centers = edge_coordinates(lesions.centers_mm, scan.prepared.affine)
    lost = int((~((centers >= 0) & (centers < scan.prepared.image.shape[:3])).all(axis=1)).sum())
    notes = [*scan.warnings, *lesions.notes]
    if lost:
        notes.append(f"{lost} of {len(lesions)} lesions lie outside the brain that the region network found")
    return notes
