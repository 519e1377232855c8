"""viewer.html: one file that holds the program, the candidates and, if small enough, the images."""

import base64
import dataclasses
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

import cmb_jax
from cmb_jax.anatomy.regions import Region
from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.outside import parse_json
from cmb_jax.io.volume import Volume
from cmb_jax.report.drawing import choose_windows, mask_bounds
from cmb_jax.report.html import content_hash, show_bidi_marks
from cmb_jax.report.summary import location_text, reason_text, region_title
from cmb_jax.review.verdicts import CERTAINTIES, FORMAT, MIMIC_KINDS, READER_RULE, VERSION, Verdict

MARGIN_MM = 12.0
"""Shown around the brain mask, in case the mask misses part of the brain."""
LEVELS = (1000, 250)
"""Gray levels of the brain: first as fine as a narrow window needs, then coarser to save space."""
MAX_EMBEDDED = 40_000_000
"""Bytes of gzipped images in a page; base64 adds a third, and the page stays below 60 MB."""

_COMPRESSION = 4
_BRIGHTEST = 99.9  # percentile of the brain that the gray levels span; brighter voxels get further levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanOnGrid:
    """The arrays to show of one scan, all on one grid (X, Y, Z), axes to Right, Anterior, Superior."""

    swi: Volume
    phase: np.ndarray | None  # radians, paramagnetic positive
    labels: np.ndarray  # ids of kept candidates
    brain_mask: np.ndarray | None = None  # bool; None: no cropping
    region_code: np.ndarray | None = None  # uint8, 16 * side + region


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewerImages:
    """The image files of a page, and how to display them."""

    files: Mapping[str, bytes]  # swi, phase, labels, regions, if available: gzipped NIfTI
    windows: Mapping[str, tuple[float, float]]  # stored values of black and white
    units: Mapping[str, float]  # of one stored step: in the scan's own units, or radians

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(content) for content in self.files.values())


def viewer_images(scan: ScanOnGrid, levels: int = LEVELS[0]) -> ViewerImages:
    """The scan as small files.

    Gray values are stored as int16. The SWI gets `levels` steps from its minimum to the brightest values of
    the brain, or keeps its own integers if those are coarser; the phase gets `levels` steps per 2 pi. Phase
    far from the brain is noise, which hardly compresses and would double the size, so it is set to 0.
    """
    brain = scan.brain_mask
    window = tuple(slice(0, n) for n in scan.swi.shape)
    if brain is not None and brain.any():
        window = _padded_box(brain, scan.swi.spacing_mm)
        brain = brain[window]
    affine = scan.swi.affine.copy()
    # the crop changes which voxel is the first; world coordinates must not move
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in window]
    swi = scan.swi.data[window]
    inside = np.ones(swi.shape, bool) if brain is None or not brain.any() else brain
    step = _step(swi, inside, levels)
    arrays: dict[str, np.ndarray] = {"swi": _to_int16(swi / step)}
    units = {"swi": step}
    if scan.phase is not None:
        units["phase"] = 2 * np.pi / levels
        phase = scan.phase[window]
        arrays["phase"] = _to_int16(np.where(_near(inside, scan.swi.spacing_mm), phase, 0) / units["phase"])
    arrays["labels"] = scan.labels[window].astype(np.int16)
    if scan.region_code is not None:
        arrays["regions"] = scan.region_code[window].astype(np.uint8)
    # from the stored integers, because the page sets windows in them
    shown = choose_windows(arrays["swi"], arrays.get("phase"), inside)
    windows = {"swi": shown.swi} | ({"phase": shown.phase} if "phase" in arrays else {})
    return ViewerImages(
        files={name: nifti_bytes(array, affine) for name, array in arrays.items()},
        windows=windows,
        units=units,
    )


def embedded_images(scan: ScanOnGrid) -> ViewerImages | None:
    """Images small enough for a page that opens from disk; None if even coarse ones are too large."""
    for levels in LEVELS:
        images = viewer_images(scan, levels)
        if images.size <= MAX_EMBEDDED:
            return images
    return None


def nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A gzipped NIfTI image with nothing in its header but geometry; the same array gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0)


