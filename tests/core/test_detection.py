"""The record of a detection: what files say of it is pinned, and what is written is read back."""

import dataclasses

import pytest

from cmb_jax.core.detection import (
    COLUMNS,
    DetectionRow,
    RejectReason,
    data_dictionary,
    detections_csv,
    detections_tsv,
)
from cmb_jax.review.result import read_rows

ROW = DetectionRow(
    id=1,
    i=2,
    j=3,
    k=4,
    x_mm=1.5,
    y_mm=-2.25,
    z_mm=3.0,
    diameter_mm=3.1,
    volume_mm3=15.2,
    score=0.3,
    category="possible",
    zone="none",
    region="none",
    side="none",
    status="rejected",
    reason=RejectReason.LOW_SCORE.sentence,
)


def test_sentences_of_files_stay_as_they_are():
    assert {reason.value: reason.sentence for reason in RejectReason} == {
        0: "",
        1: "outside the brain",
        2: "inside a ventricle",
        3: "in the cerebrospinal fluid around the brain",
        4: "where a venous sinus runs",
        5: "score below the operating point",
    }


def test_a_line_of_each_table():
    start = "1,2,3,4,1.5,-2.25,3.0,3.1,15.2,0.3,"
    rest = ",possible,none,none,none,rejected,score below the operating point,0.0,"
    assert detections_csv([ROW]).splitlines()[1] == f"{start}{rest},,"
    assert detections_tsv([ROW]).splitlines()[1] == f"{start}n/a{rest}n/a,n/a,n/a".replace(",", "\t")
    kept = dataclasses.replace(ROW, status="kept", reason="")
    assert "kept\tn/a\t" in detections_tsv([kept])


@pytest.mark.parametrize(("write", "name"), [(detections_csv, "d.csv"), (detections_tsv, "d.tsv")])
def test_what_is_written_is_read_back(tmp_path, write, name):
    full = dataclasses.replace(
        ROW, id=2, probability=0.25, status="kept", reason="", zone="lobar", mni_x_mm=-1.5, zone_border_mm=2.5
    )
    (tmp_path / name).write_text(write([ROW, full]))
    assert read_rows(tmp_path / name) == (ROW, full)
    assert ROW.below_operating_point
    assert not full.below_operating_point


def test_results_of_the_first_version_are_read(tmp_path):
    header, line = (text.split(",") for text in detections_csv([ROW]).splitlines())
    first = [n for n, column in enumerate(COLUMNS) if column.since is None]
    assert len(first) == len(COLUMNS) - 5
    (tmp_path / "d.csv").write_text("\n".join(",".join(cells[n] for n in first) for cells in (header, line)))
    assert read_rows(tmp_path / "d.csv") == (ROW,)


def test_a_later_column_has_a_default():
    fields = DetectionRow.__dataclass_fields__
    later = [column.name for column in COLUMNS if column.since]
    assert all(fields[name].default is not dataclasses.MISSING for name in later)


def test_every_column_is_described():
    assert all(entry["Description"].endswith(".") for entry in data_dictionary().values())
    in_mm = {name for name, entry in data_dictionary().items() if entry.get("Units") == "mm"}
    assert in_mm == {column.name for column in COLUMNS if column.name.endswith("_mm")}
