"""Training batches simulated on the devices that train: a function of a key, with static shapes.

A patch is a small field of view about a random point of the brain, simulated like a whole head (chi, field,
signal, k-space, SWI) with a rim that is cut off afterwards. Beyond the rim lies soft tissue: there is no
field of distant air, and vessels that start outside do not come in.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cmb_jax.boxes.anchors import Truths
from cmb_jax.config import DataConfig
from cmb_jax.data.prepare import MAX_SCALED_INTENSITY, REFERENCE_PERCENTILE
from cmb_jax.data.subjects import PROPOSAL_STRIDE
from cmb_jax.phantom.packed import PackedAnatomy, window
from cmb_jax.phantom.protocols import Protocol
from cmb_jax.phantom.sample import Plan, Ranges, Sample, over_devices, sample_at, solid_tissue
from cmb_jax.swi import phase_trust
from cmb_jax.training.step import DeviceBatch

RIM_MM = 8.0  # simulated beyond the patch on every side, then cut off
_REACH_MM = 24.0  # of the pack's window beyond the field of view: warp, tilt, the planning maps
_BRAIN_MM3 = 1.4e6  # vessels and calcifications are drawn for a whole brain
_SMALLEST_BOX_MM = 2.0


@dataclasses.dataclass(frozen=True)
class PatchPlan:
    """All that is static of a simulated patch."""

    part: Plan
    shape: tuple[int, int, int]  # (Z, Y, X) voxels of the working grid
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    max_truths: int
    phase_dropout: float
    ignore_rim: bool
    window: tuple[int, int, int]  # pack voxels (x, y, z)

    @classmethod
    def of(
        cls, protocol: Protocol, data: DataConfig, spacing_mm: float, pack_spacing_mm: float = 1.0
    ) -> PatchPlan:
        """Patches of `data.patch_shape` in a protocol; the field is computed on voxels of `spacing_mm`."""
        core = [n * h for n, h in zip(data.patch_shape, data.spacing_mm, strict=True)][::-1]
        steps = [math.ceil((c + 2 * RIM_MM) / h) for c, h in zip(core, protocol.spacing_mm, strict=True)]
        x, y, z = (n * h for n, h in zip(steps, protocol.spacing_mm, strict=True))
        wx, wy, wz = (math.ceil((e + 2 * _REACH_MM) / pack_spacing_mm) for e in (x, y, z))
        plan = dataclasses.replace(Plan.of(protocol, spacing_mm, (x, y, z)), filtered_phase=True)
        return cls(
            part=plan,
            shape=data.patch_shape,
            spacing_mm=data.spacing_mm,
            max_truths=data.max_truths,
            phase_dropout=data.phase_dropout,
            ignore_rim=data.ignore_rim,
            window=(wx, wy, wz),
        )

    def axis_mm(self, axis: int, step: int = 1) -> np.ndarray:
        """Centres of the working voxels, or of cells of `step` voxels, along array axis z, y or x."""
        count, spacing = self.shape[axis] // step, self.spacing_mm[axis]
        return ((np.arange(count) + 0.5) * step - self.shape[axis] / 2) * spacing


def for_patches(ranges: Ranges, plan: PatchPlan) -> Ranges:
    """The ranges of a whole head with its mean numbers scaled to a patch; mean_cmbs is a patch's own."""
    share = float(np.prod(plan.part.field_of_view_mm)) / _BRAIN_MM3
    tier = dataclasses.replace(
        ranges.tier,
        vein_density=ranges.tier.vein_density * min(share, 1.0),
        calcifications=ranges.tier.calcifications * share,
        cavernoma=ranges.tier.cavernoma * share,
    )
    return dataclasses.replace(ranges, tier=tier)


def _linear_weights(native_index: np.ndarray, count: int) -> jax.Array:
    """(P, count) weights of linear interpolation at fractional indices (P,)."""
    return jnp.maximum(
        0.0, 1.0 - jnp.abs(jnp.asarray(native_index, jnp.float32)[:, None] - jnp.arange(count))
    )


def _native_index(plan: PatchPlan, axis: int, step: int = 1) -> np.ndarray:
    """Fractional index on the acquired grid of working voxels along array axis z, y or x."""
    grid, native = plan.part.acquired, 2 - axis
    return (plan.axis_mm(axis, step) - grid.origin_mm[native]) / grid.spacing_mm[native]


