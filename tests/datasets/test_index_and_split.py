"""Index files there and back, and what must not be in one; splits by patient."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.datasets.cases import Case
from cmb_jax.datasets.find import find
from cmb_jax.datasets.index import read_index, split_by_patient, write_index
from cmb_jax.datasets.lesions import lesions_of
from cmb_jax.errors import UserError
from tests.datasets import trees


@pytest.mark.parametrize("kind", trees.MAKERS)
def test_round_trip(tmp_path, kind):
    root = tmp_path / "data"
    root.mkdir()
    trees.MAKERS[kind](root)
    index = find(root, kind)
    write_index(tmp_path / "lists" / "a.json", index, root)
    write_index(tmp_path / "lists" / "b.json", index, root)
    assert (tmp_path / "lists" / "a.json").read_bytes() == (tmp_path / "lists" / "b.json").read_bytes()
    assert str(tmp_path) not in (tmp_path / "lists" / "a.json").read_text()
    again, base = read_index(tmp_path / "lists" / "a.json")
    assert (again.kind, again.cases) == (index.kind, index.cases)
    for case in again.cases:
        if case.truth is not None:
            ours, theirs = lesions_of(case, base), lesions_of(case, root)
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    # moved together, or moved apart and said where
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    assert read_index(tmp_path.parent / "moved" / "lists" / "a.json")[0].cases == index.cases
    shutil.move(tmp_path.parent / "moved" / "data", tmp_path.parent / "elsewhere")
    with pytest.raises(UserError, match="is gone"):
        read_index(tmp_path.parent / "moved" / "lists" / "a.json")
    assert read_index(tmp_path.parent / "moved" / "lists" / "a.json", tmp_path.parent / "elsewhere")
    for name in ("moved", "elsewhere"):
        shutil.rmtree(tmp_path.parent / name)


def written(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    index = find(trees.dou(root), "dou")
    write_index(tmp_path / "i.json", index, root)
    return json.loads((tmp_path / "i.json").read_text())


def set_path(content, path):
    content["cases"][0]["images"]["swi"] = path


BAD = {
    "is gone": lambda c: set_path(c, "nii/07.nii"),
    "leaves the data root": lambda c: set_path(c, "../data/nii/01.nii"),
    "two subjects with one ID, 01": lambda c: c["cases"].append(c["cases"][0]),
    "version 2": lambda c: c.update(version=2),
    "kind is 'brats'": lambda c: c.update(kind="brats"),
    "not a data index": lambda c: c.update(format="other"),
    "lacks 'truth'": lambda c: c["cases"][0].pop("truth"),
    "convention is": lambda c: c["cases"][0]["truth"].update(convention="voxel-0"),
    "damaged": lambda c: c["cases"][0]["truth"].update(points=[[1, 2]]),
    "a center is nan": lambda c: c["cases"][0]["truth"].update(points=[[1, 2, float("nan")]]),
    "has the images ct": lambda c: c["cases"][0].update(images={"ct": "nii/01.nii"}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_index(tmp_path, message):
    content = written(tmp_path)
    BAD[message](content)
    (tmp_path / "i.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as refused:
        read_index(tmp_path / "i.json")
    assert "\n" not in str(refused.value)


def test_an_index_that_is_none(tmp_path):
    with pytest.raises(UserError, match="no such index"):
        read_index(tmp_path / "none.json")
    (tmp_path / "a.json").write_text('{"format": ')
    with pytest.raises(UserError, match="not readable JSON"):
        read_index(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="not a data index"):
        read_index(tmp_path / "a.json")


def case(number, patient, cohort="c"):
    return Case(
        case_id=f"s{number:03}",
        patient_id=patient,
        cohort=cohort,
        images={"swi": f"{number}.nii"},
        truth=None,
    )


@settings(max_examples=50, deadline=None)
@given(
    patients=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)
def test_a_patient_never_straddles_a_split(patients, seed, share):
    cases = [case(n, f"p{patient}", f"c{n % 3}") for n, patient in enumerate(patients)]
    split = split_by_patient(cases, {"train": share, "test": 1 - share}, seed=seed)
    train, test = ({c.patient_id for c in split[name]} for name in ("train", "test"))
    assert not train & test
    assert sorted(c.case_id for side in split.values() for c in side) == [c.case_id for c in cases]
    assert abs(len(train) - share * len(set(patients))) <= 1
    assert split_by_patient(cases[::-1], {"train": share, "test": 1 - share}, seed=seed) == split


def test_cohorts_get_about_the_same_shares_and_the_seed_matters():
    cases = [case(n, f"p{n}", cohort) for n, cohort in enumerate(["a"] * 10 + ["b"] * 30 + ["c"] * 20)]
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    split = split_by_patient(cases, fractions, seed=1)
    for cohort, size in (("a", 10), ("b", 30), ("c", 20)):
        for name, share in fractions.items():
            assert abs(sum(c.cohort == cohort for c in split[name]) - share * size) <= 1
    assert split_by_patient(cases, fractions, seed=2) != split
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_patient(cases, {"train": 0.6}, seed=1)


def test_scans_of_a_csiro_patient_stay_together(tmp_path):
    index = find(trees.csiro(tmp_path))
    for seed in range(8):
        split = split_by_patient(index.cases, {"train": 0.5, "test": 0.5}, seed=seed)
        assert {frozenset(c.patient_id for c in side) for side in split.values()} == {
            frozenset({"122"}),
            frozenset({"130"}),
        }


def test_kinds_of_rows(tmp_path):
    """Rows of kind mimic go along as known non-lesions; other kinds are background."""
    trees.save(tmp_path / "data" / "a_swi.nii.gz", trees.brain())
    rows = ["1,2,3,4,cmb", "2,2,3,4,Mimic", "3,2,3,4,uncertain", "4,2,3,5,CMB"]
    table = tmp_path / "data" / "a_points.csv"
    table.write_text("\n".join(["x_mm,y_mm,z_mm,diameter_mm,kind", *rows]) + "\n")
    index = find(tmp_path / "data", "folder")
    write_index(tmp_path / "i.json", index, tmp_path / "data")
    again, root = read_index(tmp_path / "i.json")
    assert again.cases == index.cases
    lesions = lesions_of(again.cases[0], root)
    np.testing.assert_allclose(lesions.centers_mm, [[1, 2, 3], [4, 2, 3]])
    np.testing.assert_allclose(lesions.diameters_mm, [4, 5])
    np.testing.assert_allclose(lesions.mimics_mm, [[2, 2, 3]])
    table.write_text("x_mm,y_mm,z_mm,kind\n1,2,3,cmb\n90,2,3,mimic\n")
    with pytest.raises(UserError, match="1 of 1 centers lie outside"):
        lesions_of(find(tmp_path / "data", "folder").cases[0], tmp_path / "data")
    table.write_text("x_mm,y_mm,z_mm,kind\n1,2,3,\n")
    with pytest.raises(UserError, match="line 2: kind is empty"):
        find(tmp_path / "data", "folder")
