"""What an image is by its values and its header, and whether a count may be given on it.

Every way into the detector asks here (`inference.scan.prepare_scan`), and so do `swi`, `implant` and `data
check`. Nothing here depends on the scale of the values, on zeros around the head or on the type in the file.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from cmb_jax.errors import NotAnalysableError
from cmb_jax.io.volume import Volume, content_bounds
from cmb_jax.scan.phase_range import fills
from cmb_jax.scan.slices import BLOCK, ENOUGH_VOXELS, block_sums, doubts_of_slices, starts_again

WIDEST_MM = 400.0
"""Largest extent of a head's image along any axis."""
NARROWEST_MM = (100.0, 100.0, 40.0)
"""Least extents of a head, the longest first: slabs of few slices are common."""
SPACING_MM = (0.1, 6.0)
"""Voxel edges that are believed: scanners interpolate to below 0.2 mm."""
WIDEST_TISSUE_MM = (260.0, 300.0)
"""Largest extent of bright tissue from left to right and from back to front; one head has 140 to 230."""
TALLEST_TISSUE_MM = 300.0
"""Largest extent of bright tissue from foot to head; a head with its neck has up to 260."""
_STACKED_MM = 200.0  # taller than most scans: from here on two heads may be stacked
COARSEST_MM = 3.0
"""Second longest voxel edge up to which microbleeds are counted; longest, up to which without a warning."""
_MOST_SHEAR_DEG = 2.0
# Of voxels; of the 99th percentile. Interpolation rings less, and so does noise about zero in the air.
_NEGATIVE_SHARE, _NEGATIVE_DEPTH = 0.05, 0.1
_FLAT = 0.7  # share of neighbors that are equal: labels, masks
_FLAT_ALONG_ONE = 0.25  # more equal neighbors along one axis than along others: projections
_PLATEAU = 0.25  # share of voxels at the top of the scale: probability maps, masks
# Beside the top tenth of the range, values of its lowest tenth to those of a tenth in its middle: the ends of
# a phase meet (1 in its noise, more at wraps), those of an intensity lie farthest apart (below 0.2).
_ENDS_MEET = 0.5
# Least share of the top tenth's neighbors; at the sharp rim of a small bright ball in the dark: 0.04.
_MEETINGS = 0.06
_ENDS_ALIKE = 0.2  # the emptier of the two ends over the fuller
_CENTERED = 0.1  # of the range, the median from its middle: high-passed phase
# A masked image goes down to nothing in vessels and at its rim; a high-passed phase that was stored above 0
# keeps close to the middle of its range. In the middle of simulated brains intensities gave 0.05 to 0.56 and
# 0.14 to 0.23, phases 0.63 to 0.89 and 0.04 to 0.08.
_DARKEST = 0.62  # 1st percentile, of the 75th
_NARROW = 0.1  # 25th to 75th percentile, of the 75th
_MASKED, _EVEN = 0.1, 0.25  # share of zeros; of neighbors that are equal
_LEAST_CORRELATION = 0.1  # of neighbors: less is noise; a brain alone at a signal to noise of 5 has 0.3
_LEAST_COHERENCE = 0.4  # of neighboring phases in tissue
# Correlation of the steps in two images of one scan: 0.4 and more however smoothed; mirrored or of another
# head at most 0.08, other contrasts less than 0.
_LEAST_IN_COMMON = 0.15
# Words of file names, BIDS suffixes above all. Beside a word of the second kind, one of the first means
# something else.
_OTHER_KINDS = re.compile(
    r"(?<![a-z0-9])(t1w|mprage|t2w|pdw|flair|dwi|adc|bold|sbref|fieldmap|phasediff|ct|pet|asl|angio|qsm|chimap"
    r"|r[12](?:star)?(?:map)?|t[12]s?(?:star)?map)(?![a-z0-9])"
)
_WEIGHTED = re.compile(r"swi|swan|ven|t2star|t2s|gre|medic|mag")
_SAME = 0.98  # correlation from which two images are one and the same
# Ventricles over deep white matter: 0.5 to 2 on simulated scans, 0.45 and more by the signal equation of
# gradient echoes up to 25 degrees; T1-weighted 0.2 to 0.35, FLAIR and R2* about 0.1, and the map errs.
_DARK_FLUID = (0.25, 0.4)
_FEWEST_VOXELS = 200
_RIM_MM = 2.0  # of the ventricles, where the region map may err
# Bone has no signal in any MR image: the darkest quarter of what surrounds the brain has 0.05 to 0.25 of its
# signal; 0.7 to 1.9 in images with the contrast of CT and in inverted ones. A mask that is 10 mm too small is
# surrounded by brain, 0.2 to 0.8, but by nothing that is brighter than brain (95th percentiles).
_AROUND_MM, _BRIGHT_BONE, _BRIGHTER_THAN_BRAIN = (2.0, 12.0), 0.6, 1.2
_LEAST_BRAIN_CM3 = 700.0  # own labels may hold a part of the brain, which brain surrounds
_THINNED_MM = 1.5  # fine enough for bone
# Skewness of what a filter of this width takes away, in the brain. Veins are dark, so that simulated scans
# give -0.2 to -1.8, magnitudes of 7 T at short echo times up to 0.4; inverted scans give 0.3 and more, and
# their bright tail is long, bright vessels 0.8.
_FINE_MM, _BRIGHT_DETAIL, _BRIGHT_VESSELS = 1.5, 0.2, 0.5
_BRIGHT_TAIL = 2.0  # 95th percentile of the brain, of its median


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """Why an image cannot be analyzed, or what to know about it if it can."""

    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def enforce(self, role: str) -> tuple[str, ...]:
        """The warnings.

        Raises:
            NotAnalysableError: there are reasons.
        """
        if self.reasons:
            raise NotAnalysableError(f"the {role} is not analysable: {'; '.join(self.reasons)}")
        return self.warnings


