"""Miniature data sets in the layouts of the real ones, with their oddities."""

import nibabel as nib
import numpy as np
import openpyxl
from scipy.io import savemat

SHAPE = (24, 28, 14)
LPS = np.array([[-1.0, 0, 0, 12], [0, -1.0, 0, 14], [0, 0, 2.0, -14], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.9, -0.1, 0.1, -10], [0.1, 0.9, -0.2, -12], [-0.1, 0.2, 1.9, -13], [0, 0, 0, 1]])


def brain(points=(), shape=SHAPE, seed=0, nan=0):
    """An image (I, J, K) with a dark spot at each voxel index, and some NaN in a corner.

    It gets brighter along the first axis: neighbors have something in common, as in every image.
    """
    data = np.linspace(90, 110, shape[0])[:, None, None] + np.random.default_rng(seed).normal(size=shape)
    for i, j, k in points:
        data[i - 1 : i + 2, j - 1 : j + 2, k] = 40
        data[i, j, k] = 5
    data.reshape(-1)[:nan] = np.nan
    return data.astype(np.float32)


def save(path, data, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(data), affine), path)
    return path


def mask(blobs, shape=SHAPE, value=1.0):
    """A map with single blobs, given as tuples of slices or voxels."""
    data = np.zeros(shape, np.float32)
    for blob in blobs:
        data[blob] = value
    return data


def book(path, rows):
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook.save(path)
    return path


def valdo_case(root, subject, cmb, *, roles=("T2S", "T1", "T2"), points=(), affine=LPS, nan=0):
    for role in roles:
        dark = points if role == "T2S" else ()
        name = f"{subject}_space-T2S_desc-masked_{role}.nii.gz"
        save(root / subject / name, brain(dark, nan=nan), affine)
    if cmb is not None:
        save(root / subject / f"{subject}_space-T2S_CMB.nii.gz", cmb, affine)


def csiro_rows(entries, triplets=4):
    """Rows as in the tables: only a triplet's first column has a heading, unused cells hold blanks."""
    header = ["NIFTI File Name "]
    for number in range(1, triplets + 1):
        header += [f"Location CMB # {number}", None, None]
    rows = [header]
    for name, points in entries:
        flat = [value for point in points for value in point]
        rows.append([name, *flat, *[" "] * (3 * triplets - len(flat))])
    return rows


def csiro(parent):
    """Patient 122 in three folders; repeats of triplets; counted from 1."""
    root = parent / "PublicDataShare_2020"
    real, added, alone = [(6, 8, 5), (15, 20, 9)], (10, 12, 4), (9, 9, 7)
    zero_based = [(i - 1, j - 1, k - 1) for i, j, k in real]
    save(root / "rCMB_DefiniteSubject" / "122_T1.nii.gz", brain(zero_based))
    save(root / "NoCMBSubject" / "130_T1.nii.gz", brain())
    save(root / "sCMB_DefiniteSubject" / "122_T1_rsCMB_3.nii.gz", brain([*zero_based, (9, 11, 3)]))
    save(root / "sCMB_NoCMBSubject" / "130_T1_sCMB_1.nii.gz", brain([(8, 8, 6)]))
    book(root / "rCMBInformationInfo.xlsx", csiro_rows([("122_T1.nii.gz", [*real, real[0]])]))
    book(root / "sCMBInformationInfo.xlsx", csiro_rows([("122_T1_rsCMB_3.nii.gz", [added])]))
    book(root / "sCMBLocationInformationInfoNocmb.xlsx", csiro_rows([("130_T1_sCMB_1.nii.gz ", [alone])]))
    return parent


def dou(root, *, upper=False):
    """Two scans, one of them .nii.gz, one without microbleeds."""
    points = [(6, 8, 5), (15, 20, 9)]
    nii, truth = ("NII", "Ground_Truth") if upper else ("nii", "ground_truth")
    save(root / nii / "01.nii", brain([(i - 1, j - 1, k - 1) for i, j, k in points]))
    save(root / nii / "02.nii.gz", brain())
    (root / truth).mkdir()
    savemat(root / truth / "01.mat", {"cen": np.array(points, np.float64), "gt_num": 2})
    savemat(root / truth / "02.mat", {"cen": np.zeros((0, 0)), "gt_num": 0})
    return root


def yonsei(root):
    """A folder of images for each subject, tables beside them or in Label; slice, column, row from 1."""
    save(root / "HR" / "Data" / "S001" / "SWI.nii.gz", brain([(5, 7, 4)]))
    save(root / "HR" / "Data" / "S001" / "Phase.nii.gz", brain(seed=1))
    save(root / "HR" / "Data" / "S001" / "Mag.nii.gz", brain(seed=2))
    book(root / "HR" / "Label" / "S001.xlsx", [[5, 6, 8]])
    save(root / "LR" / "p2" / "p2_SWI.nii", brain([(9, 3, 6)]))
    book(root / "LR" / "p2" / "p2.xlsx", [["Slice", "Column", "Row"], [7, 10, 4], [7, 10, 4]])
    return root


def folder(root):
    """Flat names with a mask, a folder with points, a BIDS name without truth."""
    save(root / "sub-01_swi.nii.gz", brain([(5, 7, 4)]), OBLIQUE)
    save(root / "sub-01_mask.nii.gz", mask([(slice(4, 7), slice(6, 9), 4)]), OBLIQUE)
    save(root / "anna" / "SWI.nii", brain([(5, 7, 4)]), OBLIQUE)
    x, y, z = (OBLIQUE @ [5, 7, 4, 1])[:3]
    (root / "anna" / "points.csv").write_text(f"id,X_mm,y_mm,z_mm,diameter_mm\n1,{x},{y},{z},4.5\n")
    save(root / "sub-02" / "ses-2" / "swi" / "sub-02_ses-2_part-mag_T2starw.nii.gz", brain())
    return root


MAKERS = {"csiro": csiro, "dou": dou, "yonsei": yonsei, "folder": folder}


def refused(result, match):
    """Checks what a command gave: exit code 2 and one line."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert match in err
