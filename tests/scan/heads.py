"""A small head of formulas: tissue with veins in air, with complex noise; its SWI, magnitude and phase."""

import dataclasses

import numpy as np

from cmb_jax.io.volume import Volume

SHAPE, SPACING = (96, 112, 24), (1.6, 1.6, 3.0)


@dataclasses.dataclass(frozen=True)
class Head:
    swi: np.ndarray  # magnitude times a phase mask on the positive side
    magnitude: np.ndarray
    phase: np.ndarray  # radians, paramagnetic positive, with noise in the air

    def volume(self, data, affine=None):
        return Volume.from_array(np.asarray(data, np.float32), AFFINE if affine is None else affine)


AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = (-77.0, -90.0, -30.0)


def head(seed=0, snr=25.0, power=4):
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = np.sqrt((x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 1.2) ** 2)
    tissue = np.where(radius < 1, 1.0 + 0.15 * np.sin(9 * x) * np.cos(7 * y), 0.0)
    angle = 0.25 * np.sin(8 * x + 3 * z) * np.cos(6 * y)
    veins = (np.abs(np.sin(25 * x + 4 * z)) < 0.05) & (radius < 0.9)
    signal = np.where(veins, 0.7, 1.0) * tissue * np.exp(1j * (angle + 0.8 * veins))
    signal += (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)) / snr
    magnitude, phase = np.abs(signal), np.angle(signal)
    mask = np.clip(1 - phase / np.pi, 0, 1) ** power
    return Head(
        swi=(magnitude * mask).astype(np.float32),
        magnitude=magnitude.astype(np.float32),
        phase=phase.astype(np.float32),
    )
