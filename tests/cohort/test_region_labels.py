"""`--regions DERIVATIVES`: label volumes of a derivative data set in place of the region network."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region, Side, region_of, side_of
from cmb_jax.cohort.result import PROVENANCE
from tests.datasets.bids import tree
from tests.datasets.trees import SHAPE, refused

TABLE = "label,region,side\n7,frontal,left\n8,cerebellum,\n"
ANAT = "sub-01/anat/sub-01"


def labels(low=7, high=8):
    """Two blocks along the first axis of the file."""
    data = np.zeros(SHAPE, np.int16)
    data[2:12, 2:26, 1:13] = low
    data[12:22, 2:26, 1:13] = high
    return data


@pytest.fixture
def study(tmp_path):
    """A SWI, and two echoes of magnitude and phase whose sign is told: a SWI can be made of them."""
    root = tree.description(tmp_path / "study")
    tree.image(root, f"{ANAT}_swi")
    tree.echoes(root, "sub-02", count=2, times_s=(0.01, 0.02), ParamagneticPhaseSign=1)
    return root


@pytest.fixture
def regions(study):
    root = study / "derivatives" / "synthseg"
    for label in ("01", "02"):
        tree.image(root, f"sub-{label}/anat/sub-{label}_desc-parc_dseg", labels())
    return root


@pytest.fixture
def own(regions, tmp_path):
    """The arguments."""
    table = tmp_path / "table.csv"
    table.write_text(TABLE)
    return ("--regions", regions, "--region-labels", table)


@pytest.fixture
def out(study):
    return study / "derivatives" / "cmb-jax"


def sidecar(out, name, what="desc-cmb_detections"):
    return json.loads((out / f"{name}_{what}.json").read_text())


def test_the_labels_are_the_regions(bids, study, out, own, stub):
    code, _, stderr = bids(study, out, "participant", *own)
    assert code == 0, stderr
    assert len(stub.seen) == 2
    file_affine = nib.load(study / f"{ANAT}_swi.nii.gz").affine
    for images in stub.seen:
        found = images.region_map
        for voxel, named in (
            ((5, 10, 6), (Region.FRONTAL, Side.LEFT)),
            ((18, 10, 6), (Region.CEREBELLUM, Side.LEFT)),  # the nearest side there is
            ((0, 0, 0), (Region.OUTSIDE, Side.NONE)),
        ):
            index = np.rint(np.linalg.inv(found.affine) @ file_affine @ [*voxel, 1])[:3].astype(int)
            code = int(found.code[tuple(index)])
            assert (region_of(code), side_of(code)) == named


def test_without_them_the_network_is_used(bids, study, out, stub):
    bids(study, out, "participant")
    assert [images.region_map for images in stub.seen] == [None, None]
    assert sidecar(out, ANAT)[PROVENANCE]["Making"]["Regions"] == "network"


def test_the_result_says_which_labels(bids, study, out, own, regions, validator_errors):
    assert bids(study, out, "participant", *own)[0] == 0
    made = sidecar(out, ANAT)[PROVENANCE]
    file = f"{ANAT}_desc-parc_dseg.nii.gz"
    digest = hashlib.sha256((regions / file).read_bytes()).hexdigest()
    assert made["Taken"]["Images"][-1] == {"Role": "regions", "File": file, "SHA256": digest}
    assert made["Making"]["Regions"] == {"LabelTableSHA256": hashlib.sha256(TABLE.encode()).hexdigest()}
    assert digest in (out / f"{ANAT}_desc-cmb_report.html").read_text()
    # the BIDS URI leads to the file
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    *_, uri = sidecar(out, ANAT, "desc-cmb_dseg")["Sources"]
    assert uri == f"bids:regions:{file}"
    assert (out / links["regions"] / file).resolve().samefile(regions / file)
    # a SWI that was made here is not made of regions
    made_of = sidecar(out, "sub-02/anat/sub-02", "desc-made_swi")["Sources"]
    assert len(made_of) == 4
    assert all(source.startswith("bids:raw:") for source in made_of)
    assert validator_errors(out) == []
    assert bids(study, out, "group")[1].startswith("2 done\n")


def test_other_labels_do_not_pass_for_finished(bids, study, out, own, regions, tmp_path, stub):
    def run(*arguments):
        return bids(study, out, "participant", "--participant-label", "01", *arguments)

    # one of a version that knew no labels
    run()
    path = out / f"{ANAT}_desc-cmb_detections.json"
    older = json.loads(path.read_text())
    del older[PROVENANCE]["Making"]["Regions"]
    path.write_text(json.dumps(older))
    assert run()[1].startswith("1 skipped\n")
    refused_as = "nothing was done: sub-01: {} changed since; make it again with --overwrite"
    assert refused_as.format("regions, images") in run(*own)[2]
    assert run(*own, "--overwrite")[1].startswith("1 done\n")
    assert run(*own)[1].startswith("1 skipped\n")
    assert refused_as.format("regions, images") in run()[2]
    (tmp_path / "table.csv").write_text(TABLE.replace("cerebellum", "occipital"))
    assert refused_as.format("regions") in run(*own)[2]
    (tmp_path / "table.csv").write_text(TABLE)
    tree.image(regions, f"{ANAT}_desc-parc_dseg", labels(8, 7))
    assert refused_as.format("images") in run(*own)[2]
    assert len(stub.seen) == 2


def test_a_scan_without_usable_labels_stops_no_other(bids, study, out, own, regions, tmp_path, stub):
    tree.image(study, "sub-03/ses-1/anat/sub-03_ses-1_run-1_swi")
    tree.image(regions, "sub-03/anat/sub-03_dseg", labels())  # of no session
    tree.image(study, "sub-04/anat/sub-04_swi")
    tree.image(regions, "sub-04/anat/sub-04_dseg", labels(7, 9))
    tree.image(study, "sub-05/anat/sub-05_swi")
    (regions / "sub-05/anat").mkdir(parents=True)
    (regions / "sub-05/anat/sub-05_dseg.nii.gz").write_text("no image")
    code, stdout, _ = bids(study, out, "participant", *own)
    assert code == 1
    assert stdout.startswith("2 done, 3 failed\n")
    reasons = {name: json.loads((out / f"logs/{name}.json").read_text())["Reason"]
               for name in ("sub-03_ses-1_run-1", "sub-04", "sub-05")}  # fmt: skip
    none, unknown, damaged = reasons.values()
    assert none.startswith("no label volume")
    assert "sub-03/ses-1/anat/sub-03_ses-1_dseg.nii.gz" in none
    assert unknown.startswith("sub-04/anat/sub-04_dseg.nii.gz: labels 9 are not in the table")
    assert damaged.startswith("sub-05/anat/sub-05_dseg.nii.gz: ")
    for reason in reasons.values():
        assert "\n" not in reason
        assert str(tmp_path) not in reason
    # put right, it is done
    tree.image(regions, "sub-04/anat/sub-04_dseg", labels())
    assert bids(study, out, "participant", *own)[1].startswith("1 done, 2 skipped, 2 failed\n")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("dseg", "space-MNI152NLin2009cAsym_dseg"), "dseg"),
        (("run-1_dseg", "run-2_dseg"), "run-2_dseg"),
        (("dseg", "acq-hi_dseg"), "acq-hi_dseg"),
        (("acq-lo_run-2_dseg", "space-SWI_dseg"), "space-SWI_dseg"),
        (("acq-hi_dseg", "acq-hi_run-2_desc-x_dseg", "run-2_dseg"), "acq-hi_run-2_desc-x_dseg"),
        (("desc-aparcaseg_dseg", "desc-aseg_dseg"), None),
        (("run-1_dseg", "run-3_dseg"), None),
        (("space-MNI152Lin_dseg", "run-2_mask", "run-2_probseg"), ()),
    ],
)
def test_of_several_the_image_s_entities_choose(bids, tmp_path, stub, names, taken):
    root, regions = tree.description(tmp_path / "study"), tmp_path / "regions"
    tree.image(root, f"{ANAT}_acq-hi_run-2_swi")
    for name in names:
        tree.image(regions, f"{ANAT}_{name}", labels(1022, 2022))
    code, _, stderr = bids(root, tmp_path / "out", "participant", "--regions", regions)
    if isinstance(taken, str):
        assert code == 0, stderr
        images = sidecar(tmp_path / "out", f"{ANAT}_acq-hi_run-2")[PROVENANCE]["Taken"]["Images"]
        assert images[-1]["File"] == f"{ANAT}_{taken}.nii.gz"
    else:
        assert code == 2
        (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert ("several label volumes" if taken is None else "no label volume") in line
        assert all((f"{ANAT}_{name}.nii.gz" in line) == (taken is None) for name in names)
        assert stub.seen == []


def test_the_only_one_is_taken_whatever_its_name_but_it_is_said(bids, tmp_path, stub):
    root, regions = tree.description(tmp_path / "study"), tmp_path / "regions"
    for acq in ("hi", "t1"):
        tree.image(root, f"sub-{acq}/anat/sub-{acq}_acq-hi_swi")
        tree.image(regions, f"sub-{acq}/anat/sub-{acq}_acq-{acq}_dseg", labels(1022, 2022))
    assert bids(root, tmp_path / "out", "participant", "--regions", regions)[0] == 0
    said = {str(images.swi.source): images.region_map.messages for images in stub.seen}
    assert [bool(messages) for _, messages in sorted(said.items())] == [False, True]
    assert any("named acq-t1" in line for messages in said.values() for line in messages)


def test_refusals_before_any_work(bids, study, out, own, tmp_path):
    refused(bids(study, out, "participant", "--regions", tmp_path / "none"), "no such folder")
    refused(bids(study, out, "participant", *own[2:]), "goes with --regions DERIVATIVES")
    refused(bids(study, out, "participant", *own[:3], tmp_path / "none.csv"), "none.csv: no such file;")
    (tmp_path / "table.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    refused(bids(study, out, "participant", *own), "give a CSV file")
    (tmp_path / "table.csv").write_text("label,region,side\n7,forehead,left\n")
    refused(bids(study, out, "participant", *own), "line 2: region is 'forehead'")
    assert not out.exists()
