"""What a run learns from: simulated subjects, or own scans by their index, or both."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.config import Config, PhantomConfig
from cmb_jax.data.subjects import STORE_VERSION, StoredSubject, stored_subjects
from cmb_jax.datasets.sheets import read_csv
from cmb_jax.datasets.split import SPLITS
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text, sha256_file
from cmb_jax.io.tables import table_text
from cmb_jax.io.weights import INPUT_VERSION
from cmb_jax.phantom import SubjectSettings, simulate_subject
from cmb_jax.phantom.tree import VERSION
from cmb_jax.progress import track
from cmb_jax.training.scans import OwnData, PreparedPart, open_data, prepare_cases

SPLIT_FILE = "split.csv"
_SPLIT_COLUMNS = ("case_id", "patient_id", "split", "image_sha256")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Prepared subjects by their use, and words about them for the training record."""

    training: tuple[StoredSubject, ...]
    validation: tuple[StoredSubject, ...]  # none: nothing is validated
    phantoms: tuple[StoredSubject, ...] = ()  # mixed in with the share `data.phantom_share`
    use: str
    trained_on: str
    validated_on: str


def training_data(config: Config, workdir: Path) -> TrainingData:
    """The subjects that a configuration names, prepared where the caches do not hold them yet.

    Raises:
      UserError: an index or a split that cannot be used, or a training part without scans or lesions.
    """
    if config.data.index is not None:
        return _own(config, workdir)
    if config.data.phantom_share > 0:
        raise UserError(
            "data.phantom_share mixes simulated subjects into own scans: give --data.index FILE too"
        )
    return _simulated(config, workdir)


def phantom_member(
    phantom: PhantomConfig, index: int, mean_cmbs: float | None = None, variety: float = 0.0
) -> tuple[SubjectSettings, str]:
    """Settings and anatomy of subject `index`: protocols in turn, every round with other tiers and heads."""
    turn, protocol = divmod(index, len(phantom.protocols))
    tier = phantom.tiers[turn % len(phantom.tiers)]
    settings = SubjectSettings(
        protocol=phantom.protocols[protocol], tier=tier, mean_cmbs=mean_cmbs, variety=variety
    )
    # the protocol shifts the turn, so that no protocol is seen on one head only
    return settings, phantom.anatomies[(turn + protocol) % len(phantom.anatomies)]


def phantom_subjects(config: Config, workdir: Path, which: str) -> tuple[StoredSubject, ...]:
    """The subjects of a configuration for "training", "validation" or "test", simulated where not cached."""
    phantom = config.phantom
    count, first, mean = {
        "training": (phantom.train_subjects, phantom.train_seed, phantom.mean_cmbs),
        "validation": (phantom.validation_subjects, phantom.validation_seed, None),
        "test": (phantom.test_subjects, phantom.test_seed, None),
    }[which]
    variety = phantom.variety if which == "training" else 0.0
    members = [phantom_member(phantom, index, mean, variety) for index in range(count)]
    root = Path(phantom.cache_dir) if phantom.cache_dir else workdir / "phantoms"
    pack_of = functools.cache(load_pack)

    def simulate(index: int, seed: int):
        settings, anatomy = members[index]
        return simulate_subject(pack_of(anatomy), seed, settings)

    folders = [
        root / which / f"seed-{first + index}-{_digest(config.data.spacing_mm, settings, anatomy)}"
        for index, (settings, anatomy) in enumerate(members)
    ]
    return stored_subjects(folders, range(first, first + count), simulate, config.data.spacing_mm, which)


def _digest(spacing_mm: tuple[float, float, float], settings: SubjectSettings, anatomy: str) -> str:
    """Tells stored subjects of one seed apart by all that they depend on."""
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


def _own(config: Config, workdir: Path) -> TrainingData:
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
    """One part, with progress; what was skipped and what is to be known goes to stderr."""
    part = prepare_cases(
        own.parts[name],
        own.root,
        workdir / "scans",
        config.data.spacing_mm,
        lambda cases: track(cases, f"{name} scans", total=len(own.parts[name])),
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
    """Refuse to go on with another split: scans that were to be tested on would be trained on."""
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
    """SHA-256 of the images' files that a run has trained or validated on; empty for simulated subjects."""
    path = workdir / SPLIT_FILE
    if not path.exists():
        return set()
    return {row["image_sha256"] for row in read_csv(path, _SPLIT_COLUMNS)} - {""}
