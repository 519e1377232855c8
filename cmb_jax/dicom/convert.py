"""One stack of DICOM frames to one volume, by dcm2niix."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import dcm2niix
from pydicom import dcmread

from cmb_jax.dicom.files import has_mark, open_whole
from cmb_jax.dicom.grid import placed_by_headers
from cmb_jax.dicom.stacks import SAME_ECHO_MS, Stack
from cmb_jax.dicom.values import valued_by_headers
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.outside import read_json_object, reading
from cmb_jax.io.volume import Volume

_SUFFIXES = {"_ph": "PHASE", "_real": "REAL", "_imaginary": "IMAGINARY"}  # of dcm2niix's file names
# Defaults file ignored; display scaling, which is what the standard's slope and intercept say; nothing about
# the patient in the sidecar.
_OPTIONS = ("-g", "i", "-p", "n", "-z", "n", "-b", "y", "-ba", "y", "-f", "volume")


def convert(stack: Stack) -> Volume:
    """The volume of a stack, which lies where the headers say.

    `source` and `sha256` of the volume stand for the stack: a neutral name, and the hash over the hashes of
    its files in their order.

    Raises:
        UserError: dcm2niix fails, gives no or several volumes, or a volume that lies elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="cmb_jax_dicom_") as temporary:
        inputs, outputs = Path(temporary, "in"), Path(temporary, "out")
        inputs.mkdir()
        outputs.mkdir()
        for number, instance in enumerate(stack.instances):
            # numbered, so that names with identifiers go nowhere
            _hand_over(instance.path, inputs / f"{number:06d}.dcm")
        # classic objects were chosen one by one; of a multi-frame object the volumes must stay apart
        merge = "n" if stack.instance.multi_frame else "y"
        arguments = [*_OPTIONS, "-m", merge, "-o", str(outputs), str(inputs)]
        done = dcm2niix.main(arguments, capture_output=True, encoding="utf-8", errors="replace")
        images = [path for path in sorted(outputs.glob("*.nii")) if _is_of(path, stack)]
        if len(images) != 1:
            errors = [line for line in done.stdout.splitlines() if line.startswith(("Error", "Warning"))]
            what = errors[-1] if errors else f"exit code {done.returncode}"
            raise UserError(
                f"series {stack.key}: dcm2niix made {len(images)} volumes of it instead of one ({what}); "
                "convert it yourself and give --swi"
            )
        volume = read_volume(images[0])
    digest = hashlib.sha256("".join(sha256_file(i.path) for i in stack.instances).encode()).hexdigest()
    placed = valued_by_headers(placed_by_headers(volume, stack), stack)
    return dataclasses.replace(placed, source=Path(stack_name(stack)), sha256=digest)


def stack_name(stack: Stack) -> str:
    """A name without identifiers: number of the series, and of images."""
    return f"series {stack.key} ({len(stack.frames)} images)"


def _is_of(path: Path, stack: Stack) -> bool:
    """Whether a converted file holds the stack's component and echo: multi-frame objects may hold several."""
    if not stack.instance.multi_frame:
        return True
    component = next((name for suffix, name in _SUFFIXES.items() if path.stem.endswith(suffix)), "MAGNITUDE")
    if component != (stack.first.component or "MAGNITUDE"):
        return False
    sidecar = path.with_suffix(".json")
    stated = read_json_object(sidecar).get("EchoTime") if sidecar.is_file() else None
    echo = stack.first.echo_ms
    return stated is None or echo is None or abs(1000 * stated - echo) <= SAME_ECHO_MS


def _hand_over(source: Path, target: Path) -> None:
    """The file under another name, with the preamble and the mark that dcm2niix looks for."""
    if not has_mark(source):
        with reading(source), open_whole(source) as whole:
            dcmread(whole, force=True).save_as(target, enforce_file_format=True)
        return
    try:
        os.symlink(source.resolve(), target)
    except OSError:  # a system without symbolic links
        shutil.copyfile(source, target)
