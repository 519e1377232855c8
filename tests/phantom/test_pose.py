import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import lattice_for, simulation_grid
from cmb_jax.phantom.head import codes_at, from_pack, random_pose, to_pack

EXTENT = (192.0, 240.0, 162.0)
LATTICE = lattice_for(EXTENT)
move = jax.jit(to_pack)
draw = jax.jit(lambda key, anatomy, atrophy: random_pose(key, anatomy, atrophy, LATTICE))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("atrophy", [0.0, 1.0])
def test_pose_is_a_diffeomorphism(anatomy, seed, atrophy):
    pose = draw(jax.random.key(seed), anatomy, jnp.float32(atrophy))
    grid = simulation_grid((150.0, 180.0, 140.0), 3.0)
    axes = [grid.axis_mm(a) for a in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    moved = np.asarray(move(pose, jnp.asarray(points.reshape(-1, 3), jnp.float32)))
    moved = moved.reshape(points.shape)
    jacobian = np.stack([np.gradient(moved, h, axis=a) for a, h in enumerate(grid.spacing_mm)], axis=-1)
    determinant = np.linalg.det(jacobian)
    assert determinant.min() > 0.1
    assert determinant.max() < 5.0
    warp = np.linalg.norm(np.asarray(pose.displacement), axis=-1)
    assert 1.0 < warp.max() < 16.0


def test_from_pack_inverts_to_pack(anatomy, rng):
    pose = draw(jax.random.key(3), anatomy, jnp.float32(0.5))
    points = jnp.asarray(rng.uniform(-60, 60, size=(50, 3)), jnp.float32)
    back = jax.jit(from_pack)(pose, move(pose, points))
    np.testing.assert_allclose(np.asarray(back), np.asarray(points), atol=1e-2)


def test_atrophy_widens_the_ventricles(anatomy):
    grid = simulation_grid((100.0, 130.0, 90.0), 2.0)
    axes = [grid.axis_mm(a) for a in range(3)]
    points = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3), jnp.float32)
    volume = []
    for atrophy in (0.0, 1.0):
        pose = draw(jax.random.key(2), anatomy, jnp.float32(atrophy))
        code = np.asarray(codes_at(anatomy, move(pose, points)))
        volume.append((code % 16 == Region.VENTRICLE).sum())
    assert volume[1] > 1.15 * volume[0]
