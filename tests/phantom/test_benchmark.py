import gzip

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.phantom.benchmark import (
    PROTOCOL_NAMES,
    SIZES,
    BenchmarkSplit,
    checksums,
    compare,
    read_checksums,
    write_checksums,
)

SPLITS = [BenchmarkSplit(split=s, tier=t) for s in SIZES for t in ("easy", "hard")]


def test_no_seed_is_in_two_splits():
    seeds = [m.seed for split in SPLITS for m in split.members(SIZES[split.split] or 1000)]
    assert len(seeds) == len(set(seeds)) == 2 * (40 + 60 + 1000)
    names = [m.name for split in SPLITS for m in split.members(SIZES[split.split] or 1000)]
    assert len(names) == len(set(names))


def test_every_protocol_meets_every_anatomy_in_each_split():
    for split in SPLITS:
        met = {(m.settings.protocol, m.anatomy) for m in split.members(SIZES[split.split] or 60)}
        assert len(met) == 3 * len(PROTOCOL_NAMES) == 18
        assert not {"gre5", "wide1", "wide3"} & {protocol for protocol, _ in met}  # new site, training only
        assert all(m.settings.tier == split.tier for m in split.members(5))


@pytest.mark.parametrize(
    ("split", "tier", "count", "words"),
    [
        ("tests", "easy", 1, "train, validation, test"),
        ("test", "medium", 1, "easy, hard"),
        ("test", "easy", 61, "has 1 to 60"),
        ("train", "easy", None, "give --subjects"),
        ("validation", "hard", 0, "has 1 to 40"),
    ],
)
def test_what_there_is_not_is_refused(split, tier, count, words):
    with pytest.raises(UserError, match=words):
        BenchmarkSplit(split=split, tier=tier).members(count)


@pytest.fixture
def folder(tmp_path):
    anat = tmp_path / "data" / "sub-a" / "anat"
    anat.mkdir(parents=True)
    (anat / "sub-a_cmb_dseg.nii.gz").write_bytes(gzip.compress(b"labels", 1))
    (anat / "sub-a_swi.json").write_text("{}")
    (tmp_path / "data" / "participants.tsv").write_text("of the whole tree\n")
    return tmp_path / "data"


def test_checksums_are_of_the_content_not_of_its_compression(folder, tmp_path):
    sums = checksums(folder)
    assert sorted(sums) == ["sub-a/anat/sub-a_cmb_dseg.nii.gz", "sub-a/anat/sub-a_swi.json"]
    (folder / "sub-a/anat/sub-a_cmb_dseg.nii.gz").write_bytes(gzip.compress(b"labels", 9))
    assert checksums(folder) == sums
    write_checksums(tmp_path / "sums.tsv", sums)
    assert read_checksums(tmp_path / "sums.tsv") == sums
    assert compare(folder, sums).identical


def test_a_changed_and_a_missing_file_are_named(folder):
    published = checksums(folder) | {"sub-b/anat/sub-b_swi.json": "not generated here"}
    assert compare(folder, published).identical
    (folder / "sub-a/anat/sub-a_cmb_dseg.nii.gz").write_bytes(gzip.compress(b"other"))
    (folder / "sub-a/anat/sub-a_swi.json").unlink()
    found = compare(folder, published)
    assert not found.identical
    assert found.different == ("sub-a/anat/sub-a_cmb_dseg.nii.gz",)
    assert found.missing == ("sub-a/anat/sub-a_swi.json",)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda image, rng: image, True),
        (lambda image, rng: image + rng.integers(-1, 2, image.shape), True),  # rounded otherwise
        (lambda image, rng: np.where(rng.random(image.shape) < 0.004, -image, image), True),  # at +-pi
        (lambda image, rng: rng.permutation(image.ravel()).reshape(image.shape), False),
        (lambda image, rng: image + 20, False),
        (lambda image, rng: image[:, :, ::-1], False),
        (lambda image, rng: image[:-1], False),
    ],
)
def test_an_image_may_be_rounded_otherwise_and_no_more(folder, rng, change, same):
    """Noise about a gradient, as a phase is stored."""
    path = folder / "sub-a/anat/sub-a_swi.nii.gz"
    image = rng.normal(0, 1200, (30, 31, 12)) + np.arange(30)[:, None, None]
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), path)
    published = checksums(folder)
    nib.save(nib.Nifti1Image(change(image, rng).astype(np.int16), np.eye(4)), path)
    found = compare(folder, published)
    assert found.identical == same
    assert found.different == (() if same else ("sub-a/anat/sub-a_swi.nii.gz",))


def test_subjects_that_the_list_does_not_have_are_counted_apart(folder):
    (folder / "sub-c").mkdir()
    published = checksums(folder)
    (folder / "sub-c" / "sub-c.json").write_text("{}")
    found = compare(folder, published)
    assert (found.identical, found.subjects, found.unlisted) == (True, 1, 1)


def test_a_split_without_a_list_says_so(tmp_path):
    with pytest.raises(UserError, match="no checksum list"):
        read_checksums(tmp_path / "nothing.tsv")
