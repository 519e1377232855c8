"""cmb-jax view: serve the viewer of one result on this machine, and save the verdicts given there."""

from __future__ import annotations

import dataclasses
import re
import shlex
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from cmb_jax.cli.review import summary, unread_text
from cmb_jax.errors import UserError

if TYPE_CHECKING:
    from cmb_jax.io.volume import Volume
    from cmb_jax.review.result import Result
    from cmb_jax.scan import PhaseSign
    from cmb_jax.viewer.page import ViewerImages
    from cmb_jax.viewer.server import ViewerServer

_READ = re.compile(r"phase read as (.*?), sign ([+-]1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Scroll through a scan and judge its candidates in the browser; verdicts are saved as they are given.

    Runs a small server for this machine alone until Ctrl-C, and opens the browser. Verdicts go to
    RESULT/verdicts/READER.json, which `cmb-jax review import` reads, and the truth that you ask for to
    RESULT/truth. Nothing else is written, and nothing leaves the machine.
    """

    result: tyro.conf.Positional[Path]
    """folder that cmb-jax predict wrote."""
    swi: Path | None = None
    """the image that was searched, if the result holds no viewer.html with the images (or for the whole image
    in full depth)."""
    phase: Path | None = None
    """its phase image."""
    browser: bool = True
    """open the browser; else the address is only printed."""
    port: int = 0
    """to listen on; default: one that is free."""


def run(options: ViewOptions) -> None:
    """Serve until Ctrl-C."""
    server = open_server(options.result, options.swi, options.phase, options.port)
    print(f"Viewer: {server.address}")
    print("It answers on this machine alone; Ctrl-C ends it. Research use only; not a diagnosis.", flush=True)
    if options.browser and not webbrowser.open(server.address):
        print("No browser could be opened: copy the address into one on this machine.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nended; verdicts are saved")
    finally:
        server.server_close()


def open_server(
    result: Path, swi: Path | None = None, phase: Path | None = None, port: int = 0
) -> ViewerServer:
    """A server of one result that listens already."""
    if phase is not None and swi is None:
        raise UserError("--phase goes with --swi IMAGE")
    from cmb_jax.io.atomic import sha256_file
    from cmb_jax.review.result import load_result, read_record
    from cmb_jax.viewer.page import ViewerCase, render_viewer
    from cmb_jax.viewer.server import Site, ViewerServer

    read = load_result(result)
    record = read_record(read.paths)
    images = _given(read, record, swi, phase) if swi is not None else _embedded(read)
    case = ViewerCase(
        title=read.subject,
        subject=read.subject,
        swi_sha256=read.swi_sha256,
        detections_sha256=sha256_file(read.paths.table),
        rows=read.rows,
        regions_trusted=bool(record.get("regions_trusted", True)),
        warnings=[str(line) for line in record.get("warnings", ())],
    )
    site = Site(
        page=render_viewer(case, images, embed=False).encode(),
        images=images.files,
        folder=read.paths.work,
        swi_sha256=case.swi_sha256,
        detections_sha256=case.detections_sha256,
        write_truth=lambda files: _truth(files, read),
    )
    try:
        return ViewerServer(site, port)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--port {port}: cannot be listened on ({error}); leave it out for a free one"
        ) from error


def _embedded(result: Result) -> ViewerImages:
    """The images in the result's viewer.html."""
    from cmb_jax.io.outside import read_bytes, reading
    from cmb_jax.viewer.page import ViewerImages, embedded_in

    path = result.paths.viewer
    with reading(path, "give the images: --swi FILE --phase FILE"):
        files, facts = ({}, {}) if not path.exists() else embedded_in(read_bytes(path, limit=2**28))
        if files and facts["swi_sha256"] != result.swi_sha256:
            raise ValueError("of another scan")
        if "swi" in files:
            windows = {name: (float(low), float(high)) for name, (low, high) in facts["windows"].items()}
            return ViewerImages(files=files, windows=windows, units=facts["units"])
    raise UserError(
        f"{result.folder}: holds no viewer.html with the images; give them: --swi FILE --phase FILE "
        f"(the image that was searched is {result.subject}, SHA-256 {result.swi_sha256[:8]}...)"
    )


def _given(result: Result, record: dict[str, Any], swi: Path, phase: Path | None) -> ViewerImages:
    """The images in files, which must be those that were searched."""
    import numpy as np

    from cmb_jax.inference.scan import read_phase
    from cmb_jax.io.nifti import check_same_grid
    from cmb_jax.scan.phase_range import asked_range
    from cmb_jax.viewer.page import ScanOnGrid, viewer_images

    volume = _searched(swi, "swi", result, record)
    if volume.shape != result.grid.shape:
        raise UserError(
            f"{swi}: its shape is not that of {result.paths.labels}; give the image that was searched"
        )
    # the phase is read as the prediction read it: range and sign stand in the record's steps
    radians = None
    if phase is not None:
        stored = _searched(phase, "phase", result, record)
        check_same_grid(volume, stored)
        matches = [match for step in record.get("steps", ()) if (match := _READ.match(str(step)))]
        sign: PhaseSign = next(("+1" if match[2] == "+1" else "-1" for match in matches), "auto")
        kind = next((asked_range(match[1].split()) for match in matches), None)
        radians = read_phase(stored, volume, sign, kind).radians
    return viewer_images(
        ScanOnGrid(swi=volume, phase=radians, labels=result.labels.astype(np.int16), region_code=None)
    )


def _searched(path: Path, role: str, result: Result, record: dict[str, Any]) -> Volume:
    from cmb_jax.io.nifti import read_volume
    from cmb_jax.io.outside import reading

    volume = read_volume(path)
    with reading(result.paths.record):
        wanted = [each["sha256"] for each in record["inputs"] if each["role"] == role]
    if not wanted:
        raise UserError(f"{path}: {result.folder} was made without a {role} image; leave it out")
    if volume.sha256 not in wanted:
        raise UserError(
            f"{path}: is not the {role} image of {result.folder} (SHA-256 {str(volume.sha256)[:8]}..., "
            f"wanted {wanted[0][:8]}...); give the file that was predicted on"
        )
    return volume


def _truth(files: Sequence[Path], result: Result) -> dict[str, Any]:
    """Write truth into the folder `truth` of the result, as `cmb-jax review import` does."""
    from cmb_jax.datasets.folder import case_and_word
    from cmb_jax.io.provenance import is_bids_name
    from cmb_jax.review.truth import write_truth

    folder = result.paths.work / "truth"
    # named as datasets.folder names the case of the image
    case = result.subject
    if is_bids_name(case):
        case = case_and_word(folder / f"{case}.nii.gz", folder)[0]
    table = folder / f"{case}_points.csv"
    labels = folder / "labels" / f"{case}.nii.gz"
    truth = write_truth(files, result, table, labels, overwrite=True)
    text = f"Truth: {truth.counts}.\n{summary([truth.scan])}\nWritten: " + ", ".join(
        str(path.relative_to(result.paths.work)) for path in truth.files
    )
    if truth.unread:
        text = f"Warning: {unread_text(truth.unread, len(result.kept))}.\n{text}"
    return {
        "summary": text,
        "commands": [
            f"cp {shlex.quote(str(table))} SITE/    # beside this scan's images",
            "cmb-jax data index SITE --out site.json",
            "cmb-jax train --config finetune --workdir runs/site --data.index site.json",
            f"cmb-jax evaluate --pred {shlex.quote(str(result.paths.table.parent))} --truth "
            f"{shlex.quote(str(labels.parent))} --out metrics.json",
        ],
    }
