"""Two time points with known change, simulated, detected and compared: the figures of docs/compare.md.

    python tools/two_time_points.py DIR --pairs 12

Each pair is one head without microbleeds, simulated as complex data. The follow-up is resampled to a grid
that the head has moved in (up to 8 degrees and 8 mm a direction), and its scanner coordinates are moved by as
much again. Microbleeds are put into both complex scans or into one, each scan gets noise of its own, SWI is
made, the bundled detector runs, and the two results are compared. Some minutes of two cores a pair; finished
parts are kept, so that the command can be run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from nibabel.affines import apply_affine as transformed
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.cli.predict import PredictOptions, predict
from cmb_jax.devices import use_compilation_cache
from cmb_jax.followup.compare import compare
from cmb_jax.followup.time_point import read_time_point
from cmb_jax.implant.effect import effect_of_groups
from cmb_jax.implant.lesions import Lesions, place, random_lesions
from cmb_jax.io.nifti import write_volume
from cmb_jax.io.volume import Volume
from cmb_jax.phantom import PROTOCOLS, PhantomSubject, SubjectSettings, simulate_subject
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.visibility import is_seen, visibility
from cmb_jax.scan.phase_sign import field_direction
from cmb_jax.scan.swi import susceptibility_weighted

FIRST_SEED = 5_000_000  # in no split of CMB-Phantom
PROTOCOL_PAIRS = (("iso08", "iso08"), ("iso05", "iso08"), ("iso05", "iso05"))
NOISELESS = (1000.0, 1000.0)
SNR = (15.0, 30.0)
DIAMETERS_MM = (1.8, 4.0)
HIT_MM = 3.0
MOST = {"stable": 8, "new": 6, "resolved": 3}

for _name in {name for pair in PROTOCOL_PAIRS for name in pair}:
    PROTOCOLS[f"{_name}raw"] = dataclasses.replace(PROTOCOLS[_name], name=f"{_name}raw", phase="raw")


@dataclasses.dataclass(frozen=True)
class Complex:
    """Complex data of one scan without noise."""

    data: np.ndarray  # (X, Y, Z) complex64
    affine: np.ndarray  # voxel index -> RAS mm of this scan
    solid: np.ndarray  # (X, Y, Z) bool, brain tissue
    brain: np.ndarray  # (X, Y, Z) bool
    subject: PhantomSubject

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    @property
    def head(self) -> np.ndarray:
        """(4, 4) the simulated head's own frame -> RAS mm of this scan: protocols tilt differently."""
        frame = np.eye(4)
        frame[:3, :3] = self.affine[:3, :3] / self.spacing_mm
        middle = (np.array(self.data.shape) - 1) / 2
        frame[:3, 3] = self.affine[:3, :3] @ middle + self.affine[:3, 3]
        return frame


def simulate(packs: Callable[[str], AnatomyPack], seed: int, protocol: str) -> Complex:
    """A head without microbleeds."""
    settings = SubjectSettings(protocol=f"{protocol}raw", mean_cmbs=0.0, snr=NOISELESS)
    subject = simulate_subject(packs("mni2009c"), seed, settings)
    assert subject.phase is not None
    region = region_of(subject.region_code)
    return Complex(
        data=(subject.magnitude.data * np.exp(1j * subject.phase.data)).astype(np.complex64),
        affine=subject.swi.affine,
        solid=(region != Region.OUTSIDE) & (region < Region.VENTRICLE),
        brain=region != Region.OUTSIDE,
        subject=subject,
    )


