"""Simulated subjects on disk: a BIDS-like tree with the truth among its derivatives."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

import cmb_jax
from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.io.outside import read_json_object
from cmb_jax.phantom.field import GAMMA_BAR_MHZ_PER_T
from cmb_jax.phantom.settings import PROTOCOLS, SubjectSettings, check_settings
from cmb_jax.phantom.simulate import simulate_subject
from cmb_jax.phantom.types import READER_MM, LesionRow, MimicKind, PhantomSubject
from cmb_jax.progress import track

VERSION = 2
"""Raise when a seed would give another subject: figures of two versions do not compare."""

DESCRIPTION = "dataset_description.json"
VERSION_KEY = "PhantomVersion"  # in dataset_description.json; version 1 has no such line


def phantom_version(folder: Path) -> int:
    """The version that dataset_description.json of a simulated tree, or of its truth, names; else 1.

    Raises:
        UserError: the file holds no JSON, or no whole number there.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return 1
    version = read_json_object(path, "simulate the tree again").get(VERSION_KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{path}: {VERSION_KEY} is {version!r}, no whole number; simulate the tree again")
    return version


def check_phantom_version(folder: Path, described: Path | None = None) -> None:
    """Refuse a simulated tree of another version.

    Args:
        folder: named in the message.
        described: folder of its dataset_description.json, if that is another one.

    Raises:
        UserError: says which version it is.
    """
    version = phantom_version(described or folder)
    if version != VERSION:
        raise UserError(
            f"{folder}: is of CMB-Phantom {version}, but this cmb-jax simulates and evaluates CMB-Phantom "
            f"{VERSION}; simulate it again, or use the cmb-jax that wrote it"
        )


_GZIP_LEVEL = 2  # noise does not compress; more only takes longer
_DECIMALS = {
    "x_mm": 3,
    "y_mm": 3,
    "z_mm": 3,
    "diameter_mm": 3,
    "apparent_diameter_mm": 3,
    "chi_ppm": 4,
    "cnr": 2,
}


def _write_image(
    path: Path, data: np.ndarray, affine: np.ndarray, slope: float | None = None, *, scaled: bool = False
) -> None:
    """NIfTI in scanner coordinates; floats as int16 times `slope`. The same data give the same bytes.

    `scaled`: the data are the stored integers already.
    """
    if slope is not None and not scaled:
        data = np.clip(np.rint(data / slope), -32767, 32767).astype(np.int16)
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    if slope is not None:
        image.header.set_slope_inter(slope, 0.0)
    # a file name or a time in the gzip header would make the bytes differ
    path.write_bytes(gzip.compress(image.to_bytes(), _GZIP_LEVEL, mtime=0))


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tsv(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    lines = ["\t".join(columns), *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def lesion_line(row: LesionRow) -> tuple[str, ...]:
    """The cells of one line of the truth table, with the decimals that it is written with."""
    named = zip(row._fields, row, strict=True)
    return tuple(f"{v:.{_DECIMALS[n]}f}" if n in _DECIMALS else str(v) for n, v in named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortMember:
    """One subject that is to be simulated."""

    name: str  # e.g. "sub-0001"
    seed: int
    settings: SubjectSettings
    anatomy: str  # name of a pack


def store_phase(phase_rad: np.ndarray, storage: str) -> tuple[np.ndarray, float]:
    """Phase in [-pi, pi] as int16 in a storage form, and the header's slope.

    `storage`: "radians" (pi / 8192 per step), "pm4096" (-4096 to 4095 for -pi to pi) or
    "0-4095" (for the same).
    """
    turn = phase_rad / np.pi
    if storage == "radians":
        stored, slope = np.rint(turn * 8192), np.pi / 8192
    elif storage == "pm4096":
        stored, slope = np.clip(np.rint(turn * 4096), -4096, 4095), 1.0
    else:
        stored, slope = np.clip(np.rint((turn + 1) * 2048), 0, 4095), 1.0
    return stored.astype(np.int16), slope


def _sidecar(subject: PhantomSubject) -> dict[str, object]:
    return {
        "Manufacturer": "Simulated",
        "MRAcquisitionType": "3D",
        "ScanningSequence": "GR",
        "MagneticFieldStrength": round(subject.b0_t, 3),
        "ImagingFrequency": round(subject.b0_t * GAMMA_BAR_MHZ_PER_T, 3),
        "EchoTime": round(subject.te_ms / 1000.0, 6),
        "RepetitionTime": round(subject.tr_ms / 1000.0, 6),
        "FlipAngle": round(subject.flip_deg, 2),
        "Protocol": subject.protocol,
        "Tier": subject.tier,
        "Anatomy": subject.anatomy,
        "Seed": subject.seed,
    }


def write_subject(subject: PhantomSubject, root: Path, name: str) -> None:
    """Write one subject, e.g. name "sub-0001", into a tree at `root`; its folders are made.

    Magnitude, phase and SWI where the protocol hands out phase; otherwise the magnitude alone.
    """
    images = root / name / "anat"
    truth = root / "derivatives" / "truth" / name / "anat"
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    affine = subject.swi.affine
    sidecar = _sidecar(subject)
    protocol = PROTOCOLS[subject.protocol]
    slope = float(subject.magnitude.data.max()) / 16384.0
    magnitude = f"{name}_T2starw" if subject.phase is None else f"{name}_part-mag_T2starw"
    _write_image(images / f"{magnitude}.nii.gz", subject.magnitude.data, affine, slope)
    _write_json(images / f"{magnitude}.json", sidecar)
    if subject.phase is not None:
        stored, step = store_phase(subject.phase.data, protocol.phase_storage)
        path = images / f"{name}_part-phase_T2starw"
        _write_image(path.with_suffix(".nii.gz"), stored, affine, step, scaled=True)
        phase_notes = {
            "Units": "rad" if protocol.phase_storage == "radians" else "arbitrary",
            "PhaseStorage": protocol.phase_storage,
            "HighPassFiltered": protocol.phase == "filtered",
            "ParamagneticPhaseSign": subject.phase_sign,
        }
        _write_json(path.with_suffix(".json"), sidecar | phase_notes)
        _write_image(images / f"{name}_swi.nii.gz", subject.swi.data, affine, slope)
        _write_json(images / f"{name}_swi.json", sidecar)

    _write_image(truth / f"{name}_desc-cmb_dseg.nii.gz", subject.cmb_labels, affine)
    _write_image(truth / f"{name}_desc-mimics_dseg.nii.gz", subject.mimic_labels, affine)
    _write_image(truth / f"{name}_desc-regions_dseg.nii.gz", subject.region_code, affine)
    rows = [lesion_line(row) for row in subject.lesions.rows()]
    _write_tsv(truth / f"{name}_desc-lesions.tsv", LesionRow._fields, rows)


PARTICIPANT_COLUMNS = (
    "participant_id",
    "seed",
    "protocol",
    "tier",
    "anatomy",
    "te_ms",
    "b0_t",
    "snr",
    "motion_mm",
    "phase_sign",
    "cmbs",
    "cmbs_below_2_mm",
    "cmbs_2_to_10_mm",
    "ignored_microbleeds",
    "focal_mimics",
)


def _participant(name: str, subject: PhantomSubject) -> tuple[str, ...]:
    lesions = subject.lesions
    seen_mm = lesions.apparent_diameter_mm[lesions.is_cmb]
    small = int((seen_mm < READER_MM[0]).sum())
    return (
        name,
        str(subject.seed),
        subject.protocol,
        subject.tier,
        subject.anatomy,
        f"{subject.te_ms:.3f}",
        f"{subject.b0_t:g}",
        f"{subject.snr:.2f}",
        f"{subject.motion_mm:.3f}",
        str(subject.phase_sign),
        str(len(seen_mm)),
        str(small),
        str(len(seen_mm) - small),
        str(int(lesions.is_ignored.sum())),
        str(int(lesions.is_mimic.sum())),
    )


def _write_tree_files(root: Path, title: str, participants: Sequence[tuple[str, ...]]) -> None:
    generated_by = [{"Name": "cmb-jax", "Version": cmb_jax.__version__}]
    _write_json(
        root / "dataset_description.json",
        {
            "Name": title,
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            VERSION_KEY: VERSION,
            "GeneratedBy": generated_by,
        },
    )
    _write_json(
        root / "derivatives" / "truth" / "dataset_description.json",
        {
            "Name": f"Truth of: {title}",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            VERSION_KEY: VERSION,
            "GeneratedBy": generated_by,
        },
    )
    _write_json(
        root / "derivatives" / "truth" / "desc-mimics_dseg.json",
        {"LabelMap": {str(int(kind)): kind.name.lower() for kind in MimicKind}},
    )
    (root / ".bidsignore").write_text("*_swi.nii.gz\n*_swi.json\n", encoding="utf-8")
    ignored = root / "derivatives" / "truth" / ".bidsignore"
    ignored.write_text("*_desc-lesions.tsv\n", encoding="utf-8")
    _write_tsv(root / "participants.tsv", PARTICIPANT_COLUMNS, list(participants))


def write_cohort(
    root: Path,
    title: str,
    members: Sequence[CohortMember],
    pack_of: Callable[[str], AnatomyPack],
    progress: bool = True,
) -> None:
    """Simulate members into an existing folder, with what belongs to the whole tree."""
    participants = []
    for member in track(members, "simulating", shown=progress):
        subject = simulate_subject(pack_of(member.anatomy), member.seed, member.settings)
        write_subject(subject, root, member.name)
        participants.append(_participant(member.name, subject))
    _write_tree_files(root, title, participants)


def simulate_tree(
    out: Path,
    subjects: int,
    seed: int,
    settings: SubjectSettings | None = None,
    *,
    anatomies: Sequence[str] = ("mni2009c",),
    pack_of: Callable[[str], AnatomyPack] | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> None:
    """Simulate `subjects` subjects with seeds seed, seed + 1, ... into a new folder.

    The folder appears only when all are done. The same arguments give the same bytes. `anatomies`: names of
    packs, taken in turn; `pack_of` loads one, by default the bundled or cached one.

    Raises:
        UserError: impossible settings, a folder that exists.
    """
    if subjects < 1:
        raise UserError(f"the number of subjects is {subjects}; allowed: 1 or more")
    settings = settings or SubjectSettings()
    check_settings(settings)
    members = [
        CohortMember(
            name=f"sub-{index + 1:04d}",
            seed=seed + index,
            settings=settings,
            anatomy=anatomies[index % len(anatomies)],
        )
        for index in range(subjects)
    ]
    loader = pack_of or PackLoader(progress)
    with atomic_directory(Path(out), overwrite=overwrite) as root:
        write_cohort(root, "Simulated cerebral microbleeds", members, loader, progress)


class PackLoader:
    """Loads packs by name and keeps them."""

    def __init__(self, progress: bool = True) -> None:
        self._progress = progress
        self._packs: dict[str, AnatomyPack] = {}

    def __call__(self, name: str) -> AnatomyPack:
        """The pack of that name."""
        if name not in self._packs:
            self._packs[name] = load_pack(name, progress=self._progress)
        return self._packs[name]
