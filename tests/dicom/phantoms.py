"""Small phantoms written as the vendors write DICOM: series of classic objects, or one enhanced object."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

NAME, PATIENT_ID, BIRTH_DATE = "Quisling^Mortimer", "PID-4711-X", "19410203"
STUDY_UID, FRAME_UID = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame"])
SPACING = (0.8, 0.7, 2.0)  # mm between columns, rows, slices


def turned(about_x: float, about_y: float) -> np.ndarray:
    """Rotation (3, 3) by degrees about x, then y."""
    a, b = np.radians(about_x), np.radians(about_y)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return y @ x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the voxels (column, row, slice) of a phantom lie, in DICOM's LPS mm."""

    directions: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))  # columns: along i, j, k
    spacing: tuple[float, float, float] = SPACING
    origin: tuple[float, float, float] = (-20.0, -30.0, 10.0)

    def position(self, k: int) -> np.ndarray:
        return np.array(self.origin) + self.directions[:, 2] * self.spacing[2] * k

    def ras(self, index: np.ndarray) -> np.ndarray:
        """RAS mm of voxel indices (N, 3)."""
        lps = np.array(self.origin) + (index * np.array(self.spacing)) @ self.directions.T
        return lps * [-1, -1, 1]

    def orientation(self) -> list[float]:
        return [float(f"{v:.10f}") for v in (*self.directions[:, 0], *self.directions[:, 1])]


