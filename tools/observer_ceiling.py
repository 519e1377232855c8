"""What an observer could reach who misses nothing that counts, but cannot tell what carries no cue.

    python tools/observer_ceiling.py TREE --learn OTHER-TREE

TREE is a simulated tree (`cmb-jax benchmark-data`). The observer finds every microbleed that counts and takes
none of the mimics that an image tells apart. What it cannot tell from a microbleed:

- a short piece of a vessel, at most 6 mm long, that nothing leads to or away from and that is dark enough to
  be seen (by the rule of `phantom.visibility`); with a phase, only a piece of a vein: an artery's has none;
- in scans without a phase, a calcification.

Each is a microbleed to it, except for what is said of each line:

- "looks alone": it knows how often such a spot is a microbleed, with and without a phase, on OTHER-TREE;
- "and place": it also knows those in CSF (choroid, pineal, pial calcifications), where no microbleed is;
- "and size, contrast, region": it ranks by a logistic regression on the true ones of OTHER-TREE, one for
  scans with and one for scans without a phase; it knows them exactly, as no detector does.

Noise is left out: what counts has a detectability of 7 or more, of which noise hides next to nothing. So are
all mimics that can be told, and a detector on the same scans will do worse. The last line is one model's
estimate.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import tyro
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.cli.common import run_cli
from cmb_jax.errors import UserError
from cmb_jax.evaluation.froc import FROC_RATES
from cmb_jax.evaluation.subsets import ALL_SIZES, READERS_SIZE, SMALL, of_size
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.simulate import solid_tissue
from cmb_jax.phantom.tree import check_phantom_version
from cmb_jax.phantom.types import FOCAL_MIMICS, MimicKind
from cmb_jax.phantom.visibility import Visibility, is_seen, visibility
from cmb_jax.progress import track

IN_CSF = ("calcification_choroid", "calcification_pineal", "calcification_pial")
VEINS = (MimicKind.MEDULLARY_VEIN, MimicKind.PIAL_VEIN, MimicKind.DEEP_VEIN, MimicKind.SINUS)
LONGEST_MM = 6.0
PIECE = "piece_of_vessel"
_CERTAIN = 50.0  # log odds of a spot that was never anything but a microbleed
_FULL = np.ones((3, 3, 3), bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is looked at."""

    tree: tyro.conf.Positional[Path]
    """Simulated tree."""
    learn: Path
    """Another one, for the observer that has learned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spots:
    """Microbleeds that count, and what can be mistaken for one, of S scans. N spots."""

    scan_has_phase: np.ndarray  # (S,) bool
    has_phase: np.ndarray  # (N,) bool, of its scan
    is_cmb: np.ndarray  # (N,) bool
    kind: np.ndarray  # (N,) str
    diameter_mm: np.ndarray  # (N,) as seen
    cnr: np.ndarray  # (N,)
    region: np.ndarray  # (N,) str

    def select(self, spots: np.ndarray, scans: np.ndarray) -> Spots:
        """Some spots (N,) bool of some scans (S,) bool."""
        columns = {
            field.name: getattr(self, field.name)[spots]
            for field in dataclasses.fields(self)
            if field.name != "scan_has_phase"
        }
        return Spots(scan_has_phase=self.scan_has_phase[scans], **columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of vessel that nothing leads to."""

    center: np.ndarray  # (3,) voxels
    diameter_mm: float  # of the ball of its volume
    vein: bool  # paramagnetic: most of it is a vein


def isolated_pieces(mimics: np.ndarray, lesions: np.ndarray, spacing_mm: np.ndarray) -> list[Piece]:
    """Pieces of vessel label of at most `LONGEST_MM` that nothing but tissue is around.

    Labels of vessels up to two voxels apart count as joined (a label is drawn from points along the vessel),
    and so does a piece beside a lesion or a focal mimic, whose label may cover the rest of it.

    Args:
        mimics: (X, Y, Z) MimicKind.
        lesions: (X, Y, Z), above 0 where a microbleed is.
        spacing_mm: (3,) edges of a voxel.
    """
    vessel = np.isin(mimics, [*VEINS, MimicKind.ARTERY])
    other = (lesions > 0) | np.isin(mimics, FOCAL_MIMICS)
    joined, _ = ndimage.label(ndimage.binary_dilation(vessel | other, _FULL), _FULL)
    with_other = np.unique(joined[other])
    own = np.where(vessel & ~np.isin(joined, with_other), joined, 0)
    pieces = []
    for label, box in enumerate(ndimage.find_objects(own), start=1):
        if box is None:
            continue
        between_centers = np.array([part.stop - part.start - 1 for part in box]) * spacing_mm
        if np.linalg.norm(between_centers) > LONGEST_MM:
            continue
        inside = own[box] == label
        volume = inside.sum() * np.prod(spacing_mm)
        pieces.append(
            Piece(
                center=np.argwhere(inside).mean(axis=0) + [part.start for part in box],
                diameter_mm=float((6 * volume / np.pi) ** (1 / 3)),
                vein=bool(np.isin(mimics[box][inside], VEINS).mean() > 0.5),
            )
        )
    return pieces


