import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.phantom.geometry import (
    from_pack,
    lattice_for,
    pack_anatomy,
    random_pose,
    rotation_matrix,
    sample_pack,
    simulation_grid,
    to_pack,
)

sample = jax.jit(sample_pack)
move = jax.jit(to_pack, static_argnums=1)
EXTENT = (192.0, 240.0, 162.0)
LATTICE = lattice_for(EXTENT)


@pytest.fixture(scope="module")
def pack():
    return synthetic_pack(shape=(48, 56, 48), spacing_mm=4.0)


def test_sampling_matches_scipy(pack, rng):
    anatomy = pack_anatomy(pack)
    index = rng.uniform(0.0, np.array(pack.code.shape) - 1.0, size=(400, 3))
    points = index @ pack.affine[:3, :3].T + pack.affine[:3, 3]
    channels, code = sample(anatomy, jnp.asarray(points, jnp.float32))
    for channel in range(pack.fractions.shape[-1]):
        expected = ndimage.map_coordinates(pack.fractions[..., channel].astype(float), index.T, order=1) / 255
        np.testing.assert_allclose(np.asarray(channels)[:, channel], expected, atol=2e-4)
    sure = np.abs(index - np.floor(index) - 0.5).min(axis=1) > 1e-3
    nearest = pack.code[tuple(np.rint(index).astype(int).T)]
    np.testing.assert_array_equal(np.asarray(code)[sure], nearest[sure])


def test_points_outside_the_pack_take_its_edge(pack):
    corner = pack.affine[:3, 3]
    channels, code = sample(pack_anatomy(pack), jnp.asarray([corner - 100.0], jnp.float32))
    np.testing.assert_allclose(np.asarray(channels)[0], pack.fractions[0, 0, 0] / 255, atol=1e-6)
    assert int(code[0]) == pack.code[0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_pose_is_a_diffeomorphism(seed):
    pose = random_pose(jax.random.key(seed), LATTICE, jnp.zeros(3))
    grid = simulation_grid((150.0, 180.0, 140.0), 4.0)
    axes = [grid.axis_mm(a) for a in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    moved = np.asarray(move(pose, LATTICE, jnp.asarray(points.reshape(-1, 3), jnp.float32)))
    moved = moved.reshape(points.shape)
    jacobian = np.stack([np.gradient(moved, h, axis=a) for a, h in enumerate(grid.spacing_mm)], axis=-1)
    determinant = np.linalg.det(jacobian)
    assert determinant.min() > 0.2
    assert determinant.max() < 4.0
    warp = np.linalg.norm(np.asarray(pose.displacement), axis=-1)
    assert 1.0 < warp.max() < 12.0


def test_from_pack_inverts_to_pack(rng):
    pose = random_pose(jax.random.key(3), LATTICE, jnp.array([1.0, -18.0, 5.0]))
    points = jnp.asarray(rng.uniform(-60, 60, size=(50, 3)), jnp.float32)
    back = jax.jit(from_pack, static_argnums=1)(pose, LATTICE, move(pose, LATTICE, points))
    np.testing.assert_allclose(np.asarray(back), np.asarray(points), atol=1e-2)


def test_rotation_matrix_matches_scipy():
    for vector in ([0.1, -0.2, 0.3], [1.2, 0.0, 0.0]):
        expected = Rotation.from_rotvec(vector).as_matrix()
        np.testing.assert_allclose(np.asarray(rotation_matrix(jnp.asarray(vector))), expected, atol=1e-6)
