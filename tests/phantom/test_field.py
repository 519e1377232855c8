import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.field import convolve_dipole
from cmb_jax.phantom.geometry import smooth_size

B_OBLIQUE = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])


def field_from_susceptibility(chi, spacing, b=(0.0, 0.0, 1.0), padding=2.0):
    """Relative field shift in ppm in the middle of a padded grid, as the simulator computes it."""
    padded = tuple(smooth_size(n * padding) for n in np.shape(chi))
    chi, b = jnp.asarray(chi, jnp.float32), jnp.asarray(b, jnp.float32)
    return convolve_dipole(chi, b, spacing_mm=tuple(map(float, spacing)), padded=padded)


def _points(shape, spacing, center):
    axes = [(np.arange(n) * h - c) for n, h, c in zip(shape, spacing, center, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _body(shape, spacing, center, distance, splits=4):
    """Fraction of every voxel inside distance(points) <= 0, by splitting each voxel."""
    total = np.zeros(shape)
    offsets = (np.arange(splits) + 0.5) / splits - 0.5
    for shift in np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"), -1).reshape(-1, 3):
        points = _points(shape, spacing, np.asarray(center) - shift * np.asarray(spacing))
        total += distance(points) <= 0
    return total / splits**3


def _sphere_truth(points, radius, b):
    r = np.linalg.norm(points, axis=-1)
    cos = points @ b / np.maximum(r, 1e-9)
    return np.where(r > radius, (radius / np.maximum(r, 1e-9)) ** 3 * (3 * cos**2 - 1) / 3, 0.0)


@pytest.mark.parametrize(("spacing", "radius"), [((1.0, 1.0, 1.0), 8.0), ((0.8, 1.0, 1.25), 10.0)])
@pytest.mark.parametrize(
    ("b", "limit"), [(np.array([0, 0, 1.0]), 0.02), (np.array([1.0, 0, 0]), 0.02), (B_OBLIQUE, 0.03)]
)
def test_sphere(spacing, radius, b, limit):
    shape = (72, 64, 60)
    center = [n * h / 2 for n, h in zip(shape, spacing, strict=True)]
    chi = _body(shape, spacing, center, lambda p: np.linalg.norm(p, axis=-1) - radius)
    field = np.asarray(field_from_susceptibility(chi, spacing, b))
    points = _points(shape, spacing, center)
    truth = _sphere_truth(points, radius, b)
    peak = 2 / 3
    r = np.linalg.norm(points, axis=-1)
    outside = r >= radius + 2 * max(spacing)
    on_axis = outside & (np.sort(np.abs(points), axis=-1)[..., 1] < 1e-6)
    assert on_axis.sum() > 50
    error = np.abs(field - truth) / peak
    assert error[on_axis].max() < min(limit, 0.02)
    assert error[outside].max() < limit
    assert np.abs(field[r <= radius - 2 * max(spacing)]).mean() / peak < 0.02


@pytest.mark.parametrize(
    "b",
    [np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), np.array([np.sin(0.7), 0, np.cos(0.7)])],
    ids=["along", "across", "oblique"],
)
def test_long_cylinder(b):
    shape, spacing, radius = (64, 64, 160), (1.0, 1.0, 1.0), 5.0
    center = (32.0, 32.0, 80.0)
    chi = _body(shape, spacing, center, lambda p: np.hypot(p[..., 0], p[..., 1]) - radius)
    field = np.asarray(field_from_susceptibility(chi, spacing, b))[:, :, 80]
    points = _points(shape, spacing, center)[:, :, 80]
    cos_theta = b[2]
    sin2 = 1 - cos_theta**2
    r = np.hypot(points[..., 0], points[..., 1])
    phi = np.arctan2(points[..., 1], points[..., 0])  # b lies in the x-z plane
    inside = (3 * cos_theta**2 - 1) / 6
    outside = 0.5 * (radius / np.maximum(r, 1e-9)) ** 2 * sin2 * np.cos(2 * phi)
    peak = max(abs(inside), 0.5 * sin2)
    near = (r >= radius + 2) & (r < 24)
    assert np.abs(field - outside)[near].max() / peak < 0.03
    assert np.abs(field[r < radius - 2].mean() - inside) / peak < 0.02


def test_opposite_chi_gives_opposite_field_and_scaling_is_linear(rng):
    chi = rng.normal(size=(20, 18, 16)).astype(np.float32)
    field = np.asarray(field_from_susceptibility(chi, (1, 1, 2), B_OBLIQUE))
    np.testing.assert_allclose(field_from_susceptibility(-chi, (1, 1, 2), B_OBLIQUE), -field, atol=1e-6)
    np.testing.assert_allclose(field_from_susceptibility(3 * chi, (1, 1, 2), B_OBLIQUE), 3 * field, atol=1e-5)


def test_turning_axes_with_the_field_changes_nothing(rng):
    chi = rng.normal(size=(16, 18, 20)).astype(np.float32)
    field = np.asarray(field_from_susceptibility(chi, (1.0, 1.5, 2.0), B_OBLIQUE))
    turned = field_from_susceptibility(
        chi.transpose(2, 0, 1), (2.0, 1.0, 1.5), (B_OBLIQUE[2], B_OBLIQUE[0], B_OBLIQUE[1])
    )
    np.testing.assert_allclose(np.asarray(turned), field.transpose(2, 0, 1), atol=1e-5)
    mirrored = field_from_susceptibility(chi[::-1], (1.0, 1.5, 2.0), B_OBLIQUE * (-1, 1, 1))
    np.testing.assert_allclose(np.asarray(mirrored), field[::-1], atol=1e-5)


def test_matches_the_definition_in_k_space(rng):
    """Full complex transform, every sample of D and of the voxel's box by hand, Nyquist planes averaged."""
    chi = rng.normal(size=(6, 8, 10))
    spacing = (1.0, 0.7, 1.3)
    axes = [np.fft.fftfreq(n, h) for n, h in zip(chi.shape, spacing, strict=True)]
    kernel = np.zeros(chi.shape)
    for index in np.ndindex(*chi.shape):
        k = np.array([a[i] for a, i in zip(axes, index, strict=True)])
        if not k.any():
            continue
        flips = [(1, -1) if 2 * i == n else (1,) for i, n in zip(index, chi.shape, strict=True)]
        signs = [(s, t, u) for s in flips[0] for t in flips[1] for u in flips[2]]
        along = np.mean([(k * np.array(s) @ B_OBLIQUE) ** 2 for s in signs])
        box = np.prod(np.sinc(k * np.array(spacing)))
        kernel[index] = box * (1 / 3 - along / (k @ k))
    expected = np.fft.ifftn(np.fft.fftn(chi) * kernel)
    assert np.abs(expected.imag).max() < 1e-12
    field = field_from_susceptibility(chi, spacing, B_OBLIQUE, padding=1.0)
    np.testing.assert_allclose(np.asarray(field), expected.real, atol=2e-5)


def test_smooth_size():
    for minimum in (1, 7, 97, 230.4, 257):
        n = smooth_size(minimum)
        assert n >= minimum
        assert n % 2 == 0
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
