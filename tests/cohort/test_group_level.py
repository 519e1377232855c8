"""`cmb-jax bids DIR OUT group`: one table over all participants, whatever became of them."""

import csv
import json

import numpy as np
import pytest

from cmb_jax.cli.view import open_server
from cmb_jax.cohort.group import COLUMNS
from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.review.result import load_result, read_record
from tests.datasets.bids import tree
from tests.datasets.trees import SHAPE, brain, mask
from tests.report.test_html import Page


@pytest.fixture
def study(tmp_path, bids):
    """One participant of each fate, after a run of the participant level."""
    root = tree.description(tmp_path / "study")
    for run in ("1", "2"):
        stem = f"sub-01/ses-a/anat/sub-01_ses-a_acq-hi_run-{run}"
        tree.image(root, f"{stem}_swi", brain(seed=int(run)), MagneticFieldStrength=3)
        tree.image(root, f"{stem}_part-phase_GRE", tree.phase(seed=int(run)))
    tree.image(root, "sub-01/ses-b/anat/sub-01_ses-b_T2starw")
    tree.image(root, "sub-02/anat/sub-02_swi", np.full(SHAPE, 1.0, np.float32))
    tree.image(root, "sub-03/anat/sub-03_T1w")
    table = "participant_id\n" + "".join(f"sub-0{n}\n" for n in (1, 2, 3, 4, 9))
    (root / "participants.tsv").write_text(table)
    assert bids(root, tmp_path / "out", "participant")[0] == 1
    tree.image(root, "sub-04/anat/sub-04_swi")  # came later
    return root


def table(out):
    with (out / "group_desc-cmb_counts.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_every_participant_has_a_line(bids, study, tmp_path, validator_errors):
    out = tmp_path / "out"
    code, stdout, _ = bids(study, out, "group")
    assert code == 1
    assert stdout.startswith("3 done, 1 failed, 1 no images, 1 not run, 1 no folder\n")
    assert "failed: sub-02: sub-02/anat/sub-02_swi.nii.gz: every voxel is 1" in stdout
    assert (
        "counts should not be compared as they stand: images differ (swi_and_phase 2, magnitude_alone 1)"
        in stdout
    )
    assert "thresholds differ" not in stdout  # another kind of images explains it
    rows = table(out)
    assert [row["threshold"] for row in rows[:3]] == ["0.647", "0.647", "0.8"]
    listed = [(row["participant_id"], row["session_id"], row["run"], row["status"]) for row in rows]
    assert listed == [
        ("sub-01", "ses-a", "1", "done"),
        ("sub-01", "ses-a", "2", "done"),
        ("sub-01", "ses-b", "n/a", "done"),
        ("sub-02", "n/a", "n/a", "failed"),
        ("sub-03", "n/a", "n/a", "no images"),
        ("sub-04", "n/a", "n/a", "not run"),
        ("sub-09", "n/a", "n/a", "no folder"),
    ]
    assert rows[3]["reason"].startswith("sub-02/anat/sub-02_swi.nii.gz: every voxel is 1")
    assert str(tmp_path) not in (out / "group_desc-cmb_counts.tsv").read_text()
    assert (
        json.loads((out / "group_desc-cmb_counts.json").read_text()).keys()
        == COLUMNS.keys()
        == rows[0].keys()
    )
    assert validator_errors(out) == []


def test_counts_are_those_of_the_tables(bids, study, tmp_path):
    out = tmp_path / "out"
    bids(study, out, "group")
    with next(out.glob("sub-01/ses-a/anat/*run-2_desc-cmb_detections.tsv")).open(newline="") as file:
        kept = [row for row in csv.DictReader(file, delimiter="\t") if row["status"] == "kept"]
    row = table(out)[1]
    assert row["acquisition"] == "hi"
    assert row["field_strength_t"] == "3.0"
    assert int(row["cmb"]) == len(kept) == 3
    for zone, column in (("lobar", "lobar"), ("deep", "deep"), ("infratentorial",) * 2, ("none", "no_zone")):
        assert int(row[column]) == sum(found["zone"] == zone for found in kept)
        for category in ("definite", "possible"):
            expected = sum(found["zone"] == zone and found["category"] == category for found in kept)
            assert int(row[f"{column}_{category}"]) == expected
    assert (row["definite"], row["possible"], row["rejected"]) == ("2", "1", "1")
    assert {table(out)[3][name] for name in ("cmb", "lobar", "images", "version")} == {"n/a"}


def test_a_damaged_result_is_a_line_and_not_the_end(bids, study, tmp_path):
    out = tmp_path / "out"
    first, second, _ = sorted(out.glob("sub-01/**/*_desc-cmb_detections.tsv"))
    first.write_text("id\n1\n")
    second.with_suffix(".json").write_text('{"CmbJax": {}}')
    code, stdout, _ = bids(study, out, "group")
    assert code == 1
    assert stdout.startswith("3 failed, 1 done")
    assert [row["status"] for row in table(out)[:3]] == ["failed", "failed", "done"]
    assert "no column status" in table(out)[0]["reason"]
    assert "make it again with --overwrite" in table(out)[1]["reason"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"CmbJax": []}', '{"CmbJax": {"Making": 3}}', '{"CmbJax": null}']
)
def test_sidecars_and_logs_that_were_damaged(bids, study, tmp_path, content):
    out = tmp_path / "out"
    next(out.glob("sub-01/**/*run-1_desc-cmb_detections.json")).write_text(content)
    (out / "logs" / "sub-02.json").write_text(content)
    assert bids(study, out, "group")[1].startswith("2 failed, 2 done")
    assert "make it again" in table(out)[0]["reason"]
    assert "run the participant again" in table(out)[3]["reason"]
    code, stdout, stderr = bids(study, out, "participant", "--participant-label", "01")
    assert code == 1
    assert "2 skipped, 1 failed" in stdout
    assert "Traceback" not in stderr


