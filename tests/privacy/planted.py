"""A scan with identifiers planted in everything that is read, and a search through everything written."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE, SPACING = (44, 40, 36), 0.8
NAME, PATIENT, BIRTH, HOSPITAL, FOLDER = "ZQDOE", "ZQ4711", "19340217", "ZQHOSPITAL", "ZQFOLDER"
IDENTIFIERS = (NAME, PATIENT, BIRTH, HOSPITAL, FOLDER)
TEXT = f"{NAME}^JANE {PATIENT} {BIRTH} {HOSPITAL}"

SIDECAR = {
    "EchoTime": 0.02,
    "MagneticFieldStrength": 3,
    **dict.fromkeys(("PatientName", "AcquisitionTime", "ProtocolName", "SeriesDescription"), TEXT),
    **{"PatientID": PATIENT, "PatientBirthDate": BIRTH, "InstitutionName": HOSPITAL},
}


def image(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI image with identifiers in each text field of its header and in extensions."""
    planted = nib.Nifti1Image(data, affine)
    header = planted.header
    texts = {"data_type": NAME, "db_name": PATIENT, "descrip": TEXT, "aux_file": HOSPITAL}
    texts["intent_name"] = BIRTH
    for field, text in texts.items():
        header[field] = text.encode()
    for code in ("comment", "afni", "xcede"):
        header.extensions.append(nib.nifti1.Nifti1Extension(code, TEXT.encode()))
    return planted


def plant_nifti(root: Path) -> dict[str, Path]:
    """Magnitude (also used as SWI), phase, mask and sidecars in a folder named after the patient, by role."""
    folder = root / f"{FOLDER}_{NAME}"
    folder.mkdir()
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.8
    magnitude = np.where(inside, 900.0 + 60 * x, 30.0) + 15 * rng.normal(size=SHAPE)
    for place in ((15, 14, 12), (28, 24, 20), (22, 27, 14)):
        spot = sum((axis - c) ** 2 for axis, c in zip(np.indices(SHAPE), place, strict=True)) < 5
        magnitude[spot] = 150
    affine = np.diag([-SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (17.0, -16.0, -14.0)
    arrays = {
        "magnitude": np.rint(magnitude).clip(0).astype(np.int16),
        "phase": np.angle(np.exp(1j * (3.5 * y + 2 * z * x + 0.05 * rng.normal(size=SHAPE)))),
        "mask": inside.astype(np.uint8),
    }
    arrays["phase"] = arrays["phase"].astype(np.float32)
    arrays["phase"][0, 0, 0] = np.nan  # gives a warning, which outputs repeat
    paths = {}
    for role, array in arrays.items():
        paths[role] = folder / f"{NAME}_{PATIENT}_{BIRTH}_{role}.nii.gz"
        planted = image(array, affine)
        if role == "phase":
            planted.header.set_qform(affine @ np.diag([1, 1, 1.1, 1]), code=1)
        nib.save(planted, paths[role])
        paths[role].with_name(paths[role].name.replace(".nii.gz", ".json")).write_text(json.dumps(SIDECAR))
    return paths


def leaks(*outputs: Path, identifiers: tuple[str, ...] = IDENTIFIERS) -> list[str]:
    """Where identifiers turn up below folders or in files: names and content, unpacked, whatever the case."""
    found = []
    for output in outputs:
        for path in [output, *output.rglob("*")] if output.is_dir() else [output]:
            shown = path.name if path != output else ""
            for where, content in [("name", shown.encode()), *_contents(path)]:
                small = content.lower()
                found += [
                    f"{path.name} ({where}): {word}"
                    for word in identifiers
                    if any(word.lower().encode(code) in small for code in ("utf-8", "utf-16-le", "utf-16-be"))
                ]
    return found


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_file():
        yield from _unpacked("content", path.read_bytes())


def _unpacked(where: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield where, content
    if content[:2] == b"\x1f\x8b":
        yield from _unpacked(f"{where}, gunzipped", gzip.decompress(content))
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                yield from _unpacked(entry.filename, archive.read(entry))
