"""Make the subject that `make demo` runs on: python tools/make_demo.py [--seed 700003].

A simulated subject, stored small: 8 bits of intensity and phase, background set to zero as scanners do. The
region labels and the nuclei of the mimic labels are left out, because they carry voxels of atlases whose own
licence is not stated (see NOTICE).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.phantom import MimicKind, SubjectSettings, simulate_tree

DEMO = Path(__file__).resolve().parent.parent / "cmb_jax" / "demo"
LEVELS = 255


def store_small(source: Path, target: Path, inside: np.ndarray, low: float, high: float) -> None:
    """Quantise to uint8 between `low` and `high`, zero value outside."""
    image = nib.load(source)
    data = np.where(inside, np.clip(image.get_fdata(), low, high), 0.0)
    step = (high - low) / LEVELS
    # the level of exactly 0 must exist, so that the background stays 0
    offset = round(-low / step)
    stored = nib.Nifti1Image(np.clip(np.rint(data / step) + offset, 0, LEVELS).astype(np.uint8), image.affine)
    stored.header.set_slope_inter(step, -offset * step)
    stored.header.set_xyzt_units("mm")
    stored.set_qform(image.affine, 1)
    stored.set_sform(image.affine, 1)
    nib.save(stored, target)


def main() -> None:
    """Simulate, shrink, replace the bundled subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=700_003)
    parser.add_argument("--protocol", default="iso08")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        simulate_tree(tree, 1, arguments.seed, SubjectSettings(protocol=arguments.protocol))
        anat = tree / "sub-0001" / "anat"
        swi = nib.load(anat / "sub-0001_swi.nii.gz").get_fdata()
        smooth = ndimage.gaussian_filter(swi, 2.0)
        inside = ndimage.binary_fill_holes(smooth > 0.08 * np.percentile(smooth, 99))
        small = {"sub-0001_swi.nii.gz": (0.0, float(np.percentile(swi, 99.9)))}
        small["sub-0001_part-phase_T2starw.nii.gz"] = (-np.pi, np.pi)
        for name, (low, high) in small.items():
            store_small(anat / name, anat / f"small-{name}", inside, low, high)
            (anat / f"small-{name}").replace(anat / name)
        for path in anat.glob("*part-mag*"):
            path.unlink()
        truth = tree / "derivatives" / "truth" / "sub-0001" / "anat"
        (truth / "sub-0001_desc-regions_dseg.nii.gz").unlink()
        mimics = nib.load(truth / "sub-0001_desc-mimics_dseg.nii.gz")
        codes = np.asarray(mimics.dataobj)
        kept = np.where(codes == MimicKind.IRON_NUCLEUS, 0, codes).astype(np.uint8)
        nib.save(nib.Nifti1Image(kept, mimics.affine), truth / "sub-0001_desc-mimics_dseg.nii.gz")
        shutil.rmtree(DEMO, ignore_errors=True)
        shutil.copytree(tree, DEMO, ignore=shutil.ignore_patterns(".cmb_jax_output"))


if __name__ == "__main__":
    main()