def judge_grid(volume: Volume, *, head: bool = True) -> Judgement:
    """Whether size, voxels and transform can be those of one head.

    Args:
        volume: RAS.
        head: the image must show a head (or a slab of one); otherwise a cut-out will do.
    """
    spacing = np.array(volume.spacing_mm)
    extent = np.array([high - low for low, high in content_bounds(volume.data)]) * spacing
    edges, size = _by_x(spacing, "{:.3g}"), _by_x(extent / 10, "{:.3g}")
    ordered, reasons, warnings = np.sort(spacing), [], []
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        reasons.append(
            f"its header says voxels of {edges} mm; {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm are believed"
        )
    elif ordered[1] > COARSEST_MM:
        reasons.append(f"voxels of {edges} mm are too coarse for microbleeds (more than {COARSEST_MM:g} mm)")
    elif ordered[2] > COARSEST_MM:
        warnings.append(
            f"voxels of {edges} mm are coarse: small microbleeds are averaged away and counts too low"
        )
    smallest = NARROWEST_MM if head else (0.0, 0.0, 0.0)
    if extent.max() > WIDEST_MM or np.any(np.sort(extent)[::-1] < smallest):
        reasons.append(
            f"by its header it is {size} cm large, which no image of a head is; repair the header "
            "(a placeholder, another unit of length?)"
        )
    tissue = _tissue_extent(volume.data) * spacing
    if head and np.any(tissue[:2] > WIDEST_TISSUE_MM):
        wide = _by_x(tissue[:2] / 10, "{:.0f}")
        reasons.append(f"its tissue is {wide} cm wide, which no head is: are several heads in one image?")
    elif head and tissue[2] > TALLEST_TISSUE_MM:
        reasons.append(
            f"its tissue is {tissue[2] / 10:.0f} cm tall, which no head is: are its slices too thick by the "
            "header, or several heads in one image?"
        )
    elif head and tissue[2] > _STACKED_MM and starts_again(volume.data):
        reasons.append("a head ends in it and another one begins; give one image for each")
    shear = _shear_deg(volume.affine)
    if shear > _MOST_SHEAR_DEG:
        reasons.append(f"its axes are sheared by {shear:.0f} degrees; resample it to a right-angled grid")
    return Judgement(reasons=tuple(reasons), warnings=tuple(warnings))


def judge_name(path: Path | None) -> Judgement:
    """Whether a file's name says that it is an image of another kind: most contrasts look alike by value."""
    name = path.name.lower() if path else ""
    other = _OTHER_KINDS.search(name)
    if other is None or _WEIGHTED.search(_OTHER_KINDS.sub("", name)):
        return Judgement()
    return Judgement(reasons=(f"its name says {other[1]}; rename it if it is susceptibility-weighted",))


