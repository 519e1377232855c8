"""Own scans: their lesions lie where the images show them, and what cannot be used is said and left out."""

import dataclasses
import shutil

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.config import DataConfig
from cmb_jax.data.subjects import READERS_MIMIC, StoredSubject
from cmb_jax.datasets.index import read_index
from cmb_jax.errors import UserError
from cmb_jax.training import run_data
from cmb_jax.training.run_data import open_data, prepare_cases
from tests.training.own_site import (
    LPS,
    OBLIQUE,
    SHAPE,
    add_scan,
    edit,
    make_index,
    make_site,
    split_file,
)

SPACING = (1.0, 0.5, 0.5)

FORMS = {
    "points": {"truth": "points"},
    "mask-lps": {"truth": "mask", "affine": LPS},
    "soft-oblique": {"truth": "soft", "affine": OBLIQUE},
    "points-oblique": {"truth": "points", "affine": OBLIQUE, "phase": False},
    "kinds-oblique": {"truth": "kinds", "count": 4, "affine": OBLIQUE},
    "none": {"truth": "points", "count": 0},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A scan of every form: mixed orientations, masks, soft masks, centers, no phase, no lesions."""
    folder = tmp_path_factory.mktemp("forms")
    root = folder / "site"
    root.mkdir()
    for number, (name, form) in enumerate(FORMS.items()):
        add_scan(root, name, seed=number, **form)
    index, root = read_index(make_index(root, folder / "site.json"))
    part = prepare_cases(index.cases, root, folder / "scans", SPACING)
    return index, root, folder / "scans", part


def stored(site, name):
    part = site[3]
    number = [case.case_id for case in part.cases].index(name)
    return part.subjects[number]


def test_every_form_is_prepared(site):
    part = site[3]
    assert {case.case_id for case in part.cases} == set(FORMS)
    assert part.skipped == ()
    assert part.lesions == 3 * (len(FORMS) - 1)


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("none", "kinds-oblique")])
def test_boxes_lie_on_the_dark_spots(site, name):
    """The darkest voxels of the stored image are in the boxes, and the boxes' middles are dark."""
    subject = stored(site, name)
    intensity = subject.image()[..., 0].astype(float)
    boxes = subject.boxes()
    assert len(boxes) == 3
    covered = np.zeros(intensity.shape, bool)
    for box in boxes:
        low, high = np.floor(box[:3]).astype(int), np.ceil(box[3:]).astype(int)
        covered[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        middle = tuple(np.floor((box[:3] + box[3:]) / 2).astype(int))
        assert intensity[middle] < 0.4
    assert covered[intensity < 0.4].all()
    assert covered.mean() < 0.02


def test_masks_give_boxes_and_points_the_default_diameter(site):
    edges = {
        name: (stored(site, name).boxes()[:, 3:] - stored(site, name).boxes()[:, :3]) * SPACING
        for name in ("points", "mask-lps")
    }
    np.testing.assert_allclose(edges["points"], 3.0, atol=1e-4)
    np.testing.assert_allclose(edges["mask-lps"], [[2.0, 3.0, 3.0]] * 3, atol=1e-4)  # 3 x 3 x 1 voxels


def test_phase_is_paramagnetic_positive_or_a_zero_channel(site):
    subject = stored(site, "points")
    spots = [tuple(np.floor((box[:3] + box[3:]) / 2).astype(int)) for box in subject.boxes()]
    assert min(subject.image()[spot][1] for spot in spots) > 0.1
    assert not stored(site, "points-oblique").image()[..., 1].any()


def test_what_a_reader_took_for_none_is_a_known_mimic(site):
    """The one dark spot outside the boxes, and nothing in them."""
    subject = stored(site, "kinds-oblique")
    cells = subject.mimics() == READERS_MIMIC
    dark = subject.image()[:, ::2, ::2, 0] < 0.4
    for box in subject.boxes():
        low, high = (np.floor(corner / (1, 2, 2)).astype(int) for corner in (box[:3], box[3:] + 1))
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        assert not cells[window].any()
        dark[window] = False
    assert dark.any()
    apart = np.argwhere(cells).mean(axis=0) - np.argwhere(dark).mean(axis=0)
    assert np.abs(apart).max() < 0.6
    assert 5 < cells.sum() < 25  # cells of 1 mm in a sphere of 3 mm: 14
    np.testing.assert_array_equal(
        np.unique(subject.mimic_points(), axis=0), np.argwhere(cells).astype(np.int32)
    )


def test_no_other_mimics_are_known(site):
    for case, subject in zip(site[3].cases, site[3].subjects, strict=True):
        points = subject.brain_points()
        assert len(points) > 0
        assert (points < subject.mimics().shape).all()
        if case.case_id != "kinds-oblique":
            assert not subject.mimics().any()
            assert subject.mimic_points().shape == (0, 3)


def test_nothing_is_prepared_twice(site, monkeypatch, tmp_path):
    index, root, cache, part = site

    def fail(*arguments, **settings):
        raise AssertionError("prepared again")

    monkeypatch.setattr(run_data, "prepare_scan", fail)
    assert prepare_cases(index.cases, root, cache, SPACING).subjects == part.subjects
    # the content counts, not where it lies
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    assert prepare_cases(index.cases, moved, cache, SPACING).subjects == part.subjects


def test_what_has_changed_is_prepared_again(tmp_path):
    path = make_site(tmp_path, scans=1)
    root, cache = tmp_path / "site", tmp_path / "scans"

    def folders(spacing=SPACING):
        index, _ = read_index(path)
        return {subject.folder for subject in prepare_cases(index.cases, root, cache, spacing).subjects}

    first = folders()
    coarse = folders((2.0, 1.0, 1.0))
    table = root / "p1_points.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    make_index(root, path)
    fewer = folders()
    assert len(StoredSubject(folder=next(iter(fewer))).boxes()) == 2
    image = nib.load(root / "p1_swi.nii.gz")
    data = image.get_fdata()
    data[0, 0, 0] += 1
    nib.save(nib.Nifti1Image(data, image.affine), root / "p1_swi.nii.gz")
    other = folders()
    assert len(first | coarse | fewer | other) == 4


def spoil_center(cases):
    cases["p1"]["truth"]["points"][0] = [500.0, 0.0, 0.0]


def spoil_image(root):
    (root / "p1_swi.nii.gz").write_bytes(b"no image")


def spoil_mask(root):
    affine = nib.load(root / "p1_swi.nii.gz").affine
    (root / "p1_points.csv").unlink()
    nib.save(nib.Nifti1Image(np.full(SHAPE, 1.7, np.float32), affine), root / "p1_mask.nii.gz")


def spoil_phase(root):
    affine = nib.load(root / "p1_swi.nii.gz").affine
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), affine), root / "p1_phase.nii.gz")


