"""The chosen images of a scan as volumes, with what their sidecars say about the phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.cohort.dataset import RAW, REGIONS, source_uri
from cmb_jax.datasets.bids.choice import Candidate, Choice, ChoiceKind
from cmb_jax.inference.options import ScanOptions
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.header import check_fits
from cmb_jax.io.nifti import Reduction, read_echoes, read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.make_swi import OpenSignError, make_swi
from cmb_jax.scan.phase_range import PhaseRange, fills


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
    """What the detector is given of one scan."""

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
    """Read what was chosen; SWI is made where there is only magnitude and phase.

    The sign of the phase is the one asked for, else ParamagneticPhaseSign of the sidecar, else told from the
    images; its range the one asked for, else told from the images, else radians if the sidecar says so.

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
    magnitudes, phases = (read_echoes(_paths(images)) for images in (choice.magnitudes, choice.phases))
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


def _paths(images: tuple[Candidate, ...]) -> list[Path]:
    return [image.file.path for image in images]


def _sign(choice: Choice, options: ScanOptions) -> tuple[PhaseSign, tuple[str, ...]]:
    """The sign to ask for, and what is to be said about it."""
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
    """The range to ask for, and what is to be said about it.

    Values that fill their range say more than a sidecar; a masked high-passed phase fills none.
    """
    asked = options.stated_range()
    stated = bool(phases) and all(phase.facts.in_radians for phase in choice.phases)
    if asked is not None or not stated or any(fills(phase.data) for phase in phases):
        return asked, ()
    return PhaseRange.RADIANS, ("the sidecar says that phase is stored in radians",)
