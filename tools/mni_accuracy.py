"""How exact MNI coordinates are, on phantoms of the three anatomies whose pose and shape are known.

    python tools/mni_accuracy.py --samples 5      # seconds per sample
    python tools/mni_accuracy.py --landmarks      # write the table of centers anew

Each sample is a head as CMB-Phantom poses and warps it (`phantom.head`), drawn at 2 mm in T2*-weighted
contrast with the artifacts of the region network's training. The region network labels the image,
`anatomy.lookup` fits the affine, and at points of the brain the result is compared with where the point came
from in the head, brought to MNI space by the head's own lattice. For mni2009c, whose own shape is the
template's, the error is that of warp and network; for the others it holds how people differ, too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cmb_jax.anatomy.assets import PACK_NAMES, load_pack
from cmb_jax.anatomy.lookup import FILE, Landmarks, fit_mni, landmarks_of
from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, RegionMap, Side, Zone, region_of, side_of
from cmb_jax.devices import use_compilation_cache
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.geometry import lattice_for
from cmb_jax.phantom.head import PackedAnatomy, random_pose, to_pack
from cmb_jax.phantom.simulate import packed
from cmb_jax.regions.grid import GRID_MM, GRID_SHAPE
from cmb_jax.regions.predict import predict_regions
from cmb_jax.regions.samples import (
    CODE_MM,
    MATERIAL_MM,
    NUM_MATERIALS,
    ContrastVariety,
    RegionSource,
    build_source,
    grid_mm,
    inner_artifacts,
    material_weights,
    sample_linear,
    sample_nearest,
    scan_artifacts,
)

ZONES = (Zone.LOBAR, Zone.DEEP, Zone.INFRATENTORIAL)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is done."""

    samples: int = 5
    """Heads of each anatomy."""
    seed: int = 0
    points: int = 5000
    """Of the brain, in each head."""
    landmarks: bool = False
    """Write the table of the template's centers instead."""


@jax.jit
def draw(
    source: RegionSource, anatomy: PackedAnatomy, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Image and code (Z, Y, X) of a head at 2 mm, and its voxels' pack points (Z, Y, X, 3) in RAS mm."""
    pose_key, age_key, contrast_key, inner_key, scan_key = jax.random.split(key, 5)
    extent = (GRID_MM * GRID_SHAPE[2], GRID_MM * GRID_SHAPE[1], GRID_MM * GRID_SHAPE[0])
    lattice = lattice_for(extent)
    atrophy = jax.random.uniform(age_key)
    pose = random_pose(pose_key, anatomy, atrophy, lattice)
    image_mm = grid_mm()[::-1].reshape(3, -1).T
    pack_mm = to_pack(pose, image_mm).reshape(*GRID_SHAPE, 3)
    points = jnp.moveaxis(pack_mm - anatomy.center_mm, -1, 0)[::-1]
    code = sample_nearest(source.code, points / CODE_MM)
    weights = material_weights(contrast_key, ContrastVariety(arbitrary=0.0))
    signal = sum(source.materials[m] * (weights[m] / 255) for m in range(NUM_MATERIALS))
    image = sample_linear(jnp.asarray(signal)[None], points / MATERIAL_MM)[0]
    image = scan_artifacts(scan_key, inner_artifacts(inner_key, image), code, jnp.ones_like(code, bool))
    return image, code, pack_mm


def errors(pack: AnatomyPack, arguments: Arguments) -> list[tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
    """Of each head: zone of its points, mm by the network's map and by the true one; None: no coordinates."""
    source, anatomy = build_source(pack), packed(pack)
    rng = np.random.default_rng(arguments.seed)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None] = []
    for n in range(arguments.samples):
        key = jax.random.key(arguments.seed + n)
        image, code, pack_mm = (np.asarray(each) for each in draw(source, anatomy, key))
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
        own = pack_mm[tuple(index.T)]
        wanted = own if pack.to_mni is None else pack.to_mni.map_points(own)
        scan_mm = index[:, ::-1] * GRID_MM
        network_mm, perfect_mm = (np.linalg.norm(fit(scan_mm) - wanted, axis=1) for fit in (network, perfect))
        found.append((zone[tuple(index.T)], network_mm, perfect_mm))
        print(f"  {pack.name} {n}: {network_mm.mean():.2f} mm, true map {perfect_mm.mean():.2f}", flush=True)
    return found


def line(name: str, mm: np.ndarray) -> str:
    """A row of a table."""
    return f"| {name} | {mm.mean():.1f} | {np.median(mm):.1f} | {np.percentile(mm, 95):.1f} |"


def landmarks_csv(landmarks: Landmarks) -> str:
    """The table that `anatomy.lookup.template_landmarks` reads."""
    lines = ["region,side,x_mm,y_mm,z_mm,volume_mm3"]
    for each, (center, volume) in sorted(landmarks.items()):
        region, side = Region(region_of(each)).name.lower(), Side(side_of(each)).name.lower()
        lines.append(f"{region},{side},{center[0]:.2f},{center[1]:.2f},{center[2]:.2f},{volume:.0f}")
    return "\n".join(lines) + "\n"


def main(arguments: Arguments) -> None:
    """Measure, or write the landmarks."""
    if arguments.landmarks:
        pack = load_pack()
        FILE.write_text(landmarks_csv(landmarks_of(pack.code, pack.affine)), encoding="utf-8")
        print(f"written: {FILE}")
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
