"""Splits from a table: what it says, and what it must not say."""

import pytest

from cmb_jax.datasets.cases import Case
from cmb_jax.datasets.index import SPLITS, read_split
from cmb_jax.errors import UserError


def case(name, patient):
    return Case(case_id=name, patient_id=patient, cohort="own", images={"swi": f"{name}.nii"}, truth=None)


CASES = (case("a1", "anna"), case("a2", "anna"), case("b", "bert"), case("C", "cleo"))


def test_the_table_says_which_part(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("Case_ID;note;split\na2;x;train\nA1;;Train\nc;;test\n")
    parts = read_split(path, CASES)
    assert tuple(parts) == SPLITS
    assert {name: [one.case_id for one in part] for name, part in parts.items()} == {
        "train": ["a1", "a2"],
        "val": [],
        "test": ["C"],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a1,train\nd,test", "line 3: the index has no case 'd'"),
        ("a1,train\nb,testing", "line 3: split is 'testing'; write train, val, test"),
        ("a1,train\na2,test", "patient anna is in train and in test"),
        ("b,train\nB,train", "case B is listed twice"),
        ("a1", "line 2 has 1 values for 2 columns"),
    ],
)
def test_bad_tables(tmp_path, rows, message):
    path = tmp_path / "split.csv"
    path.write_text(f"case_id,split\n{rows}\n")
    with pytest.raises(UserError, match=message) as refused:
        read_split(path, CASES)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_table_without_the_columns(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("case,part\na1,train\n")
    with pytest.raises(UserError, match="no column case_id, split"):
        read_split(path, CASES)
    with pytest.raises(UserError, match="no such file"):
        read_split(tmp_path / "none.csv", CASES)
