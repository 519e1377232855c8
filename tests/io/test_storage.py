"""Headers that are written under new voxels: geometry and scale stay, free texts go."""

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.io.header import open_nifti
from cmb_jax.io.nifti import stored_values, without_texts, write_stored


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_texts_and_extensions_go_the_rest_stays(tmp_path, image_class):
    affine = np.array([[-0.7, 0.1, 0, 9], [0.1, 0.7, 0, -8], [0, 0, 2, 3], [0, 0, 0, 1]])
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = image_class(data, affine)
    image.header.set_slope_inter(2.0, -5.0)
    image.header.set_xyzt_units("mm", "sec")
    for field in ("descrip", "aux_file", "intent_name"):
        image.header[field] = b"JANE DOE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"JANE DOE " * 40))
    nib.save(image, tmp_path / "a.nii")
    assert b"JANE" in (tmp_path / "a.nii").read_bytes()

    file = open_nifti(tmp_path / "a.nii")
    write_stored(tmp_path / "b.nii.gz", stored_values(file), file)
    written = nib.load(tmp_path / "b.nii.gz")
    assert b"JANE" not in written.to_bytes()
    assert not written.header.extensions
    np.testing.assert_array_equal(written.dataobj.get_unscaled(), file.image.dataobj.get_unscaled())
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(file.image.dataobj))
    before = file.image.header
    texts = {name for name in before.template_dtype.names if before.template_dtype[name].kind == "S"}
    for name in set(before.template_dtype.names) - texts - {"vox_offset"}:
        np.testing.assert_array_equal(written.header[name], before[name], err_msg=name)
    assert bytes(without_texts(before)["magic"]) == bytes(before["magic"])

    write_stored(tmp_path / "c.nii.gz", stored_values(file), file, keep_identifiers=True)
    assert nib.load(tmp_path / "c.nii.gz").header.extensions
