"""What must never be refused, and what must be: variants of real or simulated scans before the judge.

python tools/judge_variants.py [--scans BIDS_FOLDER ...] [--every N]

Without --scans the bundled scan is taken; with them the SWI and magnitudes of every N-th participant. Good
variants: uneven brightness, slabs, noise, interpolation, padding, and brain masks that err. Bad ones: slices
stored twice, heads above each other, a wrong thickness. The last line has the counts; each wrong decision is
named, and then the exit code is 1.
"""

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import ndimage

import cmb_jax
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan.judge import judge_brain, judge_grid, judge_intensity

BUNDLED = Path(cmb_jax.__file__).parent / "demo"
SEED = 21


def images(folder, every):
    """SWI and magnitudes of a BIDS folder."""
    for participant in sorted(folder.glob("sub-*"))[::every]:
        for path in sorted(participant.glob("anat/*.nii.gz")):
            if path.name.endswith(("_swi.nii.gz", "_T2starw.nii.gz")) and "part-phase" not in path.name:
                yield path


def uneven(data):
    """Name: image (X, Y, Z) whose brightness falls by a factor along x, along z or toward the edge."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in data.shape), indexing="ij", sparse=True)
    fields = {"x": (x + 1) / 2, "z": (z + 1) / 2, "edge": -(x**2 + y**2 + z**2) / 1.5}
    for factor in (2, 3, 4):
        for name, field in fields.items():
            yield f"brightness by {factor} along {name}", data * factor**field


def good(data, spacing, rng):
    """Name, image and voxel edges (mm) of what is still a scan."""
    count, tissue = data.shape[2], np.median(data[data > np.median(data)])
    yield "as it is", data, spacing
    for name, image in uneven(data):
        yield name, image, spacing
    for low, high in ((0, 0.5), (0.25, 0.75), (0.5, 1), (0.3, 0.6)):
        yield f"slab {low} to {high}", data[:, :, int(low * count) : int(high * count)], spacing
    for ratio in (10, 5):
        yield f"signal to noise {ratio}", np.abs(data + rng.normal(0, tissue / ratio, data.shape)), spacing
    middle, half = data[:, :, count // 5 : -(count // 5)], spacing / [1, 1, 2]
    yield "linear along z", ndimage.zoom(middle, (1, 1, 2), order=1), half
    yield "cubic along z", ndimage.zoom(middle, (1, 1, 2), order=3), half
    spectrum = np.fft.rfft(middle, axis=2)
    yield "zero-filled along z", np.abs(np.fft.irfft(spectrum, 2 * middle.shape[2], axis=2)), half
    yield "linear by 3 along z", ndimage.zoom(middle, (1, 1, 3), order=1), spacing / [1, 1, 3]
    yield "air above", np.pad(data, ((0, 0), (0, 0), (0, 20))), spacing
    yield "nearest neighbors in plane", middle.repeat(2, 0).repeat(2, 1), spacing / [2, 2, 1]


def bad(data, spacing, rng):
    """Name, image and voxel edges (mm) of what was put together wrongly."""
    count = data.shape[2]
    middle, half = data[:, :, count // 5 : -(count // 5)], spacing / [1, 1, 2]
    twice, tissue = middle.repeat(2, 2), np.median(middle[middle > 0])
    taller = spacing * [1, 1, 1.2]
    yield "thickness twice as large", data, spacing * [1, 1, 2]
    yield "slices twice", twice, half
    yield "slices twice, old thickness", twice, spacing
    yield "slices twice, noise", twice + rng.normal(0, 0.01 * tissue, twice.shape), half
    rounding = rng.uniform(-0.5, 0.5, (1, 1, twice.shape[2]))
    yield "slices twice, rounded anew", np.rint(twice / middle.max() * 400 + rounding), half
    yield "slices three times", middle.repeat(3, 2), spacing / [1, 1, 3]
    first, second = np.split(middle, [middle.shape[2] // 2], 2)
    yield "half of the slices twice", np.concatenate([first.repeat(2, 2), second], 2), spacing
    lower, upper = data[:, :, : count // 2], data[:, :, count // 2 - 4 :]
    yield "slabs that overlap", np.concatenate([lower, upper], 2), spacing
    yield "rolled", np.roll(data, count // 3, 2), spacing
    yield "two heads", np.concatenate([data, data], 2), spacing
    yield "two heads, cut", np.concatenate([middle, 1.5 * middle], 2), taller
    yield "two heads, one mirrored", np.concatenate([data, data[:, :, ::-1]], 2), spacing
    yield "two heads, air between", np.concatenate([np.pad(middle, ((0, 0), (0, 0), (0, 5)))] * 2, 2), taller


def masks(data, spacing):
    """Name and brain mask (X, Y, Z) with errors of some millimeters."""
    tissue = np.median(data[data > np.median(data)])
    head = ndimage.binary_fill_holes(ndimage.gaussian_filter(data, 2 / spacing) > 0.4 * tissue)

    def steps(mm):
        return max(1, round(mm / spacing[0]))

    brain = ndimage.binary_erosion(head, iterations=steps(6))
    yield "mask", brain
    for mm in (2, 5, 10):
        yield f"mask thinned by {mm} mm", ndimage.binary_erosion(brain, iterations=steps(mm))
        yield f"mask shifted by {mm} mm", np.roll(brain, round(mm / spacing[1]), 1)
    for mm in (2, 5):
        yield f"mask thickened by {mm} mm", ndimage.binary_dilation(brain, iterations=steps(mm))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=Path, nargs="+", default=[BUNDLED])
    parser.add_argument("--every", type=int, default=1)
    chosen = parser.parse_args()
    rng, counts, scans = np.random.default_rng(SEED), Counter(), 0

    def judged(path, name, reasons, wanted):
        counts[wanted, bool(reasons)] += 1
        if bool(reasons) is not wanted:
            print(f"{path.name}: {name}: {'; '.join(reasons) or 'accepted'}", flush=True)

    for path in (path for folder in chosen.scans for path in images(folder, chosen.every)):
        volume, scans = read_volume(path), scans + 1
        spacing = np.array(volume.spacing_mm)
        for variants, wanted in ((good, False), (bad, True)):
            for name, data, edges in variants(volume.data, spacing, rng):
                image = Volume.from_array(data, np.diag([*edges, 1.0]))
                reasons = judge_grid(image).reasons + judge_intensity(image.data).reasons
                judged(path, name, reasons, wanted)
        lights = {"even": volume.data} | {name: data for name, data in uneven(volume.data) if "by 3" in name}
        for name, mask in masks(volume.data, spacing):
            for light, data in lights.items():
                image = dataclasses.replace(volume, data=data.astype(np.float32))
                judged(path, f"{name}, {light}", judge_brain(image, mask).reasons, False)
        print(f"{scans} images", file=sys.stderr, flush=True)
    refused, accepted = counts[False, True], counts[True, False]
    print(
        f"{scans} images: of {refused + counts[False, False]} good variants {refused} refused, of "
        f"{accepted + counts[True, True]} bad ones {accepted} accepted"
    )
    return int(refused + accepted > 0)


if __name__ == "__main__":
    sys.exit(main())
