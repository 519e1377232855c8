"""viewer.html: one file with the program, the candidates and, where they are small enough, the images."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import cmb_jax
from cmb_jax.anatomy.regions import Region
from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.outside import parse_json
from cmb_jax.report.html import content_hash
from cmb_jax.report.summary import location_text, reason_text, region_title
from cmb_jax.review.verdicts import CERTAINTIES, FORMAT, MIMIC_KINDS, READER_RULE, VERSION, Verdict
from cmb_jax.viewer.images import ViewerImages

NAME = "viewer.html"
MODULES = ("state", "verdicts", "store", "volumes", "scene", "marks", "agreement", "list", "tools", "main")
"""In the order in which each needs only what stands before it."""

_IMPORT = re.compile(r"^import\s[^;]*?\sfrom\s*'\./[a-z]+\.js';\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async function|function|const|let|class) )", re.MULTILINE)
_IMAGE = re.compile(
    rb'<script type="application/octet-stream" id="image-([a-z]+)">([A-Za-z0-9+/=]*)</script>'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewerCase:
    """What the page shows beside the images."""

    title: str  # what the report calls the scan
    subject: str  # pseudonym for files of verdicts
    swi_sha256: str
    detections_sha256: str  # of detections.csv
    rows: Sequence[DetectionRow]
    regions_trusted: bool
    warnings: Sequence[str] = ()


def render_viewer(case: ViewerCase, images: ViewerImages | None, *, embed: bool = True) -> str:
    """The page as one string; it fetches nothing but, from its own local server, what `embed` leaves out.

    Args:
        case: the scan's result.
        images: None: the page says how to give them.
        embed: put the images into the page, as it must be to open from disk.
    """
    facts = {
        "title": case.title,
        "subject": case.subject,
        "version": cmb_jax.__version__,
        "swi_sha256": case.swi_sha256,
        "detections_sha256": case.detections_sha256,
        "regions_trusted": case.regions_trusted,
        "warnings": list(case.warnings),
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
        "TITLE": html.escape(f"{case.title}: microbleeds"),
        "STYLE": style,
        "DATA": "\n".join(blocks),
        # its license asks to go along with every copy
        "LICENSES": html.escape(_read("vendor/LICENSES.txt")),
        "LIBRARY": library,
        "PROGRAM": program,
    }
    # one pass, so that nothing put in is taken for a place to put something
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda place: parts[place.group(1)], page)


def policy() -> str:
    """The page's content security policy: its own two scripts and style sheet by hash, and nothing else.

    `connect-src 'self'` lets a page of the local server save verdicts there; from disk it allows nothing.
    """
    scripts = " ".join(content_hash(_script(text)) for text in (_read("vendor/niivue.umd.js"), _program()))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {content_hash(_read('style.css'))}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def embedded_in(page: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The images in a page of `render_viewer` (name: gzipped NIfTI), and the facts about them.

    Raises:
        ValueError: the page was not written by this program, or is damaged.
    """
    found = re.search(rb'<script type="application/json" id="case">(.*?)</script>', page, re.DOTALL)
    if found is None:
        raise ValueError("no page of the viewer")
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
    """Our modules as one: imports of each other go, exports become plain names of one scope."""
    texts = [_EXPORT.sub("", _IMPORT.sub("", _read(f"js/{name}.js"))) for name in MODULES]
    return "'use strict';\n" + "\n".join(texts)


def _json(value: object) -> str:
    """JSON in which no text can end the element that holds it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _script(text: str) -> str:
    """JavaScript for an inline element: the two texts that HTML would take as its own get a backslash."""
    return re.sub("<!--", r"<\!--", re.sub("</script", r"<\/script", text, flags=re.IGNORECASE))


def _read(name: str) -> str:
    return resources.files("cmb_jax.viewer").joinpath(name).read_text(encoding="utf-8")