def judge_intensity(data: np.ndarray) -> Judgement:
    """Whether values (X, Y, Z) can be those of a susceptibility-weighted or magnitude image."""
    middle = data[_middle(data)]
    reason = _other_than_intensity(middle)
    if reason is not None:
        return Judgement(reasons=(reason,))
    reasons, warnings = doubts_of_slices(data, middle)
    return Judgement(reasons=tuple(reasons), warnings=tuple(warnings))


def judge_phase(data: np.ndarray, radians: np.ndarray, intensity: np.ndarray) -> Judgement:
    """Whether values can be a phase that belongs to an intensity image; all (X, Y, Z).

    Args:
        data: as stored.
        radians: the same in radians.
        intensity: on the same grid.

    Returns:
        Reasons for what is another kind of image; a warning where it is a phase but only noise, which must
        be left out.
    """
    middle = _middle(intensity)
    data, radians, intensity = data[middle], radians[middle], intensity[middle]
    # in the air every phase is noise, so that only tissue can tell
    tissue = intensity > 0.5 * np.percentile(intensity[intensity > 0], 75)
    if _flatness(data, tissue).min() > _FLAT:
        return Judgement(reasons=("it holds labels or a mask, no phase",))
    if tissue.any() and abs(_correlation(data[tissue], intensity[tissue])) > _SAME:
        return Judgement(reasons=("it holds the values of the SWI, no phase",))
    if fills(data) and not _wraps(data):
        return Judgement(reasons=("its values never go from one end of their range to the other: no phase",))
    if coherence(radians, tissue) < _LEAST_COHERENCE:
        return Judgement(warnings=("it is noise: neighboring voxels of the tissue have no common phase",))
    return Judgement()


def judge_magnitude(data: np.ndarray, intensity: np.ndarray) -> Judgement:
    """Whether a magnitude shows what an intensity image on the same grid shows; both (X, Y, Z).

    Only steps between neighbors are compared: they survive bias fields, masks and smoothing.
    """
    middle = _middle(intensity)
    data, intensity = data[middle], intensity[middle]
    tissue = intensity > 0.5 * np.percentile(intensity[intensity > 0], 75)
    both = tissue[2:] & tissue[:-2]
    steps = [(image[2:] - image[:-2])[both] for image in (data, intensity)]
    if both.any() and _correlation(*steps) < _LEAST_IN_COMMON:
        return Judgement(reasons=("it does not show what the SWI shows: another scan, moved or turned",))
    return Judgement()


def judge_fluid(volume: Volume, fluid: np.ndarray, tissue: np.ndarray) -> Judgement:
    """Whether the contrast of fluid can be that of a T2*-weighted image.

    Args:
        volume: intensities (X, Y, Z).
        fluid: bool, the ventricles; their rim is left out.
        tissue: bool, white matter near them.
    """
    box = tuple(slice(low, high) for low, high in content_bounds(fluid))
    # the fluid touches its box on all sides: without a margin of background the faces would not be its rim
    core = ndimage.distance_transform_edt(np.pad(fluid[box], 1), sampling=volume.spacing_mm) > _RIM_MM
    inside = volume.data[box][core[1:-1, 1:-1, 1:-1]]
    if min(inside.size, np.count_nonzero(tissue)) < _FEWEST_VOXELS:
        return Judgement()
    ratio = float(np.median(inside)) / max(float(np.median(volume.data[tissue])), 1e-30)
    contrast = "as on T1-weighted and FLAIR images and R2 maps"
    text = f"ventricles have {ratio:.0%} of white matter's signal, {contrast}"
    if ratio < _DARK_FLUID[0]:
        return Judgement(reasons=(text,))
    return Judgement(warnings=(text,) if ratio < _DARK_FLUID[1] else ())


