"""Simulated subjects as views on the region grid: resampling by indexing, the cohort, samples of them."""

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.regions import Region, Side, encode
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.benchmark import BenchmarkSplit
from cmb_jax.regions import samples
from cmb_jax.regions.grid import GRID_MM, GRID_SHAPE
from cmb_jax.regions.phantoms import codes_on_grid, phantom_members, view_of
from cmb_jax.regions.samples import PhantomViews, make_view_sample


def test_codes_are_those_of_the_nearest_voxels(rng):
    code = rng.integers(1, 48, (40, 50, 20)).astype(np.uint8)
    spacing, center = (1.1, 0.9, 3.0), np.array([18.3, 25.1, 9.7])
    grid = codes_on_grid(code, spacing, center)
    assert grid.shape == GRID_SHAPE
    for z, y, x in [*rng.integers(0, GRID_SHAPE, (400, 3)).tolist(), [48, 56, 48], [50, 60, 40]]:
        offset_mm = (np.array([x, y, z]) - (np.array(GRID_SHAPE[::-1]) - 1) / 2) * GRID_MM
        index = np.rint(center + offset_mm / spacing).astype(int)
        inside = np.all((index >= 0) & (index < code.shape))
        assert grid[z, y, x] == (code[tuple(index)] if inside else 0)


def test_the_cohort_is_the_train_split_on_one_grid():
    members = phantom_members(13)
    known = {
        m.seed: m for tier in ("easy", "hard") for m in BenchmarkSplit(split="train", tier=tier).members(7)
    }
    assert len(members) == 13
    for member in members:
        original = known[member.seed]
        assert member.anatomy == original.anatomy
        assert member.settings.tier == original.settings.tier
    assert len({member.settings.protocol for member in members}) == 1
    assert {member.settings.tier for member in members} == {"easy", "hard"}
    assert len({member.settings.te_ms for member in members}) > 3


class _Subject:
    """As much of a simulated subject as a view needs."""

    def __init__(self, image, code, affine):
        self.swi = self.magnitude = Volume.from_array(image, affine)
        self.region_code = code


def head():
    """A box of brain, right half brighter, in dark surroundings."""
    region = np.full((90, 100, 40), Region.OUTSIDE)
    region[20:70, 20:80, 8:34] = Region.FRONTAL
    side = np.where(np.arange(90)[:, None, None] < 45, Side.LEFT, Side.RIGHT) * (region > 0)
    image = np.where(region > 0, np.where(side == Side.RIGHT, 200.0, 100.0), 0.0)
    return _Subject(image, encode(region, side), np.diag([1.6, 1.6, 3.0, 1.0]))


def test_image_and_code_of_a_view_lie_on_each_other():
    images, code = view_of(head())
    assert images.shape == (2, *GRID_SHAPE)
    assert images.dtype == code.dtype == np.uint8
    seen, labeled = images[0] > 42, code > 0
    assert 2 * (seen & labeled).sum() > 0.97 * (seen.sum() + labeled.sum())  # faces are interpolated
    for axis in range(3):  # and shifted by two voxels they fit less well
        for step in (-2, 2):
            assert (np.roll(seen, step, axis) & labeled).sum() < (seen & labeled).sum()
    found = np.argwhere(code > 0)
    np.testing.assert_allclose(
        (found.min(axis=0) + found.max(axis=0)) / 2, (np.array(GRID_SHAPE) - 1) / 2, atol=1
    )


def test_samples_of_a_view_keep_the_sides(monkeypatch):
    images, code = view_of(head())
    views = PhantomViews(
        images=jnp.asarray(images[None]), code=jnp.asarray(code[None]), brain_mm=jnp.asarray([[-39.0, 39.0]])
    )
    # without what a scanner adds the brighter half must carry one label
    monkeypatch.setattr(samples, "scan_artifacts", lambda key, image, code, in_view: image)
    draw = jax.jit(make_view_sample)
    sides = set()
    for seed in range(4):
        sample = jax.tree.map(np.asarray, draw(views, jax.random.key(seed)))
        assert set(np.unique(sample.region)) == {Region.OUTSIDE, Region.FRONTAL}
        means = {side: sample.image[sample.side == side].mean() for side in (Side.LEFT, Side.RIGHT)}
        brighter = max(means, key=lambda side: means[side])
        assert means[brighter] > 1.5 * min(means.values())
        sides.add(brighter)
        x = [np.argwhere(sample.side == side)[:, 2].mean() for side in (Side.LEFT, Side.RIGHT)]
        assert x[0] < x[1]  # left is left in the grid, whether turned round or not
    assert sides == {Side.LEFT, Side.RIGHT}  # some are mirrored