def test_scans_that_are_not_analysable_have_a_status_and_no_count(bids, tmp_path, stub, monkeypatch):
    root, out = tree.description(tmp_path / "study"), tmp_path / "out"
    for label in ("01", "02"):
        tree.image(root, f"sub-{label}/anat/sub-{label}_swi")
    assert bids(root, out, "participant")[0] == 0

    def refuse(images, say):
        if "sub-01" in str(images.swi.source):
            raise NotAnalysableError("the SWI is not analysable: it is a phase")
        return say

    monkeypatch.setattr(stub, "prepare", refuse)
    code, stdout, _ = bids(root, out, "participant", "--overwrite")
    assert code == 3
    assert "sub-01: not analysable: the SWI is not analysable: it is a phase" in stdout
    code, stdout, _ = bids(root, out, "group")
    assert code == 3
    rows = table(out)
    assert [(row["participant_id"], row["status"]) for row in rows] == [
        ("sub-01", "not analysable"),
        ("sub-02", "done"),
    ]
    assert (rows[0]["cmb"], rows[0]["reason"]) == ("n/a", "the SWI is not analysable: it is a phase")
    assert bids(root, out, "participant", "--participant-label", "01")[0] == 3  # nothing else was done


def test_the_page_has_every_scan_with_links(bids, study, tmp_path):
    out = tmp_path / "out"
    viewers = ("--viewer", "--overwrite", "--participant-label", "01", "--session-label", "a")
    assert bids(study, out, "participant", *viewers)[0] == 0
    first, second = sorted(out.glob("sub-01/ses-a/anat/*_desc-cmb_detections.json"))
    compared = out / "sub-01" / "compare_run-1_run-2"
    compared.mkdir()
    (compared / "report.html").write_text("changes")
    inputs = [
        [{"role": "swi", "file": "x", "sha256": image["SHA256"]} for image in made["Taken"]["Images"]]
        for made in (json.loads(path.read_text())["CmbJax"] for path in (first, second))
    ]
    record = {
        "counts": {"new": 2, "resolved": 1, "stable": 4, "uncertain": 3},
        "baseline": {"inputs": inputs[0]},
        "followup": {"inputs": inputs[1]},
    }
    (compared / "comparison.json").write_text(json.dumps(record))
    (out / "sub-01" / "comparison.json").write_text("{")  # none of ours
    _, stdout, _ = bids(study, out, "group")
    path = out / "group_desc-cmb_report.html"
    assert f"Open {path}" in stdout
    page = Page(path.read_text())
    assert page.values("data-status") == [row["status"] for row in table(out)]
    assert "sub-02/anat/sub-02_swi.nii.gz: every voxel is 1" in page.words("line-3")
    links = [href for a in page.all("a", "href") if not (href := a["href"]).startswith("#")]
    assert len(links) == 3 + 2 + 2  # reports, viewers, the changes from both of their scans
    assert all((out / href).is_file() for href in links)
    assert "2 new, 1 resolved, 3 uncertain since before" in page.words("line-1")
    assert len([img for img in page.all("img") if img["loading"] == "lazy"]) == 3
    assert page.words("line-1").count("2 + 1") == 1  # definite and possible, as in the table
    server = open_server(first)  # the viewer opens what the page lists, by the file of the result
    server.server_close()
    first.with_name(first.name.replace("detections.json", "viewer.html")).unlink()
    with pytest.raises(UserError, match=r"holds no viewer\.html with the images; give them: --swi FILE"):
        open_server(first)


