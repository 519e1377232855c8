"""Simulated subjects on disk: a BIDS-like tree with the truth among its derivatives."""

import dataclasses
import functools
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
"""Of CMB-Phantom. Raise when a seed would give another subject: figures of two versions do not compare."""

DESCRIPTION = "dataset_description.json"
_VERSION_KEY = "PhantomVersion"  # in dataset_description.json; version 1 has no such line
_GZIP_LEVEL = 2  # noise does not compress; more only takes longer
_DECIMALS = dict.fromkeys(("x_mm", "y_mm", "z_mm", "diameter_mm", "apparent_diameter_mm"), 3)
_DECIMALS |= {"chi_ppm": 4, "cnr": 2}


def phantom_version(folder: Path) -> int:
    """The version that dataset_description.json of a simulated tree, or of its truth, names; else 1.

    Raises:
        UserError: the file holds no JSON, or no whole number there.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return 1
    version = read_json_object(path, "simulate the tree again").get(_VERSION_KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{path}: {_VERSION_KEY} is {version!r}, not a whole number; simulate the tree again")
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


def _write_image(path: Path, data: np.ndarray, affine: np.ndarray, slope: float | None = None) -> None:
    """NIfTI in scanner coordinates; floats as int16 times `slope`. The same data give the same bytes."""
    if slope is not None and data.dtype.kind == "f":
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


def _write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = ["\t".join(row) for row in (columns, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def lesion_line(row: LesionRow) -> tuple[str, ...]:
    """The cells of one line of the truth table, with the decimals that it is written with."""
    named = zip(row._fields, row, strict=True)
    return tuple(f"{v:.{_DECIMALS[n]}f}" if n in _DECIMALS else str(v) for n, v in named)


def store_phase(phase_rad: np.ndarray, storage: str) -> tuple[np.ndarray, float]:
    """Phase in [-pi, pi] as int16 in a storage form, and the header's slope.

    `storage`: "radians" (pi / 8192 per step), "pm4096" (-4096 to 4095 for -pi to pi) or "0-4095" (the same).
    """
    turn = phase_rad / np.pi
    if storage == "radians":
        stored, slope = np.rint(turn * 8192), np.pi / 8192
    elif storage == "pm4096":
        stored, slope = np.clip(np.rint(turn * 4096), -4096, 4095), 1.0
    else:
        stored, slope = np.clip(np.rint((turn + 1) * 2048), 0, 4095), 1.0
    return stored.astype(np.int16), slope


def write_subject(subject: PhantomSubject, root: Path, name: str) -> None:
    """Write one subject, e.g. name "sub-0001", into a tree at `root`; its folders are made.

    Magnitude, phase and SWI where the protocol hands out phase; otherwise the magnitude alone.
    """
    images = root / name / "anat"
    truth = root / "derivatives" / "truth" / name / "anat"
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    affine = subject.swi.affine
    sidecar = {
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

    def write(suffix: str, data: np.ndarray, slope: float, notes: dict[str, object] | None = None) -> None:
        _write_image(images / f"{name}_{suffix}.nii.gz", data, affine, slope)
        _write_json(images / f"{name}_{suffix}.json", sidecar | (notes or {}))

    # the brightest voxel is stored as 2^14: noise spans many steps, and SWI, which is no brighter, fits too
    slope = float(subject.magnitude.data.max()) / 16384.0
    if subject.phase is None:
        write("T2starw", subject.magnitude.data, slope)
    else:
        protocol = PROTOCOLS[subject.protocol]
        notes: dict[str, object] = {
            "Units": "rad" if protocol.phase_storage == "radians" else "arbitrary",
            "PhaseStorage": protocol.phase_storage,
            "HighPassFiltered": protocol.phase == "filtered",
            "ParamagneticPhaseSign": subject.phase_sign,
        }
        write("part-mag_T2starw", subject.magnitude.data, slope)
        write("part-phase_T2starw", *store_phase(subject.phase.data, protocol.phase_storage), notes)
        write("swi", subject.swi.data, slope)

    for kind, labels in (
        ("cmb", subject.cmb_labels),
        ("mimics", subject.mimic_labels),
        ("regions", subject.region_code),
    ):
        _write_image(truth / f"{name}_desc-{kind}_dseg.nii.gz", labels, affine)
    rows = [lesion_line(row) for row in subject.lesions.rows()]
    _write_tsv(truth / f"{name}_desc-lesions.tsv", LesionRow._fields, rows)


def _participant(name: str, subject: PhantomSubject) -> dict[str, str]:
    """A line of participants.tsv by column."""
    lesions = subject.lesions
    seen_mm = lesions.apparent_diameter_mm[lesions.is_cmb]
    small = int((seen_mm < READER_MM[0]).sum())
    return {
        "participant_id": name,
        "seed": str(subject.seed),
        "protocol": subject.protocol,
        "tier": subject.tier,
        "anatomy": subject.anatomy,
        "te_ms": f"{subject.te_ms:.3f}",
        "b0_t": f"{subject.b0_t:g}",
        "snr": f"{subject.snr:.2f}",
        "motion_mm": f"{subject.motion_mm:.3f}",
        "phase_sign": str(subject.phase_sign),
        "cmbs": str(len(seen_mm)),
        "cmbs_below_2_mm": str(small),
        "cmbs_2_to_10_mm": str(len(seen_mm) - small),
        "ignored_microbleeds": str(int(lesions.is_ignored.sum())),
        "focal_mimics": str(int(lesions.is_mimic.sum())),
    }


def _write_tree_files(root: Path, title: str, participants: Sequence[dict[str, str]]) -> None:
    truth = root / "derivatives" / "truth"
    for folder, name, kind in ((root, title, "raw"), (truth, f"Truth of: {title}", "derivative")):
        description = {
            "Name": name,
            "BIDSVersion": "1.10.0",
            "DatasetType": kind,
            _VERSION_KEY: VERSION,
            "GeneratedBy": [{"Name": "cmb-jax", "Version": cmb_jax.__version__}],
        }
        _write_json(folder / DESCRIPTION, description)
    kinds = {str(int(kind)): kind.name.lower() for kind in MimicKind}
    _write_json(truth / "desc-mimics_dseg.json", {"LabelMap": kinds})
    # the BIDS validator does not know these suffixes
    (root / ".bidsignore").write_text("*_swi.nii.gz\n*_swi.json\n", encoding="utf-8")
    (truth / ".bidsignore").write_text("*_desc-lesions.tsv\n", encoding="utf-8")
    _write_tsv(root / "participants.tsv", tuple(participants[0]), [tuple(p.values()) for p in participants])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortMember:
    """One subject that is to be simulated."""

    name: str  # e.g. "sub-0001"
    seed: int
    settings: SubjectSettings
    anatomy: str  # name of a pack


def write_cohort(
    root: Path, title: str, members: Sequence[CohortMember], pack_of: Callable[[str], AnatomyPack]
) -> None:
    """Simulate members into an existing folder, with what belongs to the whole tree."""
    participants = []
    for member in track(members, "simulating"):
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
    with atomic_directory(Path(out), overwrite=overwrite) as root:
        title = "Simulated cerebral microbleeds"
        write_cohort(root, title, members, pack_of or functools.cache(load_pack))
