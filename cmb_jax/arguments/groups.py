"""Commands with subcommands of their own: data, review, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

Kind = Literal["valdo", "csiro", "dou", "yonsei", "bids", "folder"]


def data_check(
    path: tyro.conf.Positional[Path],
    kind: Kind | None = None,
    out: Path | None = None,
    connectivity: Literal[6, 18, 26] = 26,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Say what a data set holds, what is missing or wrong, and how many lesions it has.

    Every image is read. Exit code 0 as long as one case can be used; what cannot is listed at the end.

    Args:
      path: folder of the data set.
      kind: its layout; default: guessed.
      out: .png or .html to write: a contact sheet of lesions.
      connectivity: neighbours of a voxel when lesions of masks are counted.
      overwrite: replace the contact sheet if it exists.
      keep_identifiers: name the cases of own folders in the sheet as their files are named, not by number.
    """
    from cmb_jax.commands.data import check

    check(
        path=path,
        kind=kind,
        out=out,
        connectivity=connectivity,
        overwrite=overwrite,
        keep_identifiers=keep_identifiers,
    )


def data_index(
    path: tyro.conf.Positional[Path], out: Path, kind: Kind | None = None, overwrite: bool = False
) -> None:
    """Write the index of a data set: cases, patients, images by role and truth, ready to be split.

    Headers, tables and masks are read, images are not: run `cmb-jax data check` first.

    Args:
      path: folder of the data set.
      out: JSON file to write; paths in it are relative to the data set's folder.
      kind: its layout; default: guessed.
      overwrite: replace the file if it exists.
    """
    from cmb_jax.commands.data import index

    index(path=path, out=out, kind=kind, overwrite=overwrite)


def review_export(
    result: tyro.conf.Positional[Path], out: Path, subject: str | None = None, overwrite: bool = False
) -> None:
    """Write what readers open: ITK-SNAP labels, 3D Slicer markups, and a spreadsheet to fill in.

    Args:
      result: folder that cmb-jax predict wrote.
      out: folder to make: labels.nii.gz, labels_itksnap.txt, microbleeds.mrk.json, review.xlsx.
      subject: name of the scan in these files, such as its folder's in the viewer; default: its BIDS name,
        or one made from the image's hash.
      overwrite: replace the folder if it exists.
    """
    from cmb_jax.commands.review import export

    export(result=result, out=out, subject=subject, overwrite=overwrite)


def review_import(
    files: tyro.conf.Positional[tuple[Path, ...]],
    result: Path,
    out: Path,
    labels: Path | None = None,
    subject: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read readers' verdicts back: truth for fine-tuning, and agreement with the detector and each other.

    Each file is one reader's: verdicts of cmb-jax view (.json), review.xlsx filled in, markups saved by
    3D Slicer, labels painted in ITK-SNAP, or an export of Microbleed-review-viewer (which may hold several
    readers).

    Args:
      files: what the readers saved, readers in the same order for every scan.
      result: folder that cmb-jax predict wrote.
      out: CSV file of truth to write; readings and agreement go beside it as .json.
      labels: label image (.nii.gz) of the microbleeds to write too, for cmb-jax evaluate and calibrate.
      subject: as given to review export.
      overwrite: replace the files if they exist.
    """
    from cmb_jax.commands.review import import_

    import_(files=files, result=result, out=out, labels=labels, subject=subject, overwrite=overwrite)


def review_agreement(
    files: tyro.conf.Positional[tuple[Path, ...]], out: Path, overwrite: bool = False
) -> None:
    """Agreement over several scans: kappa, precision of the detector, and counts per scan with their ICC.

    Args:
      files: .json files that review import wrote, with the same readers in the same order.
      out: JSON file to write.
      overwrite: replace the file if it exists.
    """
    from cmb_jax.commands.review import agreement

    agreement(files=files, out=out, overwrite=overwrite)


def weights_show(
    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = "small",
    verbose: bool = False,
) -> None:
    """What weights are: training, operating points, calibration, sha256.

    Args:
      weights: name of bundled weights, or a .safetensors file.
      verbose: print the whole record and the configuration too.
    """
    from cmb_jax.commands.weights import show

    show(weights=weights, verbose=verbose)