def test_a_result_of_bids_is_read_as_one_of_predict(bids, study, tmp_path):
    out = tmp_path / "out"
    folder = out / "sub-01" / "ses-a" / "anat"
    start = "sub-01_ses-a_acq-hi_run-2_desc-cmb"
    result = load_result(folder / f"{start}_detections.json")
    regions = ["frontal", "frontal", "thalamus", "none"]
    assert [(row.id, row.region) for row in result.rows] == list(enumerate(regions, start=1))
    assert [row.status for row in result.rows] == ["kept"] * 3 + ["rejected"]
    assert result.kept[0].reason == ""
    assert result.subject == "sub-01_ses-a_acq-hi_run-2_swi"
    assert set(np.unique(result.labels)) == {0, 1, 2, 3}
    record = read_record(result.paths)
    assert [each["role"] for each in record["inputs"]] == ["swi", "phase"]
    assert record["settings"]["score_threshold"] == "0.647"
    assert result.paths.work == folder / f"{start}_review"
    with pytest.raises(UserError, match="holds 2 results; name the file of one"):
        load_result(folder)
    assert load_result(out / "sub-01" / "ses-b" / "anat").subject == "sub-01_ses-b_T2starw"
    with pytest.raises(UserError, match="is not a file of a result"):
        load_result(out / "README.md")


def test_some_participants_only(bids, study, tmp_path):
    code, stdout, _ = bids(study, tmp_path / "out", "group", "--participant-label", "01", "04")
    assert code == 0
    assert stdout.startswith("3 done, 1 not run\n")
    assert {row["participant_id"] for row in table(tmp_path / "out")} == {"sub-01", "sub-04"}


def test_the_table_is_made_anew_and_the_same(bids, study, tmp_path):
    out = tmp_path / "out"
    bids(study, out, "group")
    first = (out / "group_desc-cmb_counts.tsv").read_bytes()
    bids(study, out, "group")
    assert (out / "group_desc-cmb_counts.tsv").read_bytes() == first


def test_results_are_scored_against_the_truth_of_the_same_names(bids, tmp_path):
    from cmb_jax.evaluation.evaluate import evaluate

    root = tree.description(tmp_path / "study")
    tree.image(root, "sub-01/anat/sub-01_swi")
    bids(root, tmp_path / "out", "participant")
    # two of the stub's three microbleeds, their RAS voxels turned to the file's LPS, and one more
    blobs = [(SHAPE[0] - 1 - x, SHAPE[1] - 1 - y, z) for x, y, z in ((6, 8, 5), (15, 20, 9), (2, 3, 12))]
    tree.image(tmp_path / "truth", "sub-01", mask(blobs))
    result = evaluate(tmp_path / "out", tmp_path / "truth", bootstrap_samples=0)
    (subject,) = result.subjects
    assert (subject.tp, subject.fp, subject.fn) == (2, 1, 1)
