import numpy as np
import pytest
from nibabel.affines import apply_affine

from cmb_jax.followup.registration import inverse, register, rotation_deg
from tests.followup.conftest import Head, centered_affine, rigid


def brain_points(brain, affine):
    return np.argwhere(brain)[::200] @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(
    ("degrees", "shift", "shape", "spacing"),
    [
        ((8.0, -6.0, 10.0), (9.0, -12.0, 7.0), (72, 88, 40), (2.0, 2.0, 3.0)),
        ((-12.0, 3.0, 4.0), (-4.0, 30.0, -15.0), (100, 110, 80), (1.4, 1.6, 1.9)),
    ],
)
def test_known_motion_is_found_within_half_a_millimeter(head, degrees, shift, shape, spacing):
    first_affine = centered_affine()
    motion = rigid(degrees, shift)
    second_affine = rigid((4.0, -7.0, 2.0), shift) @ centered_affine(shape, spacing)  # slices lie otherwise
    first, first_brain = head.scan(np.eye(4), first_affine, noise=15.0, seed=1)
    second, second_brain = head.scan(motion, second_affine, shape, noise=15.0, seed=2)
    found = register(first, first_brain, second, second_brain)
    points = brain_points(first_brain, first_affine)
    error = np.linalg.norm(apply_affine(found.matrix, points) - apply_affine(motion, points), axis=1)
    assert error.max() < 0.5
    assert found.trusted
    assert found.rotation_deg == pytest.approx(rotation_deg(motion), abs=0.5)


def test_the_same_images_give_the_same_matrix_and_contrast_does_not_matter(head):
    affine, motion = centered_affine(), rigid((5.0, 2.0, -3.0), (3.0, 4.0, 5.0))
    first, brain = head.scan(np.eye(4), affine)
    second, other_brain = head.scan(motion, affine, noise=10.0, seed=3)
    second.data[:] = 3.0 * np.clip(second.data, 0, None) ** 1.5
    twice = [register(first, brain, second, other_brain) for _ in range(2)]
    # sums over threads of the library may end in another last bit
    np.testing.assert_allclose(twice[0].matrix, twice[1].matrix, rtol=0, atol=1e-6)
    points = brain_points(brain, affine)
    assert (
        np.linalg.norm(apply_affine(twice[0].matrix, points) - apply_affine(motion, points), axis=1).max()
        < 0.5
    )


def test_another_head_is_not_trusted(head):
    affine = centered_affine()
    first, brain = head.scan(np.eye(4), affine)
    second, other_brain = Head(99).scan(rigid((3.0, 0.0, 0.0), (2.0, 0.0, 0.0)), affine)
    found = register(first, brain, second, other_brain)
    assert not found.trusted
    assert any("correlate" in fault for fault in found.faults)


def test_a_wrong_brain_mask_and_an_implausible_motion_are_faults(head):
    affine = centered_affine()
    first, brain = head.scan(np.eye(4), affine)
    second, other_brain = head.scan(rigid((0, 0, 60.0), (0, 0, 0)), affine)
    half = other_brain.copy()
    half[:, :44] = False
    assert any("Dice" in fault for fault in register(first, brain, second, half).faults)
    assert not register(first, brain, second, other_brain).trusted


def test_a_slab_shares_part_of_the_brain_and_is_judged_on_that(head):
    affine = centered_affine()
    motion = rigid((3.0, -2.0, 2.0), (2.0, 1.0, 3.0))
    first, brain = head.scan(np.eye(4), affine)
    slab = centered_affine((72, 88, 22))
    slab[2, 3] += 9.0
    second, other_brain = head.scan(motion, slab, (72, 88, 22))
    found = register(first, brain, second, other_brain)
    points = brain_points(brain, affine)
    assert found.trusted
    assert 0.4 < found.shared < 0.95
    assert (
        np.linalg.norm(apply_affine(found.matrix, points) - apply_affine(motion, points), axis=1).max() < 1.0
    )


def test_inverse_and_angle():
    motion = rigid((10.0, 20.0, 30.0), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(inverse(motion), np.linalg.inv(motion), atol=1e-12)
    assert rotation_deg(rigid((0, 0, 25.0), (9, 9, 9))) == pytest.approx(25.0)
