"""What comes back is what went out, and what a reader changed, in each of the formats."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cmb_jax.core.detection import detections_csv
from cmb_jax.datasets.folder import find
from cmb_jax.datasets.lesions import lesions_of
from cmb_jax.review.outside_viewers import markups
from cmb_jax.review.reading import read_readings
from cmb_jax.review.result import load_result
from cmb_jax.review.spreadsheet import spreadsheet
from cmb_jax.review.verdicts import Verdict
from tests.review.conftest import AFFINES, SHAPE, draw_labels, make_result, make_rows
from tests.review.edits import at, fill, viewer_export

FILES = ("review.xlsx", "microbleeds.mrk.json", "labels.nii.gz")
M, N, U = Verdict.MICROBLEED, Verdict.MIMIC, Verdict.UNCERTAIN


def export_all(folder, into):
    """The three files without the command line, which costs most of a test's time."""
    result = load_result(folder)
    into.mkdir()
    (into / FILES[0]).write_bytes(spreadsheet(result))
    (into / FILES[1]).write_text(markups(result))
    (into / FILES[2]).write_bytes((folder / "labels.nii.gz").read_bytes())
    return result


def one(path, result):
    (reading,) = read_readings(path, result)
    return reading


def positions(reading):
    return np.array([mark.position_mm for mark in reading.marks]).reshape(-1, 3)


def verdicts(reading):
    return [mark.verdict for mark in reading.marks]


def check_unchanged(folder, into):
    result = export_all(folder, into)
    truth = np.array([[row.x_mm, row.y_mm, row.z_mm] for row in result.rows]).reshape(-1, 3)
    for name in FILES:
        reading = one(into / name, result)
        assert [mark.candidate for mark in reading.marks] == [row.id for row in result.rows]
        assert np.abs(positions(reading) - truth).max(initial=0.0) <= 0.01
        assert reading.added == ()
    assert verdicts(one(into / FILES[0], result)) == [None] * len(result.rows)
    kept = [M if row.status == "kept" else None for row in result.rows]
    assert verdicts(one(into / FILES[1], result)) == kept
    assert verdicts(one(into / FILES[2], result)) == kept


@pytest.mark.parametrize("name", AFFINES)
def test_unchanged_files_give_the_same_positions_and_ids(tmp_path, name):
    affine = AFFINES[name]
    check_unchanged(make_result(tmp_path / "r", make_rows(affine), affine), tmp_path / "e")


def test_an_empty_result(tmp_path, run):
    folder = make_result(tmp_path / "r", ())
    check_unchanged(folder, tmp_path / "e")
    for index, name in enumerate(FILES):
        out = tmp_path / f"sub-1_run-{index}_points.csv"
        done = run("import", tmp_path / "e" / name, "--result", folder, "--out", out)
        assert done.code == 0, done.err
        assert out.read_text().count("\n") == 1


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    turn=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    order=st.permutations([0, 1, 2]),
    spacing=st.tuples(*[st.floats(0.4, 2.0)] * 3),
    origin=st.tuples(*[st.floats(-90, 90)] * 3),
    kept=st.integers(0, 5),
)
def test_any_grid(tmp_path_factory, turn, flips, order, spacing, origin, kept):
    a, b, c = turn
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (about_z @ about_y @ about_x)[:, order] @ np.diag(np.array(flips) * spacing)
    affine[:3, 3] = origin
    folder = tmp_path_factory.mktemp("any")
    statuses = ["kept"] * kept + ["rejected"] * (5 - kept)
    rows = make_rows(affine, statuses)
    rows = tuple(dataclasses.replace(row, diameter_mm=1.5) for row in rows)  # a voxel or none
    check_unchanged(make_result(folder / "r", rows, affine), folder / "e")


def test_both_coordinate_systems_of_markups_are_the_same_points(exported, result):
    read = load_result(result)
    before = positions(one(exported / FILES[1], read))
    document = json.loads((exported / FILES[1]).read_text())
    (points,) = document["markups"]
    points["coordinateSystem"] = "RAS"
    for point in points["controlPoints"]:
        x, y, z = point["position"]
        point["position"] = [-x, -y, z]
    (exported / "ras.mrk.json").write_text(json.dumps(document))
    np.testing.assert_allclose(positions(one(exported / "ras.mrk.json", read)), before, atol=1e-9)


