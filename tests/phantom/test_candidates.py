import numpy as np

from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.visibility import mimic_candidates

SPACING = (0.5, 0.5, 2.0)


def scene(rng):
    shape = (100, 100, 30)
    swi = np.full(shape, 100.0) + rng.normal(size=shape)
    code = np.full(shape, int(Region.FRONTAL) + 16, np.uint8)
    return swi, code, np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)


def spot(swi, place, depth):
    axes = np.meshgrid(*(np.arange(n) * h for n, h in zip(swi.shape, SPACING, strict=True)), indexing="ij")
    away = sum((a - p * h) ** 2 for a, p, h in zip(axes, place, SPACING, strict=True))
    swi *= 1 - depth * np.exp(-away / (2 * 1.2**2))


def test_spots_are_counted_by_the_mimic_they_lie_on(rng):
    swi, code, cmb, mimics = scene(rng)
    for place, kind in (((30, 30, 10), 5), ((70, 30, 10), 5), ((30, 70, 15), 8), ((70, 70, 20), 0)):
        spot(swi, place, 0.8)
        mimics[place] = kind
    assert mimic_candidates(swi, SPACING, code, cmb, mimics) == {
        MimicKind.PIAL_VEIN: 2,
        MimicKind.CALCIFICATION_CHOROID: 1,
        MimicKind.NONE: 1,
    }


def test_microbleeds_faint_spots_and_the_outside_do_not_count(rng):
    swi, code, cmb, mimics = scene(rng)
    spot(swi, (30, 30, 10), 0.8)
    cmb[30, 30, 10] = 1
    spot(swi, (70, 30, 10), 0.1)
    spot(swi, (30, 70, 15), 0.8)
    code[20:40, 60:80, 10:20] = Region.OUTSIDE
    assert mimic_candidates(swi, SPACING, code, cmb, mimics) == {}
