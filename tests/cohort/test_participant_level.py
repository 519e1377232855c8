"""`cmb-jax bids DIR OUT participant`: what is written, what is skipped, what fails and what is said."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.cohort.result import PROVENANCE
from cmb_jax.core.detection import DETECTION_COLUMNS
from cmb_jax.datasets.bids import layout
from tests.datasets.bids import tree
from tests.datasets.trees import SHAPE, refused


@pytest.fixture
def study(tmp_path):
    """Two participants: SWI with phase in two sessions, and three echoes of magnitude and phase."""
    root = tree.description(tmp_path / "study")
    for session in ("1", "2"):
        stem = f"sub-01/ses-{session}/anat/sub-01_ses-{session}"
        tree.image(root, f"{stem}_acq-hi_run-1_swi", EchoTime=0.02, MagneticFieldStrength=3)
        tree.image(root, f"{stem}_acq-hi_run-1_part-phase_GRE", tree.phase(), Manufacturer="SIEMENS")
    tree.echoes(root, "sub-02", ParamagneticPhaseSign=1)
    return root


@pytest.fixture
def out(study):
    return study / "derivatives" / "cmb-jax"


STEM_1 = "sub-01/ses-1/anat/sub-01_ses-1_acq-hi_run-1"


def written(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_files_of_a_result(bids, study, out, validator_errors):
    before = written(study)
    code, stdout, stderr = bids(study, out, "participant")
    assert code == 0, stderr
    assert "3 done" in stdout
    results = ("desc-cmb_dseg.nii.gz", "desc-cmb_dseg.json", "desc-cmb_detections.tsv",
               "desc-cmb_detections.json", "desc-cmb_report.html", "desc-cmb_overview.jpg",
               "desc-cmb_prov.jsonld")  # fmt: skip
    made = ("desc-made_swi.nii.gz", "desc-made_swi.json")
    expected = {"dataset_description.json", "README.md", ".bidsignore", "methods.md"}
    expected |= {f"sub-01/ses-{s}/anat/sub-01_ses-{s}_acq-hi_run-1_{name}" for s in "12" for name in results}
    expected |= {f"sub-02/anat/sub-02_{name}" for name in (*results, *made)}
    expected |= {
        f"logs/timings/{name}.json" for name in ("sub-01_ses-1_run-1", "sub-01_ses-2_run-1", "sub-02")
    }
    assert written(out) == expected
    assert written(study) - {f"derivatives/cmb-jax/{name}" for name in expected} == before
    assert validator_errors(out) == []
    for path in out.rglob("*"):
        if path.suffix in (".json", ".tsv", ".html", ".md", ".jsonld"):
            assert str(study.parent) not in path.read_text()


def test_brain_and_regions_if_asked_for(bids, study, out, validator_errors):
    scan = ("--participant-label", "01", "--session-label", "1", "--overwrite")
    bids(study, out, "participant", *scan, "--save-regions")
    start = str(out / STEM_1)
    brain, regions = (nib.load(f"{start}_desc-{name}.nii.gz") for name in ("brain_mask", "regions_dseg"))
    scan_image = nib.load(study / f"{STEM_1}_swi.nii.gz")
    for image in (brain, regions):
        assert image.shape == scan_image.shape
        np.testing.assert_allclose(image.affine, scan_image.affine, atol=1e-5)
    assert np.asarray(brain.dataobj).all()  # the stub's brain is everything, all left frontal
    assert set(np.unique(np.asarray(regions.dataobj))) == {25}
    with open(f"{start}_desc-regions_dseg.tsv", newline="") as file:
        names = {int(row["index"]): row["name"] for row in csv.DictReader(file, delimiter="\t")}
    assert names[25] == "left frontal"
    prov = json.loads(Path(f"{start}_desc-cmb_prov.jsonld").read_text())
    made = [each["Id"] for each in prov["Records"]["Entities"] if "GeneratedBy" in each]
    assert all(Path(f"{start}_desc-cmb_prov.jsonld").with_name(name).is_file() for name in made)
    assert any(name.endswith("_desc-brain_mask.nii.gz") for name in made)
    assert validator_errors(out) == []
    bids(study, out, "participant", *scan)  # made again without: what was there would be of another run
    assert not [path for path in out.rglob("*") if "desc-brain" in path.name or "desc-regions" in path.name]


def test_labels_and_table_agree_and_lie_on_the_scan(bids, study, out):
    bids(study, out, "participant", "--participant-label", "01", "--session-label", "ses-1")
    labels = nib.load(out / f"{STEM_1}_desc-cmb_dseg.nii.gz")
    scan = nib.load(study / f"{STEM_1}_swi.nii.gz")
    assert labels.shape == scan.shape
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
    with (out / f"{STEM_1}_desc-cmb_detections.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert tuple(rows[0]) == DETECTION_COLUMNS
    data = np.asarray(labels.dataobj)
    assert set(np.unique(data)) == {0, 1, 2, 3}
    for row in rows:
        if row["status"] == "kept":
            assert row["reason"] == "n/a"
            assert data[int(row["i"]), int(row["j"]), int(row["k"])] == int(row["id"])
            where = labels.affine @ [int(row["i"]), int(row["j"]), int(row["k"]), 1]
            np.testing.assert_allclose(where[:3], [float(row[f"{axis}_mm"]) for axis in "xyz"], atol=1e-3)
    assert [row["status"] for row in rows] == ["kept", "kept", "kept", "rejected"]
    assert not (out / "sub-02").exists()


def test_sidecar_explains_every_column_and_where_the_result_comes_from(bids, study, out):
    tree.image(study, "sub-01/ses-1/anat/sub-01_ses-1_acq-lo_swi")
    bids(study, out, "participant", "--participant_label", "sub-01")
    sidecar = json.loads((out / f"{STEM_1}_desc-cmb_detections.json").read_text())
    assert tuple(sidecar)[: len(DETECTION_COLUMNS)] == DETECTION_COLUMNS
    assert all(sidecar[name]["Description"] for name in DETECTION_COLUMNS)
    made = sidecar[PROVENANCE]
    assert made["Taken"]["Kind"] == "swi_and_phase"
    assert made["Taken"]["Left"] == [
        {
            "File": "sub-01/ses-1/anat/sub-01_ses-1_acq-lo_swi.nii.gz",
            "Why": f"{STEM_1}_swi.nii.gz goes before it: its name is more like that of the phase",
        }
    ]
    assert [image["Role"] for image in made["Taken"]["Images"]] == ["swi", "phase"]
    assert (made["EchoTimeMs"], made["MagneticFieldStrength"]) == (20.0, 3.0)
    assert made["Making"]["Weights"]["SHA256"] == "5a" * 32
    assert "esearch use only" in made["Notice"]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    source = json.loads((out / f"{STEM_1}_desc-cmb_dseg.json").read_text())["SpatialReference"]
    # the BIDS URI leads to the file
    link = (out / description["DatasetLinks"]["raw"]).resolve()
    assert (link / source.removeprefix("bids:raw:")).samefile(study / f"{STEM_1}_swi.nii.gz")


def test_echoes_become_one_swi_that_is_kept(bids, study, out, stub):
    code, _, stderr = bids(study, out, "participant", "--participant-label", "02")
    assert code == 0, stderr
    (images,) = stub.seen
    assert images.made
    assert (images.phase_sign, images.phase_range.name) == ("+1", "radians")
    swi = nib.load(out / "sub-02/anat/sub-02_desc-made_swi.nii.gz")
    magnitude = nib.load(study / "sub-02/anat/sub-02_echo-1_part-mag_MEGRE.nii.gz")
    np.testing.assert_allclose(swi.affine, magnitude.affine, atol=1e-5)
    assert json.loads((out / "sub-02/anat/sub-02_desc-made_swi.json").read_text())["EchoTimesMs"] == [
        8,
        16,
        24,
    ]
    # the phase mask darkens, never brightens, the combined magnitude
    assert np.all(images.swi.data <= images.magnitude.data * (1 + 1e-5))
    assert np.mean(images.swi.data < 0.9 * images.magnitude.data) > 0.2


def test_a_finished_scan_is_left_alone(bids, study, out, stub):
    bids(study, out, "participant", "--participant-label", "02")
    stamp = (out / "sub-02/anat/sub-02_desc-cmb_detections.tsv").stat().st_mtime_ns
    code, stdout, _ = bids(study, out, "participant")
    assert code == 0
    assert "2 done, 1 skipped" in stdout
    assert len(stub.seen) == 3
    assert (out / "sub-02/anat/sub-02_desc-cmb_detections.tsv").stat().st_mtime_ns == stamp
    assert "3 done" in bids(study, out, "participant", "--overwrite")[1]
    assert len(stub.seen) == 6


def test_a_run_that_was_cut_off_is_done_again(bids, study, out, stub):
    bids(study, out, "participant", "--participant-label", "02")
    (out / "sub-02/anat/sub-02_desc-cmb_detections.json").unlink()  # it is written last
    assert "1 done" in bids(study, out, "participant", "--participant-label", "02")[1]
    assert len(stub.seen) == 2


@pytest.mark.parametrize("what", ["threshold", "images", "damaged"])
def test_a_finished_scan_that_would_come_out_otherwise_is_said(bids, study, out, stub, what):
    bids(study, out, "participant", "--participant-label", "01")
    more = ()
    if what == "threshold":
        more = ("--threshold", "0.5")
    elif what == "images":
        tree.image(study, f"{STEM_1}_swi", np.full(SHAPE, 7.0, np.float32) + np.arange(SHAPE[2]))
    else:
        (out / f"{STEM_1}_desc-cmb_detections.json").write_text("{")
    before = (out / f"{STEM_1}_desc-cmb_detections.tsv").read_bytes()
    code, stdout, _ = bids(study, out, "participant", *more)
    assert code == 1  # the other participant is done
    assert "1 done" in stdout
    assert what in stdout or "not readable JSON" in stdout
    assert "--overwrite" in stdout
    assert (out / f"{STEM_1}_desc-cmb_detections.tsv").read_bytes() == before
    assert bids(study, out, "participant", *more, "--overwrite")[0] == 0


def test_one_that_fails_stops_no_other(bids, study, out, monkeypatch, stub, capsys):
    tree.image(study, "sub-00/anat/sub-00_part-phase_GRE", tree.phase())
    tree.image(study, "sub-03/anat/sub-03_swi", np.full(SHAPE, 5.0, np.float32))
    tree.image(study, "sub-04/anat/sub-04_T1w")
    code, stdout, stderr = bids(study, out, "participant")
    assert code == 1
    assert "3 done, 2 failed, 1 no images" in stdout
    assert "a phase, but there is neither SWI nor magnitude" in stdout
    assert "sub-03: failed: sub-03/anat/sub-03_swi.nii.gz: every voxel is 5" in stdout
    log = json.loads((out / "logs" / "sub-03.json").read_text())
    assert log["Reason"].startswith("sub-03/anat/sub-03_swi.nii.gz: every voxel is 5")
    assert "Traceback" not in stderr
    # put right, it is done, and the log goes
    tree.image(study, "sub-03/anat/sub-03_swi")
    assert "1 done, 3 skipped" in bids(study, out, "participant")[1]
    assert not (out / "logs" / "sub-03.json").exists()


def test_a_folder_that_cannot_be_read_stops_no_other(bids, study, out, monkeypatch):
    real = layout.visible

    def visible(folder):
        if folder.name == "sub-02":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(layout, "visible", visible)
    code, stdout, _ = bids(study, out, "participant")
    assert code == 1
    assert "sub-02: failed: sub-02: cannot be read (Permission denied)" in stdout
    code, stdout, _ = bids(study, out, "group")
    assert code == 1
    assert stdout.startswith("2 done, 1 failed")


def test_what_people_add_to_the_data_set_stays(bids, study, out):
    bids(study, out, "participant", "--participant-label", "02")
    (out / "README.md").write_text("ours")
    description = json.loads((out / "dataset_description.json").read_text()) | {"Authors": ["A", "B"]}
    (out / "dataset_description.json").write_text(json.dumps(description))
    bids(study, out, "participant")
    bids(study, out, "group")
    assert (out / "README.md").read_text() == "ours"
    assert json.loads((out / "dataset_description.json").read_text()) == description


def test_an_unexpected_error_is_one_scan_s_failure(bids, study, out, stub, monkeypatch):
    prepare = stub.prepare

    def failing(images, say):
        if images.made:
            raise RuntimeError(f"no memory\nat {study}/x")
        return prepare(images, say)

    monkeypatch.setattr(stub, "prepare", failing)
    code, stdout, stderr = bids(study, out, "participant")
    assert code == 1
    assert "2 done, 1 failed" in stdout
    assert "sub-02: failed: unexpected RuntimeError: no memory at x; please report it" in stdout
    assert "Traceback" in stderr
    assert not list(out.glob("sub-02/**/*.nii.gz"))


@pytest.mark.parametrize(
    ("facts", "asked", "expected"),
    [
        ({"ParamagneticPhaseSign": -1}, "auto", "-1"),
        ({"ParamagneticPhaseSign": -1}, "+1", "+1"),
        ({"Manufacturer": "GE MEDICAL SYSTEMS"}, "auto", "auto"),
        ({}, "-1", "-1"),
    ],
)
def test_the_sign_of_the_phase(bids, tmp_path, stub, facts, asked, expected):
    root = tree.description(tmp_path / "study")
    tree.image(root, "sub-01/anat/sub-01_swi")
    tree.image(root, "sub-01/anat/sub-01_part-phase_T2starw", tree.phase(), **facts)
    assert bids(root, tmp_path / "out", "participant", "--phase-sign", asked)[0] == 0
    (images,) = stub.seen
    assert images.phase_sign == expected


@pytest.mark.parametrize(
    ("data", "facts", "expected"),
    [
        (np.random.default_rng(0).normal(0, 0.2, SHAPE), {"Units": "rad"}, "radians"),  # fills no range
        (np.random.default_rng(0).normal(0, 0.2, SHAPE), {"Units": "arbitrary"}, None),
        (np.random.default_rng(0).uniform(0, 4095, SHAPE), {"Units": "rad"}, None),  # the values tell
    ],
)
def test_the_unit_of_a_phase_that_does_not_tell_it(bids, tmp_path, stub, data, facts, expected):
    root = tree.description(tmp_path / "study")
    tree.image(root, "sub-01/anat/sub-01_swi")
    tree.image(root, "sub-01/anat/sub-01_part-phase_T2starw", np.asarray(data, np.float32), **facts)
    bids(root, tmp_path / "out", "participant")
    (images,) = stub.seen
    assert (images.phase_range and images.phase_range.name) == expected


def test_without_a_sign_the_magnitude_stands_for_swi(bids, tmp_path, stub):
    root = tree.description(tmp_path / "study")
    tree.echoes(root)
    code, _, stderr = bids(root, tmp_path / "out", "participant")
    assert code == 0, stderr
    (images,) = stub.seen
    assert (images.made, images.phase) == (False, None)
    assert any("sign of the phase is open" in line for line in images.warnings)
    assert not list((tmp_path / "out").rglob("*made_swi*"))


@pytest.mark.parametrize("stored", ["pm4096", "0-4095"])
def test_phase_in_integers(bids, tmp_path, stub, stored):
    root = tree.description(tmp_path / "study")
    radians = tree.phase()
    whole = np.rint(radians / np.pi * 4096) if stored == "pm4096" else np.rint((radians / np.pi + 1) * 2047.5)
    tree.image(root, "sub-01/anat/sub-01_part-mag_GRE")
    tree.image(root, "sub-01/anat/sub-01_part-phase_GRE", whole.astype(np.int16))
    code, _, stderr = bids(root, tmp_path / "out", "participant", "--phase-sign", "+1")
    assert code == 0, stderr
    (images,) = stub.seen
    assert any(f"phase read as {stored}" in step for step in images.steps)
    assert np.abs(images.phase.data).max() <= np.pi
    assert images.phase.data.std() > 0.5


def test_refusals_before_any_work(bids, study, out, stub, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    file = tmp_path / "file"
    file.write_text("x")
    refused(bids(study, study, "participant"), "holds the data set")
    refused(bids(study, tmp_path, "participant"), "holds the data set")
    refused(bids(study, other, "participant"), "did not write")
    refused(bids(study, file, "participant"), "is a file")
    refused(bids(study, out, "participant", "--participant-label", "99"), "no participant 99")
    refused(bids(study, out, "participant", "--participant-label", "../01"), "not a BIDS label")
    refused(bids(study, out, "participant", "--session-label", "a b"), "not a BIDS label")
    refused(bids(study, out, "participant", "--threshold", "2"), "between 0 and 1")
    refused(bids(study, out, "group"), "run the participant level first")
    refused(bids(tmp_path / "none", out, "participant"), "no such folder")
    assert not out.exists()
    assert (other / "mine.txt").read_text() == "precious"
    assert stub.seen == []


def test_nothing_that_can_be_used(bids, tmp_path):
    root = tree.description(tmp_path / "study")
    tree.image(root, "sub-01/anat/sub-01_T1w")
    code, stdout, stderr = bids(root, tmp_path / "out", "participant")
    assert (code, stdout) == (2, "")
    assert (
        stderr.splitlines()[-1]
        == f"error: {root}: nothing was done: sub-01: no susceptibility images in anat or swi"
    )


def test_another_acquisition_can_be_asked_for(bids, tmp_path, stub):
    root = tree.description(tmp_path / "study")
    for acq in ("a", "b"):
        tree.image(root, f"sub-01/anat/sub-01_acq-{acq}_swi")
    bids(root, tmp_path / "out", "participant")
    assert bids(root, tmp_path / "out", "participant", "--acq-label", "b")[0] == 0
    assert (
        "of the session or acquisition asked for"
        in bids(root, tmp_path / "out", "participant", "--acq-label", "c")[2]
    )
    assert [images.swi.source.name for images in stub.seen] == [
        "sub-01_acq-a_swi.nii.gz",
        "sub-01_acq-b_swi.nii.gz",
    ]
    assert (tmp_path / "out/sub-01/anat/sub-01_acq-b_desc-cmb_dseg.nii.gz").is_file()


def test_the_way_to_the_source_is_told_only_from_nearby(bids, tmp_path):
    root = tree.description(tmp_path / "study")
    tree.image(root, "sub-01/anat/sub-01_swi")
    for where, link in (
        ("study/derivatives/found", "../.."),
        ("found", "../study"),
        ("a/found", "../../study"),
    ):
        bids(root, tmp_path / where, "participant")
        description = json.loads((tmp_path / where / "dataset_description.json").read_text())
        assert description.get("DatasetLinks", {}).get("raw") == link
    root2 = tmp_path / "x" / "study"
    tree.image(tree.description(root2), "sub-01/anat/sub-01_swi")
    bids(root2, tmp_path / "found2", "participant")
    assert "DatasetLinks" not in json.loads((tmp_path / "found2/dataset_description.json").read_text())