def rigid(rng: np.random.Generator, degrees: float, mm: float, about_mm: np.ndarray) -> np.ndarray:
    """(4, 4) a random rotation about each axis and a shift, about a point."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
    matrix[:3, 3] = about_mm - matrix[:3, :3] @ about_mm + rng.uniform(-mm, mm, 3)
    return matrix


def moved(scan: Complex, within_grid: np.ndarray, of_grid: np.ndarray) -> Complex:
    """The head moved by `within_grid` against the slices, then both by `of_grid`, all RAS mm."""
    to_source = np.linalg.inv(scan.affine) @ np.linalg.inv(within_grid) @ scan.affine

    def resample(values: np.ndarray, order: int) -> np.ndarray:
        return ndimage.affine_transform(values, to_source[:3, :3], to_source[:3, 3], order=order)

    data = resample(scan.data.real, 3) + 1j * resample(scan.data.imag, 3)
    return dataclasses.replace(
        scan,
        data=data.astype(np.complex64),
        affine=of_grid @ scan.affine,
        solid=resample(scan.solid.astype(np.uint8), 0) > 0,
        brain=resample(scan.brain.astype(np.uint8), 0) > 0,
    )


def at(lesions: Lesions, keep: np.ndarray, points_mm: np.ndarray, scan: Complex) -> Lesions:
    """Some lesions at RAS mm of a scan."""
    inverse = np.linalg.inv(scan.affine)
    index = points_mm[keep] @ inverse[:3, :3].T + inverse[:3, 3]
    columns = {f.name: getattr(lesions, f.name)[keep] for f in dataclasses.fields(Lesions)}
    columns["center_mm"] = index * np.array(scan.spacing_mm)
    columns["r2_star"] = columns["r2_star"] * scan.subject.b0_t / 3.0
    return Lesions(**columns)


def finish(rng: np.random.Generator, scan: Complex, lesions: Lesions, folder: Path) -> np.ndarray:
    """Implant, add noise, make SWI, write; gives (N,) whether each lesion can be seen."""
    subject, shape, spacing = scan.subject, scan.data.shape, scan.spacing_mm
    data = scan.data
    if len(lesions):
        gain, shift = effect_of_groups(
            [lesions.implants(rows) for rows in lesions.groups()],
            (subject.te_ms,),
            subject.b0_t,
            subject.phase_sign,
            field_direction(scan.affine),
            shape,
            spacing,
        )
        data = data * gain[0] * np.exp(1j * shift[0])
    sigma = float(np.abs(scan.data[scan.solid]).mean()) / rng.uniform(*SNR)
    data = data + sigma * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    image = susceptibility_weighted(
        jnp.asarray(np.abs(data), jnp.float32),
        jnp.asarray(np.angle(data), jnp.float32),
        spacing,
        sign=subject.phase_sign,
    )
    swi = np.asarray(image.swi)
    folder.mkdir(parents=True, exist_ok=True)
    like = Volume.from_array(swi, scan.affine)
    write_volume(folder / "swi.nii.gz", swi, like, overwrite=True)
    write_volume(folder / "phase.nii.gz", np.asarray(image.filtered_phase), like, overwrite=True)
    facts = {"EchoTime": subject.te_ms / 1000, "MagneticFieldStrength": subject.b0_t}
    (folder / "swi.json").write_text(json.dumps(facts))
    if not len(lesions):
        return np.zeros(0, bool)
    seen = visibility(
        jnp.asarray(swi),
        jnp.asarray(scan.solid),
        jnp.float32(sigma),
        jnp.asarray(lesions.center_mm, jnp.float32),
        jnp.asarray(lesions.apparent_mm(subject.te_ms, subject.b0_t), jnp.float32),
        grid=Grid(shape, spacing, (0.0, 0.0, 0.0)),
    )
    return np.asarray(is_seen(seen, jnp.float32(np.median(swi[scan.solid][::16]))))


def make_pair(packs: Callable[[str], AnatomyPack], number: int, folder: Path) -> None:
    """Images of both time points, and the truth."""
    rng = np.random.default_rng((FIRST_SEED, number))
    protocols = PROTOCOL_PAIRS[number % len(PROTOCOL_PAIRS)]
    first = simulate(packs, FIRST_SEED + number, protocols[0])
    second = first if protocols[0] == protocols[1] else simulate(packs, FIRST_SEED + number, protocols[1])
    middle = ndimage.center_of_mass(first.brain)
    about = transformed(first.affine, np.array(middle))
    within, of_grid = rigid(rng, 8.0, 8.0, about), rigid(rng, 8.0, 8.0, about)
    transform = of_grid @ within @ second.head @ np.linalg.inv(first.head)
    second = moved(second, within, of_grid)

    counts = {status: int(rng.integers(0, most + 1)) for status, most in MOST.items()}
    status = np.repeat(list(counts), list(counts.values()))
    lesions = random_lesions(rng, max(len(status), 1), 0, DIAMETERS_MM, 3.0)
    apparent = lesions.apparent_mm(first.subject.te_ms, first.subject.b0_t)
    lesions = place(rng, lesions, apparent, first.brain, first.spacing_mm, first.solid)
    index = lesions.center_mm / np.array(first.spacing_mm)
    before = transformed(first.affine, index)
    after = transformed(transform, before)

    seen = {}
    for name, scan, points, absent in (
        ("baseline", first, before, "new"),
        ("followup", second, after, "resolved"),
    ):
        there = np.flatnonzero(status != absent)
        visible = finish(rng, scan, at(lesions, there, points, scan), folder / name)
        seen[name] = np.zeros(len(status), bool)
        seen[name][there] = visible
    truth = {
        "protocols": protocols,
        "transform": transform.tolist(),
        "brain_points_mm": transformed(first.affine, np.argwhere(first.brain)[::5000]).tolist(),
        "lesions": [
            {
                "status": str(status[n]),
                "baseline_mm": before[n].tolist(),
                "followup_mm": after[n].tolist(),
                "diameter_mm": float(2 * lesions.radius_mm[n]),
                "seen_baseline": bool(seen["baseline"][n]),
                "seen_followup": bool(seen["followup"][n]),
            }
            for n in range(len(status))
        ],
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1))


def judge(folder: Path) -> dict[str, object]:
    """Compare one pair; says what became of each lesion that can be seen wherever it is."""
    truth = json.loads((folder / "truth.json").read_text())
    scans = [
        read_time_point(name, "", folder / f"{stem}_result", folder / stem / "swi.nii.gz")
        for name, stem in (("baseline", "baseline"), ("follow-up", "followup"))
    ]
    found = compare(*scans)
    points = np.array(truth["brain_points_mm"])
    at_truth, at_found = (
        transformed(np.array(m), points) for m in (truth["transform"], found.registration.matrix)
    )
    free = list(found.content.changes)
    outcomes = []
    for lesion in truth["lesions"]:
        near = [c for c in free if np.linalg.norm(c.baseline_mm - lesion["baseline_mm"]) < HIT_MM]
        for change in near:
            free.remove(change)
        clear = all(
            lesion[f"seen_{name}"]
            for name, absent in (("baseline", "new"), ("followup", "resolved"))
            if lesion["status"] != absent
        )
        told = near[0].status if len(near) == 1 else "not reported" if not near else "split"
        reason = near[0].reason if near else ""
        outcomes.append({"truth": lesion["status"], "clear": clear, "told": told, "reason": reason})
    return {
        "protocols": truth["protocols"],
        "registration_mm": float(np.linalg.norm(at_truth - at_found, axis=1).mean()),
        "registration_max_mm": float(np.linalg.norm(at_truth - at_found, axis=1).max()),
        "trusted": found.registration.trusted,
        "correlation": found.registration.correlation,
        "dice": found.registration.dice,
        "lesions": outcomes,
        "false_changes": [c.status for c in free if c.status in ("new", "resolved")],
    }


def main() -> None:
    """Make what is missing, compare, print one JSON line a pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    arguments = parser.parse_args()
    use_compilation_cache()
    packs = functools.cache(load_pack)
    for number in range(arguments.pairs):
        folder = arguments.folder / f"pair{number:02d}"
        if not (folder / "truth.json").exists():
            make_pair(packs, number, folder)
        for name in ("baseline", "followup"):
            if not (folder / f"{name}_result").exists():
                predict(
                    PredictOptions(
                        swi=folder / name / "swi.nii.gz",
                        phase=folder / name / "phase.nii.gz",
                        out=folder / f"{name}_result",
                        phase_range=("radians",),
                        phase_sign="+1",
                    )
                )
        print(json.dumps({"pair": number, **judge(folder)}), flush=True)


if __name__ == "__main__":
    main()