def only_t1(cases):
    cases["p1"]["images"] = {"t1": cases["p1"]["images"]["swi"]}


def as_mask(cases):
    cases["p1"]["truth"] = {"mask": "p1_mask.nii.gz", "threshold": 0.5, "soft": True}


@pytest.mark.parametrize(
    ("spoil", "change", "message"),
    [
        (None, spoil_center, "1 of 3 centers lie outside the 44 x 48 x 24 voxels"),
        (spoil_image, None, "p1_swi.nii.gz"),
        (spoil_mask, as_mask, "a soft mask must lie in 0 to 1"),
        (spoil_phase, None, "p1_phase.nii.gz"),
        (None, only_t1, "has no SWI, T2\\*-weighted or magnitude image"),
    ],
)
def test_a_case_that_cannot_be_used_is_listed_and_skipped(tmp_path, spoil, change, message):
    path = make_site(tmp_path, scans=2)
    root = tmp_path / "site"
    if spoil:
        spoil(root)
    if change:
        edit(path, change)
    index, root = read_index(path)
    part = prepare_cases(index.cases, root, tmp_path / "scans", SPACING)
    assert [case.case_id for case in part.cases] == ["p2"]
    ((name, reason),) = part.skipped
    assert name == "p1"
    assert "\n" not in reason
    assert str(root) not in reason
    with pytest.raises(UserError, match=message):
        raise UserError(reason)
    assert not [entry for entry in (tmp_path / "scans").iterdir() if entry.name.startswith(".")]


def test_lesions_beyond_the_brain_are_said(tmp_path, monkeypatch):
    path = make_site(tmp_path, scans=1)
    index, root = read_index(path)
    whole = run_data.prepare_scan

    def cut(images, **settings):
        found = whole(images, **settings)
        prepared = found.prepared
        # as if the region network had taken one slice alone for the brain
        return dataclasses.replace(found, prepared=dataclasses.replace(prepared, image=prepared.image[:2]))

    monkeypatch.setattr(run_data, "prepare_scan", cut)
    part = prepare_cases(index.cases, root, tmp_path / "scans", SPACING)
    assert ("p1", "3 of 3 lesions lie outside the brain that the region network found") in part.notes


def test_parts_come_from_the_file_or_from_the_shares(tmp_path):
    path = make_site(tmp_path, scans=4)
    add_scan(tmp_path / "site", "unread", truth=None)
    make_index(tmp_path / "site", path)
    table = split_file(tmp_path / "split.csv", train=("p1", "unread"), val=("p2",), test=("p3",))
    own = open_data(DataConfig(index=str(path), split_file=str(table)))
    assert {name: [case.case_id for case in part] for name, part in own.parts.items()} == {
        "train": ["p1"],
        "val": ["p2"],
        "test": ["p3"],
    }
    assert own.notes == (
        "not used, because they have no truth: 1 of 5 cases",
        "not used, because the split file lacks them: 1 of 4 cases with a truth",
    )
    dealt = open_data(DataConfig(index=str(path), split_fractions=(0.5, 0.25, 0.25), split_seed=1))
    assert [len(dealt.parts[name]) for name in ("train", "val", "test")] == [2, 1, 1]
    assert sorted(case.case_id for part in dealt.parts.values() for case in part) == ["p1", "p2", "p3", "p4"]


def test_an_index_without_any_truth_is_refused(tmp_path):
    root = tmp_path / "site"
    root.mkdir()
    add_scan(root, "p1", truth=None)
    path = make_index(root, tmp_path / "site.json")
    with pytest.raises(UserError, match="no case has a truth"):
        open_data(DataConfig(index=str(path)))


def test_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        DataConfig(split_fractions=(0.5, 0.1, 0.1))
