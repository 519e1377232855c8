"""Participants, sessions and runs."""

import pytest

from cmb_jax.datasets.bids.choice import choose
from cmb_jax.datasets.bids.layout import read_layout
from cmb_jax.errors import UserError
from tests.datasets.bids import tree


def names(layout, label):
    return [scan.name for scan in layout.scans(label)]


def files(scan):
    return [file.relative.rsplit("/", 1)[1] for file in scan.files]


def test_sessions_with_different_numbers_of_runs(tmp_path):
    for relative in (
        "sub-01/ses-a/anat/sub-01_ses-a_run-1_swi",
        "sub-01/ses-a/anat/sub-01_ses-a_run-2_swi",
        "sub-01/ses-a/anat/sub-01_ses-a_run-10_swi",
        "sub-01/ses-b/anat/sub-01_ses-b_run-1_part-phase_GRE",
        "sub-01/ses-b/swi/sub-01_ses-b_swi",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w",
        "sub-01/ses-c/anat/sub-01_ses-c_T1w",
        "sub-02/anat/sub-02_T2starw",
    ):
        tree.image(tmp_path, relative)
    layout = read_layout(tmp_path)
    assert layout.participants == ("01", "02")
    expected = ["sub-01_ses-a_run-1", "sub-01_ses-a_run-2", "sub-01_ses-a_run-10", "sub-01_ses-b_run-1"]
    assert names(layout, "01") == expected
    assert names(layout, "02") == ["sub-02"]
    # an image without run goes with the session's only run
    last = layout.scans("01")[-1]
    assert files(last) == ["sub-01_ses-b_run-1_part-phase_GRE.nii.gz", "sub-01_ses-b_swi.nii.gz"]


def test_an_image_without_run_beside_two_runs_is_a_scan_of_its_own(tmp_path):
    for run in ("", "_run-1", "_run-2"):
        tree.image(tmp_path, f"sub-01/anat/sub-01{run}_swi")
    assert names(read_layout(tmp_path), "01") == ["sub-01", "sub-01_run-1", "sub-01_run-2"]


def test_runs_of_other_contrasts_do_not_split_a_scan(tmp_path):
    for relative in ("sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_swi", "sub-01_part-phase_GRE"):
        tree.image(tmp_path, f"sub-01/anat/{relative}")
    (scan,) = read_layout(tmp_path).scans("01")
    assert files(scan) == ["sub-01_part-phase_GRE.nii.gz", "sub-01_swi.nii.gz"]


def test_files_of_another_participant_or_session_are_not_taken(tmp_path):
    tree.image(tmp_path, "sub-01/ses-1/anat/sub-02_ses-1_swi")
    tree.image(tmp_path, "sub-01/ses-1/anat/sub-01_ses-2_swi")
    tree.image(tmp_path, "sub-01/ses-1/anat/sub-01_swi")
    tree.image(tmp_path, "sub-01/ses-1/anat/._sub-01_ses-1_swi")
    (scan,) = read_layout(tmp_path).scans("01")
    with pytest.raises(UserError, match="no image can be used") as error:
        choose(scan, tmp_path)
    assert str(error.value).count("another participant or session than its folder") == 3
    tree.image(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_swi")
    (scan,) = read_layout(tmp_path).scans("01")
    choice = choose(scan, tmp_path)
    assert choice.swi.file.path.name == "sub-01_ses-1_swi.nii.gz"
    assert len(choice.left) == 3


def test_participants_table_and_folders_that_disagree(tmp_path):
    for label in ("01", "2", "10"):
        tree.image(tmp_path, f"sub-{label}/anat/sub-{label}_swi")
    tree.image(tmp_path, "sub-a_b/anat/sub-a_b_swi")
    table = "participant_id\tage\nsub-01\t60\nsub-10\t\nsub-77\t70\n77\t1\nsub-77\t70\n"
    (tmp_path / "participants.tsv").write_text(table)
    layout = read_layout(tmp_path)
    assert layout.participants == ("01", "2", "10")
    assert layout.without_folder == ("77",)
    said = {(problem.where, problem.level) for problem in layout.problems}
    assert said == {
        ("sub-a_b", "skipped"),
        ("sub-2", "note"),
        ("sub-77", "note"),
        ("participants.tsv", "note"),
    }


@pytest.mark.parametrize("text", ["", "name\nsub-01\n", "participant_id\tage\nsub-01\n", "\xff\xfe"])
def test_a_participants_table_that_cannot_be_read_stops_nothing(tmp_path, text):
    tree.image(tmp_path, "sub-01/anat/sub-01_swi")
    (tmp_path / "participants.tsv").write_text(text, encoding="latin-1")
    layout = read_layout(tmp_path)
    assert layout.participants == ("01",)
    (problem,) = layout.problems
    assert problem.where == "participants.tsv"
    assert str(tmp_path) not in problem.what


def test_folders_that_are_no_data_set(tmp_path):
    for make, match in (
        (lambda: None, "empty"),
        (lambda: (tmp_path / "notes.txt").write_text("x"), "no folder sub-"),
    ):
        make()
        with pytest.raises(UserError, match=match):
            read_layout(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_layout(tmp_path / "none")
    with pytest.raises(UserError, match="is a file"):
        read_layout(tmp_path / "notes.txt")
