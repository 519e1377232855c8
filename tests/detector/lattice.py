"""All anchors of a grid, written out."""

import itertools

import numpy as np


def lattice_anchors(grid, stride, sizes):
    """(Z, Y, X, A, 6) float64: cubes of `sizes` (A, 3) voxels about the middle of every cell's voxels."""
    anchors = np.empty((*grid, len(sizes), 6))
    for cell in itertools.product(*map(range, grid)):
        # A cell covers voxels stride*i .. stride*i + stride - 1, each of which spans [v, v+1).
        center = np.array([np.mean([s * i, s * i + s]) for i, s in zip(cell, stride, strict=True)])
        for n, size in enumerate(np.asarray(sizes, np.float64)):
            anchors[(*cell, n)] = [*(center - size / 2), *(center + size / 2)]
    return anchors
