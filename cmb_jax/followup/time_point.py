"""One time point: what `cmb-jax predict` left in a folder, the image that it searched, and its brain."""

from __future__ import annotations

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
from cmb_jax.io.volume import Volume
from cmb_jax.regions.predict import brain_mask_on, predict_regions
from cmb_jax.report.comparison_content import ScanContent
from cmb_jax.review.files import ResultPaths
from cmb_jax.review.files import read_record as read_any_record
from cmb_jax.review.result import load_result

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What detections.json says of a prediction besides its rows."""

    version: str
    weights_name: str
    weights_sha256: str
    threshold: str
    inputs: tuple[tuple[str, str, str], ...]  # (role, file name as shown, sha256)
    regions_trusted: bool
    phase: bool = True  # whether one was used; results of earlier versions do not say it

    @property
    def roles(self) -> frozenset[str]:
        """What kinds of images the detector saw."""
        return frozenset(role for role, _, _ in self.inputs)

    @property
    def searched(self) -> tuple[str, str]:
        """Name and sha256 of the image that was searched."""
        return next((name, digest) for role, name, digest in self.inputs if role == "swi")

    def entity(self, key: str) -> str | None:
        """A BIDS entity of the searched image's name, such as its sub; None where it is not named so."""
        name = stem(self.searched[0])
        entities = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
        return entities.get(key) if is_bids_name(name) else None

    @property
    def suffix(self) -> str | None:
        """The BIDS suffix of the searched image, such as swi or T2starw; None where it is not named so."""
        name = stem(self.searched[0])
        last = name.rsplit("_", 1)[-1]
        return last if is_bids_name(name) and "-" not in last else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimePoint:
    """A result with its image."""

    name: str  # "baseline" or "follow-up"
    subject: str
    rows: tuple[DetectionRow, ...]
    record: Record
    image: Volume
    brain: np.ndarray  # (X, Y, Z) bool on the image's grid
    facts: ImageFacts

    @property
    def kept(self) -> tuple[DetectionRow, ...]:
        """What was reported."""
        return tuple(row for row in self.rows if row.status == "kept")

    @property
    def surveyed(self) -> Surveyed:
        """For `detectability`."""
        return Surveyed(
            name=self.name,
            image=self.image,
            brain=self.brain,
            echo_time_ms=self.facts.echo_time_ms,
            field_strength_t=self.facts.field_strength_t,
        )

    @property
    def content(self) -> ScanContent:
        """For the report."""
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
    """What stands beside the table of a result.

    Raises:
        UserError: it cannot be read, or is of no result.
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
        option: how the command line calls the image.
        folder: that `cmb-jax predict` wrote, or a file of a result of `cmb-jax bids`.
        image: the file that was given to it as --swi; recognized by its content.

    Raises:
        UserError: no result, a file that cannot be read, another image, or no brain in it.
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
    brain = brain_mask_on(volume, predict_regions(volume))
    if not brain.any():
        raise UserError(f"{image}: no brain was found in it; give a scan of the head")
    return TimePoint(
        name=name,
        subject=result.subject,
        rows=result.rows,
        record=record,
        image=volume,
        brain=brain,
        facts=facts_beside(image, f"{name} image's JSON file"),
    )