def look(
    pieces: list[Piece], image: np.ndarray, tissue: np.ndarray, sigma: float, spacing_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Contrast-to-noise ratio (N,) of pieces and whether a reader sees each, (N,) bool."""
    padded = -len(pieces) % 32 + len(pieces)  # few shapes, few compilations
    center, diameter = np.zeros((padded, 3)), np.ones(padded)
    for row, piece in enumerate(pieces):
        center[row], diameter[row] = piece.center * spacing_mm, piece.diameter_mm
    x, y, z = (float(edge) for edge in spacing_mm)
    seen: Visibility = visibility(
        jnp.asarray(image, jnp.float32),
        jnp.asarray(tissue),
        jnp.float32(sigma),
        jnp.asarray(center, jnp.float32),
        jnp.asarray(diameter, jnp.float32),
        grid=Grid(image.shape, (x, y, z), (0.0, 0.0, 0.0)),
    )
    typical = jnp.float32(np.median(image[tissue]))
    return np.asarray(seen.cnr)[: len(pieces)], np.asarray(is_seen(seen, typical))[: len(pieces)]


def scan_rows(root: Path, name: str, snr: float) -> tuple[bool, list[tuple[str, float, float, str]]]:
    """Whether a scan has a phase, and (kind, diameter, contrast, region) of its spots."""
    images, truth = root / name / "anat", root / "derivatives" / "truth" / name / "anat"
    has_phase = any(images.glob("*_part-phase_*.nii.gz"))
    with (truth / f"{name}_desc-lesions.tsv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    rows = [
        (row["kind"], float(row["apparent_diameter_mm"]), float(row["cnr"]), row["region"])
        for row in table
        if row["kind"] == "cmb" or (row["kind"].startswith("calcification") and not has_phase)
    ]
    read = functools.partial(_read, truth)
    mimics, lesions, code = (read(f"{name}_desc-{what}_dseg.nii.gz") for what in ("mimics", "cmb", "regions"))
    swi = images / f"{name}_swi.nii.gz"
    file = nib.load(swi if swi.exists() else images / f"{name}_T2starw.nii.gz")
    spacing = np.array(file.header.get_zooms()[:3], float)
    pieces = [each for each in isolated_pieces(mimics, lesions, spacing) if each.vein or not has_phase]
    if pieces:
        image = np.asarray(file.get_fdata(dtype=np.float32))
        tissue = np.asarray(solid_tissue(jnp.asarray(code))) & (lesions == 0)
        contrast, seen = look(pieces, image, tissue, float(image[tissue].mean()) / snr, spacing)
        for row in np.flatnonzero(seen):
            at = tuple(np.rint(pieces[row].center).astype(int))
            region = Region(int(region_of(code[at]))).name.lower()
            rows.append((PIECE, pieces[row].diameter_mm, float(contrast[row]), region))
    return has_phase, rows


def _read(folder: Path, name: str) -> np.ndarray:
    return np.asarray(nib.load(folder / name).dataobj)


def spots_of(root: Path) -> Spots:
    """Microbleeds and what can be mistaken for one in all scans of a tree.

    Raises:
        UserError: no scan there, or a tree of another version.
    """
    participants = root / "participants.tsv"
    if not participants.is_file():
        raise UserError(f"{root}: holds no participants.tsv; give a tree of the benchmark")
    check_phantom_version(root)
    with participants.open(encoding="utf-8") as file:
        people = list(csv.DictReader(file, delimiter="\t"))
    scans = [scan_rows(root, row["participant_id"], float(row["snr"])) for row in track(people, root.name)]
    rows = [(phase, *row) for phase, found in scans for row in found]
    if not rows:
        raise UserError(f"{root}: no microbleed in any scan; give a tree of the benchmark")
    phase, kind, diameter, cnr, region = (np.array(column) for column in zip(*rows, strict=True))
    return Spots(
        scan_has_phase=np.array([has for has, _ in scans]),
        has_phase=phase,
        is_cmb=kind == "cmb",
        kind=kind,
        diameter_mm=diameter,
        cnr=cnr,
        region=region,
    )


def looks(spots: Spots, regions: list[str]) -> np.ndarray:
    """(N, F) log diameter, log contrast, their product, region one-hot."""
    size, contrast = np.log(spots.diameter_mm), np.log(np.maximum(spots.cnr, 0.1))
    region = (spots.region[:, None] == np.array(regions)[None]).astype(float)
    return np.column_stack([size, contrast, size * contrast, region])


def log_odds(spots: Spots, others: Spots, features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) how likely each spot is a microbleed, by others with the same phase.

    Args:
        spots: N that are judged.
        others: M that were learned from.
        features: (N, F), constant columns alone for how often one is a microbleed.
        known: (M, F).
    """
    score = np.zeros(len(spots.is_cmb))
    for phase in (False, True):
        here, there = spots.has_phase == phase, others.has_phase == phase
        true = others.is_cmb[there]
        if true.all() or not true.any():
            score[here] = _CERTAIN if true.all() else -_CERTAIN
        elif here.any():
            model = LogisticRegression(max_iter=5000).fit(known[there], true)
            score[here] = model.decision_function(features[here])
    return score


def sensitivities(spots: Spots, score: np.ndarray) -> list[float]:
    """At `FROC_RATES`, of spots ranked by score (N,); ties share alike."""
    values, step = np.unique(-score, return_inverse=True)
    true = np.bincount(step, weights=spots.is_cmb, minlength=len(values))
    false = np.bincount(step, weights=~spots.is_cmb, minlength=len(values))
    found = np.concatenate([[0.0], np.cumsum(true)])
    rate = np.concatenate([[0.0], np.cumsum(false)]) / len(spots.scan_has_phase)
    # Straight lines between steps: a random order within each. Of equal rates the last holds.
    lesions = max(int(spots.is_cmb.sum()), 1)
    return [float(np.interp(wanted, rate, found)) / lesions for wanted in FROC_RATES]


def observers(spots: Spots, others: Spots) -> dict[str, np.ndarray]:
    """Scores (N,) of each observer by name, see the head of this file."""
    regions = sorted({*spots.region.tolist(), *others.region.tolist()})
    alone = [np.ones((len(each.is_cmb), 1)) for each in (spots, others)]
    place = [np.isin(each.kind, IN_CSF) for each in (spots, others)]
    there = others.select(~place[1], np.ones(len(others.scan_has_phase), bool))
    by_place = log_odds(spots, there, alone[0], alone[1][~place[1]])
    return {
        "looks alone": log_odds(spots, others, *alone),
        "and place": np.where(place[0], -_CERTAIN, by_place),
        "and size, contrast, region": log_odds(spots, others, looks(spots, regions), looks(others, regions)),
    }


def main(arguments: Arguments) -> None:
    """Print sensitivities by part of the tree and by rate."""
    spots, others = spots_of(arguments.tree), spots_of(arguments.learn)
    scores = observers(spots, others)
    pieces = spots.kind == PIECE
    lime = ~spots.is_cmb & ~pieces
    parts = {
        "all scans": (np.ones(len(pieces), bool), np.ones(len(spots.scan_has_phase), bool)),
        "with phase": (spots.has_phase, spots.scan_has_phase),
        "magnitude alone": (~spots.has_phase, ~spots.scan_has_phase),
        "magnitude alone, calcifications left out": (~spots.has_phase & ~lime, ~spots.scan_has_phase),
    }
    for title, (inside, scans) in parts.items():
        if not scans.any():
            continue
        print(
            f"\n{title}: {int(scans.sum())} scans, {int(spots.is_cmb[inside].sum())} microbleeds beside "
            f"{int(lime[inside].sum())} calcifications and {int(pieces[inside].sum())} pieces of vessels"
        )
        print(f"{'sensitivity at FP per scan':42s}" + "".join(f"{rate:>8g}" for rate in FROC_RATES))
        for size in (ALL_SIZES, SMALL, READERS_SIZE):
            keep = inside & (~spots.is_cmb | of_size(spots.diameter_mm, size))
            part = spots.select(keep, scans)
            if not part.is_cmb.any():
                continue
            for name, score in scores.items():
                values = sensitivities(part, score[keep])
                print(f"{size + ', ' + name:42s}" + "".join(f"{value:8.3f}" for value in values))


if __name__ == "__main__":
    run_cli(lambda: main(tyro.cli(Arguments, description=__doc__)))
