"""Tiny BIDS trees, a file at a time."""

import json

import numpy as np

from tests.datasets.trees import LPS, SHAPE, brain, save

SPOTS = ((6, 8, 5), (15, 20, 9))


def image(root, relative, data=None, affine=LPS, **facts):
    """An image `relative` to the root, without ending, and its sidecar if there are facts; gives its path."""
    path = save(root / f"{relative}.nii.gz", brain(SPOTS) if data is None else data, affine)
    if facts:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(facts))
    return path


def phase(shape=SHAPE, seed=1, turns=(0.9, 0.5)):
    """Phase in radians that fills its range: it turns evenly, radians per voxel, with a little noise."""
    i, j, _ = np.indices(shape)
    angle = turns[0] * i + turns[1] * j + np.random.default_rng(seed).normal(0, 0.3, shape)
    return np.angle(np.exp(1j * angle)).astype(np.float32)


def description(root, **more):
    """The file that makes a folder a BIDS data set."""
    root.mkdir(parents=True, exist_ok=True)
    content = {"Name": "Test", "BIDSVersion": "1.10.0", "DatasetType": "raw", **more}
    (root / "dataset_description.json").write_text(json.dumps(content))
    (root / ".bidsignore").write_text("*_swi.nii.gz\n*_swi.json\n")
    return root


def echoes(root, subject="sub-01", count=3, times_s=(0.008, 0.016, 0.024), suffix="MEGRE", **facts):
    """Magnitude and phase of several echoes."""
    for echo in range(1, count + 1):
        known = facts | ({"EchoTime": times_s[echo - 1]} if times_s else {})
        stem = f"{subject}/anat/{subject}_echo-{echo}"
        image(root, f"{stem}_part-mag_{suffix}", brain(SPOTS, seed=echo), **known)
        # so slow that a high-pass takes the turning away: an SWI made of it is not full of black fringes
        image(root, f"{stem}_part-phase_{suffix}", phase(seed=echo, turns=(0.3, 0.2)), **known)
