"""Outputs appear whole or not at all, and never over someone else's files."""

import hashlib
import os
import shutil
import stat

import pytest

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory, atomic_write_bytes, atomic_write_text, sha256_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse(*_args, **_kwargs):
    raise PermissionError(13, "Permission denied")


def test_file_is_written_with_its_parents_and_plain_permissions(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    atomic_write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert names(path.parent) == ["x.txt"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sha256_file(path) == hashlib.sha256(b"\xc3\xa9\n").hexdigest()


def test_existing_file_needs_permission_to_be_replaced(tmp_path):
    path = tmp_path / "x"
    atomic_write_bytes(path, b"old")
    with pytest.raises(UserError, match="exists already"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    atomic_write_bytes(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    atomic_write_bytes(path, b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        atomic_write_bytes(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "write", [lambda p: atomic_write_bytes(p, b""), lambda p: atomic_directory(p).__enter__()]
)
def test_parent_that_is_a_file(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        write(tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def test_folder_appears_only_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_directory(out) as folder:
        (folder / "x").write_text("1")
        assert not out.exists()
        assert folder.parent.parent == out.parent  # one file system, so that the rename is atomic
    assert (out / "x").read_text() == "1"
    assert names(out.parent) == ["out"]
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(out.parent.stat().st_mode)


def test_failure_leaves_nothing(tmp_path):
    def fails_half_way():
        with atomic_directory(tmp_path / "deep" / "out") as folder:
            (folder / "x").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_half_way()
    assert names(tmp_path) == []


def test_no_permission_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied"), atomic_directory(tmp_path / "deep" / "out"):
        pytest.fail("the body must not run")
    assert names(tmp_path) == []


def test_full_disk_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No space left"), atomic_directory(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_folder_that_is_deleted_while_it_is_written_is_one_line(tmp_path):
    def writes_on():
        with atomic_directory(tmp_path / "out") as folder:
            shutil.rmtree(folder)
            (folder / "x").write_text("1")

    with pytest.raises(UserError, match="out") as caught:
        writes_on()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_existing_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with atomic_directory(out) as folder:  # an empty one may be there
        (folder / "old").write_text("")
    with pytest.raises(UserError, match="exists already"), atomic_directory(out):
        pytest.fail("the body must not run")
    with atomic_directory(out, overwrite=True) as folder:
        (folder / "new").write_text("")
    assert [name for name in names(out) if not name.startswith(".")] == ["new"]
    with pytest.raises(RuntimeError), atomic_directory(out, overwrite=True):
        raise RuntimeError
    assert (out / "new").exists()
    assert names(tmp_path) == ["out"]


def test_other_peoples_folder_is_never_replaced(tmp_path):
    (tmp_path / "scan.nii.gz").write_text("precious")
    with pytest.raises(UserError, match="not written by cmb-jax"), atomic_directory(tmp_path, overwrite=True):
        pytest.fail("the body must not run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"), atomic_directory(tmp_path / "file", overwrite=True):
        pytest.fail("the body must not run")
    assert names(tmp_path) == ["file", "scan.nii.gz"]


def test_old_folder_comes_back_if_the_swap_fails(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with atomic_directory(out) as folder:
        (folder / "old").write_text("")
    rename = os.rename

    def fail_for_new(source, target):
        if str(source).endswith("new"):
            refuse()
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(UserError, match="cannot be written"), atomic_directory(out, overwrite=True):
        pass
    assert (out / "old").exists()
    assert names(tmp_path) == ["out"]
