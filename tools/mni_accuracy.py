"""How exact MNI coordinates are, on phantoms of the three anatomies whose pose and shape are known.

    python tools/mni_accuracy.py --samples 8      # seconds per sample
    python tools/mni_accuracy.py --landmarks      # write the table of centers anew

Each sample is a whole head of the region network's phantoms (`data.region_samples`): pose, warp, contrast and
artefacts are drawn anew. The region network labels its image, `anatomy.mni` fits the affine, and at points of
the brain the result is compared with where the point came from in the head, brought to MNI space by the
head's own lattice. For mni2009c, whose own shape is the template's, the error is that of warp and network;
for the others it holds how people differ, too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import cmb_jax.anatomy
from cmb_jax.anatomy.assets import PACK_NAMES, load_pack
from cmb_jax.anatomy.mni import fit_mni, landmarks_csv, landmarks_of
from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, RegionMap, Zone, region_of
from cmb_jax.commands.common import use_compilation_cache
from cmb_jax.data.region_artefacts import inner_artefacts, scan_artefacts
from cmb_jax.data.region_grid import GRID_MM
from cmb_jax.data.region_samples import (
    CODE_MM,
    MATERIAL_MM,
    NUM_MATERIALS,
    ContrastVariety,
    RegionSource,
    _material_weights,
    build_source,
)
from cmb_jax.data.region_warps import deform, grid_mm, sample_linear, sample_nearest
from cmb_jax.inference.regions import predict_regions
from cmb_jax.io.volume import Volume

ZONES = (Zone.LOBAR, Zone.DEEP, Zone.INFRATENTORIAL)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is done."""

    samples: int = 8
    """Heads of each anatomy."""
    seed: int = 0
    points: int = 5000
    """Of the brain, in each head."""
    landmarks: bool = False
    """Write the table of the template's centers instead."""


@jax.jit
def draw(source: RegionSource, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Image, code (Z, Y, X) of a head at 2 mm, and where its voxels come from, (3, Z, Y, X): z, y, x mm."""
    shape_key, contrast_key, inner_key, scan_key = jax.random.split(key, 4)
    points = deform(shape_key, grid_mm(), source.ventricle_pull)
    code = sample_nearest(source.code, points / CODE_MM)
    weights = _material_weights(contrast_key, ContrastVariety(arbitrary=0.0))
    signal = sum(source.materials[m] * (weights[m] / 255) for m in range(NUM_MATERIALS))
    image = sample_linear(jnp.asarray(signal)[None], points / MATERIAL_MM)[0]
    image = scan_artefacts(scan_key, inner_artefacts(inner_key, image), code, jnp.ones_like(code, bool))
    return image, code, points


def brain_center_mm(pack: AnatomyPack) -> np.ndarray:
    """Middle of the brain's box, (3,) RAS mm: the origin of a source."""
    found = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    middle = (found.min(axis=0) + found.max(axis=0)) / 2
    return pack.affine[:3, :3] @ middle + pack.affine[:3, 3]


def errors(pack: AnatomyPack, arguments: Arguments) -> list[tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
    """Of each head: zone of its points, mm by the network's map and by the true one; None: no coordinates."""
    source, center = build_source(pack), brain_center_mm(pack)
    rng = np.random.default_rng(arguments.seed)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None] = []
    for n in range(arguments.samples):
        image, code, points = (np.asarray(each) for each in draw(source, jax.random.key(arguments.seed + n)))
        affine = np.diag([GRID_MM] * 3 + [1.0])
        volume = Volume.from_array(np.ascontiguousarray(image.transpose(2, 1, 0)), affine)
        true_map = RegionMap(
            code=np.ascontiguousarray(code.transpose(2, 1, 0)).astype(np.uint8), affine=affine
        )
        network, perfect = fit_mni(predict_regions(volume)), fit_mni(true_map)
        if network is None or perfect is None:
            found.append(None)
            continue
        zone = ZONE_OF_REGION[region_of(code)]
        index = np.argwhere(zone != Zone.NONE)
        index = index[rng.choice(len(index), arguments.points)]
        own = center + points[(slice(None), *index.T)].T[:, ::-1]
        wanted = own if pack.to_mni is None else pack.to_mni.map_points(own)
        scan_mm = index[:, ::-1] * GRID_MM
        network_mm, perfect_mm = (np.linalg.norm(fit(scan_mm) - wanted, axis=1) for fit in (network, perfect))
        found.append((zone[tuple(index.T)], network_mm, perfect_mm))
        print(f"  {pack.name} {n}: {network_mm.mean():.2f} mm, true map {perfect_mm.mean():.2f}", flush=True)
    return found


def line(name: str, mm: np.ndarray) -> str:
    """A row of a table."""
    return f"| {name} | {mm.mean():.1f} | {np.median(mm):.1f} | {np.percentile(mm, 95):.1f} |"


def main(arguments: Arguments) -> None:
    """Measure, or write the landmarks."""
    if arguments.landmarks:
        pack = load_pack()
        path = Path(cmb_jax.anatomy.__file__).parent / "mni_landmarks.csv"
        path.write_text(landmarks_csv(landmarks_of(pack.code, pack.affine)), encoding="utf-8")
        print(f"written: {path}")
        return
    use_compilation_cache()
    every: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    rows = ["| heads | mean mm | median | 95 % |", "|---|---|---|---|"]
    for name in PACK_NAMES:
        found = errors(load_pack(name), arguments)
        good = [each for each in found if each is not None]
        if not good:
            rows.append(f"| {name} ({len(found)} heads without coordinates) | | | |")
            continue
        every += good
        rows.append(line(f"{name} ({len(good)} of {len(found)})", np.concatenate([each[1] for each in good])))
        rows.append(line(f"{name}, true regions", np.concatenate([each[2] for each in good])))
    if every:
        zones, mm = (np.concatenate([each[part] for each in every]) for part in (0, 1))
        rows += [line(f"all, {zone.name.lower()}", mm[zones == zone]) for zone in ZONES]
        rows.append(line("all", mm))
    print("\n".join(rows))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
