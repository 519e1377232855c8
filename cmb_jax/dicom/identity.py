"""The identity of the patient in DICOM results.

A result must name the study, the frame of reference and the instances that it refers to, so UIDs are kept.
Name, ID, birth date and the other attributes of patient and study are kept only if the user asks for it.
Otherwise, what results copy from their source follows the Basic Application Level Confidentiality Profile of
PS3.15 Annex E, with the option to retain UIDs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from cmb_jax.dicom.frames import Instance
from cmb_jax.io.outside import reading

# Type 2 attributes of patient and study: they must be present, and may be empty.
_EMPTIED = (
    "PatientBirthDate PatientSex AccessionNumber ReferringPhysicianName StudyDate StudyTime StudyID "
    "PositionReferenceIndicator"
)
# identifies the images, the position of their voxels and the manufacturer; nothing else is copied
_KEPT = (
    "SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID Modality Manufacturer StudyInstanceUID "
    "SeriesInstanceUID SeriesNumber InstanceNumber FrameOfReferenceUID SliceThickness SpacingBetweenSlices "
    "ImagePositionPatient ImageOrientationPatient NumberOfFrames Rows Columns PixelSpacing BitsAllocated "
    "BitsStored HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation"
)
# of the functional groups of multi-frame objects
_KEPT_GROUPS = "PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence"
_METHOD = "cmb-jax: PS3.15 Annex E Basic Profile, UIDs retained"


def source_headers(instances: Sequence[Instance], keep_identifiers: bool) -> list[Dataset]:
    """Headers of the source objects, in the order of the frames, from which results may copy."""
    headers: list[Dataset] = []
    for instance in instances:
        with reading(instance.path, "copy it again"):
            headers.append(dcmread(instance.path, stop_before_pixels=True))
    return headers if keep_identifiers else [without_identifiers(header) for header in headers]


def without_identifiers(header: Dataset) -> Dataset:
    """The part of a header that results need, with a pseudonym for the patient.

    The pseudonym is derived from the study's UID alone, so that all results of a study agree on it.
    """
    bare = _only(header, _KEPT)
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in header:
            setattr(bare, keyword, [_only(item, _KEPT_GROUPS) for item in header[keyword].value])
    digest = hashlib.sha256(str(header.get("StudyInstanceUID", "")).encode()).hexdigest()
    bare.PatientID = f"CMB-{digest[:12].upper()}"
    bare.PatientName = f"{bare.PatientID}^"
    for keyword in _EMPTIED.split():
        setattr(bare, keyword, "")
    return bare


def _only(dataset: Dataset, keywords: str) -> Dataset:
    """A new dataset with only these attributes, as far as present."""
    kept = Dataset()
    for keyword in keywords.split():
        if keyword in dataset:
            kept[keyword] = dataset[keyword]
    return kept


def mark(result: Dataset, keep_identifiers: bool) -> None:
    """Declare in a result that the patient's identity was removed (PS3.3 C.7.1.1), unless it was kept."""
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


def scrubbed(text: str, identifiers: Iterable[str]) -> str:
    """The text, such as the name of a series or file, without parts of patients' names and IDs."""
    # longest first: otherwise removing a short part would leave the rest of a longer one
    parts = sorted(map(re.escape, identifiers), key=len, reverse=True)
    return re.sub("|".join(parts), "[removed]", text, flags=re.IGNORECASE) if parts else text
