"""Simulated subjects on disk: a BIDS-like tree with the truth among its derivatives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

import cmb_jax
from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T, check_settings
from cmb_jax.phantom.simulate import simulate_subject
from cmb_jax.phantom.types import LesionRow, MimicKind, PhantomSubject, SubjectSettings

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


def _write_image(path: Path, data: np.ndarray, affine: np.ndarray, slope: float | None = None) -> None:
    """NIfTI in scanner coordinates; floats as int16 times `slope`. The same data give the same bytes."""
    if slope is not None:
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


def _sidecar(subject: PhantomSubject) -> dict[str, object]:
    return {
        "Manufacturer": "Simulated",
        "MRAcquisitionType": "3D",
        "ScanningSequence": "GR",
        "MagneticFieldStrength": round(subject.b0_t, 3),
        "ImagingFrequency": round(subject.b0_t * GAMMA_BAR_MHZ_PER_T, 3),
        "EchoTime": round(subject.te_ms / 1000.0, 6),
        "Protocol": subject.protocol,
        "Seed": subject.seed,
    }


def write_subject(subject: PhantomSubject, root: Path, name: str) -> None:
    """Write one subject, e.g. name "sub-0001", into a tree at `root`; its folders are made."""
    images = root / name / "anat"
    truth = root / "derivatives" / "truth" / name / "anat"
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    affine = subject.swi.affine
    sidecar = _sidecar(subject)
    slope = float(subject.magnitude.data.max()) / 16384.0
    _write_image(images / f"{name}_part-mag_T2starw.nii.gz", subject.magnitude.data, affine, slope)
    _write_json(images / f"{name}_part-mag_T2starw.json", sidecar)
    _write_image(images / f"{name}_part-phase_T2starw.nii.gz", subject.phase.data, affine, np.pi / 8192.0)
    phase_notes = {
        "Units": "rad",
        "HighPassFiltered": True,
        "ParamagneticPhaseSign": subject.phase_sign,
    }
    _write_json(images / f"{name}_part-phase_T2starw.json", sidecar | phase_notes)
    _write_image(images / f"{name}_swi.nii.gz", subject.swi.data, affine, slope)
    _write_json(images / f"{name}_swi.json", sidecar)

    _write_image(truth / f"{name}_desc-cmb_dseg.nii.gz", subject.cmb_labels, affine)
    _write_image(truth / f"{name}_desc-mimics_dseg.nii.gz", subject.mimic_labels, affine)
    _write_image(truth / f"{name}_desc-regions_dseg.nii.gz", subject.region_code, affine)
    rows = [lesion_line(row) for row in subject.lesions.rows()]
    _write_tsv(truth / f"{name}_desc-lesions.tsv", LesionRow._fields, rows)


def _write_tree_files(root: Path, participants: list[tuple[str, ...]]) -> None:
    generated_by = [{"Name": "cmb-jax simulate", "Version": cmb_jax.__version__}]
    _write_json(
        root / "dataset_description.json",
        {
            "Name": "Simulated cerebral microbleeds",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "GeneratedBy": generated_by,
        },
    )
    _write_json(
        root / "derivatives" / "truth" / "dataset_description.json",
        {
            "Name": "Truth of the simulated cerebral microbleeds",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
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
    columns = ("participant_id", "seed", "protocol", "te_ms", "b0_t", "snr", "phase_sign", "cmbs")
    _write_tsv(root / "participants.tsv", columns, participants)


def simulate_tree(
    out: Path,
    subjects: int,
    seed: int,
    protocol: str = "iso05",
    progress: bool = True,
    overwrite: bool = False,
    mean_cmbs: float | None = None,
    simulation_spacing_mm: float = 0.75,
    pack: AnatomyPack | None = None,
) -> None:
    """Simulate `subjects` subjects with seeds seed, seed + 1, ... into a new folder.

    The folder appears only when all are done. The same arguments give the same bytes. `pack`: the anatomy;
    None loads the bundled or cached one. Raises UserError for bad settings and for a folder that exists.
    """
    if subjects < 1:
        raise UserError(f"the number of subjects is {subjects}; allowed: 1 or more")
    settings = SubjectSettings(
        protocol=protocol, mean_cmbs=mean_cmbs, simulation_spacing_mm=simulation_spacing_mm
    )
    check_settings(settings)
    with atomic_directory(Path(out), overwrite=overwrite) as root:
        anatomy = load_pack(progress=progress) if pack is None else pack
        participants: list[tuple[str, ...]] = []
        for index in tqdm(range(subjects), desc="simulating", unit="subject", disable=not progress):
            subject = simulate_subject(anatomy, seed + index, settings)
            name = f"sub-{index + 1:04d}"
            write_subject(subject, root, name)
            cells = (
                name,
                str(subject.seed),
                subject.protocol,
                f"{subject.te_ms:.3f}",
                f"{subject.b0_t:g}",
                f"{subject.snr:.2f}",
                str(subject.phase_sign),
                str(int(subject.lesions.is_cmb.sum())),
            )
            participants.append(cells)
        _write_tree_files(root, participants)
