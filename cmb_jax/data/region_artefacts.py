"""What veins, lesions and the scanner do to the region network's training samples: (Z, Y, X) on its grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmb_jax.data.region_grid import GRID_MM, GRID_SHAPE
from cmb_jax.data.region_warps import grid_mm, smooth_noise, uniform


def inner_artefacts(key: jax.Array, image: jax.Array) -> jax.Array:
    """Veins, lesions, texture and signal loss: what simulated subjects have already."""
    keys = jax.random.split(key, 7)
    image = jnp.maximum(image, 0.0)
    image *= 1 - uniform(keys[0], 0.0, 0.9) * _veins(keys[1])
    image *= 1 - uniform(keys[2], 0.3, 1.0) * _blobs(keys[3])
    image *= 1 + uniform(keys[4], 0.0, 0.15) * smooth_noise(keys[5], (30, 38, 32), GRID_SHAPE)[0]
    return image * (1 - _signal_loss(keys[6]))


def scan_artefacts(key: jax.Array, image: jax.Array, code: jax.Array, in_view: jax.Array) -> jax.Array:
    """Bias, skull stripping, gamma, resolution and noise."""
    keys = jax.random.split(key, 9)
    image *= jnp.exp(uniform(keys[0], 0.0, 0.4) * smooth_noise(keys[1], (4, 5, 4), GRID_SHAPE)[0])
    brain = blur((code > 0).astype(jnp.float32), jnp.ones(3))
    stripped = jnp.where(brain > uniform(keys[2], 0.25, 0.6), image, 0.0)
    is_stripped = jax.random.bernoulli(keys[3], 0.3)
    image = jnp.where(is_stripped, stripped, image)
    image = jnp.maximum(image, 0.0) ** jnp.exp(uniform(keys[4], -0.4, 0.4))
    image = blur(image, _blur_sigma(keys[5]))
    level = uniform(keys[6], 0.0, 0.1)
    real, imaginary = level * jax.random.normal(keys[7], (2, *image.shape))
    noisy = jnp.hypot(image + real, imaginary)  # Rician
    # Stripping comes after the noise as well: its background is exactly zero.
    keep = in_view & (~is_stripped | (image > 0.02) | jax.random.bernoulli(keys[8]))
    return jnp.where(keep, noisy, 0.0)


def _veins(key: jax.Array) -> jax.Array:
    """(Z, Y, X) in [0, 1]: thin winding lines, where two random fields are both zero."""
    fields = smooth_noise(key, (22, 28, 24), GRID_SHAPE, 2)
    return jnp.exp(-jnp.sum(fields**2, axis=0) / (2 * 0.12**2))


def _blobs(key: jax.Array) -> jax.Array:
    """(Z, Y, X) in [0, 1]: up to 40 dots of a few millimetres."""
    place_key, count_key = jax.random.split(key)
    place = jax.random.randint(place_key, (40, 3), 0, jnp.asarray(GRID_SHAPE))
    shown = (jnp.arange(40) < 40 * jax.random.uniform(count_key) ** 2).astype(jnp.float32)
    dots = jnp.zeros(GRID_SHAPE).at[place[:, 0], place[:, 1], place[:, 2]].add(shown)
    return jnp.minimum(4.0 * blur(dots, jnp.full(3, 0.8)), 1.0)


def _signal_loss(key: jax.Array) -> jax.Array:
    """(Z, Y, X) in [0, 1): up to three soft patches, as near the sinuses and the ear canals."""
    place_key, width_key, depth_key = jax.random.split(key, 3)
    place = uniform(place_key, -1.0, 1.0, (3, 3)) * jnp.asarray([30.0, 80.0, 60.0])
    place = place - jnp.asarray([35.0, 0.0, 0.0])  # below the middle
    width = uniform(width_key, 6.0, 16.0, (3,))
    depth = jnp.maximum(uniform(depth_key, -1.0, 1.0, (3,)), 0.0)
    loss = jnp.zeros(GRID_SHAPE)
    grid = grid_mm()
    for i in range(3):
        squared = jnp.sum((grid - place[i][:, None, None, None]) ** 2, axis=0)
        loss = jnp.maximum(loss, depth[i] * jnp.exp(-squared / (2 * width[i] ** 2)))
    return loss


def _blur_sigma(key: jax.Array) -> jax.Array:
    """(3,) Gaussian sigma in grid voxels: slices up to 4 mm, mostly along z."""
    base_key, thick_key, axis_key = jax.random.split(key, 3)
    base = uniform(base_key, 0.0, 0.35)
    thickness = uniform(thick_key, 0.0, 4.0) / 2.355 / GRID_MM
    axis = jax.random.choice(axis_key, 3, p=jnp.asarray([0.7, 0.15, 0.15]))
    return jnp.full(3, base).at[axis].add(thickness)


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur of (Z, Y, X) with seven taps per axis; sigma (3,) in voxels."""
    for axis in range(3):
        taps = jnp.exp(-(jnp.arange(-3.0, 4.0) ** 2) / (2 * jnp.maximum(sigma[axis], 0.05) ** 2))
        taps = taps / taps.sum()
        width = [(3, 3) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, width)
        length = image.shape[axis]
        image = sum(taps[i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(7))  # type: ignore[assignment]
    return image