def judge_brain(volume: Volume, brain: np.ndarray) -> Judgement:
    """Whether the brain and what surrounds it look as on a T2*-weighted image; `brain` is bool (X, Y, Z)."""
    spacing = np.array(volume.spacing_mm)
    # every n-th voxel is fine enough for bone, and keeps the distance transform of a whole head quick
    steps = np.maximum((_THINNED_MM / spacing).astype(int), 1)
    thin = tuple(slice(None, None, step) for step in steps)
    data, inside = volume.data[thin], brain[thin]
    away = ndimage.distance_transform_edt(~inside, sampling=spacing * steps)
    around = data[(away > _AROUND_MM[0]) & (away < _AROUND_MM[1])]
    brain_cm3 = np.count_nonzero(inside) * float(np.prod(spacing * steps)) / 1000
    if around.size < _FEWEST_VOXELS or brain_cm3 < _LEAST_BRAIN_CM3:
        return Judgement()
    typical, bright = np.percentile(data[inside], [50, 95])
    dark_quarter, brightest = np.percentile(around, [25, 95])
    bright_bone = dark_quarter > _BRIGHT_BONE * typical and brightest > _BRIGHTER_THAN_BRAIN * bright
    if bright_bone or dark_quarter > typical:
        return Judgement(reasons=("the bone around the brain is bright: it is CT or an inverted image",))
    # Detail is what a Gaussian takes away, where the mask, smoothed by a Gaussian twice as wide, says that
    # all around lies brain: at its rim the filter mixes in skull, which is dark and would pass for veins.
    middle = _middle(volume.data)
    data, inside = volume.data[middle], brain[middle].astype(np.float32)
    detail = data - ndimage.gaussian_filter(data, _FINE_MM / spacing)
    detail = detail[ndimage.gaussian_filter(inside, 2 * _FINE_MM / spacing) > 0.99]
    spread = float(detail.std()) if detail.size else 0.0
    detail = np.clip((detail - detail.mean()) / max(spread, 1e-30), -9, 9)  # outliers
    skewness = float(np.mean(detail**3)) if spread else 0.0
    text = "small structures are brighter than the tissue around them, where veins should be dark"
    if skewness > _BRIGHT_DETAIL and bright > _BRIGHT_TAIL * typical:
        return Judgement(reasons=(f"{text}: an inverted image or a map",))
    if skewness > _BRIGHT_VESSELS:
        return Judgement(warnings=(f"{text}: too short an echo time, or an inverted image",))
    return Judgement()


def coherence(radians: np.ndarray, tissue: np.ndarray) -> float:
    """How alike the steps from voxel to voxel are in tissue (X, Y, Z): 1 if smooth, near 0 in noise."""
    # steps as unit vectors, which wraps do not disturb: in a block of smooth phase they add up, noise cancels
    step = np.exp(1j * np.diff(radians, axis=0))
    both = tissue[1:] & tissue[:-1]
    step = np.where(both, step, 0)
    counts, sums = block_sums(both.astype(np.float32)), block_sums(step)
    full = counts > 0.5 * counts.max() if counts.size and counts.max() else counts > 0
    return float(np.median(np.abs(sums[full]) / counts[full])) if full.any() else 1.0


def _other_than_intensity(data: np.ndarray) -> str | None:
    # masks leave zeros, which say nothing about the kind of image
    values = data[data != 0]
    if not values.size:
        return "the slices in its middle are empty"
    top = float(np.percentile(np.abs(values), 99))
    deep = values < -_NEGATIVE_DEPTH * top
    if deep.mean() > _NEGATIVE_SHARE:
        return (
            f"{deep.mean():.0%} of its values are negative: it is a phase, a map or a normalized image; give "
            "the image as the scanner made it"
        )
    flat = _flatness(data)
    if flat.min() > _FLAT:
        return "neighboring voxels are equal: it holds labels or a mask; give the image itself"
    along = int(np.argmax(flat))
    if flat[along] - np.delete(flat, along).max() > _FLAT_ALONG_ONE:
        return "neighboring slices hold the same values: it is a projection or has repeated slices"
    if (values >= 0.99 * np.percentile(values, 99.9)).mean() > _PLATEAU:
        return "most values lie at the top of its scale: it is a mask, a probability map or clipped"
    if _wraps(data):
        text = "its values wrap round from one end of their range to the other"
        return f"{text}: it is a phase, or they overflowed"
    masked = values.size < (1 - _MASKED) * data.size or flat.min() > _EVEN
    darkest, lower, upper = np.percentile(values, [1, 25, 75])
    if masked and darkest > _DARKEST * upper and upper - lower < _NARROW * upper:
        return "all of its values are about the same: it is a phase or a map about some value"
    if _neighbor_correlation(data) < _LEAST_CORRELATION:
        return "neighboring voxels have nothing in common: it is noise"
    return None


