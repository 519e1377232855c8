"""Voxel conventions and masks against the definition, for oblique affines; masks that must be refused."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cmb_jax.datasets.cases import Case, MaskTruth, PointTruth
from cmb_jax.datasets.images import Grid, read_grid
from cmb_jax.datasets.lesions import lesions_of, voxel_index
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_volume
from tests.datasets import trees

SIGNED_AXES = st.tuples(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))


@st.composite
def affines(draw):
    """Any storage order and direction, tilted by up to 40 degrees, any spacing and origin."""
    axes, signs = draw(SIGNED_AXES)
    spacing = draw(st.tuples(*[st.floats(0.3, 5.0)] * 3))
    tilt = Rotation.from_rotvec(draw(st.tuples(*[st.floats(-0.4, 0.4)] * 3))).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.eye(3)[:, axes] * np.array(signs) * np.array(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-150, 150)] * 3))
    return affine


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(),
    fraction=st.tuples(*[st.floats(0, 1)] * 3),
    convention=st.sampled_from(["voxel-1", "slice-column-row-1", "ras-mm"]),
)
def test_a_center_survives_the_way_to_mm_and_back(tmp_path_factory, affine, fraction, convention):
    root = tmp_path_factory.mktemp("case")
    shape = np.array([9, 11, 7])
    i, j, k = index = np.array(fraction) * (shape - 1)
    nib.save(
        nib.Nifti1Image(np.arange(shape.prod(), dtype=np.float32).reshape(shape), affine), root / "a.nii"
    )
    affine = nib.load(root / "a.nii").affine  # float32 in the file
    world = (affine @ [i, j, k, 1])[:3]
    stated = {
        "voxel-1": (i + 1, j + 1, k + 1),
        "slice-column-row-1": (k + 1, i + 1, j + 1),
        "ras-mm": world,
    }
    points = (tuple(map(float, stated[convention])),)
    case = Case(
        case_id="a",
        patient_id="a",
        cohort="c",
        images={"swi": "a.nii"},
        truth=PointTruth(convention=convention, points=points, diameters_mm=(4.0,)),
    )
    found = lesions_of(case, root)
    np.testing.assert_allclose(found.centers_mm, [world], atol=1e-3)
    np.testing.assert_allclose(read_grid(root / "a.nii").to_index(found.centers_mm), [index], atol=1e-3)
    # the box is round the same place of the volume as the rest of the package reads it
    volume = read_volume(root / "a.nii")
    assert found.grid.shape == volume.shape
    middle = (found.boxes[:, :3] + found.boxes[:, 3:])[0, ::-1] / 2 - 0.5
    np.testing.assert_allclose((volume.affine @ [*middle, 1])[:3], world, atol=1e-3)
    sides = (found.boxes[:, 3:] - found.boxes[:, :3])[0, ::-1] * volume.spacing_mm
    np.testing.assert_allclose(sides, 4.0, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(affine=affines(), voxel=st.tuples(st.integers(0, 8), st.integers(0, 10), st.integers(0, 6)))
def test_a_voxel_of_a_mask_is_found_at_its_place(tmp_path_factory, affine, voxel):
    root = tmp_path_factory.mktemp("case")
    data = trees.mask([voxel], shape=(9, 11, 7))
    for name in ("a.nii", "m.nii"):
        nib.save(nib.Nifti1Image(data, affine), root / name)
    found = lesions_of(case_with(MaskTruth(path="m.nii"), image="a.nii"), root)
    np.testing.assert_allclose(found.centers_mm, [(affine @ [*voxel, 1])[:3]], atol=1e-3)
    z, y, x = found.boxes[0, :3].astype(int)
    np.testing.assert_array_equal(found.boxes[0, 3:] - found.boxes[0, :3], 1)
    assert read_volume(root / "m.nii").data[x, y, z] == 1


def case_with(truth, image="swi.nii.gz"):
    return Case(case_id="a", patient_id="a", cohort="c", images={"swi": image}, truth=truth)


@pytest.mark.parametrize(
    ("values", "soft", "count", "how"),
    [
        ({(5, 5, 5): 1, (6, 6, 6): 1}, False, 1, "26-connected"),
        ({(5, 5, 5): 255, (9, 6, 6): 255}, False, 2, "26-connected"),
        ({(5, 5, 5): 3, (6, 6, 6): 7}, False, 2, "labels"),
        ({(5, 5, 5): 0.5, (9, 6, 6): 0.49}, True, 1, ">= 0.5"),
        ({}, True, 0, ">= 0.5"),
    ],
)
def test_masks_labels_and_soft_maps(tmp_path, values, soft, count, how):
    data = np.zeros(trees.SHAPE, np.float32)
    for voxel, value in values.items():
        data[voxel] = value
    trees.save(tmp_path / "swi.nii.gz", trees.brain())
    trees.save(tmp_path / "mask.nii.gz", data)
    found = lesions_of(case_with(MaskTruth(path="mask.nii.gz", soft=soft)), tmp_path)
    assert len(found) == count
    assert how in found.counted


@pytest.mark.parametrize(
    ("value", "soft", "message"),
    [
        (1.5, True, "largest value is 1.5"),
        (2, True, "largest value is 2"),
        (2.5, False, "2.5"),
        (-1, False, "negative"),
    ],
)
def test_masks_that_are_refused(tmp_path, value, soft, message):
    trees.save(tmp_path / "swi.nii.gz", trees.brain())
    trees.save(tmp_path / "mask.nii.gz", trees.mask([(5, 5, 5)], value=value))
    with pytest.raises(UserError, match=message):
        lesions_of(case_with(MaskTruth(path="mask.nii.gz", soft=soft)), tmp_path)


def test_nan_in_a_mask_counts_as_0_and_is_said(tmp_path):
    data = trees.mask([(5, 5, 5)])
    data[0, 0, :3] = np.nan
    trees.save(tmp_path / "swi.nii.gz", trees.brain())
    trees.save(tmp_path / "mask.nii.gz", data)
    found = lesions_of(case_with(MaskTruth(path="mask.nii.gz")), tmp_path)
    assert len(found) == 1
    assert "3 voxels" in found.notes[0]


def test_a_mask_in_another_storage_order_is_the_same_lesion(tmp_path):
    trees.save(tmp_path / "swi.nii.gz", trees.brain())
    image = nib.Nifti1Image(trees.mask([(5, 7, 4)]), trees.LPS)
    nib.save(image.as_reoriented(np.array([[1, 1], [0, -1], [2, 1]])), tmp_path / "mask.nii.gz")
    found = lesions_of(case_with(MaskTruth(path="mask.nii.gz")), tmp_path)
    np.testing.assert_allclose(found.centers_mm, [(trees.LPS @ [5, 7, 4, 1])[:3]])


@pytest.mark.parametrize(("shape", "move"), [((24, 28, 13), 0), (trees.SHAPE, 4.0)])
def test_a_mask_on_another_grid_is_refused(tmp_path, shape, move):
    affine = trees.LPS.copy()
    affine[0, 3] += move
    trees.save(tmp_path / "swi.nii.gz", trees.brain())
    trees.save(tmp_path / "mask.nii.gz", trees.mask([(5, 5, 5)], shape=shape), affine)
    with pytest.raises(UserError, match=r"mask and swi\.nii\.gz"):
        lesions_of(case_with(MaskTruth(path="mask.nii.gz")), tmp_path)


@pytest.mark.parametrize(
    ("convention", "points", "message"),
    [
        ("voxel-1", [(0, 5, 5), (24, 1, 1)], None),
        ("voxel-1", [(0, 5, 5), (23, 27, 13)], "read 0-based"),
        ("voxel-1", [(25, 5, 5)], None),
        ("slice-column-row-1", [(0, 5, 5)], "read 0-based"),
        ("slice-column-row-1", [(15, 5, 5)], None),
        ("ras-mm", [(-20.0, -2.0, 3.0)], None),
        ("ras-mm", [(13.0, 15.0, 3.0)], "in LPS"),
    ],
)
def test_centers_outside_are_refused_and_another_reading_is_named(tmp_path, convention, points, message):
    trees.save(tmp_path / "swi.nii.gz", trees.brain(), np.diag([1.0, 1.0, 2.0, 1.0]) @ shifted())
    points = tuple(tuple(map(float, point)) for point in points)
    with pytest.raises(UserError, match="outside the 24 x 28 x 14 voxels") as refused:
        lesions_of(case_with(PointTruth(convention=convention, points=points)), tmp_path)
    hints = ("0-based", "LPS", "voxels: give")
    if message is None:
        assert not any(hint in str(refused.value) for hint in hints)
    else:
        assert message in str(refused.value)


def shifted():
    """x from -30 to -7, y from -30 to -3: mirrored positions lie outside."""
    matrix = np.eye(4)
    matrix[:2, 3] = -30
    return matrix


def test_a_unit_of_length_that_is_none_is_taken_as_mm(tmp_path):
    path = trees.save(tmp_path / "swi.nii", trees.brain())
    content = bytearray(path.read_bytes())
    content[123] = 7  # xyzt_units
    path.write_bytes(content)
    grid = read_grid(path)
    np.testing.assert_array_equal(grid.affine, trees.LPS)
    assert "unit of length" in grid.warnings[0]
    assert "unit of length" in read_volume(path).warnings[0]


def test_half_a_voxel_beyond_the_last_center_is_still_inside():
    grid = Grid(shape=(4, 5, 6), affine=np.eye(4))
    edge = np.array([[-0.5, 0, 0], [3.5, 4.5, 5.5], [-0.51, 0, 0], [0, 0, 5.51]])
    np.testing.assert_array_equal(grid.inside(edge), [True, True, False, False])
    np.testing.assert_array_equal(voxel_index([(1, 1, 1)], "voxel-1", grid), [[0, 0, 0]])
