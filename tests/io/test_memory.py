"""What would not fit is refused before it is read."""

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.io import header
from cmb_jax.io.header import available_bytes, check_fits


def image(path, shape=(20, 20, 20), edge=1.0):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([edge, edge, edge, 1])), path)
    return path


def test_the_system_says_how_much_there_is():
    assert 1e8 < available_bytes() < 1e14


def test_a_scan_that_does_not_fit_is_refused_before_its_voxels_are_looked_at(tmp_path, monkeypatch):
    path = image(tmp_path / "a.nii")
    check_fits(path, path)
    monkeypatch.setattr(header, "available_bytes", lambda: header._AT_REST + 20**3 * 80)
    with pytest.raises(UserError, match=r"about 1.0 GB of memory, but 1.0 GB are free") as refused:
        check_fits(path, path)
    assert "\n" not in str(refused.value)

    # what is read in blocks takes an eighth
    monkeypatch.setattr("cmb_jax.io.header.LARGE_VOXELS", 20**3)
    room = header._AT_REST + 20**3 * header._PER_VOXEL / 4
    monkeypatch.setattr(header, "available_bytes", lambda: room)
    with pytest.raises(UserError, match="crop it to the head"):
        check_fits(path)
    check_fits(image(tmp_path / "fine.nii", edge=0.25))


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(header, "_MEMORY_FILES", ((limit, used),))
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    assert available_bytes() == 2e6
    limit.write_text("max\n")
    assert available_bytes() > 2e6
