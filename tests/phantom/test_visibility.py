"""What counts: discs of known size and contrast in noise, beside vessels, in signal loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.visibility import MIN_DETECTABILITY, is_seen, visibility

SPACING = (0.8, 0.8, 2.0)
SHAPE = (64, 64, 16)
GRID = Grid(SHAPE, SPACING, (0.0, 0.0, 0.0))
SIGMA = 0.02
MIDDLE = np.array([25.0, 25.0, 16.0])  # mm, of a lesion


def distances(place):
    axes = [np.arange(n) * h for n, h in zip(SHAPE, SPACING, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return np.linalg.norm(points - np.asarray(place), axis=-1)


def brain(seed=0):
    """Even tissue of signal 1 in noise."""
    return 1.0 + SIGMA * np.random.default_rng(seed).normal(size=SHAPE)


def with_ball(image, place, diameter, cnr):
    """A ball darker than its surroundings by `cnr` times the noise."""
    return image - cnr * SIGMA * (distances(place) <= diameter / 2)


def look(image, diameter, place=MIDDLE, tissue=None, sigma=SIGMA):
    tissue = np.ones(SHAPE, bool) if tissue is None else tissue
    return visibility(
        jnp.asarray(image, jnp.float32),
        jnp.asarray(tissue),
        jnp.float32(sigma),
        jnp.asarray([place], jnp.float32),
        jnp.asarray([diameter], jnp.float32),
        grid=GRID,
    )


def seen(image, diameter, place=MIDDLE, tissue=None, sigma=SIGMA):
    return bool(is_seen(look(image, diameter, place, tissue, sigma), jnp.float32(np.median(image)))[0])


def test_a_lesion_of_4_mm_at_a_cnr_of_11_counts():
    image = with_ball(brain(), MIDDLE, 4.3, 10.7)
    assert float(look(image, 4.3).cnr[0]) == pytest.approx(10.7, abs=0.6)
    assert seen(image, 4.3)


def test_detectability_is_that_of_a_matched_filter():
    """sqrt(sum of squared signal) over the noise, of the slice through the middle of a ball."""
    for diameter, cnr in ((3.0, 8.0), (6.0, 4.0)):
        shape = distances(MIDDLE)[:, :, 8] <= diameter / 2
        expected = np.sqrt(np.sum((cnr * shape) ** 2))
        measured = np.mean(
            [
                float(look(with_ball(brain(s), MIDDLE, diameter, cnr), diameter).detectability[0])
                for s in range(8)
            ]
        )
        assert measured == pytest.approx(expected, rel=0.15)


def test_more_contrast_and_more_size_are_never_seen_worse():
    image = brain()
    by_contrast = [float(look(with_ball(image, MIDDLE, 3.0, c), 3.0).detectability[0]) for c in range(12)]
    assert (np.diff(by_contrast) > 0).all()
    by_size = [float(look(with_ball(image, MIDDLE, d, 8.0), d).detectability[0]) for d in (1, 2, 3, 4, 6, 8)]
    assert (np.diff(by_size) > 0).all()
    counts = [seen(with_ball(image, MIDDLE, 2.0, c), 2.0) for c in range(12)]
    assert counts == sorted(counts)  # never again unseen once it is seen
    assert counts[0] is False
    assert counts[-1] is True


def test_the_units_of_the_image_do_not_matter():
    image = with_ball(brain(), MIDDLE, 3.0, 6.0)
    one, other = look(image, 3.0), look(1234.5 * image, 3.0, sigma=1234.5 * SIGMA)
    for name in ("cnr", "contrast", "detectability"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-3)
    for cnr in range(10):
        image = with_ball(brain(1), MIDDLE, 3.0, cnr)
        assert seen(image, 3.0) == seen(1234.5 * image, 3.0, sigma=1234.5 * SIGMA)


@pytest.mark.parametrize("beside", ["vessel", "lesions", "labeled lesion"])
def test_a_dark_neighbor_costs_nothing(beside):
    image, tissue = brain(), np.ones(SHAPE, bool)
    if beside == "vessel":  # 2 mm wide, as dark as it can be, 3 mm away, through all slices
        x = np.arange(SHAPE[0])[:, None, None] * SPACING[0]
        image = np.where(np.abs(x - MIDDLE[0] - 5.0) < 1.0, 0.05, image)
    else:
        others = [MIDDLE + step for step in ([5.0, 0, 0], [0, -5.0, 0])]
        for place in others:
            image = with_ball(image, place, 3.0, 40.0)
            if beside == "labeled lesion":
                tissue &= distances(place) > 1.5
    alone = look(with_ball(brain(), MIDDLE, 2.5, 8.0), 2.5)
    found = look(with_ball(image, MIDDLE, 2.5, 8.0), 2.5, tissue=tissue)
    assert float(found.detectability[0]) > 0.8 * float(alone.detectability[0])
    assert seen(with_ball(image, MIDDLE, 2.5, 8.0), 2.5, tissue=tissue)


def test_signal_loss_in_the_next_slices_costs_nothing():
    """A reader looks at one slice at a time."""
    image = brain()
    image[:, :, :7] *= 0.1  # the lesion lies in slice 8
    assert seen(with_ball(image, MIDDLE, 2.0, 10.0), 2.0)


def test_what_cannot_be_seen_does_not_count():
    image = brain()
    assert not seen(image, 3.0)  # nothing there
    assert not seen(with_ball(image, MIDDLE, 3.0, -10.0), 3.0)  # brighter than its surroundings
    assert not seen(with_ball(image, MIDDLE, 1.0, 4.0), 1.0)  # one voxel, four times the noise
    assert not seen(with_ball(image, MIDDLE, 8.0, 2.0), 8.0)  # large, but of 4 % less signal
    rings = image + 0.5 * np.cos(2 * np.pi * distances(MIDDLE + 20.0) / 4.0)
    assert not seen(with_ball(rings, MIDDLE, 2.0, 8.0), 2.0)  # one dark spot of many
    void = image - 0.7 * (distances(MIDDLE) < 9.0)
    assert not seen(void - 0.25 * (distances(MIDDLE) <= 2.0), 4.0)  # in a signal void


def test_the_limit_is_where_the_docs_say():
    assert pytest.approx(5 * np.sqrt(2)) == MIN_DETECTABILITY


def test_structure_hides_a_pale_spot_but_no_black_one():
    """Waves of the surroundings hide what is paler than they are deep; noise that is strong hides both."""
    waves = brain() + 0.3 * np.cos(2 * np.pi * np.arange(SHAPE[0]) * SPACING[0] / 4.0)[:, None, None]
    pale, black = (with_ball(waves, MIDDLE, 2.5, share / SIGMA) for share in (0.35, 0.8))
    assert not seen(pale, 2.5)
    assert seen(black, 2.5)
    assert float(look(black, 2.5).detectability[0]) < MIN_DETECTABILITY  # the waves' spread alone says no
    assert not seen(black, 2.5, sigma=0.4)
