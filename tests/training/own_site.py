"""A miniature site: scans with dark, paramagnetic spots, in several storage orders, and truth of any form."""

import json

import nibabel as nib
import numpy as np

from cmb_jax.datasets.find import find
from cmb_jax.datasets.index import write_index
from cmb_jax.datasets.inspection import inspect

SHAPE = (44, 48, 24)
RAS = np.array([[1.0, 0, 0, -20], [0, 1.0, 0, -22], [0, 0, 2.0, -24], [0, 0, 0, 1]])
LPS = np.array([[-1.0, 0, 0, 23], [0, -1.0, 0, 25], [0, 0, 2.0, -24], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.99, -0.1, 0.0, -18], [0.1, 0.99, -0.1, -22], [0.0, 0.05, 1.99, -24], [0, 0, 0, 1]])


def spots(seed, count):
    """(n, 3) voxel indices, apart from each other and from the border."""
    rng = np.random.default_rng(seed)
    cells = np.array([(x, y, z) for x in (10, 22, 34) for y in (10, 24, 38) for z in (6, 12, 18)])
    return cells[rng.permutation(len(cells))[:count]]


def add_scan(root, name, *, count=3, affine=RAS, truth="points", phase=True, seed=0):
    """One scan with its truth: `points`, `kinds` (the last spot is a mimic), `mask`, `soft` or None."""
    rng = np.random.default_rng(seed)
    index = spots(seed, count)
    swi = np.linspace(92, 108, SHAPE[0])[:, None, None] + rng.normal(0, 3, SHAPE)
    radians = rng.normal(0, 0.05, SHAPE)
    mask = np.zeros(SHAPE, np.float32)
    for i, j, k in index:
        spot = (slice(i - 1, i + 2), slice(j - 1, j + 2), k)
        swi[spot], radians[spot], mask[spot] = 15.0, 1.5, 0.75 if truth == "soft" else 1.0
    images = {"swi": swi}
    if phase:  # with a background that turns, and the mask that tells its sign
        x, y, _ = np.indices(SHAPE)
        images["swi"] = swi * np.clip(1 - radians / np.pi, 0, 1) ** 4
        images["phase"] = np.angle(np.exp(1j * (radians + 0.1 * (x + y))))
    if truth in ("mask", "soft"):
        images["mask"] = mask
    for word, data in images.items():
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), root / f"{name}_{word}.nii.gz")
    points = nib.affines.apply_affine(affine, index.reshape(-1, 3))
    if truth in ("points", "kinds"):
        kinds = ["cmb"] * (count - 1) + ["mimic" if truth == "kinds" else "cmb"]
        lines = [
            ",".join([*(f"{value:.3f}" for value in point), kind])
            for point, kind in zip(points, kinds[:count], strict=True)
        ]
        (root / f"{name}_points.csv").write_text("\n".join(["x_mm,y_mm,z_mm,kind", *lines]) + "\n")
    return points


def make_index(root, path):
    """The index file that `cmb-jax data index` writes."""
    inspection = inspect(find(root, "folder"), root, read_images=False)
    write_index(path, inspection.index, root, overwrite=True)
    return path


def make_site(folder, scans=4):
    """A folder of scans p1, p2, ..., two lesions each, and its index file."""
    root = folder / "site"
    root.mkdir()
    for number in range(1, scans + 1):
        add_scan(root, f"p{number}", seed=number, affine=(RAS, LPS, OBLIQUE)[number % 3])
    return make_index(root, folder / "site.json")


def split_file(path, **parts):
    """A split table, e.g. train=("p1", "p2")."""
    rows = [f"{name},{part}" for part, names in parts.items() for name in names]
    path.write_text("\n".join(["case_id,split", *rows]) + "\n")
    return path


def edit(path, change):
    """Change an index by hand."""
    content = json.loads(path.read_text())
    change({case["case_id"]: case for case in content["cases"]})
    path.write_text(json.dumps(content))
