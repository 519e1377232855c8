"""Findings as a DICOM Structured Report: TID 1500 Measurement Report (PS3.16), one group a microbleed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from highdicom import UID
from highdicom.seg import Segmentation
from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard

from cmb_jax.dicom import codes, identity
from cmb_jax.dicom.findings import Finding, Maker


def make_report(
    sources: Sequence[Dataset],
    segmentation: Segmentation | None,
    findings: Sequence[Finding],
    maker: Maker,
    *,
    keep_identifiers: bool,
) -> ComprehensiveSR:
    """A measurement report: counts for the brain, then each finding with its segment.

    Args:
        sources: headers of the source objects.
        segmentation: of the findings, in their order; None if there are none.
        findings: may be empty: the report then says that none was kept.
        maker: who made it.
        keep_identifiers: whether `sources` still name the patient.
    """
    observer = ObserverContext(
        observer_type=standard.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=maker.device_uid,
            name=maker.model,
            manufacturer_name=maker.manufacturer,
            model_name=maker.version,
        ),
    )
    algorithm = AlgorithmIdentification(name=maker.model, version=maker.version, parameters=[maker.notice])
    groups: list = [_counts(findings, algorithm)]
    if segmentation is not None:
        groups += [
            _finding(finding, number, segmentation, sources, algorithm)
            for number, finding in enumerate(findings, 1)
        ]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=codes.MRI,
        imaging_measurements=groups,
        # highdicom's image library describes single-frame images only; the evidence lists all
        referenced_images=None if "PerFrameFunctionalGroupsSequence" in sources[0] else sources,
    )
    result = ComprehensiveSR(
        evidence=[*sources, *([] if segmentation is None else [segmentation])],
        content=content[0],
        series_instance_uid=UID(),
        series_number=maker.series_number + 1,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer=maker.manufacturer,
        manufacturer_model_name=maker.model,
        software_versions=maker.version,
        device_serial_number=maker.serial_number,
        series_description=f"{maker.model} microbleed report",
        coding_schemes=[codes.scheme_identification()],
        is_complete=True,
    )
    identity.mark(result, keep_identifiers)
    return result


def _counts(
    findings: Sequence[Finding], algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    """Numbers of microbleeds in the brain, in all and by zone (TID 1501)."""
    zones = Counter[str](finding.row.zone for finding in findings)
    numbers = {name: zones.total() if name == "all" else zones[name] for name in codes.COUNTS}
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=UID(), identifier="Microbleed counts"),
        algorithm_id=algorithm,
        finding_type=codes.HEMORRHAGE,
        finding_sites=[FindingSite(anatomic_location=codes.BRAIN)],
        measurements=[
            Measurement(name=codes.COUNTS[name], value=number, unit=codes.NO_UNITS)
            for name, number in numbers.items()
        ],
    )


def _finding(
    finding: Finding,
    segment: int,
    segmentation: Segmentation,
    sources: Sequence[Dataset],
    algorithm: AlgorithmIdentification,
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """One microbleed (TID 1411): its segment, place, size, score and rating."""
    row = finding.row
    site = FindingSite(
        anatomic_location=codes.REGIONS.get(row.region, codes.BRAIN), laterality=codes.SIDES.get(row.side)
    )
    measured = (
        (codes.DIAMETER, row.diameter_mm, codes.MILLIMETER),
        (codes.VOLUME, row.volume_mm3, codes.CUBIC_MILLIMETER),
        (codes.CERTAINTY, round(100 * row.certainty, 2), codes.PERCENT),
    )
    evaluated = (
        (codes.CATEGORY, codes.CATEGORIES[row.category]),
        (codes.ZONE, codes.ZONES[row.zone]),
        (codes.REGION, codes.MARS_REGIONS[row.region]),
    )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=finding.tracking_uid, identifier=finding.name),
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=segment,
            source_series=SourceSeriesForSegmentation(str(sources[0].SeriesInstanceUID)),
        ),
        finding_category=codes.ABNORMAL_STRUCTURE,
        finding_type=codes.HEMORRHAGE,
        finding_sites=[site],
        algorithm_id=algorithm,
        measurements=[Measurement(name=name, value=value, unit=unit) for name, value, unit in measured],
        qualitative_evaluations=[QualitativeEvaluation(name=name, value=value) for name, value in evaluated],
    )
