"""The pictures of the cohort's page in docs/images: `python tools/cohort_pictures.py WORK`.

The bundled subject is the only scan that comes with the package, so the study is made of it: mirrored, with
noise of its own, microbleeds painted out or copied to other places, a follow-up of one, a damaged file and a
label image in place of a scan. WORK is a folder to make; results that are finished there are kept. Needs the
extra `dev` and a Chromium on the machine.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy import ndimage

from cmb_jax.cli.predict import BUNDLED, SUBJECT
from cmb_jax.cohort.dataset import GROUP_PAGE

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
ANAT = BUNDLED / SUBJECT / "anat"
TRUTH = BUNDLED / "derivatives" / "truth" / SUBJECT / "anat" / f"{SUBJECT}_desc-cmb_dseg.nii.gz"
NAMES = {"swi": "swi", "part-phase_T2starw": "part-phase_T2starw"}
MARGIN = 3  # voxels about a lesion that go with it
# microbleeds of the subject that stay, and copies of them that are put elsewhere
SCANS = {
    "sub-01": (13, 0), "sub-02_ses-1": (6, 0), "sub-02_ses-2": (9, 0), "sub-03": (2, 0), "sub-04": (0, 0),
    "sub-05": (4, 0), "sub-06": (13, 60), "sub-07": (1, 0), "sub-08": (8, 2),
}  # fmt: skip
FOLLOWED = "sub-02"


def make_study(root: Path) -> None:
    """Write the data set, the same bytes each time."""
    shutil.copy(BUNDLED / "dataset_description.json", _folder(root))
    images = {name: nib.load(ANAT / f"{SUBJECT}_{name}.nii.gz") for name in NAMES}
    labels = np.asarray(nib.load(TRUTH).dataobj)
    swi, phase = (image.get_fdata(dtype=np.float32) for image in images.values())
    flat = ndimage.gaussian_filter(ndimage.grey_closing(swi, 9), 1)  # without small dark spots
    middle = float(np.median(flat[flat > 0.3 * flat.max()]))
    tissue = ndimage.binary_erosion(np.abs(flat / middle - 1) < 0.25, iterations=6)
    spots = ndimage.find_objects(labels)
    for seed, (scan, (kept, copies)) in enumerate(SCANS.items()):
        rng = np.random.default_rng(0 if scan.startswith(FOLLOWED) else seed)  # one head at two times
        dark, field = swi.copy(), phase.copy()
        order = rng.permutation(len(spots))
        for spot in (spots[n] for n in order[kept:]):
            box = _wider(spot, swi.shape)
            dark[box] = np.maximum(dark[box], flat[box])
            field[box] = 0.0
        places = rng.permutation(np.argwhere(tissue))[:copies]
        for place, spot in zip(places, (spots[n] for n in np.resize(order, copies)), strict=True):
            box = _wider(spot, swi.shape)
            there = tuple(slice(p - (b.stop - b.start) // 2, p - (b.stop - b.start) // 2 + b.stop - b.start)
                          for p, b in zip(place, box, strict=True))  # fmt: skip
            dark[there] *= np.minimum(swi[box] / np.maximum(flat[box], 1e-6), 1.0)
            field[there] += phase[box]
        noise = np.random.default_rng(100 + seed).normal(0, 0.01 * middle, swi.shape).astype(np.float32)
        arrays = (np.where(swi > 0, np.maximum(dark + noise, 0.0), 0.0), np.clip(field, -np.pi, np.pi))
        mirrored = rng.random() < 0.5
        subject, _, session = scan.partition("_")
        folder = _folder(root / subject / session / "anat")
        for (name, image), array in zip(images.items(), arrays, strict=True):
            data = np.flip(array, 0) if mirrored else array
            stored = nib.Nifti1Image(np.ascontiguousarray(data, np.float32), image.affine)
            stored.header.set_xyzt_units("mm")
            nib.save(stored, folder / f"{scan}_{name}.nii.gz")
            shutil.copy(ANAT / f"{SUBJECT}_{name}.json", folder / f"{scan}_{name}.json")
    damaged = _folder(root / "sub-09" / "anat") / "sub-09_swi.nii.gz"
    damaged.write_bytes((ANAT / f"{SUBJECT}_swi.nii.gz").read_bytes()[:100_000])
    mask = nib.Nifti1Image((labels > 0).astype(np.uint8), images["swi"].affine)
    nib.save(mask, _folder(root / "sub-10" / "anat") / "sub-10_swi.nii.gz")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _wider(spot: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(max(part.start - MARGIN, 0), min(part.stop + MARGIN, size))
        for part, size in zip(spot, shape, strict=True)
    )


def run(*words: object, codes: tuple[int, ...] = (0,)) -> None:
    """A command of cmb-jax; other exit codes end this tool."""
    code = subprocess.run([sys.executable, "-m", "cmb_jax.cli", *map(str, words)], check=False).returncode
    if code not in codes:
        sys.exit(code)


def make_page(study: Path, out: Path) -> Path:
    """Results, the comparison of the two time points, and the page."""
    run("bids", study, out, "participant", "--viewer", codes=(0, 1))  # one scan is damaged
    start = [f"{FOLLOWED}/ses-{n}/anat/{FOLLOWED}_ses-{n}_" for n in (1, 2)]
    changes = out / FOLLOWED / "compare_ses-1_ses-2"
    if not changes.is_dir():
        results = [out / f"{each}desc-cmb_detections.json" for each in start]
        images = [study / f"{each}swi.nii.gz" for each in start]
        run("compare", "--baseline", results[0], "--followup", results[1], "--out", changes,
            "--baseline-image", images[0], "--followup-image", images[1])  # fmt: skip
    run("bids", study, out, "group", codes=(0, 1))
    return out / GROUP_PAGE


def take(page: Path) -> None:
    """The page's upper half by day, its table by night."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        for name, scheme, part in (("cohort", "light", None), ("cohort-scans", "dark", "#scans")):
            tab = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            tab.goto(page.as_uri())
            if part:
                tab.locator("thead button", has_text="All").click()
                tab.locator(part).evaluate("part => part.scrollIntoView()")
            tab.wait_for_timeout(500)
            path = IMAGES / f"{name}.png"
            tab.screenshot(path=path)
            Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=192).save(
                path, optimize=True
            )
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    if not (work / "study").is_dir():
        make_study(work / "study")
    take(make_page(work / "study", work / "out"))


if __name__ == "__main__":
    main()
