"""Reads the chosen images of a scan, and the label volume of its regions if there is one.

Label volumes can take the place of the region network. They are named as the BIDS specification names
discrete segmentations (Derivatives, Imaging data types):
sub-01/ses-2/anat/sub-01_ses-2_run-1_desc-aparcaseg_dseg.nii.gz.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cmb_jax.anatomy.own_regions import LabelTable, label_table, regions_from_labels
from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.cohort.dataset import RAW, REGIONS, anat_folder, source_uri
from cmb_jax.datasets.bids.choice import Candidate, Choice, ChoiceKind
from cmb_jax.datasets.bids.layout import BidsFile, BidsName, Scan, join_entities, parse_name
from cmb_jax.datasets.cases import check_root, is_nifti, relative, visible
from cmb_jax.errors import UserError
from cmb_jax.inference.options import ScanOptions
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.header import check_fits
from cmb_jax.io.nifti import Reduction, read_echoes, read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.make_swi import OpenSignError, make_swi
from cmb_jax.scan.phase_range import PhaseRange, fills

_SUFFIX = "dseg"
_TEMPLATES = ("MNI", "ICBM", "IXI", "NIHPD", "OASIS", "UNCInfant", "fsaverage", "fsLR")
"""How the specification's standard template identifiers begin (appendix Coordinate systems)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakenImage:
    """A file that a result is made from."""

    role: str  # swi, magnitude, phase or regions
    file: str  # relative to the data set, that of the label volumes for regions
    sha256: str

    @property
    def uri(self) -> str:
        """BIDS URI."""
        return source_uri(self.file, REGIONS if self.role == REGIONS else RAW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanImages:
    """The input of the detector for one scan."""

    swi: Volume
    phase: Volume | None
    magnitude: Volume | None  # for the brain regions
    phase_sign: PhaseSign
    phase_range: PhaseRange | None
    made: bool  # SWI was made here, and is in no file
    region_map: RegionMap | None = None  # in place of the region network's
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def taken_images(choice: Choice) -> tuple[TakenImage, ...]:
    """The files of a choice with their hashes."""
    roles = (
        ("swi", () if choice.swi is None else (choice.swi,)),
        ("magnitude", choice.magnitudes),
        ("phase", choice.phases),
    )
    return tuple(
        TakenImage(role=role, file=image.file.relative, sha256=sha256_file(image.file.path))
        for role, images in roles
        for image in images
    )


def read_scan_images(choice: Choice, options: ScanOptions) -> ScanImages:
    """Read the chosen images; SWI is made where there is only magnitude and phase.

    The sign of the phase is the one that the user gives, else ParamagneticPhaseSign of the sidecar, else
    determined from the images. Its range is the one that the user gives, else determined from the images,
    else radians if the sidecar says so.

    Raises:
        UserError: an image cannot be read, or the images do not fit together.
    """
    sign, steps = _sign(choice, options)
    if choice.kind is ChoiceKind.MAGNITUDE_AND_PHASE:
        return _made(choice, sign, options, steps)
    check_fits(choice.reference.file.path, choice.phases[0].file.path if choice.phases else None)
    swi = read_volume(choice.reference.file.path, reduced="mean")
    phase = _volume(choice.phases, "first")
    stored, more = _range(choice, options, () if phase is None else (phase,))
    alone = choice.kind is ChoiceKind.MAGNITUDE_ALONE
    return ScanImages(
        swi=swi,
        phase=phase,
        magnitude=None if alone else _volume(choice.magnitudes, "mean"),
        phase_sign=sign,
        phase_range=stored,
        made=False,
        steps=(*steps, *more),
        warnings=("a T2*-weighted magnitude stands for SWI",) if alone else (),
    )


def _volume(images: tuple[Candidate, ...], reduced: Reduction) -> Volume | None:
    return read_volume(images[0].file.path, reduced=reduced) if images else None


def _made(
    choice: Choice,
    sign: PhaseSign,
    options: ScanOptions,
    steps: tuple[str, ...],
) -> ScanImages:
    magnitudes, phases = (
        read_echoes([image.file.path for image in images]) for images in (choice.magnitudes, choice.phases)
    )
    stored, more = _range(choice, options, phases)
    steps = (*steps, *more)
    try:
        made = make_swi(
            magnitudes,
            phases,
            te_ms=choice.te_ms,
            phase_sign=sign,
            phase_range=stored,
        )
    except OpenSignError as error:
        return _magnitude_alone(magnitudes[-1], str(error), options, steps)
    like = magnitudes[0]
    count = len(magnitudes)
    echoes = f"{count} echoes" if count > 1 else "one echo"
    step = (
        f"SWI made from magnitude and phase of {echoes}; phase read as {made.phase_range.name}, "
        f"sign {made.sign.sign:+d} ({made.sign.reason})"
    )
    return ScanImages(
        swi=dataclasses.replace(like, data=made.swi),
        phase=dataclasses.replace(like, data=made.phase, warnings=phases[0].warnings),
        magnitude=dataclasses.replace(like, data=made.magnitude),
        phase_sign="+1",  # it is paramagnetic positive by now
        phase_range=PhaseRange.RADIANS,
        made=True,
        steps=(*steps, step),
    )


def _magnitude_alone(magnitude: Volume, why: str, options: ScanOptions, steps: tuple[str, ...]) -> ScanImages:
    """The last echo as it is, where the phase cannot be used."""
    return ScanImages(
        swi=magnitude,
        phase=None,
        magnitude=None,
        phase_sign=options.phase_sign,
        phase_range=None,
        made=False,
        steps=steps,
        warnings=(why, "a T2*-weighted magnitude stands for SWI, without phase"),
    )


def _sign(choice: Choice, options: ScanOptions) -> tuple[PhaseSign, tuple[str, ...]]:
    """The sign to use, and steps to report about it."""
    if options.phase_sign != "auto" or not choice.phases:
        return options.phase_sign, ()
    stated = choice.phases[-1].facts.paramagnetic_sign
    if stated is None:
        return "auto", ()
    asked: PhaseSign = "+1" if stated > 0 else "-1"
    return asked, (f"the sidecar says that paramagnetic phase is stored with sign {asked}",)


def _range(
    choice: Choice, options: ScanOptions, phases: Sequence[Volume]
) -> tuple[PhaseRange | None, tuple[str, ...]]:
    """The range to use, and steps to report about it.

    Values that fill their range are more reliable than a sidecar; a masked high-passed phase fills no range.
    """
    asked = options.stated_range()
    stated = bool(phases) and all(phase.facts.in_radians for phase in choice.phases)
    if asked is not None or not stated or any(fills(phase.data) for phase in phases):
        return asked, ()
    return PhaseRange.RADIANS, ("the sidecar says that phase is stored in radians",)


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
    """A derivative data set with label volumes, and what their labels mean."""

    root: Path
    table: LabelTable

    def of_scan(self, choice: Choice) -> ScanLabels:
        """The label volume of the scan's participant and session.

        Among several, those with an entity that contradicts the scan's images are left out, and the one that
        shares the most entities with them is taken.

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
    """The entities for which the scan's images have other labels."""
    keys = {key for key, _ in named}
    return tuple(pair for pair in name.entities if pair[0] in keys and pair not in named)
