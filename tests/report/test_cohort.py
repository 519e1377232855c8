"""The page of a cohort: every scan, what stands out, and marks where the microbleeds are."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cmb_jax.cohort.group import MOST_PICTURE_BYTES
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume
from cmb_jax.report.cohort import (
    OUTLIER_SCORE,
    CohortContent,
    CohortLine,
    Link,
    Projection,
    make_projection,
    marked_picture,
    outliers,
    render_cohort,
    shrunk,
)
from cmb_jax.report.plots import count_histogram
from cmb_jax.report.summary import ZONES, Count
from tests.report.test_html import Page


def line(n, total=0, **changes):
    zones = {"lobar": Count(total), "deep": Count(), "infratentorial": Count(), "none": Count()}
    found = {"counted": Count(total), "zones": tuple(zones.items()), "rejected": 20, "brain_ml": 1400.0}
    return CohortLine(**{"name": f"sub-{n:02d}", "status": "done", **found} | changes)


def without_result(name, status, reason=""):
    return CohortLine(name=name, status=status, reason=reason)


@pytest.fixture
def lines():
    return (
        *(line(n, n % 3) for n in range(10)),
        line(
            10,
            60,
            warnings=("the sign of the phase is a guess",),
            links=(Link(text="Report", href="a/b%20c.html"),),
        ),
        without_result("sub-11", "failed", "every voxel is 7 <b>"),
        without_result("sub-12", "not analysable", "no head"),
    )


def test_every_scan_has_a_line(lines):
    page = Page(render_cohort(CohortContent(title="t", lines=lines, notes=("images differ",), version="1")))
    rows = page.values("data-status")
    assert rows == ["done"] * 11 + ["failed", "not analysable"]
    assert page.words("summary").startswith("69 microbleeds in 7 of 11 scans")
    assert "every voxel is 7 <b>" in page.words("line-11")
    # what was not counted is no zero
    assert page.words("line-11").count("–") == 7  # all, three zones, rejected, brain, warnings
    assert "–" not in page.words("line-0")
    assert "images differ" in page.words("warnings")
    assert "a/b%20c.html" in [a["href"] for a in page.all("a")]
    policy = page.all("meta", "http-equiv")[0]["content"]
    assert re.search(r"script-src 'sha256-[^']+'$", policy)


def test_outliers_are_those_of_the_robust_score():
    rng = np.random.default_rng(0)
    counts = [*rng.poisson(4, 30).tolist(), 40]
    roots = np.sqrt(counts)
    score = (roots - np.median(roots)) / stats.median_abs_deviation(roots, scale="normal")
    expected = np.flatnonzero(np.abs(score) > OUTLIER_SCORE).tolist()
    assert 30 in expected
    assert [found.line for found in outliers([line(n, count) for n, count in enumerate(counts)])] == expected
    (found,) = outliers([line(n, brain_ml=1400.0 + n if n else 500.0) for n in range(12)])
    assert (found.line, found.why) == (0, "500 ml brain (median 1406)")
    assert outliers([line(n, 50 * (n == 0)) for n in range(7)]) == ()  # too few to tell
    assert outliers([line(n, n % 2) for n in range(20)]) == ()


def test_histogram_counts_scans():
    values = [0, 0, 1, 2, 3, 4, 4, 9, 10, 50, 200]
    picture = count_histogram({"All": values}, "Microbleeds per scan")
    titles = [shape.title for shape in picture.shapes if shape.title]
    said = {int(t.split()[1]): t.partition(" with ")[2] for t in titles}
    assert sum(int(t.split()[1]) for t in titles) == len(values)
    assert said[3] == "3 to 4 microbleeds"
    assert "2 with 50 or more" in picture.alt


@pytest.fixture
def scan():
    """A bright ball of a brain on an oblique grid with one dark voxel block in it."""
    shape = (50, 60, 30)
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 2.0, 3.0])
    affine[:3, 3] = (-40.0, -70.0, -30.0)
    grid = np.stack(np.indices(shape), axis=-1)
    brain = np.sum(((grid - np.array(shape) / 2) / (np.array(shape) * 0.45)) ** 2, axis=-1) < 1
    noise = np.random.default_rng(0).normal(0, 20, shape)
    data = np.where(brain, 500.0 + 3 * grid[..., 1] + noise, 0.0).astype(np.float32)
    data[20:23, 34:37, 18:20] = 50
    center = affine[:3, :3] @ (21.0, 35.0, 18.5) + affine[:3, 3]
    return Volume.from_array(data, affine), brain, center


def test_marks_lie_on_the_dark_spot(scan, make_row, tmp_path):
    swi, brain, (x, y, z) = scan
    made = make_projection(swi, brain)
    read = Projection.from_json(made.jpeg, made.to_json())
    gray = np.asarray(Image.open(io.BytesIO(read.jpeg)), np.float32)
    assert gray.shape == (made.height, made.width)
    for matrix in read.to_pixel:
        column, row = matrix @ (x, y, z, 1.0)
        assert gray[int(row), int(column)] < 60
        ring = [
            gray[int(row + 9 * dy), int(column + 9 * dx)] for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        assert min(ring) > 80
    picture = marked_picture(read, [make_row(x_mm=x, y_mm=y, z_mm=z)], "sub-01")
    assert [shape.style for shape in picture.shapes] == ["halo", "ring z-lobar definite"]
    small = shrunk(read, len(read.jpeg) // 2, tmp_path)
    assert len(small.jpeg) <= len(read.jpeg) // 2
    assert (small.width, small.height) == (
        read.width,
        read.height,
    )  # of the drawing, which is stretched over it


def test_a_page_of_a_thousand_scans_stays_small(make_row):
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (225, 419)).astype(np.uint8)).save(noise, "JPEG", quality=70)
    matrix = np.array([[1.0, 0, 0, 200], [0, 1, 0, 100]])
    projection = Projection(noise.getvalue(), 419, 225, (matrix, matrix))
    assert len(projection.jpeg) > 40_000  # far more than of a brain
    scans = 1000
    small = shrunk(projection, MOST_PICTURE_BYTES // scans, Path("overview.jpg"))
    picture = marked_picture(
        small, [make_row(x_mm=float(n), zone=zone) for n in range(5) for zone in ZONES], ""
    )
    warnings = ("The sign of the phase was guessed from the maker of the scanner: look at the veins.",) * 2
    lines = tuple(line(n, 15, picture=picture, warnings=warnings) for n in range(scans))
    page = render_cohort(CohortContent(title="t", lines=lines, version="1"))
    assert len(page.encode()) < 30e6
    assert page.count('loading="lazy"') == page.count("<img") == scans


def test_what_is_no_picture_is_said(scan, tmp_path):
    damaged = dataclasses.replace(make_projection(*scan[:2]), jpeg=b"no picture" * 99)
    with pytest.raises(UserError, match="overview"):
        shrunk(damaged, 10, tmp_path / "overview.jpg")
