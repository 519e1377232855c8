"""The self-contained HTML page of one subject, and what all pages share."""

import base64
import functools
import hashlib

import jinja2

from cmb_jax.report import pictures, summary
from cmb_jax.report.drawing import choose_windows
from cmb_jax.report.statements import bombs_table, statements

MAX_DRAWN = 100
"""Kept detections that get pictures; the rest are only listed."""
MAX_REJECTED_DRAWN = 24
"""Rejected candidates that get a thumbnail, by descending score."""

_BIDI_MARKS = {mark: f"\\u{mark:04x}" for mark in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def show_bidi_marks(text: str) -> str:
    """The text with bidirectional control characters as visible codes: they can disguise a file's name."""
    return text if text.isascii() else text.translate(_BIDI_MARKS)


@functools.cache
def environment() -> jinja2.Environment:
    """The page templates; every value is escaped, because file names may contain anything."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("cmb_jax.report"),
        autoescape=True,
        finalize=lambda value: show_bidi_marks(value) if isinstance(value, str) else value,
        undefined=jinja2.StrictUndefined,  # a misspelled name must fail, not print nothing
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["region_title"] = summary.region_title
    env.filters["reason_text"] = summary.reason_text
    env.filters["probability_text"] = summary.probability_text
    return env


def content_hash(text: str) -> str:
    """The hash of a script or style sheet in the notation of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def render_report(content: summary.ReportContent, *, max_drawn: int = MAX_DRAWN) -> str:
    """The page as one string: images inlined, no script, nothing fetched from anywhere.

    Args:
        content: the subject's result.
        max_drawn: kept detections that get pictures (the highest scores first); all are listed.
    """
    windows = choose_windows(
        content.swi.data, None if content.phase is None else content.phase.data, content.brain_mask
    )
    kept, rejected = summary.kept_rows(content.rows), summary.rejected_rows(content.rows)
    # chosen by score, shown by id: the order of detections.csv
    drawn = sorted(sorted(kept, key=lambda row: (-row.score, row.id))[:max_drawn], key=lambda row: row.id)
    maker = pictures.ThumbnailMaker(content, windows)
    mars = summary.mars_table(kept)
    return (
        environment()
        .get_template("subject.html")
        .render(
            content=content,
            trusted=content.regions_trusted,
            calibrated=any(row.probability is not None for row in content.rows),
            kept=kept,
            rejected=rejected,
            counted=summary.count(kept),
            zone_counts=[
                (zone, summary.count(row for row in kept if row.zone == zone)) for zone in summary.ZONES
            ],
            pattern=summary.describe_pattern(kept) if kept else "",
            warnings=summary.all_warnings(content),
            empty=summary.empty_explanation(content),
            reasons=summary.reason_counts(content.rows),
            low=sum(row.below_operating_point for row in rejected),
            mars=mars,
            bombs=bombs_table(kept),
            statements=statements(kept, content.partial_field_of_view),
            show_unsided=any(line.unsided.total for line in mars),
            detections=[maker.full(row) for row in drawn],
            undrawn=[row for row in kept if row not in drawn],
            rejected_pictures=[maker.brief(row) for row in rejected[:MAX_REJECTED_DRAWN]],
            glass=pictures.glass_brain(content, kept),
            slabs=pictures.slabs(content, kept, windows),
            quality=pictures.quality_mosaic(content, windows),
            drawn_regions=[region.name.lower() for region in pictures.DRAWN_REGIONS],
            windows=windows,
            field_of_view_mm=pictures.FIELD_OF_VIEW_MM,
            threshold=summary.setting(content, "score_threshold"),
            definite_threshold=summary.setting(content, "definite_threshold"),
            location=functools.partial(summary.location_text, trusted=content.regions_trusted),
            zone_of=functools.partial(pictures.shown_zone, content=content),
        )
    )
