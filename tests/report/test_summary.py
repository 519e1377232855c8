"""Counts and statements against counting by hand."""

from __future__ import annotations

import dataclasses

import pytest

from cmb_jax.core.detection import DETECTION_COLUMNS
from cmb_jax.report.summary import (
    Pattern,
    all_warnings,
    describe_pattern,
    location_text,
    mars_table,
    pattern_of,
    reason_text,
    region_title,
)


def test_columns_are_those_of_the_csv():
    place = "id,i,j,k,x_mm,y_mm,z_mm,diameter_mm,volume_mm3"
    judgement = "score,probability,category,zone,region,side,status,reason,zone_border_mm"
    mni = "mni_x_mm,mni_y_mm,mni_z_mm"
    assert ",".join(DETECTION_COLUMNS) == f"{place},{judgement},{mni}"


@pytest.mark.parametrize(
    ("zones", "pattern"),
    [
        ([], Pattern.NONE),
        (["none"], Pattern.NONE),
        (["lobar", "lobar"], Pattern.STRICTLY_LOBAR),
        (["lobar", "none"], Pattern.STRICTLY_LOBAR),
        (["deep"], Pattern.STRICTLY_DEEP),
        (["infratentorial"], Pattern.INFRATENTORIAL),
        (["lobar", "deep"], Pattern.MIXED),
        (["deep", "infratentorial"], Pattern.MIXED),
    ],
)
def test_pattern(make_row, zones, pattern):
    assert pattern_of([make_row(zone=zone) for zone in zones]) is pattern


def test_pattern_sentence(make_row):
    lobar, deep = make_row(), make_row(zone="deep", category="possible")
    assert describe_pattern([lobar]) == "Definite microbleeds: strictly lobar."
    assert describe_pattern([deep]) == "Possible microbleeds only: strictly deep."
    assert describe_pattern([lobar, deep]) == (
        "Definite microbleeds: strictly lobar; with the possible ones: mixed (lobar and deep)."
    )
    assert "No pattern" in describe_pattern([make_row(zone="none")])


def test_mars_table_adds_up(make_row):
    rows = [
        make_row(region="frontal", side="right"),
        make_row(region="frontal", side="left", category="possible"),
        make_row(region="insula", side="left"),
        make_row(region="thalamus", zone="deep", side="right", category="possible"),
        make_row(region="brainstem", zone="infratentorial", side="none"),
        make_row(region="outside", zone="none", side="none"),
    ]
    lines = mars_table(rows)
    by_name = {line.name: line for line in lines}
    assert [line.zone for line in lines if line.kind == "zone"] == ["infratentorial", "deep", "lobar", "none"]
    assert sum(line.kind == "region" for line in lines) == 13
    assert by_name["Frontal"].right.definite == 1
    assert by_name["Frontal"].left.possible == 1
    assert by_name["Lobar"].left.total == 2
    assert by_name["Brainstem"].unsided.definite == 1
    total = lines[-1]
    assert (total.both.definite, total.both.possible, total.both.total) == (4, 2, 6)
    for kind in ("zone", "region"):
        parts = [line.both.total for line in lines if line.kind == kind]
        assert sum(parts) == (6 if kind == "zone" else 5)


def test_words(make_row):
    assert region_title("deep_white_matter") == "Deep and periventricular white matter"
    assert region_title("basal_ganglia") == "Basal ganglia"
    assert region_title("something_new") == "Something new"
    assert location_text(make_row(side="left", region="insula"), trusted=True) == "left insula"
    assert location_text(make_row(side="none", zone="none", region="outside"), trusted=True) == "no region"
    assert location_text(make_row(), trusted=False) == "location not reported"
    assert reason_text("IN_SULCAL_CSF") == "in sulcal CSF"
    assert reason_text("Score below 0.5") == "Score below 0.5"
    assert reason_text("") == "no reason recorded"


def test_warnings_are_not_repeated(content):
    partial = dataclasses.replace(content, partial_field_of_view=True)
    warnings = all_warnings(partial)
    again = dataclasses.replace(partial, warnings=warnings)
    assert all_warnings(again) == warnings
    assert len(warnings) == 2
