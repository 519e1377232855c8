"""What people do to their images changes nothing of what they are: none is refused, no phase passes as SWI.

Variants of the bundled scan: storage, resolution, masks, filters, faults of acquisition.
"""

import functools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import cmb_jax
from cmb_jax.errors import NotAnalysableError
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan.judge import judge_grid, judge_intensity, judge_magnitude, judge_phase
from cmb_jax.scan.phase_range import PhaseRange, detect_phase_range, phase_to_radians, range_of

ANAT = Path(cmb_jax.__file__).parent / "demo" / "sub-0001" / "anat"
SLICES = slice(30, 42)


@functools.cache
def swi():
    return whole()[:, :, SLICES]


@functools.cache
def whole():
    return read_volume(ANAT / "sub-0001_swi.nii.gz").data


@functools.cache
def radians():
    data = read_volume(ANAT / "sub-0001_part-phase_T2starw.nii.gz").data[:, :, SLICES]
    return phase_to_radians(data, detect_phase_range(data))


@functools.cache
def masks():
    """Head and brain, slice by slice."""
    smooth = ndimage.gaussian_filter(swi(), (2, 2, 0))
    head = ndimage.binary_closing(smooth > 0.15 * np.percentile(smooth, 98), np.ones((9, 9, 1)))
    brain = ndimage.binary_erosion(np.pad(head, ((1, 1), (1, 1), (0, 0))), np.ones((3, 3, 1)), iterations=15)
    return head, brain[1:-1, 1:-1]


@functools.cache
def high_passed():
    image = swi() * np.exp(1j * radians())
    low = ndimage.gaussian_filter(image, (8, 8, 3))
    return np.angle(image * low.conj()).astype(np.float32)


@functools.cache
def of_a_scanner(interpolated=False):
    """Raw phase with noise in the air, which the bundled scan has lost."""
    angle = np.where(masks()[0], radians(), np.angle(noise(1.0)))
    if interpolated:
        return np.angle(zero_filled((0.1 + swi()) * np.exp(1j * angle), (2, 2, 1)))
    return angle


def top():
    return float(np.percentile(swi(), 99.9))


def noise(scale, seed=0):
    rng = np.random.default_rng(seed)
    return scale * (rng.normal(size=swi().shape) + 1j * rng.normal(size=swi().shape))


def at_snr(snr):
    return np.abs(swi() + noise(np.median(swi()[masks()[1]]) / snr))


def zero_filled(image, factors):
    """In k-space, as scanners interpolate."""
    space = np.fft.fftshift(np.fft.fftn(image))
    more = [int(size * (factor - 1)) for size, factor in zip(image.shape, factors, strict=True)]
    padded = np.pad(space, [(each // 2, each - each // 2) for each in more])
    return np.fft.ifftn(np.fft.ifftshift(padded)) * np.prod(factors)


def windowed(low, high, where):
    """As a viewer exports it: 8 bits between two percentiles."""
    low, high = np.percentile(swi()[masks()[where]], [low, high])
    return np.clip(np.rint((swi() - low) / (high - low) * 255), 0, 255)


def spoiled(change):
    image = swi().copy()
    change(image, np.random.default_rng(0))
    return image


def equalized():
    order = np.searchsorted(np.sort(swi()[masks()[0]]), swi()) / masks()[0].sum()
    return np.rint(255 * order)


def bias():
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, size) for size in swi().shape], indexing="ij")
    return np.exp(x + y)


