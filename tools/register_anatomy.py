"""Register a pack's scan to MNI152NLin2009cAsym: python tools/register_anatomy.py colin27 [--rigid].

Needs picsl-greedy 1.4.0.3 (pip install picsl-greedy==1.4.0.3). Writes cmb_jax/anatomy/warps/NAME.nii.gz, the
displacement of points on a 4 mm lattice, and NAME.json, how it was made and how good it is. Neither carries a
voxel of any image. Takes about three minutes of two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from picsl_greedy import Greedy3D
from scipy import ndimage

from cmb_jax.anatomy.assets import SUBJECT_SCANS, read_image, read_sources
from cmb_jax.anatomy.build import AFFINE, SHAPE, place_scan, read_maps, resample
from cmb_jax.anatomy.pack import Lattice, lattice_image, read_lattice

WARPS = Path(__file__).resolve().parent.parent / "cmb_jax" / "anatomy" / "warps"
SPACING_MM = 4
METRIC = "-m NCC 4x4x4"
RIGID = (
    f"-a -dof 6 {METRIC} -ia-image-centers -search 200 20 20 -n 80x40x0 -i scan.nii.gz mni.nii.gz"
    " -o rigid.mat"
)
AFFINE_STEP = f"-a -dof 12 {METRIC} -ia-identity -n 60x40x0 -i placed.nii.gz mni.nii.gz -o affine.mat"
DEFORMABLE = (
    f"{METRIC} -n 100x60x20 -s 2.5vox 1.0vox -i placed.nii.gz mni.nii.gz -it affine.mat -o warp.nii.gz"
)


def greedy(folder: Path, command: str) -> None:
    """Run one command in `folder`: its file names are those that end in .mat or .nii.gz."""
    words = [str(folder / w) if w.endswith((".mat", ".nii.gz")) else w for w in command.split()]
    Greedy3D().execute(" ".join(["-d 3 -threads 2", *words]))


def displacement(folder: Path) -> np.ndarray:
    """What the affine and the deformable step add to each voxel's RAS mm, (X, Y, Z, 3)."""
    matrix = np.loadtxt(folder / "affine.mat")  # RAS mm, pack -> MNI
    warp = np.asarray(nib.load(folder / "warp.nii.gz").dataobj, np.float64).reshape(*SHAPE, 3)
    points = np.stack(np.indices(SHAPE), axis=-1) + AFFINE[:3, 3]
    moved = points + warp * [-1.0, -1.0, 1.0]  # the file's vectors are ITK's: Left, Posterior, Superior
    return moved @ matrix[:3, :3].T + matrix[:3, 3] - points


def to_lattice(full: np.ndarray) -> Lattice:
    """Displacement at every fourth voxel; the last plane repeats the grid's end where 4 mm overshoot it."""
    index = [np.minimum(np.arange(0, n + SPACING_MM - 1, SPACING_MM), n - 1) for n in SHAPE]
    coarse = full[np.ix_(*index)].astype(np.float32)
    lattice = Lattice(
        displacement=coarse, spacing_mm=float(SPACING_MM), origin_mm=tuple(float(o) for o in AFFINE[:3, 3])
    )
    return read_lattice(nib.Nifti1Image.from_bytes(lattice_image(lattice).to_bytes()))  # as it will be stored


def similarity(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return float(np.corrcoef(a[mask], b[mask])[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(SUBJECT_SCANS))
    parser.add_argument(
        "--rigid", action="store_true", help="turn the scan upright first: its frame is not MNI's"
    )
    arguments = parser.parse_args()
    scan = read_image(*SUBJECT_SCANS[arguments.name])
    sources = read_sources()
    mni = resample(sources.head_t1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nib.save(nib.Nifti1Image(mni, AFFINE), folder / "mni.nii.gz")
        pack_to_scan = np.eye(4)
        if arguments.rigid:
            nib.save(
                nib.Nifti1Image(np.asarray(scan.dataobj, np.float32), scan.affine), folder / "scan.nii.gz"
            )
            greedy(folder, RIGID)
            pack_to_scan = np.round(np.linalg.inv(np.loadtxt(folder / "rigid.mat")), 6)
        placed = place_scan(scan, pack_to_scan)
        nib.save(nib.Nifti1Image(placed, AFFINE), folder / "placed.nii.gz")
        greedy(folder, AFFINE_STEP)
        greedy(folder, DEFORMABLE)
        lattice = to_lattice(displacement(folder))

    mni_mm = lattice.map_grid(SHAPE, AFFINE)
    brain = read_maps(sources, mni, resample(sources.brain_t1)).carried(mni_mm).cranium > 0.5
    index = [axis - AFFINE[i, 3] for i, axis in enumerate(mni_mm)]
    moved = ndimage.map_coordinates(mni, np.stack(index), order=1)
    determinants = lattice.jacobian_determinants()
    record = {
        "from": arguments.name,
        "to": "MNI152NLin2009cAsym",
        "what": "pack point p (RAS mm) -> MNI point p + displacement(p), trilinear between lattice points",
        "pack_to_scan": pack_to_scan.tolist(),
        "tool": "picsl-greedy 1.4.0.3 (Greedy, Yushkevich et al.), Apache-2.0",
        "commands": [
            f"greedy -d 3 {c}" for c in ([RIGID] if arguments.rigid else []) + [AFFINE_STEP, DEFORMABLE]
        ],
        "correlation_of_t1_inside_the_skull": {
            "before": round(similarity(mni, placed, brain), 3),
            "after": round(similarity(moved, placed, brain), 3),
        },
        "jacobian_determinant": {
            "least": round(float(determinants.min()), 3),
            "largest": round(float(determinants.max()), 3),
        },
    }
    content = gzip.compress(lattice_image(lattice).to_bytes(), 9, mtime=0)
    (WARPS / f"{arguments.name}.nii.gz").write_bytes(content)
    (WARPS / f"{arguments.name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(
        json.dumps(record["correlation_of_t1_inside_the_skull"]), record["jacobian_determinant"], len(content)
    )


if __name__ == "__main__":
    main()
