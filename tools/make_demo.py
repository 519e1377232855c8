"""Make the subject that `make demo` runs on: python tools/make_demo.py [--seed 700011].

A simulated subject, stored small: 8 bits of intensity and phase, background set to zero as scanners do. The
region labels and the nuclei of the mimic labels are left out, because they carry voxels of atlases whose own
license is not stated (see NOTICE).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.phantom import MimicKind, SubjectSettings, simulate_tree

DEMO = Path(__file__).resolve().parent.parent / "cmb_jax" / "demo"
LEVELS = 255
RADIANS = {"radians": 1.0, "pm4096": np.pi / 4096}
"""What a stored number of phase is worth, by `Protocol.phase_storage`."""


def store_small(path: Path, inside: np.ndarray, low: float, high: float, unit: float = 1.0) -> None:
    """Replace an image by `unit` times its numbers, as uint8 between `low` and `high`; 0 outside."""
    image = nib.load(path)
    data = np.where(inside, np.clip(image.get_fdata() * unit, low, high), 0.0)
    step = (high - low) / LEVELS
    # the level of exactly 0 must exist, so that the background stays 0
    offset = round(-low / step)
    stored = nib.Nifti1Image(np.clip(np.rint(data / step) + offset, 0, LEVELS).astype(np.uint8), image.affine)
    stored.header.set_slope_inter(step, -offset * step)
    stored.header.set_xyzt_units("mm")
    stored.set_qform(image.affine, 1)
    stored.set_sform(image.affine, 1)
    nib.save(stored, path)


def main() -> None:
    """Simulate, shrink, replace the bundled subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=700_011)
    parser.add_argument("--protocol", default="iso08")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        simulate_tree(tree, 1, arguments.seed, SubjectSettings(protocol=arguments.protocol))
        anat = tree / "sub-0001" / "anat"
        swi = nib.load(anat / "sub-0001_swi.nii.gz").get_fdata()
        smooth = ndimage.gaussian_filter(swi, 2.0)
        inside = ndimage.binary_fill_holes(smooth > 0.08 * np.percentile(smooth, 99))
        store_small(anat / "sub-0001_swi.nii.gz", inside, 0.0, float(np.percentile(swi, 99.9)))
        phase = anat / "sub-0001_part-phase_T2starw.nii.gz"
        sidecar = anat / "sub-0001_part-phase_T2starw.json"
        facts = json.loads(sidecar.read_text())
        store_small(phase, inside, -np.pi, np.pi, RADIANS[facts["PhaseStorage"]])
        sidecar.write_text(json.dumps(facts | {"PhaseStorage": "radians"}, indent=2) + "\n")
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
