"""Both sides of the lookup's timing name the same places."""

import numpy as np

from benchmarks.sides import lookup_jax, lookup_numpy

OPTIONS = {"points": 3000, "shape": [24, 28, 24]}


def test_both_sides_name_the_same_places():
    ours, theirs = (side.prepare(OPTIONS, "cpu").run() for side in (lookup_jax, lookup_numpy))
    for found, expected in zip((ours.region, ours.side, ours.keep), theirs[:3], strict=True):
        assert (np.asarray(found) == expected).mean() > 0.999  # a sample point may lie between two voxels
    assert (np.asarray(ours.csf_distance_mm) == theirs[3]).mean() > 0.99
    assert (np.asarray(ours.zone_border_mm) == theirs[4]).mean() > 0.99