def _on_working_grid(volume: jax.Array, plan: PatchPlan) -> jax.Array:
    """(X, Y, Z) of the acquired grid -> (Z, Y, X) of the patch, linear."""
    wz, wy, wx = (_linear_weights(_native_index(plan, a), volume.shape[2 - a]) for a in range(3))
    return jnp.einsum("zk,yj,xi,ijk->zyx", wz, wy, wx, volume, optimize="optimal")


def _cells(labels: jax.Array, plan: PatchPlan) -> jax.Array:
    """Nearest label (X, Y, Z) at the centre of every proposal cell: (Z, Y // 2, X // 2)."""
    z, y, x = (
        np.clip(np.rint(_native_index(plan, a, step)), 0, labels.shape[2 - a] - 1).astype(int)
        for a, step in enumerate(PROPOSAL_STRIDE)
    )
    return labels[x][:, y][:, :, z].transpose(2, 1, 0)


def _truths(sample: Sample, plan: PatchPlan) -> Truths:
    """Boxes of the microbleeds that reach into the patch, the most central first.

    Those that do not count are ignored, and with `ignore_rim` those whose centers lie outside as well.
    """
    spacing, shape = jnp.asarray(plan.spacing_mm), jnp.asarray(plan.shape)
    centre = sample.bleeds.centre_mm[:, ::-1] / spacing + shape / 2
    half = jnp.maximum(sample.bleed_mm, _SMALLEST_BOX_MM)[:, None] / spacing / 2
    boxes = jnp.concatenate([centre - half, centre + half], axis=1)
    inside = sample.bleeds.valid & jnp.all((boxes[:, 3:] > 0) & (boxes[:, :3] < shape), axis=1)
    ignored = ~sample.counts
    if plan.ignore_rim:
        ignored = ignored | jnp.any((centre < 0) | (centre >= shape), axis=1)
    order = jnp.argsort(jnp.where(inside, jnp.max(jnp.abs(centre - shape / 2), axis=1), jnp.inf))
    order = order[: plan.max_truths]
    valid = inside[order]
    boxes = jnp.where(valid[:, None], boxes[order], 0.0)
    return Truths(boxes=boxes, valid=valid, ignored=ignored[order] & valid)


def simulate_patch(
    key: jax.Array, anatomy: PackedAnatomy, ranges: Ranges, plan: PatchPlan
) -> tuple[jax.Array, Truths, jax.Array]:
    """Image (Z, Y, X, 2), truths (max_truths) and mimic cells (Z, Y // 2, X // 2) of one patch. Pure.

    `ranges` as `for_patches` gives them.
    """
    k_where, k_sample, k_phase = jax.random.split(key, 3)
    middle = anatomy.brain_mm[jax.random.randint(k_where, (), 0, anatomy.brain_mm.shape[0])]
    sample = sample_at(k_sample, window(anatomy, middle, plan.window), ranges, middle, plan.part)
    solid = jnp.where(solid_tissue(sample.code), sample.swi, jnp.nan)[::2, ::2]
    reference = jnp.nan_to_num(jnp.nanpercentile(solid, REFERENCE_PERCENTILE), nan=1.0)
    scaled = jnp.clip(sample.swi / jnp.maximum(reference, 1e-6), 0.0, MAX_SCALED_INTENSITY)
    intensity = _on_working_grid(scaled, plan)
    has_phase = plan.part.weighted & (jax.random.uniform(k_phase) >= plan.phase_dropout)
    radians = sample.phase * sample.scan.phase_sign
    trust = phase_trust(scaled * jnp.exp(1j * radians), plan.part.acquired.spacing_mm)
    cosine, sine, trust = (_on_working_grid(a, plan) for a in (jnp.cos(radians), jnp.sin(radians), trust))
    phase = jnp.arctan2(sine, cosine) / jnp.pi * trust  # as `data.prepare` does it
    image = jnp.stack([intensity, jnp.where(has_phase, phase, 0.0)], axis=-1)
    return image, _truths(sample, plan), _cells(sample.mimics, plan)


@functools.partial(jax.jit, static_argnames=("plan", "mesh"))
def simulate_patches(
    keys: jax.Array, anatomy: PackedAnatomy, ranges: Ranges, *, plan: PatchPlan, mesh: Mesh | None = None
) -> DeviceBatch:
    """A batch of keys (B,), each device of the mesh's first axis making its own share."""

    def several(some: jax.Array, anatomy: PackedAnatomy, ranges: Ranges) -> DeviceBatch:
        made = jax.vmap(lambda key: simulate_patch(key, anatomy, ranges, plan))(some)
        return DeviceBatch(image=made[0], truths=made[1], mimics=made[2])

    return over_devices(several, mesh)(keys, anatomy, ranges)