def _tissue_extent(data: np.ndarray) -> np.ndarray:
    """(3,) voxels from the first to the last block (one slice thick) as bright as half of the tissue."""
    x, y, z = (slice(*pair) for pair in content_bounds(data))
    edge = min(BLOCK, x.stop - x.start, y.stop - y.start)
    smooth = block_sums(np.maximum(data[x, y, z], 0), edge)
    if not smooth.max() > 0:
        return np.zeros(3)
    bright = smooth > 0.5 * np.median(smooth[smooth > 0.5 * smooth.max()])
    ends = [np.flatnonzero(bright.any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
    return np.array([last - first + 1 for first, last in ends]) * (edge, edge, 1)


def _middle(data: np.ndarray) -> tuple[slice, ...]:
    """Slices in the middle of an image's content (X, Y, Z), as many as are enough."""
    (x0, x1), (y0, y1), (z0, z1) = content_bounds(data)
    count = max(2, ENOUGH_VOXELS // ((x1 - x0) * (y1 - y0)))
    first = max(z0, (z0 + z1 - count) // 2)
    return slice(x0, x1), slice(y0, y1), slice(first, min(first + count, z1))


def _pairs(data: np.ndarray, axis: int, where: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values of neighbors along an axis, both of them in a mask (X, Y, Z), or other than 0."""
    moved = np.moveaxis(data, axis, 0)
    inside = moved != 0 if where is None else np.moveaxis(where, axis, 0)
    both = inside[:-1] & inside[1:]
    return moved[:-1][both], moved[1:][both]


def _flatness(data: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """(3,) share of equal neighbors along each axis, in a mask (X, Y, Z) or without zeros."""
    shares = []
    for axis in range(3):
        first, second = _pairs(data, axis, where)
        shares.append(float(np.mean(first == second)) if first.size else 0.0)
    return np.array(shares)


def _wraps(data: np.ndarray) -> bool:
    """Whether the ends of the range meet: its lowest tenth lies beside its top tenth more than others do."""
    # A phase is an angle: one step past the top of its range is the bottom, so that at every wrap, and all
    # over in noise, the lowest values lie beside the highest. In an intensity those are the two values that
    # lie farthest apart. That the range is full at both ends, or its median in the middle, is asked first:
    # a rare dark vessel in bright tissue must not decide.
    values = data[data != 0]
    low, high = float(values.min()), float(values.max())
    tenth = 0.1 * (high - low)
    ends = sorted((np.mean(values < low + tenth), np.mean(values > high - tenth)))
    # a bright head in dark air has two full ends as well, but its median lies near one of them
    centered = abs(float(np.median(values)) - (low + high) / 2) < _CENTERED * (high - low)
    if not (fills(data) or (centered and ends[0] > _ENDS_ALIKE * ends[1])):
        return False
    beside = []
    for axis in (0, 1):
        first, second = _pairs(data, axis)
        beside += [second[first > high - tenth], first[second > high - tenth]]
    place = np.concatenate(beside) - low
    if not place.size:
        return False
    at_other_end = float(np.mean(place < tenth))
    in_middle = float(np.mean((place > 3 * tenth) & (place < 6 * tenth))) / 3
    return bool(at_other_end > max(_ENDS_MEET * in_middle, _MEETINGS))


def _neighbor_correlation(data: np.ndarray) -> float:
    low, high = np.percentile(data, [0.1, 99.9])  # a few wild voxels must not decide
    data = np.clip(data, low, high)
    return max(_correlation(data[1:].ravel(), data[:-1].ravel()), _correlation(*_pairs(data, 1)))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    # scaled first, so that squares of huge or tiny values neither overflow nor vanish
    scale = float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if not min(scale):
        return 0.0
    a, b = a.astype(np.float64) / scale[0], b.astype(np.float64) / scale[1]
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / power if power else 0.0


def _shear_deg(affine: np.ndarray) -> float:
    """Largest departure of two axes from a right angle."""
    columns = affine[:3, :3] / voxel_sizes(affine)
    products = columns.T @ columns - np.eye(3)
    return float(np.rad2deg(np.arcsin(min(1.0, np.abs(products).max()))))


def _by_x(numbers: np.ndarray, form: str) -> str:
    return " x ".join(form.format(float(number)) for number in numbers)
