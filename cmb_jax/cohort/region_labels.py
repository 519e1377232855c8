"""Label volumes of a derivative data set, which take the place of the region network.

They are named as the BIDS specification names discrete segmentations (Derivatives, Imaging data types):
sub-01/ses-2/anat/sub-01_ses-2_run-1_desc-aparcaseg_dseg.nii.gz.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cmb_jax.anatomy.own_regions import LabelTable, label_table, regions_from_labels
from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.cohort.dataset import REGIONS, anat_folder
from cmb_jax.cohort.scan_images import TakenImage
from cmb_jax.datasets.bids.choice import Choice
from cmb_jax.datasets.bids.layout import BidsFile, BidsName, Scan, join_entities, parse_name
from cmb_jax.datasets.listing import check_root, is_nifti, relative, visible
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume

_SUFFIX = "dseg"
_TEMPLATES = ("MNI", "ICBM", "IXI", "NIHPD", "OASIS", "UNCInfant", "fsaverage", "fsLR")
"""How the specification's standard template identifiers begin (appendix Coordinate systems)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanLabels:
    """The label volume of one scan."""

    file: BidsFile
    table: LabelTable
    doubts: tuple[str, ...] = ()  # one line each, for the result's warnings

    @property
    def taken(self) -> TakenImage:
        """The file with its hash."""
        return TakenImage(role=REGIONS, file=self.file.relative, sha256=sha256_file(self.file.path))

    def region_map(self, swi: Volume) -> RegionMap:
        """The regions of the scan.

        Raises:
            UserError: a volume that cannot be read, or that `regions_from_labels` refuses.
        """
        found = regions_from_labels(read_volume(self.file.path), self.table, swi)
        return dataclasses.replace(found, messages=(*self.doubts, *found.messages))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionLabels:
    """A derivative data set with label volumes, and what their labels are."""

    root: Path
    table: LabelTable

    def of_scan(self, choice: Choice) -> ScanLabels:
        """The label volume of the scan's participant and session.

        Of several, those that differ from the scan's images in an entity are left out, and the one that
        shares most entities with them is taken.

        Raises:
            UserError: there is none, or several that the names do not tell apart.
        """
        named = {pair for image in choice.images for pair in image.file.name.entities}
        named |= set(choice.scan.entities)
        found = fitting = self._files(choice.scan)
        if len(found) > 1:
            agreeing = [file for file in found if not _differing(file.name, named)]
            shared = [len(named.intersection(file.name.entities)) for file in agreeing]
            fitting = [file for file, count in zip(agreeing, shared, strict=True) if count == max(shared)]
        if len(fitting) != 1:
            raise UserError(self._no_choice(choice.scan, fitting or found))
        (file,) = fitting
        differing = join_entities(_differing(file.name, named))
        doubt = f"regions: the label volume is named {differing}, the scan's images are not; check its place"
        return ScanLabels(file=file, table=self.table, doubts=(doubt,) if differing else ())

    def _files(self, scan: Scan) -> list[BidsFile]:
        """The label volumes of a participant and session, but for those in the space of a template."""
        folder = anat_folder(self.root, scan)
        try:
            paths = visible(folder) if folder.is_dir() else []
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
        found = []
        for path in paths:
            name = parse_name(path.name) if is_nifti(path) else None
            if name is None or name.suffix != _SUFFIX or (name.get("space") or "").startswith(_TEMPLATES):
                continue
            if name.get("sub") == scan.participant and name.get("ses") == scan.session:
                found.append(BidsFile(path=path, relative=relative(path, self.root), name=name))
        return found

    def _no_choice(self, scan: Scan, files: Sequence[BidsFile]) -> str:
        if not files:
            folder = relative(anat_folder(self.root, scan), self.root)
            own = join_entities(tuple(pair for pair in scan.entities if pair[0] != "run"))
            return (
                f"no label volume in --regions; add {folder}/{own}_{_SUFFIX}.nii.gz there, in the scan's "
                "space, or predict this participant without --regions into another folder"
            )
        names = ", ".join(file.relative for file in files)
        return (
            f"several label volumes in --regions, none of which the image's entities choose ({names}); "
            "keep one there, or give it the image's acq- or run-"
        )


def read_region_labels(root: Path, table: Path | None) -> RegionLabels:
    """The data set and the table of its labels; without one that of FreeSurfer and SynthSeg.

    Raises:
        UserError: the folder is missing, a file, unreadable or empty, or the table cannot be used.
    """
    return RegionLabels(root=check_root(root), table=label_table(table))


def _differing(name: BidsName, named: set[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The entities that a scan's images have too, but with other labels."""
    keys = {key for key, _ in named}
    return tuple(pair for pair in name.entities if pair[0] in keys and pair not in named)
