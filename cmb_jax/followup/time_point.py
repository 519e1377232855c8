"""One time point: a result of `cmb-jax predict`, its image and its brain; and how two time points differ."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.datasets.bids.sidecar import ImageFacts, facts_beside
from cmb_jax.errors import UserError
from cmb_jax.followup.changes import Surveyed
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.outside import a_text, reading
from cmb_jax.io.provenance import is_bids_name, stem
from cmb_jax.regions.predict import brain_mask_on, predict_regions
from cmb_jax.report.comparison import ScanContent
from cmb_jax.review.result import ResultPaths, load_result
from cmb_jax.review.result import read_record as read_any_record

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ECHO_SHARE = 0.1  # relative difference of echo times that is tolerated
_FIELD_T = 0.2  # 2.89 T is called 3 T
_VOXEL_SHARE = 0.1
_RULE = "more microbleeds show at longer echo times, higher fields and smaller voxels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The content of detections.json, apart from its rows."""

    version: str
    weights_name: str
    weights_sha256: str
    threshold: str
    inputs: tuple[tuple[str, str, str], ...]  # (role, file name as shown, sha256)
    regions_trusted: bool
    phase: bool = True  # whether one was used; earlier versions do not record it

    @property
    def roles(self) -> frozenset[str]:
        """The kinds of images that the detector used."""
        return frozenset(role for role, _, _ in self.inputs)

    @property
    def searched(self) -> tuple[str, str]:
        """Name and sha256 of the image that was searched."""
        return next((name, digest) for role, name, digest in self.inputs if role == "swi")

    @property
    def subject_and_suffix(self) -> tuple[str | None, str | None]:
        """BIDS subject and suffix, such as T2starw, of the searched image; None if its name has none."""
        name = stem(self.searched[0])
        if not is_bids_name(name):
            return None, None
        parts = name.split("_")
        return parts[0].removeprefix("sub-"), None if "-" in parts[-1] else parts[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimePoint(Surveyed):
    """A result with its image."""

    subject: str
    rows: tuple[DetectionRow, ...]
    record: Record
    facts: ImageFacts

    @property
    def kept(self) -> tuple[DetectionRow, ...]:
        """The reported detections."""
        return tuple(row for row in self.rows if row.status == "kept")

    @property
    def content(self) -> ScanContent:
        """The content for the report."""
        return ScanContent(
            name=self.name,
            subject=self.subject,
            image=self.image,
            brain=self.brain,
            inputs=self.record.inputs,
            version=self.record.version,
            weights_sha256=self.record.weights_sha256,
            kept=len(self.kept),
        )


def read_record(paths: ResultPaths) -> Record:
    """The record beside the table of a result.

    Raises:
        UserError: it cannot be read, or is not the record of a result.
    """
    with reading(paths.record, "give the folder that cmb-jax predict wrote"):
        content = read_any_record(paths)
        inputs = tuple(
            (a_text(i["role"], "role"), a_text(i["file"], "file", 255), a_text(i["sha256"], "sha256", 64))
            for i in content["inputs"]
        )
        record = Record(
            version=a_text(content["version"], "version", 255),
            weights_name=a_text(content["weights"]["name"], "weights", 255),
            weights_sha256=a_text(content["weights"]["sha256"], "weights", 255),
            threshold=a_text(content["settings"]["score_threshold"], "score_threshold", 255),
            inputs=inputs,
            regions_trusted=bool(content["regions_trusted"]),
            phase=content["settings"].get("phase", "used") == "used",
        )
        if not _SHA256.fullmatch(record.searched[1]):
            raise ValueError("no sha256 of the image")
        return record


def read_time_point(name: str, option: str, folder: Path, image: Path) -> TimePoint:
    """Read a result and its image, and find the brain.

    Args:
        name: "baseline" or "follow-up".
        option: the command line option for the image, for messages.
        folder: written by `cmb-jax predict`, or a file of a result of `cmb-jax bids`.
        image: the file that was searched (--swi); checked by its hash.

    Raises:
        UserError: no result, an unreadable file, another image, or no brain in it.
    """
    result = load_result(folder)
    record = read_record(result.paths)
    volume = read_volume(image)
    shown, digest = record.searched
    if volume.sha256 != digest:
        raise UserError(
            f"{image}: is not the image that {folder} was made from ({shown}, sha256 {digest[:8]}...); "
            f"give the file that was --swi there as {option}"
        )
    # the brain is segmented again: a result does not necessarily include its mask
    brain = brain_mask_on(volume, predict_regions(volume))
    if not brain.any():
        raise UserError(f"{image}: no brain was found in it; give a scan of the head")
    facts = facts_beside(image, f"{name} image's JSON file")
    return TimePoint(
        name=name,
        image=volume,
        brain=brain,
        echo_time_ms=facts.echo_time_ms,
        field_strength_t=facts.field_strength_t,
        subject=result.subject,
        rows=result.rows,
        record=record,
        facts=facts,
    )


def protocol_warnings(first: TimePoint, second: TimePoint) -> tuple[str, ...]:
    """Differences between two acquisitions that affect counts, and unknown parameters, one line each."""
    # each of these affects how many microbleeds are visible: a new one may have been there, invisible, before
    lines = []
    suffixes = [scan.record.subject_and_suffix[1] for scan in (first, second)]
    if None not in suffixes and suffixes[0] != suffixes[1]:
        lines.append(
            f"The sequences differ ({suffixes[0]} at baseline, {suffixes[1]} at follow-up): SWI shows two to "
            "three times as many microbleeds as T2*-weighted images, so new ones may have been there before."
        )
    fields = first.field_strength_t, second.field_strength_t
    echoes = first.echo_time_ms, second.echo_time_ms
    differing = []
    for what, unit, (a, b), tolerance in (
        ("field strength", "T", fields, _FIELD_T),
        ("echo time", "ms", echoes, _ECHO_SHARE * max(te or 0.0 for te in echoes)),
    ):
        if a is None or b is None:
            lines.append(f"The {what} is not known for both scans (no JSON file beside an image says it).")
        elif abs(a - b) > tolerance:
            differing.append(f"{what} ({a:g} and {b:g} {unit})")
    # sorted: slices may have another orientation
    sizes = np.sort(first.image.spacing_mm), np.sort(second.image.spacing_mm)
    if (np.abs(sizes[0] - sizes[1]) > _VOXEL_SHARE * np.maximum(*sizes)).any():
        texts = [" x ".join(f"{edge:.2g}" for edge in scan.image.spacing_mm) for scan in (first, second)]
        differing.append(f"voxel size ({texts[0]} and {texts[1]} mm)")
    if differing:
        lines.insert(0, f"The scans differ in {', '.join(differing)}, baseline first; {_RULE}.")
    for role in sorted(first.record.roles ^ second.record.roles):
        scan = first if role in first.record.roles else second
        lines.append(f"Only the {scan.name} was searched with a {role} image.")
    return tuple(lines)


def provenance_warnings(first: TimePoint, second: TimePoint) -> tuple[str, ...]:
    """Differences in how the two results were made, and signs of different patients or a wrong order."""
    lines = []
    for what, one, other in (
        ("versions of cmb-jax", first.record.version, second.record.version),
        ("weights", first.record.weights_sha256[:8], second.record.weights_sha256[:8]),
        ("score thresholds", first.record.threshold, second.record.threshold),
    ):
        if one != other:
            lines.append(
                f"The results were made with different {what} ({one} and {other}): a lesion may "
                "be new for that reason alone. Run predict again on one of them."
            )
    subjects = [scan.record.subject_and_suffix[0] for scan in (first, second)]
    if None not in subjects and subjects[0] != subjects[1]:
        lines.append(
            f"The images are named after different subjects (sub-{subjects[0]} and sub-{subjects[1]})."
        )
    dates = first.facts.acquired, second.facts.acquired
    if dates[0] is not None and dates[1] is not None and dates[0] > dates[1]:
        lines.append(
            "According to the JSON files, the baseline was acquired after the follow-up: are they swapped? "
            "New and resolved would be swapped too."
        )
    for scan in (first, second):
        if not scan.record.regions_trusted:
            lines.append(f"The region map of the {scan.name} is not trusted: its zones are not reported.")
    return tuple(lines)