GOOD = {
    "as it is": swi,
    "12 bits": lambda: np.rint(swi() / top() * 4095),
    "8 bits": lambda: np.rint(swi() / swi().max() * 255),
    "6 bits": lambda: np.rint(swi() / top() * 63),
    "24 levels": lambda: np.rint(swi() / top() * 24),
    "window of the head to 90 %": lambda: windowed(0, 90, 0),
    "window of the head 5 to 95 %": lambda: windowed(5, 95, 0),
    "window of the brain 2 to 98 %": lambda: windowed(2, 98, 1),
    "brain alone": lambda: swi() * masks()[1],
    "brain alone, 8 bits": lambda: np.rint(swi() * masks()[1] / top() * 255),
    "air set to 0": lambda: swi() * masks()[0],
    "air set to a constant": lambda: np.where(masks()[0], np.rint(swi() / top() * 1000), 10),
    "all below a tenth set to 0": lambda: np.where(swi() > 0.1 * top(), swi(), 0),
    "defaced": lambda: spoiled(lambda image, rng: image[:, 200:, :8].fill(0)),
    "surface coil": lambda: swi() * bias(),
    "smoothed": lambda: ndimage.gaussian_filter(swi(), 1),
    "smoothed much": lambda: ndimage.gaussian_filter(swi(), 2),
    "smoothed, 6 bits, air set to 0": lambda: np.rint(
        ndimage.gaussian_filter(swi() * masks()[0], 1) / top() * 63
    ),
    "median filtered, 8 bits": lambda: ndimage.median_filter(np.rint(swi() / top() * 255), 3),
    "interpolated in plane": lambda: np.abs(zero_filled(swi(), (2, 2, 1))),
    "interpolated in plane, 8 bits": lambda: np.rint(np.abs(zero_filled(swi(), (2, 2, 1))) / top() * 255),
    "interpolated along one axis": lambda: np.abs(zero_filled(swi(), (1, 2, 1))),
    "interpolated in slices, 200 levels": lambda: np.rint(
        np.abs(zero_filled(swi(), (1, 1, 2))) / top() * 200
    ),
    "real part, rings below 0": lambda: zero_filled(swi(), (2, 2, 1)).real,
    "real part with noise about 0": lambda: (
        (swi() * masks()[0] + noise(np.median(swi()[masks()[1]]) / 15)).real
    ),
    "turned with cubic splines": lambda: ndimage.rotate(swi(), 11, order=3, reshape=False),
    "brain resampled with splines": lambda: ndimage.zoom(swi() * masks()[1], 1.3, order=3),
    "resampled to 2 mm slices of half": lambda: ndimage.zoom(swi(), (1, 1, 2), order=1),
    "every other slice a tenth darker": lambda: swi() * np.where(np.arange(12) % 2, 1.0, 0.9),
    "every other slice moved by 2 voxels": lambda: np.where(np.arange(12) % 2, np.roll(swi(), 2, 0), swi()),
    "nearest neighbors in plane": lambda: swi().repeat(2, 0).repeat(2, 1),
    "interpolated in slices": lambda: np.abs(zero_filled(swi(), (1, 1, 2))),
    "slices and the means between them": lambda: np.stack(
        [swi()[:, :, :-1], (swi()[:, :, :-1] + swi()[:, :, 1:]) / 2], -1
    ).reshape(240, 300, -1),
    "slices of 4 mm": lambda: swi().reshape(240, 300, -1, 2).mean(axis=-1),
    "slices of 4 mm, 8 bits": lambda: np.rint(swi().reshape(240, 300, -1, 2).mean(axis=-1) / top() * 255),
    "part of the field of view": lambda: swi()[60:-60, 75:-75],
    "slab": lambda: whole()[:, :, 15:60],
    "slab whose ends are darker": lambda: whole()[:, :, 15:60] * np.hanning(47)[1:-1],
    "thin slab with a dark slice": lambda: whole()[:, :, 30:50] * np.where(np.arange(20) == 9, 0.5, 1.0),
    "slab in two halves of unlike brightness": lambda: (
        whole()[:, :, 15:60] * np.where(np.arange(45) < 22, 0.7, 1.0)
    ),
    "signal to noise 10": lambda: at_snr(10),
    "signal to noise 5": lambda: at_snr(5),
    "signal to noise 5, brain alone": lambda: at_snr(5) * masks()[1],
    "signal to noise 5, part of the field of view": lambda: at_snr(5)[60:-60, 75:-75],
    "wild voxels": lambda: spoiled(
        lambda image, rng: np.put(image, rng.integers(0, image.size, 20), 1e3 * top())
    ),
    "zipper": lambda: spoiled(lambda image, rng: image[:, 150].fill(1.5 * top())),
    "bright vessels": lambda: spoiled(
        lambda image, rng: np.put(image, rng.integers(0, image.size, image.size // 500), 4 * top())
    ),
    "an offset": lambda: swi() + 0.2 * top(),
    "square root": lambda: np.sqrt(swi()),
    "equalized": equalized,
    "equalized, air set to 0": lambda: equalized() * masks()[0],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_scan_is_not_refused(name):
    assert judge_intensity(np.asarray(GOOD[name](), np.float32)).reasons == ()


def wide():
    """Without wraps in the brain, as a vendor's filter and a mask leave it."""
    return np.where(masks()[1], np.clip(high_passed(), -0.9, 0.9), 0)


BAD = {
    "z-scored": lambda: (swi() - swi().mean()) / swi().std(),
    "z-scored brain": lambda: np.where(
        masks()[1], (swi() - swi()[masks()[1]].mean()) / swi()[masks()[1]].std(), 0
    ),
    "minus 1 to 1": lambda: 2 * swi() / swi().max() - 1,
    "minimum of 4 slices": lambda: ndimage.minimum_filter(swi(), (1, 1, 4)),
    "minimum of 8 slices, 8 bits": lambda: np.rint(ndimage.minimum_filter(swi(), (1, 1, 8)) / top() * 255),
    "maximum of 8 slices": lambda: ndimage.maximum_filter(swi(), (1, 1, 8)),
    "each slice twice": lambda: swi().repeat(2, 2),
    "each slice three times, smoothed": lambda: ndimage.gaussian_filter(swi(), (1, 1, 0)).repeat(3, 2),
    "each slice twice, stored anew": lambda: (
        swi().repeat(2, 2) + np.random.default_rng(0).normal(0, 0.002 * top(), (240, 300, 24))
    ),
    "half of the slices twice": lambda: whole()[:, :, np.r_[20:40, np.arange(40, 60).repeat(2)]],
    "each row twice": lambda: (
        swi().repeat(2, 0) + np.random.default_rng(0).normal(0, 0.002 * top(), (480, 300, 12))
    ),
    "brain mask": lambda: masks()[1] * 1.0,
    "tissue classes": lambda: (
        np.digitize(ndimage.gaussian_filter(swi(), 2), np.percentile(swi(), [40, 60, 80])) * 1.0
    ),
    "smoothed mask": lambda: ndimage.gaussian_filter(masks()[1] * 1.0, 1),
    "slices shuffled": lambda: whole()[:, :, np.random.default_rng(0).permutation(77)],
    "rows shuffled": lambda: whole()[np.random.default_rng(0).permutation(240)],
    "every other slice halved": lambda: swi() * np.where(np.arange(12) % 2, 1.0, 0.5),
    "every fourth slice lost": lambda: np.where(np.arange(12) % 4 == 1, 0, swi()),
    "slabs that overlap": lambda: np.concatenate([whole()[:, :, :40], whole()[:, :, 34:]], 2),
    "two slices stored again": lambda: whole()[:, :, np.sort([*range(77), 30, 45])],
    "rolled by half": lambda: np.roll(whole(), 38, 2),
    "rolled by a quarter the other way": lambda: np.roll(whole(), -19, 2),
    "noise": lambda: np.abs(noise(1.0)),
    "noise, 8 bits": lambda: np.rint(40 * np.abs(noise(1.0))),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_scan_is_refused(name):
    assert judge_intensity(np.asarray(BAD[name](), np.float32)).reasons != ()


@pytest.mark.parametrize("axis", [0, 1])
def test_two_heads_in_one_image_are_refused(axis):
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    pairs = {
        "as they are": whole(),
        "cut to the head": whole()[20:-20, 30:-30],
        "in noise": np.abs(whole() + np.random.default_rng(0).normal(0, 0.2 * top(), whole().shape)),
    }
    for one in pairs.values():
        assert judge_grid(Volume.from_array(one, affine)).reasons == ()
        both = np.concatenate([one, one[::-1]], axis)
        assert any(
            "wide" in reason or "large" in reason
            for reason in judge_grid(Volume.from_array(both, affine)).reasons
        )


def with_neck():
    """The head on 10 cm of a neck that is narrower from slice to slice, down to a third of the area."""
    base = whole()[:, :, 0]
    middle = np.array(base.shape)[:, None, None] / 2
    shrunk = [
        ndimage.map_coordinates(base, (np.indices(base.shape) - middle) * factor + middle, order=1)
        for factor in np.r_[np.full(40, 1.7), np.linspace(1.7, 1.0, 10)]
    ]
    return np.concatenate([np.stack(shrunk, -1), whole()], 2)


def test_two_heads_above_each_other_are_refused():
    one = whole()
    slab, air = one[:, :, 15:-10], np.zeros((240, 300, 6), np.float32)
    two = {
        "tall": (np.concatenate([one, one], 2), 2.0),
        "header of twice the thickness": (one, 4.0),
        "slabs": (np.concatenate([slab, slab[::-1]], 2), 2.2),
        "slabs of unlike brightness": (np.concatenate([slab, 1.5 * slab], 2), 2.2),
        "with air between": (np.concatenate([slab, air, slab], 2), 2.2),
        "with noise between": (np.concatenate([slab, air + 0.02 * top(), slab], 2), 2.2),
    }
    for name, (image, thickness) in two.items():
        reasons = judge_grid(Volume.from_array(image, np.diag([0.8, 0.8, thickness, 1.0]))).reasons
        assert "tall" in reasons[0] or "another one begins" in reasons[0], name
    for image, thickness in ((one, 3.0), (with_neck(), 2.0), (np.concatenate([one, air], 2), 2.8)):
        assert judge_grid(Volume.from_array(image, np.diag([0.8, 0.8, thickness, 1.0]))).reasons == ()


ODD = {
    "half of the slices shuffled": lambda: whole()[
        :, :, np.r_[np.random.default_rng(0).permutation(38), 38:77]
    ],
    "slices in pairs": lambda: whole()[:, :, np.arange(76).reshape(38, 2)[:, ::-1].ravel()],
    "every other slice a fifth darker": lambda: whole() * np.where(np.arange(77) % 2, 1.0, 0.8),
    "every other slice moved by 10 voxels": lambda: np.where(
        np.arange(77) % 2, np.roll(whole(), 10, 0), whole()
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_displaced_slices_are_told(name):
    """Crosstalk darkens every other slice; motion between two passes displaces it."""
    found = judge_intensity(np.asarray(ODD[name](), np.float32))
    assert found.reasons == ()
    assert "every other slice" in found.warnings[0]


STORED = {
    "radians": lambda angle: angle,
    "0 to 2 pi": lambda angle: angle % (2 * np.pi),
    "0 to 4095": lambda angle: np.clip(np.floor((angle + np.pi) / (2 * np.pi) * 4096), 0, 4095),
    "-4096 to 4095 in twos": lambda angle: 2 * np.clip(np.floor(angle / np.pi * 2048), -2048, 2047),
    "milliradians": lambda angle: np.rint(1000 * angle),
    "8 bits": lambda angle: np.rint((angle + np.pi) / (2 * np.pi) * 255),
    "turned": lambda angle: -angle,
    "degrees": np.degrees,
}
PHASE = {
    "raw": lambda store: store(of_a_scanner()),
    "raw, with little noise": lambda store: store(radians()),
    "raw, air set to 0": lambda store: np.where(masks()[0], store(radians()), 0),
    "raw, air set to a phase of 0": lambda store: store(np.where(masks()[0], radians(), 0)),
    "high-passed": lambda store: store(np.where(masks()[0], high_passed(), of_a_scanner())),
    "interpolated": lambda store: store(of_a_scanner(True)[:, :, ::4]),
    "steep": lambda store: store(
        np.angle(np.exp(1j * (of_a_scanner() + 0.35 * np.arange(240)[:, None, None])))
    ),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("made", PHASE)
def test_a_phase_is_told_as_such(made, stored):
    data = np.asarray(PHASE[made](STORED[stored]), np.float32)
    found = range_of(data)
    angle = phase_to_radians(data, found)
    expected = PHASE[made](lambda angle: angle)
    inside = masks()[1] if data.shape == swi().shape else np.ones(data.shape, bool)
    if stored != "turned":
        off = np.exp(1j * (angle - expected))[inside]
        # an offset that all voxels have in common means nothing
        assert np.mean(np.abs(np.angle(off * np.conj(off.mean()))) > 0.06) < 0.01
    image = swi() if data.shape == swi().shape else swi().repeat(2, 0).repeat(2, 1)[:, :, ::4]
    assert judge_phase(data, angle, image).reasons == judge_phase(data, angle, image).warnings == ()
    assert judge_intensity(data).reasons != ()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("outside", ["zeros", "a phase of 0"])
def test_a_phase_of_the_brain_alone_does_not_pass_as_swi(stored, outside):
    store = STORED[stored]
    for angle in (radians(), high_passed(), wide()):
        data = np.where(masks()[1], store(angle), 0) if outside == "zeros" else store(angle * masks()[1])
        assert judge_intensity(np.asarray(data, np.float32)).reasons != ()


def unwrapped():
    return np.unwrap(np.unwrap(of_a_scanner(), axis=0), axis=1)


@pytest.mark.parametrize("angle", [wide, unwrapped])
def test_a_phase_that_tells_no_unit_is_read_where_it_is_stated(angle):
    with pytest.raises(NotAnalysableError, match="--phase-range"):
        range_of(angle())
    found = range_of(angle(), PhaseRange.RADIANS)
    data = phase_to_radians(angle(), found)
    assert judge_phase(angle(), data, swi()).reasons == ()


@pytest.mark.parametrize("factor", [0.5, 1000.0])
def test_an_image_given_as_its_phase_is_told_whatever_range_is_stated(factor):
    for image in (factor * swi(), factor * np.sqrt(swi()), factor * ndimage.gaussian_filter(swi(), 0.5)):
        stated = PhaseRange.between(0.0, 1.01 * float(image.max()))
        judged = judge_phase(image, phase_to_radians(image, stated), swi())
        assert "holds the values of the SWI" in judged.reasons[0]


def test_a_slice_that_was_lost_is_said():
    lost = judge_intensity(np.where(np.arange(12) == 5, 0, swi()))
    assert lost.reasons == ()
    assert any("what was there is lost" in warning for warning in lost.warnings)


def test_the_cosine_of_a_phase_is_no_phase():
    data = np.cos(of_a_scanner())
    radians = phase_to_radians(data, PhaseRange.between(float(data.min()), float(data.max())))
    assert "no phase" in judge_phase(data, radians, swi()).reasons[0]


def test_a_magnitude_shows_what_the_swi_shows():
    x = np.linspace(-1, 1, 240)[:, None, None]
    for same in (
        np.sqrt(swi()),
        swi() * np.exp(2 * x),
        ndimage.gaussian_filter(swi(), (3, 3, 1)),
        swi() * masks()[1],
        at_snr(5),
    ):
        assert judge_magnitude(same, swi()).reasons == ()
    for other in (swi()[::-1], swi()[:, ::-1], np.roll(swi(), 4, 0), swi().max() - swi()):
        assert "another scan" in judge_magnitude(other, swi()).reasons[0]
