"""Statements and the BOMBS form, against the published wording worked by hand."""

import dataclasses

import pytest

from cmb_jax.report.html import render_report
from cmb_jax.report.statements import aria, bombs_table, boston, statements


@pytest.fixture
def place(make_row):
    places = {
        "lobar": ("lobar", "temporal"),
        "deep": ("deep", "thalamus"),
        "brainstem": ("infratentorial", "brainstem"),
        "cerebellum": ("infratentorial", "cerebellum"),
    }

    def make(*names, **changes):
        return [
            make_row(id=n + 1, zone=places[name][0], region=places[name][1], **changes)
            for n, name in enumerate(names)
        ]

    return make


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("lobar", "lobar"), "item of probable"),
        (("lobar", "lobar", "cerebellum"), "item of probable"),
        (("lobar",), "item of possible"),
        (("lobar", "lobar", "deep"), "not strictly lobar"),
        (("lobar", "lobar", "brainstem"), "not strictly lobar"),
        (("cerebellum", "cerebellum"), "meet no item"),
        ((), "meet no item"),
    ],
)
def test_boston(place, names, words):
    said = boston(place(*names)).text
    assert words in said
    assert said.endswith("Not a diagnosis.")


def test_boston_counts_definite_ones_and_warns_of_what_was_not_scanned(place):
    rows = place("lobar", "lobar") + place("deep", category="possible")
    assert "2 lobar, 0 deep" in boston(rows).text
    assert "deep ones may lie outside" in boston(rows, partial_field_of_view=True).text
    assert "may lie outside" not in boston(place("deep"), partial_field_of_view=True).text


@pytest.mark.parametrize(
    ("definite", "possible", "words"),
    [
        (5, 0, "more than 4, by the definite ones alone"),
        (4, 1, "more than 4 only with the possible ones"),
        (4, 0, ": not more than 4"),
        (0, 0, "0 microbleeds, 0 definite: not more than 4"),
        (1, 0, "1 microbleed, 1 definite"),
    ],
)
def test_aria_baseline(place, definite, possible, words):
    rows = place(*["lobar"] * definite) + place(*["lobar"] * possible, category="possible")
    assert words in aria(rows).text
    assert "lower bound" in aria(rows, partial_field_of_view=True).text


def test_bombs_by_side_and_size(make_row):
    rows = [
        make_row(id=1, diameter_mm=4.9),
        make_row(id=2, diameter_mm=5.0),
        make_row(id=3, side="left", category="possible"),
        make_row(id=4, diameter_mm=11.0),  # no microbleed of the scale
        make_row(id=5, zone="infratentorial", region="brainstem", side="none"),
        make_row(id=6, zone="none", region="none", side="none"),
    ]
    lines = {line.name.split(":")[0]: line for line in bombs_table(rows)}
    lobes = lines["Lobes"]
    assert (lobes.right_small.total, lobes.right_large.total) == (1, 1)
    assert (lobes.left_small.definite, lobes.left_small.possible) == (0, 1)
    assert lines["Brainstem"].unsided.total == 1
    assert lines["Whole brain"].total == 4
    assert sum(line.total for line in lines.values()) == 2 * 4


def test_the_page_shows_them_only_where_zones_are_trusted(content):
    page = render_report(content)
    assert 'id="bombs"' in page
    assert all(each.title in page and each.source in page for each in statements(()))
    hidden = render_report(dataclasses.replace(content, regions_trusted=False))
    assert "Boston" not in hidden
    assert 'id="bombs"' not in hidden