def test_markups_that_a_reader_has_edited(exported, result):
    read = load_result(result)
    document = json.loads((exported / FILES[1]).read_text())
    points = document["markups"][0]["controlPoints"]
    del points[0]  # removed: no microbleed
    points[0]["selected"] = False
    points[1]["description"] = "Mimic: vessel; runs on in the next slice"
    points[2]["position"][0] += 1.5  # to the left in LPS
    points[3]["description"] = "uncertain"
    row = read.rows[0]
    far = read.grid.to_mm(np.array([[20.0, 12.0, 25.0]]))[0]
    points.append({"label": "new-6", "position": [-far[0], -far[1], far[2]], "description": ""})
    points.append({"label": "new-7", "position": [0, 0, 0], "positionStatus": "undefined"})
    (exported / FILES[1]).write_text(json.dumps(document))
    reading = one(exported / FILES[1], read)
    assert verdicts(reading) == [N, N, N, M, U]
    assert reading.marks[2].mimic == "vessel"
    assert reading.marks[3].position_mm[0] == pytest.approx(read.rows[3].x_mm - 1.5)
    (added,) = reading.added
    np.testing.assert_allclose(added.position_mm, far, atol=1e-9)
    assert (added.verdict, added.diameter_mm) == (M, None)
    # a removed point that is set anew at its place is the candidate again
    points.append({"label": "new-8", "position": [-row.x_mm - 1, -row.y_mm, row.z_mm]})
    points[3]["description"] = "rejected"  # and one at a rejected candidate that nobody has judged
    row = read.rows[4]
    points.append({"label": "new-9", "position": [-row.x_mm, -row.y_mm - 2, row.z_mm]})
    (exported / FILES[1]).write_text(json.dumps(document))
    again = one(exported / FILES[1], read)
    assert (again.marks[0].verdict, again.marks[4].verdict, len(again.added)) == (M, M, 1)


def test_labels_that_a_reader_has_painted(tmp_path):
    affine = AFFINES["oblique"]
    folder = make_result(tmp_path / "r", make_rows(affine), affine)
    result = load_result(folder)
    image = nib.load(folder / "labels.nii.gz")
    labels = np.asarray(image.dataobj).copy()
    labels[labels == 1] = 0  # erased
    labels[labels == 2] = 60002  # painted over: uncertain
    at = np.argwhere(labels == 3)
    labels[tuple(at[at[:, 0] == at[:, 0].max()].T)] = 0  # made smaller
    moved = affine[:3, :3] @ np.argwhere(labels == 3).mean(axis=0) + affine[:3, 3]
    labels[2:5, 3:6, 2:4] = 4  # new, with the color of another
    new = affine[:3, :3] @ [3, 4, 2.5] + affine[:3, 3]
    rejected = result.rows[4]
    i, j, k = rejected.i, rejected.j, rejected.k
    labels[i - 1 : i + 2, j - 1 : j + 2, k] = 60001  # a rejected candidate is one after all
    labels[30:32, 35:37, 3] = 60003  # known not to be one
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "edited.nii.gz")

    reading = one(tmp_path / "edited.nii.gz", result)
    assert verdicts(reading) == [N, U, M, M, M]
    np.testing.assert_allclose(reading.marks[2].position_mm, moved, atol=1e-6)
    assert reading.marks[3].diameter_mm is None  # untouched
    first, second = sorted(reading.added, key=lambda mark: mark.verdict != M)
    np.testing.assert_allclose(first.position_mm, new, atol=1e-6)
    voxel = abs(np.linalg.det(affine[:3, :3]))
    assert first.diameter_mm == pytest.approx((6 / np.pi * 18 * voxel) ** (1 / 3))
    assert second.verdict is N
    assert second.diameter_mm == pytest.approx((6 / np.pi * 4 * voxel) ** (1 / 3))


def test_labels_saved_with_other_axes_are_the_same(tmp_path):
    folder = make_result(tmp_path / "r")
    result = load_result(folder)
    image = nib.load(folder / "labels.nii.gz")
    turned = nib.as_closest_canonical(image)
    assert turned.shape != image.shape
    nib.save(turned, tmp_path / "turned.nii.gz")
    reading = one(tmp_path / "turned.nii.gz", result)
    assert verdicts(reading) == [M, M, M, M, None]
    assert all(mark.diameter_mm is None for mark in reading.marks)


def test_a_label_that_was_hidden_from_the_start_is_not_removed(tmp_path):
    affine = AFFINES["RAS"]
    rows = make_rows(affine)
    folder = make_result(tmp_path / "r", rows, affine)
    labels = draw_labels(rows, affine)
    labels[labels == 2] = 0
    nib.save(nib.Nifti1Image(labels, affine), folder / "labels.nii.gz")
    assert verdicts(one(folder / "labels.nii.gz", load_result(folder))) == [M, None, M, M, None]


def test_a_spreadsheet_that_a_reader_has_filled_in(exported, result):
    read = load_result(result)
    far = read.grid.to_mm(np.array([[20.0, 12.0, 25.0]]))[0].round(2)
    cells = {
        (2, "verdict"): "Microbleed ",
        (3, "verdict"): "mimic",
        (3, "mimic"): "Vessel",
        (4, "verdict"): "uncertain",
        (5, "verify (yes=1)"): 0,
        (6, "verdict"): "microbleed",
        (6, "RAS L-R L"): read.rows[4].x_mm + 2,
    }
    fill(exported / FILES[0], cells, [at(*far) | {"verdict": "microbleed", "diameter_mm": 2.5}])
    reading = one(exported / FILES[0], read)
    assert verdicts(reading) == [M, N, U, N, M]
    assert [mark.mimic for mark in reading.marks] == ["", "vessel", "", "", ""]
    assert reading.marks[4].position_mm[0] == pytest.approx(read.rows[4].x_mm + 2)
    (added,) = reading.added
    assert (added.position_mm, added.diameter_mm) == (tuple(far), 2.5)


