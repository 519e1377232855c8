"""The phantom's echo about single lesions beside that of a grid of 0.1 mm: python tools/small_bodies.py

Magnitude over that of tissue at 3 T, 20 ms, field along z. First the echo itself: three voxels along z on the
simulation's grid, at the lesion's center and one and two voxels beside it, and the formula of a ball summed
over the same boxes. Then the image of 0.5 x 0.5 x 2 mm after the truncation of k-space, from both. Half a
minute.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.acquisition import cropped_spectrum
from cmb_jax.phantom.field import (
    Inclusions,
    add_smooth_balls,
    convolve_dipole,
    dephase_about_bodies,
    dephased_echo,
    phase_per_ppm,
    reaches,
)
from cmb_jax.phantom.geometry import Grid

TE_MS, B0_T = 20.0, 3.0
BLEED, CALCIUM = (100.0, 0.0), (150.0, 0.75)  # R2* added, signal missing inside
LESIONS = (
    (1.0, 0.5, BLEED), (1.5, 1.0, BLEED), (2.0, 1.0, BLEED), (3.0, 1.5, BLEED), (5.0, 1.5, BLEED),
    (4.0, -2.0, CALCIUM), (5.0, -2.0, CALCIUM),
)  # fmt: skip
VIEW_MM = (18.0, 18.0, 24.0)
FINE_MM = 0.1
IMAGE = (36, 36, 12)  # 0.5 x 0.5 x 2 mm
GRIDS = {"0.6 x 0.6 x 0.75": (30, 30, 32), "0.5 x 0.5 x 0.67": (36, 36, 36)}


def phantom_echo(diameter: float, chi: float, decay: tuple[float, float], shape: tuple[int, int, int]):
    """Complex echo of one lesion in the middle voxel of a grid."""
    grid = Grid.over(VIEW_MM, shape)
    te, b0, along = jnp.float32(TE_MS), jnp.float32(B0_T), jnp.array([0.0, 0.0, 1.0])
    body = Inclusions(
        jnp.zeros((1, 3)), jnp.full((1, 3), diameter / 2), *(jnp.array([v]) for v in (chi, *decay, True))
    )

    @jax.jit
    def echo(body: Inclusions) -> jax.Array:
        reach = reaches(body, te, b0, grid)
        chi = add_smooth_balls(jnp.zeros(grid.shape), body, reach, grid=grid)
        field = convolve_dipole(chi, along, spacing_mm=grid.spacing_mm, padded=(48, 48, 48))
        whole = dephased_echo(jnp.ones(grid.shape), jnp.zeros(grid.shape), field, te, b0)
        return dephase_about_bodies(whole, body, reach, te, b0, along, grid=grid)

    return np.asarray(echo(body))


def formula(diameter: float, chi: float, decay: tuple[float, float], axes: list[np.ndarray]) -> np.ndarray:
    """Complex signal of a ball at the points that three axes span."""
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    r, a = np.sqrt(x**2 + y**2 + z**2), diameter / 2
    field = np.where(r > a, chi / 3 * (a / np.maximum(r, a)) ** 3 * (3 * (z / r) ** 2 - 1), 0.0)
    inside = (1 - decay[1]) * np.exp(-TE_MS / 1000 * decay[0])
    return np.where(r > a, 1.0, inside) * np.exp(1j * phase_per_ppm(TE_MS, B0_T) * field)


def points(middle: float, width: float) -> np.ndarray:
    """Points 0.1 mm apart, or a little less, that fill an edge."""
    n = round(width / FINE_MM)
    return middle + ((np.arange(n) + 0.5) / n - 0.5) * width


def fine_image(diameter: float, chi: float, decay: tuple[float, float]) -> np.ndarray:
    """Magnitude of the image from the fine grid; its middle voxel is that of the lesion."""
    spectrum = np.fft.fftshift(np.fft.fftn(formula(diameter, chi, decay, [points(0.0, w) for w in VIEW_MM])))
    for axis, n in enumerate(spectrum.shape):
        line = [1, 1, 1]
        line[axis] = n
        half = np.exp(-1j * np.pi * FINE_MM * np.fft.fftshift(np.fft.fftfreq(n, FINE_MM)))
        spectrum = spectrum * half.reshape(line)  # the points lie half a step beside the lesion's center
    cut = tuple(
        slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(spectrum.shape, IMAGE, strict=True)
    )
    return np.abs(np.fft.ifftn(np.fft.ifftshift(spectrum[cut]))) * np.prod(IMAGE) / spectrum.size


def main() -> None:
    """Print both tables."""
    for name, shape in GRIDS.items():
        print(f"\n| echo, voxels of {name} mm, three along z: phantom / formula | center | one | two |")
        print("|---|---|---|---|")
        x, y, z = (edge / n for edge, n in zip(VIEW_MM, shape, strict=True))
        for diameter, chi, decay in LESIONS[:4]:
            echo, (i, j, k) = phantom_echo(diameter, chi, decay, shape), (n // 2 for n in shape)
            cells = []
            for n in range(3):
                box = [points(n * x, x), points(0.0, y), points(0.0, 3 * z)]
                found = abs(echo[i + n, j, k - 1 : k + 2].mean())
                cells.append(f"{found:.2f} / {abs(formula(diameter, chi, decay, box).mean()):.2f}")
            print(f"| {diameter:g} mm, {chi:g} ppm | " + " | ".join(cells) + " |")
    print(
        "\n| image of 0.5 x 0.5 x 2 mm: phantom / fine grid | center | 0.5 | 1.0 | 1.5 mm beside | ", end=""
    )
    print("brightest within | standard deviation within |\n" + "|---" * 7 + "|")
    for diameter, chi, decay in LESIONS:
        echo = jnp.asarray(phantom_echo(diameter, chi, decay, GRIDS["0.6 x 0.6 x 0.75"]))
        phantom = np.abs(np.fft.ifftn(np.asarray(cropped_spectrum(echo, IMAGE))))
        both = [image[:, :, IMAGE[2] // 2] for image in (phantom, fine_image(diameter, chi, decay))]
        i, j = IMAGE[0] // 2, IMAGE[1] // 2
        offsets = 0.5 * np.hypot(
            *np.meshgrid(np.arange(IMAGE[0]) - i, np.arange(IMAGE[1]) - j, indexing="ij")
        )
        within = offsets <= diameter / 2
        rows = [[*image[i : i + 4, j], image[within].max(), image[within].std()] for image in both]
        cells = (f"{one:.2f} / {other:.2f}" for one, other in zip(*rows, strict=True))
        print(f"| {diameter:g} mm, {chi:g} ppm | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
