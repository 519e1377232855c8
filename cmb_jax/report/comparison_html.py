"""The self-contained HTML page of two time points."""

from __future__ import annotations

import functools
from pathlib import Path

from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.comparison_content import STATUSES, ComparisonContent
from cmb_jax.report.html import environment
from cmb_jax.report.registered import RegisteredPictures
from cmb_jax.report.summary import location_text
from cmb_jax.report.thumbnails import FIELD_OF_VIEW_MM

MAX_DRAWN = 60
"""Changed lesions with pictures; all are listed."""


def render_comparison(content: ComparisonContent, *, max_drawn: int = MAX_DRAWN) -> str:
    """The page as one string: images inlined, no script, nothing fetched from anywhere.

    Args:
        content: of the comparison.
        max_drawn: changed lesions that get pictures, in the order of the list.
    """
    pictures = RegisteredPictures(content)
    changed = [change for change in content.changes if change.status != "stable"]
    return (
        environment()
        .get_template("comparison.html")
        .render(
            content=content,
            scans=(content.baseline, content.followup),
            counts=[(status, content.count(status)) for status in STATUSES],
            drawn=[(change, pictures.thumbnails(change)) for change in changed[:max_drawn]],
            undrawn=len(changed[max_drawn:]),
            check=pictures.check(),
            location=functools.partial(location_text, trusted=True),
            field_of_view_mm=FIELD_OF_VIEW_MM,
        )
    )


def write_comparison_report(content: ComparisonContent, path: Path, *, overwrite: bool = False) -> None:
    """Render the page and put it at `path` in one step.

    Raises:
        UserError: `path` exists and `overwrite` is false, or it cannot be written.
    """
    atomic_write_text(path, render_comparison(content), overwrite=overwrite)