AXIAL = Grid()
OBLIQUE = Grid(directions=turned(17, -9), origin=(-31.3, -22.2, -14.4))
SAGITTAL = Grid(directions=np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float), origin=(15.0, -20.0, 18.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """What the headers of a series say."""

    number: int
    description: str
    image_type: tuple[str, ...]
    manufacturer: str = "SIEMENS"
    sequence: str = "*swi3d1r"
    scanning: Any = "GR"
    echo_ms: float | None = 20.0
    slope: float | None = None
    intercept: float | None = None
    bits: int = 12
    signed: bool = False
    ge_component: int | None = None
    acquisition: int = 1
    study_uid: str = STUDY_UID
    modality: str = "MR"
    protocol: str = "head"
    frame_uid: str = ""
    series_uid: str = ""

    @property
    def uid(self) -> str:
        return self.series_uid or generate_uid(entropy_srcs=[self.study_uid, str(self.number)])


SIEMENS_SWI = Series(
    number=7, description="SWI_Images", image_type=("ORIGINAL", "PRIMARY", "M", "SWI", "NORM")
)
SIEMENS_MAGNITUDE = Series(
    number=4, description="Mag_Images", image_type=("ORIGINAL", "PRIMARY", "M", "NORM")
)
SIEMENS_PHASE = Series(
    number=5,
    description="Pha_Images",
    image_type=("ORIGINAL", "PRIMARY", "P", "ND"),
    slope=2.0,
    intercept=-4096.0,
)
SIEMENS_MIP = Series(
    number=6, description="mIP_Images(SW)", image_type=("ORIGINAL", "PRIMARY", "MNIP", "ND", "NORM")
)
GE = {"manufacturer": "GE MEDICAL SYSTEMS", "sequence": "SWAN", "bits": 16, "signed": True}
GE_SWAN = Series(
    number=3, description="Ax SWAN", image_type=("ORIGINAL", "PRIMARY", "OTHER"), ge_component=0, **GE
)
GE_PHASE = Series(
    number=301, description="Ax SWAN", image_type=("DERIVED", "PRIMARY", "OTHER"), ge_component=1, **GE
)
PHILIPS = {"manufacturer": "Philips Medical Systems", "sequence": "", "scanning": "GR"}
PHILIPS_MAGNITUDE = Series(
    number=1201,
    description="SWIp",
    image_type=("ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"),
    slope=3.0,
    **PHILIPS,
)
PHILIPS_PHASE = Series(
    number=1201,
    description="SWIp",
    image_type=("ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"),
    slope=6284 / 4095,
    intercept=-3142.0,
    **PHILIPS,
)


def head(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth magnitude (0..1) without symmetry, and a phase in radians that wraps; (i, j, k)."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = np.clip(1.6 - 1.4 * (x**2 + y**2 + 0.5 * z**2), 0, 1)
    magnitude = body * (0.7 + 0.1 * x - 0.08 * y + 0.05 * z) + 0.02 * rng.random(shape)
    phase = 3.5 * x + 2.0 * y * z + rng.normal(0, 0.05, shape)
    return magnitude, (phase + np.pi) % (2 * np.pi) - np.pi


def stored_phase(phase: np.ndarray, series: Series) -> np.ndarray:
    """Radians in [-pi, pi) as the series' stored integers."""
    if series.manufacturer.startswith("GE"):
        return np.rint(phase * 1000).astype(np.int16)
    if series.manufacturer.startswith("Philips"):
        return np.rint((phase * 1000 - series.intercept) / series.slope).astype(np.uint16)
    return np.floor((phase + np.pi) / (2 * np.pi) * 4096).clip(0, 4095).astype(np.uint16)


def write_series(
    folder: Path, series: Series, stored: np.ndarray, grid: Grid = AXIAL, only: list[int] | None = None
) -> list[Path]:
    """One classic MR object a slice of `stored` (column, row, slice) integers; in a shuffled order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    slices = list(range(stored.shape[2])) if only is None else only
    for k in np.random.default_rng(series.number).permutation(slices):
        dataset = _base(series, MRImageStorage, [series.uid, str(series.acquisition), str(k)])
        dataset.ImagePositionPatient = [float(f"{v:.8f}") for v in grid.position(int(k))]
        dataset.ImageOrientationPatient = grid.orientation()
        dataset.PixelSpacing = [grid.spacing[1], grid.spacing[0]]
        dataset.SliceThickness = grid.spacing[2]
        dataset.InstanceNumber = int(k) + 1
        dataset.AcquisitionNumber = series.acquisition
        dataset.EchoTime = series.echo_ms
        if series.manufacturer.startswith("GE"):
            dataset.NumberOfFrames = 1  # seen in classic objects, though none of their attributes
        dataset.ScanningSequence = series.scanning
        dataset.SequenceVariant = "SP"
        dataset.ScanOptions = ""
        dataset.MRAcquisitionType = "3D"
        dataset.SequenceName = series.sequence
        if series.slope is not None:
            dataset.RescaleSlope = float(f"{series.slope:.10f}")
            dataset.RescaleIntercept = series.intercept or 0.0
            dataset.RescaleType = "US"
        if series.ge_component is not None:
            block = dataset.private_block(0x0043, "GEMS_PARM_01", create=True)
            block.add_new(0x2F, "SS", series.ge_component)
        _pixels(dataset, series, stored[:, :, int(k)].T)
        path = folder / f"{NAME.split('^')[0]}_{series.number}_{series.acquisition}_{k:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(path: Path, parts: list[tuple[Series, np.ndarray]], grid: Grid = AXIAL) -> Path:
    """One enhanced MR object that holds a magnitude and a phase (or more), frame by frame in turns."""
    series = parts[0][0]
    dataset = _base(series, EnhancedMRImageStorage, [series.uid, "enhanced"])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.InstanceNumber = 1
    dataset.PulseSequenceName = "SWIp"
    dataset.EchoPulseSequence = "GRADIENT"
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = grid.orientation()
    measures.PixelSpacing = [grid.spacing[1], grid.spacing[0]]
    measures.SliceThickness = grid.spacing[2]
    measures.SpacingBetweenSlices = grid.spacing[2]
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames, pixels = [], []
    for k in range(parts[0][1].shape[2]):
        for number, (part, stored) in enumerate(parts):
            frames.append(_functional_groups(part, grid, k, number))
            pixels.append(stored[:, :, k].T)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.NumberOfFrames = len(frames)
    _pixels(dataset, series, np.stack(pixels))
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _functional_groups(series: Series, grid: Grid, k: int, part: int) -> Dataset:
    content, position, echo, kind, values = (Dataset() for _ in range(5))
    content.StackID = "1"
    content.InStackPositionNumber = k + 1
    content.DimensionIndexValues = [1, k + 1, part + 1]
    content.TemporalPositionIndex = 1
    position.ImagePositionPatient = [float(f"{v:.8f}") for v in grid.position(k)]
    echo.EffectiveEchoTime = series.echo_ms
    kind.FrameType = list(series.image_type)
    kind.ComplexImageComponent = "PHASE" if "P" in series.image_type else "MAGNITUDE"
    values.RescaleSlope = float(f"{series.slope or 1.0:.10f}")
    values.RescaleIntercept = series.intercept or 0.0
    values.RescaleType = "US"
    groups = Dataset()
    groups.FrameContentSequence = Sequence([content])
    groups.PlanePositionSequence = Sequence([position])
    groups.MREchoSequence = Sequence([echo])
    groups.MRImageFrameTypeSequence = Sequence([kind])
    groups.PixelValueTransformationSequence = Sequence([values])
    return groups


def _base(series: Series, sop_class: str, names: list[str]) -> FileDataset:
    sop_uid = generate_uid(entropy_srcs=[*names, *series.image_type])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = list(series.image_type)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, sop_uid
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20240506"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "101112"
    dataset.AccessionNumber = "ACC99"
    dataset.Modality, dataset.Manufacturer = series.modality, series.manufacturer
    dataset.InstitutionName, dataset.ReferringPhysicianName = "Ward Twelve", "Curie^Marie"
    dataset.SeriesDescription, dataset.ProtocolName = series.description, series.protocol
    dataset.PatientName, dataset.PatientID = NAME, PATIENT_ID
    dataset.PatientBirthDate, dataset.PatientSex = BIRTH_DATE, "O"
    dataset.MagneticFieldStrength, dataset.RepetitionTime, dataset.FlipAngle = 3.0, 28.0, 15.0
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = series.study_uid, series.uid
    dataset.StudyID, dataset.SeriesNumber = "77", series.number
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = series.frame_uid or FRAME_UID, ""
    return dataset


def _pixels(dataset: Dataset, series: Series, pixels: np.ndarray) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, series.bits, series.bits - 1
    dataset.PixelRepresentation = int(series.signed)
    dataset.PixelData = np.ascontiguousarray(pixels.astype("<i2" if series.signed else "<u2")).tobytes()
