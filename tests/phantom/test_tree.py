import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.phantom import SubjectSettings, simulate_subject, simulate_tree
from cmb_jax.phantom.tree import check_phantom_version, store_phase, write_subject
from cmb_jax.scan.phase_range import detect_phase_range, phase_to_radians
from tests.phantom.conftest import SETTINGS

FILES = ("part-mag_T2starw", "part-phase_T2starw", "swi")


@pytest.fixture(scope="module")
def tree(pack, tmp_path_factory):
    root = tmp_path_factory.mktemp("trees") / "first"
    simulate_tree(root, 2, 40, SETTINGS, pack_of=lambda name: pack)
    return root


def _files(root):
    return sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".cmb_jax_output"
    )


def test_layout(tree):
    expected = [".bidsignore", "dataset_description.json", "participants.tsv"]
    expected += [
        f"derivatives/truth/{name}"
        for name in (".bidsignore", "dataset_description.json", "desc-mimics_dseg.json")
    ]
    for sub in ("sub-0001", "sub-0002"):
        truth = f"derivatives/truth/{sub}/anat/{sub}_desc-"
        expected += [f"{truth}{kind}_dseg.nii.gz" for kind in ("cmb", "mimics", "regions")]
        expected.append(f"{truth}lesions.tsv")
        for kind in FILES:
            expected += [f"{sub}/anat/{sub}_{kind}.nii.gz", f"{sub}/anat/{sub}_{kind}.json"]
    assert _files(tree) == sorted(expected)
    assert json.loads((tree / "dataset_description.json").read_text())["DatasetType"] == "raw"
    people = [line.split("\t") for line in (tree / "participants.tsv").read_text().splitlines()]
    for folder in (tree, tree / "derivatives" / "truth"):
        check_phantom_version(folder)
        assert json.loads((folder / "dataset_description.json").read_text())["PhantomVersion"] == 2
    assert [line[:4] for line in people[1:]] == [
        ["sub-0001", "40", "thick3", "easy"],
        ["sub-0002", "41", "thick3", "easy"],
    ]
    truth = (tree / "derivatives/truth/sub-0001/anat/sub-0001_desc-lesions.tsv").read_text()
    row = dict(zip(*people[:2], strict=True))
    table = [line.split("\t") for line in truth.splitlines()[1:]]
    seen_mm = [float(line[6]) for line in table if line[1] == "cmb"]
    assert int(row["cmbs"]) == len(seen_mm)
    assert int(row["cmbs_below_2_mm"]) == sum(size < 2 for size in seen_mm)
    assert int(row["cmbs_2_to_10_mm"]) == sum(size >= 2 for size in seen_mm)
    assert int(row["ignored_microbleeds"]) == truth.count("\tignored_microbleed\t")
    focal = truth.count("\tcalcification_") + truth.count("\tcavernoma\t")
    assert int(row["focal_mimics"]) == focal


def test_content_is_that_of_the_subject(tree, pack):
    subject = simulate_subject(pack, 41, SETTINGS)
    images, truth = tree / "sub-0002/anat", tree / "derivatives/truth/sub-0002/anat"
    for name, expected in (("swi", subject.swi), ("part-mag_T2starw", subject.magnitude)):
        image = nib.load(images / f"sub-0002_{name}.nii.gz")
        np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)
        assert image.get_data_dtype() == np.int16
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
        np.testing.assert_allclose(image.get_fdata(), expected.data, atol=expected.data.max() / 8192)
    for name, array in (
        ("cmb", subject.cmb_labels),
        ("mimics", subject.mimic_labels),
        ("regions", subject.region_code),
    ):
        stored = np.asarray(nib.load(truth / f"sub-0002_desc-{name}_dseg.nii.gz").dataobj)
        assert stored.dtype == array.dtype
        np.testing.assert_array_equal(stored, array)
    lines = (truth / "sub-0002_desc-lesions.tsv").read_text().splitlines()
    assert lines[0] == (
        "id\tkind\tx_mm\ty_mm\tz_mm\tdiameter_mm\tapparent_diameter_mm\tchi_ppm\tregion\tside\tzone\tcnr"
    )
    assert len(lines) == len(subject.lesions) + 1
    for line, row in zip(lines[1:], subject.lesions.rows(), strict=True):
        cells = line.split("\t")
        assert cells[:2] == [str(row.id), row.kind]
        np.testing.assert_allclose([float(c) for c in cells[2:5]], [row.x_mm, row.y_mm, row.z_mm], atol=1e-3)
        assert cells[8:11] == [row.region, row.side, row.zone]
    sidecar = json.loads((images / "sub-0002_part-phase_T2starw.json").read_text())
    assert sidecar["Units"] == "arbitrary"  # this protocol stores 0 to 4095
    assert sidecar["EchoTime"] == pytest.approx(subject.te_ms / 1000, abs=1e-6)
    assert sidecar["MagneticFieldStrength"] == subject.b0_t
    stored = nib.load(images / "sub-0002_part-phase_T2starw.nii.gz").get_fdata()
    assert stored.min() >= 0
    assert stored.max() <= 4095
    wrapped = np.angle(np.exp(1j * (stored / 4096 * 2 * np.pi - np.pi - subject.phase.data)))
    assert np.abs(wrapped).max() < 2.1 * np.pi / 4096


@pytest.mark.parametrize("storage", ["radians", "pm4096", "0-4095"])
def test_stored_phase_is_read_back_as_it_was(storage, rng):
    """By the reader that tells the form from the values alone."""
    phase = rng.uniform(-np.pi, np.pi, size=(20, 20, 10)).astype(np.float32)
    stored, slope = store_phase(phase, storage)
    assert stored.dtype == np.int16
    read = stored * slope
    radians = phase_to_radians(read, detect_phase_range(read))
    wrapped = np.angle(np.exp(1j * (radians - phase)))
    assert np.abs(wrapped).max() < 2.1 * np.pi / 2048


def test_a_protocol_without_phase_writes_the_magnitude_alone(subject, tmp_path):
    alone = dataclasses.replace(subject, phase=None, swi=subject.magnitude, protocol="sabre")
    write_subject(alone, tmp_path, "sub-0001")
    names = [p.name for p in (tmp_path / "sub-0001/anat").iterdir()]
    assert sorted(names) == ["sub-0001_T2starw.json", "sub-0001_T2starw.nii.gz"]


def test_same_seed_gives_the_same_bytes(tree, pack, tmp_path):
    simulate_tree(tmp_path / "again", 1, 40, SETTINGS, pack_of=lambda name: pack)
    one = [f for f in _files(tmp_path / "again") if f != "participants.tsv"]
    assert len(one) > 10
    for name in one:
        assert (tmp_path / "again" / name).read_bytes() == (tree / name).read_bytes(), name


def test_an_existing_folder_is_left_alone(tree, pack):
    before = _files(tree)
    with pytest.raises(UserError, match="exists"):
        simulate_tree(tree, 1, 1, SETTINGS, pack_of=lambda name: pack)
    assert _files(tree) == before


def test_bad_settings_leave_nothing_behind(pack, tmp_path):
    def loader(name):
        return pack

    with pytest.raises(UserError, match="number of subjects is 0"):
        simulate_tree(tmp_path / "a", 0, 1, pack_of=loader)
    with pytest.raises(UserError, match="choose one of: iso05"):
        simulate_tree(tmp_path / "b", 1, 1, SubjectSettings(protocol="none"), pack_of=loader)
    with pytest.raises(UserError, match="seed is"):
        simulate_tree(tmp_path / "c", 1, -5, pack_of=loader)
    assert list(tmp_path.iterdir()) == []