def test_a_formula_counts_as_nothing(exported, result):
    fill(exported / FILES[0], {(2, "verdict"): '=CONCATENATE("micro","bleed")'})
    assert verdicts(one(exported / FILES[0], load_result(result))) == [None] * 5


def test_truth_is_read_as_an_own_folder(exported, result, run, tmp_path):
    read = load_result(result)
    words = ["microbleed", "mimic", "uncertain", "microbleed"]
    far = read.grid.to_mm(np.array([[20.0, 12.0, 25.0]]))[0].round(2)
    cells = {(row, "verdict"): word for row, word in enumerate(words, start=2)}
    fill(exported / FILES[0], cells, [at(*far) | {"verdict": "microbleed"}])
    data = tmp_path / "data"
    data.mkdir()
    image = np.random.default_rng(0).uniform(1, 2, SHAPE)
    nib.save(nib.Nifti1Image(image, AFFINES["oblique"]), data / "sub-07_swi.nii.gz")
    out = data / "sub-07_points.csv"
    done = run("import", exported / FILES[0], "--result", result, "--out", out)
    assert done.code == 0, done.err
    assert "truth: cmb 3, mimic 1, uncertain 1" in done.out
    (case,) = find(data).cases
    lesions = lesions_of(case, data)
    rows = read.rows
    expected = [[row.x_mm, row.y_mm, row.z_mm] for row in (rows[0], rows[3])] + [far.tolist()]
    np.testing.assert_allclose(lesions.centers_mm, expected, atol=0.01)
    np.testing.assert_allclose(lesions.diameters_mm, [rows[0].diameter_mm, rows[3].diameter_mm, 3.0])


def test_an_export_of_the_viewer_with_two_readers(tmp_path, result):
    read = load_result(result)
    rows = read.rows
    moved = {"verify": 1, "final_l": rows[1].x_mm + 1, "final_p": rows[1].y_mm, "final_s": rows[1].z_mm}
    readers = {
        "ann": [{"verify": 1}, moved, {"verify": 0, "mimic": "vessel"}, {}, {"verify": 1}],
        "bob": [{"verify": 1}, {"verify": 0, "mimic": "of his own"}, {"verify": 0}, {"verify": 1}, {}],
    }
    far = read.grid.to_mm(np.array([[20.0, 12.0, 25.0]]))[0].round(2)
    path = tmp_path / "combined.xlsx"
    viewer_export(path, rows, read.subject, readers, [("bob", far.tolist())])
    ann, bob = read_readings(path, read)
    assert verdicts(ann) == [M, M, N, None, M]
    assert verdicts(bob) == [M, N, N, M, None]
    assert (ann.marks[2].mimic, bob.marks[1].mimic) == ("vessel", "")
    assert ann.marks[1].position_mm[0] == pytest.approx(rows[1].x_mm + 1)
    assert ann.added == ()
    np.testing.assert_allclose(bob.added[0].position_mm, far)


def test_a_changed_table_of_detections_is_noticed(tmp_path, result, exported, run):
    rows = make_rows(AFFINES["oblique"])
    other = tuple(dataclasses.replace(row, x_mm=row.x_mm + 12) for row in rows)
    (result / "detections.csv").write_text(detections_csv(other))
    for name in FILES[:2]:
        done = run("import", exported / name, "--result", result, "--out", tmp_path / "t.csv")
        assert done.code == 2
        assert "mm from candidate 1" in done.err


def test_a_candidate_beyond_the_edge_comes_back(tmp_path):
    affine = AFFINES["RAS"]
    rows = make_rows(affine)
    beyond = dataclasses.replace(rows[0], x_mm=-0.9, i=0)  # voxels reach to -0.5 mm
    folder = make_result(tmp_path / "r", (beyond, *rows[1:]), affine)
    check_unchanged(folder, tmp_path / "e")


def test_results_of_before_probabilities_and_those_with_some(tmp_path):
    folder = make_result(tmp_path / "result")
    table = folder / "detections.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    column = lines[0].index("probability")
    assert load_result(folder).rows[0].probability is None
    lines[1][column] = "0.75"
    table.write_text("".join(",".join(line) + "\n" for line in lines))
    assert [row.probability for row in load_result(folder).rows[:2]] == [0.75, None]
    table.write_text("".join(",".join(line[:column] + line[column + 1 :]) + "\n" for line in lines))
    assert [row.probability for row in load_result(folder).rows[:2]] == [None, None]
