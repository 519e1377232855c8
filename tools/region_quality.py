"""How good the region network is, on simulated trees and on the T1 scans of the anatomy packs.

    python tools/region_quality.py --trees CMB-PHANTOM ... --subjects 20 --heads

For a tree (`cmb-jax benchmark-data`): zone, region and side at the centers of the microbleeds, looked up as
in a prediction; how many true microbleeds each rule of place would reject; Dice of the three zones and of the
brain, on the scan's own grid; subjects whose map is not trusted. For heads: the same Dice against the packs'
labels, on their T1-weighted scans. `--ceiling` looks up in the true regions at 2 mm: what a perfect map would
get. Some seconds per subject.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import tyro

from cmb_jax.anatomy.assets import PACK_NAMES, load_pack
from cmb_jax.anatomy.lookup import look_up
from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, RegionMap, Side, Zone, region_of
from cmb_jax.core.detection import RejectReason
from cmb_jax.devices import use_compilation_cache
from cmb_jax.evaluation.statistics import wilson
from cmb_jax.inference.predict import MAP_ERROR_MM
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.progress import track
from cmb_jax.regions.grid import grid_affine
from cmb_jax.regions.phantoms import codes_on_grid
from cmb_jax.regions.predict import predict_regions, region_code_on

ZONES = (Zone.LOBAR, Zone.DEEP, Zone.INFRATENTORIAL)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    trees: tuple[Path, ...] = ()
    """Simulated trees with their truth."""
    subjects: int = 20
    """Of each tree, the first so many."""
    heads: bool = False
    """Measure the T1-weighted scans of the anatomy packs too."""
    weights: Path | None = None
    """Region weights; default: the bundled ones."""
    ceiling: bool = False
    """Look up in the true regions at 2 mm instead of the network's."""
    out: Path | None = None
    """JSON file for the figures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Lesions looked up. M lesions."""

    zone: np.ndarray  # (M,) bool: right
    region: np.ndarray
    side: np.ndarray  # those on the midline left out
    rejected: Counter[str]  # by reason


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks."""
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def overlaps(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice of lobar, deep, infratentorial and the brain between two arrays of codes."""
    zones = [ZONE_OF_REGION[region_of(code)] for code in (found, truth)]
    brains = [region_of(code) != Region.OUTSIDE for code in (found, truth)]
    return [*(dice(zones[0] == zone, zones[1] == zone) for zone in ZONES), dice(*brains)]


def true_map(truth: Volume) -> RegionMap:
    """True codes brought to the region grid."""
    code = truth.data.astype(np.uint8)
    found = np.argwhere(code > 0)
    center = (found.min(axis=0) + found.max(axis=0)) / 2
    grid = codes_on_grid(code, truth.spacing_mm, center)
    return RegionMap(
        code=np.ascontiguousarray(grid.transpose(2, 1, 0)), affine=grid_affine(truth.affine, center)
    )


def look_up_truth(table: Path, region_map: RegionMap) -> Places | None:
    """The microbleeds of a lesion table in a map; None where there are none."""
    with table.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "cmb"]
    if not rows:
        return None
    points = np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in rows], np.float32)
    diameters = np.array([float(row["apparent_diameter_mm"]) for row in rows], np.float32)
    found = look_up(points, diameters + 2 * MAP_ERROR_MM, region_map)
    sides = np.array([Side[row["side"].upper()] for row in rows])
    sided = sides != Side.NONE
    reasons = found.reason[~found.keep]
    return Places(
        zone=found.zone == [Zone[row["zone"].upper()] for row in rows],
        region=found.region == [Region[row["region"].upper()] for row in rows],
        side=(found.side == sides)[sided],
        rejected=Counter(RejectReason(int(reason)).sentence for reason in reasons),
    )


def share(hits: list[np.ndarray]) -> str:
    """Proportion with its interval and denominator."""
    values = np.concatenate(hits) if hits else np.zeros(0, bool)
    estimate = wilson(int(values.sum()), len(values))
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] of {len(values)}"


def measure_tree(root: Path, arguments: Arguments) -> dict[str, object]:
    """Figures of one tree."""
    names = sorted(path.name for path in root.glob("sub-*"))[: arguments.subjects]
    places, dices, untrusted = [], [], []
    for name in track(names, root.name):
        anat, truth = root / name / "anat", root / "derivatives" / "truth" / name / "anat"
        swi = anat / f"{name}_swi.nii.gz"
        volume = read_volume(swi if swi.exists() else anat / f"{name}_T2starw.nii.gz")
        code = read_volume(truth / f"{name}_desc-regions_dseg.nii.gz")
        region_map = true_map(code) if arguments.ceiling else predict_regions(volume, arguments.weights)
        if not region_map.trusted:
            untrusted.append(f"{name}: {' '.join(region_map.messages)}")
        dices.append(overlaps(region_code_on(volume, region_map), code.data.astype(np.uint8)))
        found = look_up_truth(truth / f"{name}_desc-lesions.tsv", region_map)
        if found is not None:
            places.append(found)
    rejected = sum((each.rejected for each in places), Counter())
    mean = np.mean(dices, axis=0)
    return {
        "subjects": len(names),
        "zone": share([each.zone for each in places]),
        "region": share([each.region for each in places]),
        "side": share([each.side for each in places]),
        "true microbleeds rejected": dict(rejected),
        "dice lobar, deep, infratentorial": mean[:3].round(3).tolist(),
        "dice of the zones, mean": round(float(mean[:3].mean()), 3),
        "dice of the brain": round(float(mean[3]), 3),
        "lowest dice of a brain": round(float(np.min(dices, axis=0)[3]), 3),
        "untrusted": untrusted,
    }


def measure_head(name: str, arguments: Arguments) -> dict[str, object]:
    """Figures of the T1-weighted scan of one pack."""
    pack = load_pack(name)
    volume = Volume.from_array(pack.fractions[..., Channel.T1].astype(np.float32), pack.affine)
    region_map = predict_regions(volume, arguments.weights)
    *zones, brain = overlaps(region_code_on(volume, region_map), pack.code)
    return {
        "dice lobar, deep, infratentorial": np.round(zones, 3).tolist(),
        "dice of the zones, mean": round(float(np.mean(zones)), 3),
        "dice of the brain": round(brain, 3),
        "untrusted": list(region_map.messages),
    }


def main() -> None:
    """Measure and print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    use_compilation_cache()
    figures = {root.name: measure_tree(root, arguments) for root in arguments.trees}
    if arguments.heads:
        figures |= {f"T1 of {name}": measure_head(name, arguments) for name in PACK_NAMES}
    text = json.dumps(figures, indent=2) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
