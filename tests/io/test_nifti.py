"""NIfTI in any orientation, and back onto the native grid voxel for voxel."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmb_jax.errors import UserError
from cmb_jax.io.nifti import check_same_grid, native_index, read_echoes, read_volume, to_native, write_volume
from cmb_jax.io.volume import Volume

ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def affine_of(axes, signs, angle=0.0, spacing=(0.6, 0.7, 1.9)):
    """Native axis i runs along world axis axes[i]; all of it turned by `angle` about a skew axis."""
    turn = nib.eulerangles.euler2mat(angle, 0.6 * angle, -0.4 * angle)
    affine = np.eye(4)
    for native, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, native] = sign * spacing[native] * turn[:, world]
    affine[:3, 3] = (-31.0, 17.5, 4.25)
    return affine


def save(path, data, affine, codes=(1, 1), **header):
    image = nib.Nifti1Image(data, None)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1], strip_shears=True)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_there_and_back(tmp_path, rng, axes, signs):
    native = rng.normal(size=(4, 5, 3)).astype(np.float32)
    affine = affine_of(axes, signs, angle=0.2)
    path = save(tmp_path / "a.nii.gz", native, affine)

    volume = read_volume(path)

    # each RAS axis points, more than anywhere else, along its own world axis
    directions = volume.affine[:3, :3]
    assert np.argmax(np.abs(directions), axis=0).tolist() == [0, 1, 2]
    assert (np.diag(directions) > 0).all()
    # the same world point has the same value, whichever way it is asked for
    for index in itertools.product(*map(range, native.shape)):
        world = affine @ [*index, 1.0]
        here = np.linalg.solve(volume.affine, world)[:3]
        np.testing.assert_allclose(here, np.rint(here), atol=1e-5)
        x, y, z = np.rint(here).astype(int)
        assert volume.data[x, y, z] == native[index]
        np.testing.assert_allclose(native_index([x, y, z], volume), index, atol=1e-9)
    np.testing.assert_array_equal(to_native(volume.data, volume.native), native)

    write_volume(tmp_path / "b.nii", volume.data, volume)
    written = nib.load(tmp_path / "b.nii")
    np.testing.assert_array_equal(np.asarray(written.dataobj), native)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    np.testing.assert_allclose(written.get_qform(), affine, atol=1e-5)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    angle=st.floats(-0.5, 0.5),
    points=st.lists(st.tuples(*[st.floats(-3, 9)] * 3), min_size=1, max_size=4),
)
def test_native_index_keeps_the_world_point(tmp_path, orientation, angle, points):
    data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    volume = read_volume(save(tmp_path / "a.nii", data, affine_of(*orientation, angle=angle)))
    there = native_index(np.array(points), volume)
    ones = np.ones((len(points), 1))
    np.testing.assert_allclose(
        np.hstack([there, ones]) @ volume.native.affine.T,
        np.hstack([points, ones]) @ volume.affine.T,
        atol=1e-6,
    )


def test_oblique_affine_is_kept_and_spacing_follows(tmp_path, rng):
    affine = affine_of((0, 1, 2), (1, 1, 1), angle=0.3)
    volume = read_volume(save(tmp_path / "a.nii.gz", rng.normal(size=(4, 4, 4)).astype(np.float32), affine))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, (0.6, 0.7, 1.9), rtol=1e-5)
    assert volume.warnings == ()


def test_slope_and_intercept(tmp_path):
    stored = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(2.0, -4096.0)
    # nibabel rescales on saving; the raw integers belong into the file as they are
    path = tmp_path / "a.nii"
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2.0, -4096.0], "<f4").tobytes()
    raw[352 : 352 + 54] = stored.tobytes(order="F")
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(read_volume(path).data, 2.0 * stored - 4096.0)


def test_fourth_axis_of_length_one_and_big_endian(tmp_path):
    data = np.arange(24, dtype=">i2").reshape(2, 3, 4, 1)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(data, np.eye(4), header), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.native.shape == (2, 3, 4)
    np.testing.assert_array_equal(volume.data, data[..., 0])


def test_nifti2_and_content_decides_not_the_name(tmp_path, rng):
    data = rng.normal(size=(3, 4, 5)).astype(np.float32)
    nib.save(nib.Nifti2Image(data, np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "b.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii").data, data)


def test_gzip_in_several_members(tmp_path, rng):
    data = rng.normal(size=(9, 9, 9)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    cuts = [0, 100, 400, 2000, len(raw)]
    members = b"".join(gzip.compress(raw[a:b]) for a, b in itertools.pairwise(cuts))
    (tmp_path / "b.nii.gz").write_bytes(members)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").data, data)


def test_nan_is_replaced_with_a_warning(tmp_path, rng):
    data = rng.normal(size=(4, 4, 4)).astype(np.float32)
    data[0, 0, 0], data[1, 2, 3] = np.nan, np.inf
    volume = read_volume(save(tmp_path / "a.nii", data, np.eye(4)))
    assert np.isfinite(volume.data).all()
    assert volume.data[0, 0, 0] == volume.data[1, 2, 3] == 0
    assert any("2 voxels were NaN" in line for line in volume.warnings)


def test_no_world_transform_gives_a_warning(tmp_path, rng):
    data = rng.normal(size=(4, 4, 4)).astype(np.float32)
    volume = read_volume(save(tmp_path / "a.nii", data, np.diag([0.5, 0.5, 2, 1]), codes=(0, 0)))
    assert any("neither qform nor sform" in line for line in volume.warnings)
    np.testing.assert_allclose(volume.spacing_mm, (0.5, 0.5, 2.0))


def test_qform_against_sform(tmp_path, rng):
    image = nib.Nifti1Image(rng.normal(size=(11, 11, 11)).astype(np.float32), None)
    image.set_sform(np.diag([-1.0, 1, 1, 1]), code=1)
    image.set_qform(np.eye(4), code=1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    (warning,) = volume.warnings
    # the far x face lies at -10 mm by the sform and at +10 mm by the qform
    assert "disagree by up to 20.0 mm" in warning
    assert "left against right" in warning
    assert "sform was used" in warning
    assert volume.native.affine[0, 0] == -1


def test_voxel_sizes_that_contradict_the_transform_are_said(tmp_path, rng):
    path = save(tmp_path / "a.nii", rng.normal(size=(9, 9, 9)).astype(np.float32), np.diag([0.5, 0.5, 2, 1]))
    content = bytearray(path.read_bytes())
    content[80:92] = np.array([1.0, 1.0, 3.0], "<f4").tobytes()  # pixdim[1:4], NIfTI-1
    path.write_bytes(content)
    volume = read_volume(path)
    assert any("voxels of 1 x 1 x 3 mm by pixdim, 0.5 x 0.5 x 2 mm" in line for line in volume.warnings)
    np.testing.assert_allclose(volume.spacing_mm, (0.5, 0.5, 2.0))


def test_a_placeholder_instead_of_geometry_is_said(tmp_path, rng):
    data = rng.normal(size=(9, 9, 9)).astype(np.float32)
    assert any(
        "no voxel size but 1 mm" in line
        for line in read_volume(save(tmp_path / "a.nii", data, np.eye(4))).warnings
    )
    moved = np.eye(4)
    moved[:3, 3] = -4.0
    assert read_volume(save(tmp_path / "b.nii", data, moved)).warnings == ()


def test_agreeing_forms_give_no_warning(tmp_path, rng):
    data = rng.normal(size=(200, 4, 4)).astype(np.float32)
    assert read_volume(save(tmp_path / "a.nii", data, affine_of((0, 1, 2), (1, 1, 1), 0.3))).warnings == ()


def test_metres_become_millimeters(tmp_path, rng):
    path = save(
        tmp_path / "a.nii", rng.normal(size=(3, 3, 3)).astype(np.float32), np.diag([1e-3, 1e-3, 2e-3, 1])
    )
    image = nib.load(path)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "b.nii")
    volume = read_volume(tmp_path / "b.nii")
    np.testing.assert_allclose(volume.spacing_mm, (1, 1, 2), rtol=1e-5)
    assert any("meter" in line for line in volume.warnings)


def test_complex_only_when_asked_for(tmp_path, rng):
    data = (rng.normal(size=(3, 3, 3)) + 1j).astype(np.complex64)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UserError, match="complex"):
        read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", complex_ok=True).data, data)


def test_echoes_from_one_file_and_from_several(tmp_path, rng):
    data = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
    affine = affine_of((1, 0, 2), (-1, 1, 1))
    one = read_echoes(save(tmp_path / "all.nii.gz", data, affine))
    several = read_echoes([save(tmp_path / f"{e}.nii", data[..., e], affine) for e in range(3)])
    for echo in range(3):
        np.testing.assert_array_equal(one[echo].data, several[echo].data)
        np.testing.assert_array_equal(to_native(one[echo].data, one[echo].native), data[..., echo])
    with pytest.raises(UserError, match="no echo"):
        read_echoes([])


def test_check_same_grid(rng):
    data = rng.normal(size=(4, 5, 6)).astype(np.float32)
    a = Volume.from_array(data, np.eye(4))
    check_same_grid(a, Volume.from_array(data, np.eye(4)))
    with pytest.raises(UserError, match="shapes differ"):
        check_same_grid(a, Volume.from_array(data[:3], np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = 0.5
    with pytest.raises(UserError, match=r"0\.50 mm apart"):
        check_same_grid(a, Volume.from_array(data, moved))


def test_write_types_and_same_bytes(tmp_path, rng):
    like = Volume.from_array(np.zeros((3, 4, 5), np.float32), np.eye(4))
    labels = rng.integers(0, 300, size=like.shape)
    write_volume(tmp_path / "a.nii.gz", labels, like, dtype=np.uint16)
    write_volume(tmp_path / "b.nii.gz", labels, like, dtype=np.uint16)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint16
    write_volume(tmp_path / "c.nii.gz", labels > 100, like)
    assert nib.load(tmp_path / "c.nii.gz").get_data_dtype() == np.uint8
    with pytest.raises(ValueError, match="do not fit"):
        write_volume(tmp_path / "d.nii.gz", labels, like, dtype=np.uint8)
    with pytest.raises(ValueError, match="not on the grid"):
        write_volume(tmp_path / "d.nii.gz", labels[:2], like)
    with pytest.raises(ValueError, match=r"\.nii"):
        write_volume(tmp_path / "d.img", labels, like)
    with pytest.raises(UserError, match="exists already"):
        write_volume(tmp_path / "a.nii.gz", labels, like)
    write_volume(tmp_path / "a.nii.gz", labels.astype(np.float64), like, overwrite=True)
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("edges", [(0.25, 0.29, 1.0), (0.28, 0.25, 0.25)])
def test_a_large_fine_image_is_read_in_blocks_and_written_on_its_own_grid(tmp_path, monkeypatch, how, edges):
    """Against a slow mean over the voxels of each block, in world coordinates; odd sizes, axes turned."""
    monkeypatch.setattr("cmb_jax.io.header.LARGE_VOXELS", 100)
    monkeypatch.setattr("cmb_jax.io.nifti._SLAB_VOXELS", 9 * 7 * 4)  # several slabs
    shape, step = (9, 7, 11), tuple(2 if edge <= 0.3 else 1 for edge in edges)
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    turn = np.array([[0, -1.0, 0], [0.1, 0, 0.995], [-0.995, 0, 0.1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * edges, (5, -3, 8)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    volume = read_volume(path, reduced=how)
    assert f"9 x 7 x 11 voxels were read in blocks of {' x '.join(map(str, step))}" in volume.warnings
    blocks = {}
    for voxel in np.ndindex(*shape):
        blocks.setdefault(tuple(np.array(voxel) // step), []).append(voxel)
    full = [voxels for voxels in blocks.values() if len(voxels) == np.prod(step)]
    for voxels in full:
        middle = affine[:3, :3] @ np.mean(voxels, axis=0) + affine[:3, 3]
        index = np.linalg.solve(volume.affine[:3, :3], middle - volume.affine[:3, 3])
        at = tuple(np.rint(index).astype(int))
        np.testing.assert_allclose(index, at, atol=1e-5)
        values = [data[voxel] for voxel in voxels]
        assert volume.data[at] == pytest.approx(np.mean(values) if how == "mean" else values[0], abs=1e-6)
        np.testing.assert_allclose(native_index(np.array(at), volume), np.mean(voxels, axis=0), atol=1e-5)
    numbers = np.arange(volume.data.size, dtype=np.int32).reshape(volume.shape)
    write_volume(tmp_path / "labels.nii.gz", numbers, volume)
    image = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    written = np.asarray(image.dataobj)
    assert written.shape == shape
    assert all(len({written[voxel] for voxel in voxels}) == 1 for voxels in blocks.values())
    assert len(np.unique(written)) == len(blocks) == volume.data.size
    # below the size nothing changes
    monkeypatch.setattr("cmb_jax.io.header.LARGE_VOXELS", 10**6)
    assert read_volume(path, reduced=how).data.size == data.size
