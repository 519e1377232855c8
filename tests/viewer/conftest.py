"""A result with 40 kept and 5 rejected candidates and its viewer.html; a browser if there is one."""

import dataclasses
import hashlib
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from cmb_jax.cli.view import open_server
from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.volume import Volume
from cmb_jax.review.result import load_result
from cmb_jax.viewer.page import ScanOnGrid, ViewerCase, embedded_images, render_viewer
from tests.review.conftest import draw_labels, make_result

SHAPE = (64, 72, 40)
SPACING = (1.5, 1.5, 2.0)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",  # WebGL 2 without a graphics card
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def affine():
    matrix = np.diag([*SPACING, 1.0])
    matrix[:3, 3] = (-47.0, -53.0, -31.0)
    return matrix


def make_candidates(kept=40, rejected=5):
    """On a lattice, more than 6 mm apart, so that no added mark is taken for a candidate."""
    places = [(x, y, z) for z in (8, 16, 24, 32) for y in (12, 28, 44, 60) for x in (12, 28, 44)]
    rows = []
    for index in range(kept + rejected):
        i, j, k = places[index]
        x, y, z = (round(float(v), 2) for v in affine()[:3, :3] @ (i, j, k) + affine()[:3, 3])
        is_kept = index < kept
        rows.append(
            DetectionRow(
                **{"id": index + 1, "i": i, "j": j, "k": k, "x_mm": x, "y_mm": y, "z_mm": z},
                diameter_mm=3.0 + (index * 7 % 5),
                volume_mm3=20.0,
                score=round(0.99 - 0.02 * index, 4),
                category="definite" if index % 3 else "possible",
                zone=("lobar", "deep", "infratentorial")[index % 3],  # type: ignore[arg-type]
                region=("frontal", "thalamus", "cerebellum")[index % 3],
                side="left",
                status="kept" if is_kept else "rejected",
                reason="" if is_kept else "where a venous sinus runs",
            )
        )
    return tuple(rows)


def make_scan(rows) -> ScanOnGrid:
    rng = np.random.default_rng(0)
    x, y, z = np.indices(SHAPE)
    middle, half = np.array(SHAPE) / 2, np.array(SHAPE) * 0.48
    grid = np.stack([x, y, z], axis=-1)
    brain = np.sum(((grid - middle) / half) ** 2, axis=-1) < 1
    labels = draw_labels(rows, affine(), SHAPE)
    swi = np.where(brain, 300.0, 40.0) + rng.normal(0, 12, SHAPE)
    swi = np.where(labels > 0, 60.0, swi)
    phase = np.where(labels > 0, 1.5, rng.normal(0, 0.2, SHAPE))
    region = np.where(brain, 16 + 9, 0).astype(np.uint8)
    return ScanOnGrid(
        swi=Volume.from_array(swi.astype(np.float32), affine()),
        phase=phase.astype(np.float32),
        labels=labels,
        brain_mask=brain,
        region_code=region,
    )


@dataclasses.dataclass(frozen=True)
class Made:
    folder: Path
    rows: tuple[DetectionRow, ...]
    scan: ScanOnGrid

    @property
    def page(self) -> Path:
        return self.folder / "viewer.html"


def make(folder: Path, title="sub-07_ses-1_swi", name="sub-07_ses-1_swi.nii.gz") -> Made:
    rows = make_candidates()
    make_result(folder, rows, affine(), name=name, shape=SHAPE)
    scan = make_scan(rows)
    result = load_result(folder)
    case = ViewerCase(
        title=title,
        subject=result.subject,
        swi_sha256=result.swi_sha256,
        detections_sha256=hashlib.sha256((folder / "detections.csv").read_bytes()).hexdigest(),
        rows=rows,
        regions_trusted=True,
    )
    (folder / "viewer.html").write_text(render_viewer(case, embedded_images(scan)), encoding="utf-8")
    return Made(folder, rows, scan)


@pytest.fixture
def made(tmp_path) -> Made:
    return make(tmp_path / "result")


@pytest.fixture
def served(made):
    """The result's server, running; its address ends in a slash."""
    server = open_server(made.folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), chromium_sandbox=False)
        yield browser
        browser.close()