def _padded_box(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[slice, ...]:
    """The bounding box of the mask plus `MARGIN_MM`, clipped to the array."""
    margins = [int(np.ceil(MARGIN_MM / edge)) for edge in spacing_mm]
    return tuple(
        slice(max(start - margin, 0), min(stop + margin, size))
        for (start, stop), margin, size in zip(mask_bounds(mask), margins, mask.shape, strict=True)
    )


def _near(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Voxels within about `MARGIN_MM` of the mask. A box is separable; a true distance is slow."""
    size = [2 * int(np.ceil(MARGIN_MM / 2 / edge)) + 1 for edge in spacing_mm]
    return ndimage.maximum_filter(mask.view(np.uint8), size=size).astype(bool)


def _step(values: np.ndarray, inside: np.ndarray, levels: int) -> float:
    """The scan's units per stored step."""
    low, high = float(values.min()), float(np.percentile(values[inside], _BRIGHTEST))
    step = max(high - low, 1e-12) / levels
    # a scan of integers that is coarser than the levels is stored losslessly
    if step < 1 and bool(np.all(values == np.rint(values))):
        step = 1.0
    # int16 must also hold what is brighter than the brain
    return max(step, float(np.abs(values).max()) / np.iinfo(np.int16).max / 4)


def _to_int16(values: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(values), limits.min, limits.max).astype(np.int16)


NAME = "viewer.html"
MODULES = ("state", "verdicts", "store", "volumes", "scene", "marks", "agreement", "list", "tools", "main")
"""In order of dependency: each uses only those before it."""

_IMPORT = re.compile(r"^import\s[^;]*?\sfrom\s*'\./[a-z]+\.js';\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async function|function|const|let|class) )", re.MULTILINE)
_IMAGE = re.compile(
    rb'<script type="application/octet-stream" id="image-([a-z]+)">([A-Za-z0-9+/=]*)</script>'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewerCase:
    """What the page shows beside the images."""

    title: str  # the name of the scan in the report
    subject: str  # pseudonym, for the files of verdicts
    swi_sha256: str
    detections_sha256: str  # of detections.csv
    rows: Sequence[DetectionRow]
    regions_trusted: bool
    warnings: Sequence[str] = ()


def render_viewer(case: ViewerCase, images: ViewerImages | None, *, embed: bool = True) -> str:
    """The page as one string. It fetches nothing, except from its own local server what `embed` leaves out.

    Args:
        case: the scan's result.
        images: None: the page explains how to add them.
        embed: put the images into the page, so that it can be opened from disk.
    """
    title = show_bidi_marks(case.title)
    facts = {
        "title": title,
        "subject": case.subject,
        "version": cmb_jax.__version__,
        "swi_sha256": case.swi_sha256,
        "detections_sha256": case.detections_sha256,
        "regions_trusted": case.regions_trusted,
        "warnings": [show_bidi_marks(warning) for warning in case.warnings],
        "candidates": [_candidate(row, case.regions_trusted) for row in case.rows],
        "images": [] if images is None else sorted(images.files),
        "windows": {} if images is None else dict(images.windows),
        "units": {} if images is None else dict(images.units),
        "format": {"name": FORMAT, "version": VERSION},
        "reader_rule": READER_RULE,
        "verdicts": list(Verdict),
        "certainties": list(CERTAINTIES),
        "mimic_kinds": list(MIMIC_KINDS),
        "region_names": {int(region): _region_name(region) for region in Region},
    }
    blocks = [f'<script type="application/json" id="case">{_json(facts)}</script>']
    if images is not None and embed:
        blocks += [
            f'<script type="application/octet-stream" id="image-{name}">'
            f"{base64.b64encode(content).decode('ascii')}</script>"
            for name, content in images.files.items()
        ]
    library, program, style = _script(_read("vendor/niivue.umd.js")), _script(_program()), _read("style.css")
    page = _read("page.html")
    parts = {
        "POLICY": html.escape(policy(), quote=True),
        "TITLE": html.escape(f"{title}: microbleeds"),
        "STYLE": style,
        "DATA": "\n".join(blocks),
        # NiiVue's license must accompany every copy
        "LICENSES": html.escape(_read("vendor/LICENSES.txt")),
        "LIBRARY": library,
        "PROGRAM": program,
    }
    # a single pass: a placeholder within inserted text must not be replaced in turn
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda place: parts[place.group(1)], page)


def policy() -> str:
    """The page's content security policy: only its own two scripts and style sheet, by their hashes.

    `connect-src 'self'` lets a page from the local server save verdicts there; a page opened from disk may
    not connect to anything.
    """
    scripts = " ".join(content_hash(_script(text)) for text in (_read("vendor/niivue.umd.js"), _program()))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {content_hash(_read('style.css'))}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def embedded_in(page: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The images embedded in a page of `render_viewer` (name: gzipped NIfTI), and the facts about them.

    Raises:
        ValueError: the page was not written by this program, or is damaged.
    """
    found = re.search(rb'<script type="application/json" id="case">(.*?)</script>', page, re.DOTALL)
    if found is None:
        raise ValueError("not a page of the viewer")
    facts = parse_json(found.group(1))
    files = {
        name.decode("ascii"): base64.b64decode(content, validate=True)
        for name, content in _IMAGE.findall(page)
    }
    return files, facts


def _candidate(row: DetectionRow, trusted: bool) -> dict[str, Any]:
    return {
        "id": row.id,
        "position_mm": [row.x_mm, row.y_mm, row.z_mm],
        "diameter_mm": row.diameter_mm,
        "score": row.score,
        "probability": row.probability,
        "category": row.category,
        "zone": row.zone if trusted else "none",
        "place": location_text(row, trusted=trusted),
        "status": row.status,
        "reason": "" if row.status == "kept" else reason_text(row.reason),
    }


def _region_name(region: Region) -> str:
    return region_title(region.name.lower()).lower().replace("csf", "CSF")


def _program() -> str:
    """Our modules as one script, without their imports and exports."""
    # browsers refuse to load modules into a page that was opened from disk
    texts = [_EXPORT.sub("", _IMPORT.sub("", _read(f"js/{name}.js"))) for name in MODULES]
    return "'use strict';\n" + "\n".join(texts)


def _json(value: object) -> str:
    """JSON for an inline element; no string in it can end that element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _script(text: str) -> str:
    """JavaScript for an inline element, with the two sequences escaped that HTML would interpret."""
    return re.sub("<!--", r"<\!--", re.sub("</script", r"<\/script", text, flags=re.IGNORECASE))


def _read(name: str) -> str:
    return resources.files("cmb_jax.viewer").joinpath(name).read_text(encoding="utf-8")
