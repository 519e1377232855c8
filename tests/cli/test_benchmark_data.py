"""cmb-jax benchmark-data: generate, compare with the published list, notice what was changed."""

import gzip
import json

import pytest

from cmb_jax import devices
from cmb_jax.anatomy import assets
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.cli import main, simulate
from cmb_jax.phantom.benchmark import BenchmarkSplit, checksums, compare, read_checksums, write_checksums
from cmb_jax.phantom.tree import CohortMember
from tests.phantom.conftest import SETTINGS


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One coarse subject, a synthetic head, and a list of its own."""
    member = CohortMember(name="sub-test0001", seed=7, settings=SETTINGS, anatomy="synthetic")
    pack = synthetic_pack()
    monkeypatch.setattr(BenchmarkSplit, "members", lambda self, count=None: [member])
    monkeypatch.setattr(BenchmarkSplit, "checksum_file", property(lambda self: tmp_path / "sums.tsv"))
    monkeypatch.setattr(assets, "load_pack", lambda name: pack)
    # these two are settings of the whole process
    monkeypatch.setattr(simulate, "use_one_instruction_set", lambda: None)
    monkeypatch.setattr(devices, "use_compilation_cache", lambda: None)
    return tmp_path


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["cmb-jax", "benchmark-data", *map(str, arguments)])
    main()


def refused(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        command(monkeypatch, *arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_generate_and_verify(small, monkeypatch, capsys):
    out = small / "data"
    command(monkeypatch, "--out", out, "--split", "test", "--tier", "hard")
    assert (out / "sub-test0001/anat/sub-test0001_swi.nii.gz").is_file()
    assert "CMB-Phantom" in (out / "dataset_description.json").read_text()
    assert "no checksum list" in refused(monkeypatch, capsys, "--out", out, "--verify")

    write_checksums(small / "sums.tsv", checksums(out))
    command(monkeypatch, "--out", out, "--verify")
    assert "1 subjects: 10 files as published" in capsys.readouterr().out

    image = out / "sub-test0001/anat/sub-test0001_swi.nii.gz"
    labels = out / "derivatives/truth/sub-test0001/anat/sub-test0001_desc-cmb_dseg.nii.gz"
    for path in (image, labels):  # the last bit of one voxel
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[-1 if path is labels else -2] ^= 1  # the lower byte of an int16, the higher of a uint16
        path.write_bytes(gzip.compress(bytes(content)))
    message = refused(monkeypatch, capsys, "--out", out, "--verify")
    assert f"first: {labels.relative_to(out)}" in message
    published = read_checksums(small / "sums.tsv")
    assert compare(out, published).different == (str(labels.relative_to(out)),)
    assert "exists" in refused(monkeypatch, capsys, "--out", out)

    description = json.loads((out / "dataset_description.json").read_text())
    del description["PhantomVersion"]  # as version 1 was written
    (out / "dataset_description.json").write_text(json.dumps(description))
    message = refused(monkeypatch, capsys, "--out", out, "--verify")
    assert "data: is of CMB-Phantom 1, but this cmb-jax simulates and evaluates CMB-Phantom 2" in message


def test_what_cannot_be_is_said_in_one_line(monkeypatch, capsys, tmp_path):
    out = tmp_path / "data"
    assert "has 1 to 60" in refused(monkeypatch, capsys, "--out", out, "--subjects", 61)
    assert "give --subjects" in refused(monkeypatch, capsys, "--out", out, "--split", "train")
    assert "generate it first" in refused(monkeypatch, capsys, "--out", out, "--verify")
    assert not out.exists()
