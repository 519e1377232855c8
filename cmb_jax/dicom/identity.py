"""What DICOM results say about the patient.

A result must name the study, the frame of reference and the instances that it refers to: UIDs stay as they
are. Name, ID, birth date and the other attributes of patient and study go along only if the user wants it.
Without them, what results take from their source follows the Basic Application Level Confidentiality Profile
of PS3.15 Annex E, with the option to retain UIDs.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from cmb_jax.dicom.frames import Instance

_EMPTIED = (
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "PositionReferenceIndicator",
)
_METHOD = "cmb-jax: PS3.15 Annex E Basic Profile, UIDs retained"


def source_headers(instances: Sequence[Instance], keep_identifiers: bool) -> list[Dataset]:
    """Headers of the source objects, without pixels, as results may take over from them.

    Args:
        instances: the objects, in the order of the frames.
        keep_identifiers: leave patient and study as they are.
    """
    headers: list[Dataset] = [dcmread(instance.path, stop_before_pixels=True) for instance in instances]
    return headers if keep_identifiers else [without_identifiers(header) for header in headers]


def without_identifiers(header: Dataset) -> Dataset:
    """A copy whose patient is a pseudonym.

    It comes from the study's UID alone: all results of a study agree, and it tells nothing about the patient.
    """
    header = copy.deepcopy(header)
    digest = hashlib.sha256(str(header.StudyInstanceUID).encode()).hexdigest()
    header.PatientID = f"CMB-{digest[:12].upper()}"
    header.PatientName = f"{header.PatientID}^"
    for keyword in _EMPTIED:
        setattr(header, keyword, "")
    return header


def mark(result: Dataset, keep_identifiers: bool) -> None:
    """Says in a result whether the patient's identity was removed (PS3.3 C.7.1.1)."""
    if keep_identifiers:
        return
    result.PatientIdentityRemoved = "YES"
    result.DeidentificationMethod = _METHOD
    items = []
    for code in (codes.DCM.BasicApplicationConfidentialityProfile, codes.DCM.RetainUidsOption):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, "DCM", code.meaning
        items.append(item)
    result.DeidentificationMethodCodeSequence = items


def scrubbed(text: str, instance: Instance) -> str:
    """Free text without the parts of the patient's name and ID."""
    for part in instance.identifiers:
        start = text.lower().find(part.lower())
        while start >= 0:
            text = f"{text[:start]}[removed]{text[start + len(part) :]}"
            start = text.lower().find(part.lower(), start + len("[removed]"))
    return text
