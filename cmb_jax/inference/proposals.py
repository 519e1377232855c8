"""From a prepared image to scored boxes: windows over the volume, network, decoding, suppression.

Every window reaches beyond its core by the network's receptive field, or ends where the volume ends, so that
each core cell is computed from the very voxels that a pass over the whole volume would use: the result does
not depend on how a volume is cut. Lengths are rounded up to buckets, so that the network is compiled for few
shapes however many the scans are. Near the far faces the network sees the padding; how much there is depends
on the volume's shape alone, so that every way to predict a scan gives the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmb_jax.config import PROPOSAL_STRIDE, Config, Triple
from cmb_jax.data.subjects import READERS_MIMIC, StoredSubject
from cmb_jax.detector.anchors import Detections, anchor_sizes, box_centers, boxes_from_centers, decode_boxes
from cmb_jax.detector.network import (
    Detector,
    Template,
    context_of,
    map_slabs,
    receptive_halo,
    slab_maps,
    slab_planes,
)
from cmb_jax.detector.nms import nms_3d
from cmb_jax.evaluation.read import MIMIC_NAMES
from cmb_jax.evaluation.records import MimicMap, SubjectDetections, SubjectTruth
from cmb_jax.ops.cpu.library import usable_precision
from cmb_jax.ops.top import top_k

BUCKET_CELLS = 4
"""Cells of the coarsest level from one bucket to the next: 32 mm for a total stride of 8 mm."""

LONGEST = 16
"""How many times as long as the configuration says a list of candidates may become."""

# Axes (z, y, x) along which each pass sees the window mirrored; the first pass sees it as it is. Windows are
# whole numbers of cells of every level, so that a mirror image maps cells onto cells exactly.
VIEWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "x": ((), (2,)),
    "xyz": ((), (0,), (1,), (2,)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """One pass of the network, in voxels (z, y, x) of the padded working grid."""

    start: Triple  # first voxel read
    core_low: Triple  # first voxel whose result counts
    core_high: Triple  # one past the last voxel whose result counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Windows of one common shape whose cores partition the padded volume."""

    padded_shape: Triple  # multiple of `BUCKET_CELLS` total strides
    window_shape: Triple
    windows: tuple[Window, ...]


def round_up(size: int, multiple: int) -> int:
    """Smallest multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def _axis_windows(size: int, window: int, halo: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, core low, core high) of the windows along one axis."""
    if size <= window:
        return [(0, 0, size)]
    core = window - 2 * halo
    count = -(-(size - 2 * halo) // core)
    # windows spread evenly on the stride's lattice; the first and last touch the volume's faces
    starts = [
        min(round_up(round(i * (size - window) / (count - 1)), stride), size - window) for i in range(count)
    ]
    edges = [0]
    for left, right in itertools.pairwise(starts):
        # the cut lies between the right's first exact voxel and the left's last one
        first, last = right + halo, left + window - halo
        edges.append((first + last) // 2 // stride * stride if last - first >= stride else first)
    edges.append(size)
    return [(start, edges[i], edges[i + 1]) for i, start in enumerate(starts)]


def plan_tiles(shape: Triple, tile_shape: Triple, halo: Triple, stride: Triple) -> TilePlan:
    """Cover a volume of `shape` voxels by windows of at most `tile_shape`.

    A volume that fits a tile is one window even where its padding does not.

    Args:
      shape: volume (z, y, x) in voxels.
      tile_shape: largest window, halo included.
      halo: reach of the network in voxels, a multiple of `stride`.
      stride: voxels per cell of the network's coarsest level.

    Raises:
      ValueError: if a volume needs cutting and `tile_shape` is not larger than two halos and one stride.
    """
    padded, window_shape, axes = [], [], []
    for size, tile, reach, step in zip(shape, tile_shape, halo, stride, strict=True):
        whole = round_up(size, BUCKET_CELLS * step)
        window = whole if size <= tile else min(whole, tile // step * step)
        if window < whole and window - 2 * reach < step:
            raise ValueError(f"a tile of {tile} voxels leaves no core: halo {reach}, stride {step}")
        padded.append(whole)
        window_shape.append(window)
        axes.append(_axis_windows(whole, window, reach, step))
    windows = tuple(
        Window(start=(z[0], y[0], x[0]), core_low=(z[1], y[1], x[1]), core_high=(z[2], y[2], x[2]))
        for z, y, x in itertools.product(*axes)
    )
    return TilePlan(
        padded_shape=(padded[0], padded[1], padded[2]),
        window_shape=(window_shape[0], window_shape[1], window_shape[2]),
        windows=windows,
    )


def pad_to(image: np.ndarray, shape: Triple) -> np.ndarray:
    """Zeros appended at the far faces of (Z, Y, X, C) until its first axes have `shape`; none if they do."""
    widths = [(0, target - size) for target, size in zip(shape, image.shape[:3], strict=True)]
    return np.pad(image, [*widths, (0, 0)]) if any(far for _, far in widths) else image


class ProposalFinder:
    """The detector's network with its weights, compiled once for every window shape.

    With `inference.flips` or several networks the logits of all passes are averaged at every anchor; boxes
    are the mean over the networks, each looking at the image as it is. Time grows with networks times views.

    Args:
      config: of the detector.
      params: its weights.
      device: that holds the weights and does the work; default: JAX's default device.
      others: weights of further networks of the same configuration, such as from other seeds.
    """

    def __init__(
        self, config: Config, params: Any, device: jax.Device | None = None, *, others: Sequence[Any] = ()
    ):
        precision = usable_precision(config.inference.precision, "inference.precision", device)
        config = dataclasses.replace(
            config, inference=dataclasses.replace(config.inference, precision=precision)
        )
        self.config = config
        self.members = tuple(jax.device_put(one, device) for one in (params, *others))
        self._template = Template.of(
            lambda: Detector(config.model, precision=config.inference.precision, rngs=nnx.Rngs(0))
        )
        self._candidates = jax.jit(
            functools.partial(window_candidates, self._template, config), static_argnames="room"
        )
        self._select = jax.jit(functools.partial(best_of_windows, config), static_argnames="room")
        self._whole = jax.jit(functools.partial(_window_objectness, self._template, config))

    def plan(self, shape: tuple[int, int, int]) -> TilePlan:
        """How a volume of `shape` (z, y, x) working voxels is cut."""
        model = self.config.model
        return plan_tiles(shape, self.config.inference.tile_shape, receptive_halo(model), model.total_stride)

    def find(self, image: np.ndarray, progress: Callable[[int, int], None] | None = None) -> Detections:
        """Boxes after suppression, best first; nothing is looked for in the padding.

        Args:
          image: (Z, Y, X, 2) prepared image.
          progress: called with (windows done, windows in all).
        """
        return self.find_all(image, self.config.inference.score_threshold, progress)[0]

    def find_all(
        self, image: np.ndarray, threshold: float, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Detections, bool]:
        """As `find`, with every box whose score reaches a threshold, and whether that is so.

        The lists are as long as the configuration says, and those that end above the threshold are made
        again, each time four times as long. Without a threshold (0) they stay as they are.
        """
        plan, settings = self.plan(image.shape[:3]), self.config.inference
        padded = pad_to(np.asarray(image, np.float32), plan.padded_shape)
        found, complete = [], True
        ends = np.array(image.shape[:3])
        for number, window in enumerate(plan.windows):
            candidates = functools.partial(
                self._candidates,
                self.members,
                _cut(padded, window, plan)[None],
                jnp.array(window.start),
                jnp.array(window.core_low),
                jnp.array(np.minimum(window.core_high, ends)),
            )
            part, all_in = _long_enough(candidates, settings.max_candidates, threshold)
            found.append(part)
            complete &= all_in
            if progress is not None:
                progress(number + 1, len(plan.windows))
        boxes = jnp.concatenate([part.boxes for part in found])
        scores = jnp.concatenate([part.scores for part in found])
        valid = jnp.concatenate([part.valid for part in found])
        select = functools.partial(self._select, Detections(boxes=boxes, scores=scores, valid=valid))
        kept, all_in = _long_enough(select, settings.max_detections, threshold)
        return kept, complete and all_in

    def objectness(self, image: np.ndarray) -> np.ndarray:
        """Objectness logits (Z, Y // 2, X // 2, A) of the padded volume, joined from the windows' cores."""
        plan = self.plan(image.shape[:3])
        padded = pad_to(np.asarray(image, np.float32), plan.padded_shape)
        cells = [size // step for size, step in zip(plan.padded_shape, PROPOSAL_STRIDE, strict=True)]
        whole = np.zeros((*cells, len(self.config.model.anchor_diameters_mm)), np.float32)
        for window in plan.windows:
            part = np.asarray(self._whole(self.members, _cut(padded, window, plan)[None]))[0]
            target, source = [], []
            for axis, step in enumerate(PROPOSAL_STRIDE):
                low, high, start = window.core_low[axis], window.core_high[axis], window.start[axis]
                target.append(slice(low // step, high // step))
                source.append(slice((low - start) // step, (high - start) // step))
            whole[tuple(target)] = part[tuple(source)]
        return whole


def _long_enough(listed: Callable[..., Detections], room: int, threshold: float) -> tuple[Detections, bool]:
    """A list with room for all boxes that reach a threshold, and whether they are all in it."""
    longest = LONGEST * room
    while True:
        found = listed(room=room)
        ends_above = bool(found.valid.all()) and float(found.scores.min()) >= threshold > 0
        if not ends_above or len(found.scores) < room or room == longest:
            return found, not ends_above or len(found.scores) < room
        room *= 4


def _cut(padded: np.ndarray, window: Window, plan: TilePlan) -> np.ndarray:
    return padded[
        tuple(slice(start, start + size) for start, size in zip(window.start, plan.window_shape, strict=True))
    ]


def _mirrored(array: jax.Array, view: tuple[int, ...], first_axis: int) -> jax.Array:
    """An array with the axes (z, y, x) from `first_axis` on, mirrored along those of a view."""
    return jnp.flip(array, [first_axis + axis for axis in view]) if view else array


def _window_objectness(
    template: Template[Detector], config: Config, members: tuple[Any, ...], image: jax.Array
) -> jax.Array:
    """Mean objectness logits (1, Z, Y // 2, X // 2, A) over networks and views of (1, Z, Y, X, 2)."""
    logits = [
        _mirrored(template.bind(params)(_mirrored(image, view, 1)).objectness, view, 1)
        for params in members
        for view in VIEWS[config.inference.flips]
    ]
    return sum(logits[1:], logits[0]) / len(logits)


def window_candidates(
    template: Template[Detector],
    config: Config,
    members: tuple[Any, ...],  # weights of each network
    image: jax.Array,  # (1, Z, Y, X, 2)
    start: jax.Array,  # (3,) int32 working voxels
    core_low: jax.Array,  # (3,)
    core_high: jax.Array,  # (3,)
    room: int,
) -> Detections:
    """The best `room` candidates whose cells lie in the window's core, in voxels of the padded volume."""
    # Memory decides the order of things here. The maps of the finest level would be by far the largest
    # arrays, so they exist for one slab of planes at a time: everything coarser is computed once per network
    # and view (`context_of`), then each slab gives its best candidates as logits, and only those are kept. A
    # candidate among the best of the window is among the best of its slab, so nothing is lost.
    detectors = [template.bind(params) for params in members]
    depth = image.shape[1]
    planes = slab_planes(depth)
    passes = []
    for detector in detectors:
        for view in VIEWS[config.inference.flips]:
            seen = _mirrored(image, view, 1)
            passes.append((detector, view, seen, context_of(detector, seen)))

    def of_slab(first: jax.Array) -> Detections:
        logits, box_inputs = [], []
        for detector, view, seen, context in passes:
            at = depth - planes - first if 0 in view else first
            plane, box_input, wide_logits = slab_maps(detector, seen, context, at)
            # Only the slab's own planes count: those around it are another slab's.
            slab_logits = jax.lax.dynamic_slice_in_dim(wide_logits[0], at - plane, planes)
            logits.append(_mirrored(slab_logits, view, 0))
            if not view:
                box_inputs.append((box_input, at - plane))
        mean = sum(logits[1:], logits[0]) / len(logits)
        return _slab_candidates(
            config, detectors, box_inputs, mean, start.at[0].add(first), core_low, core_high, room
        )

    slabs = map_slabs(of_slab, depth)
    # Slabs follow each other as their anchors do: ties go to the lower anchor, as in one list of all.
    found: Detections = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), slabs)
    count = min(room, found.scores.shape[0])
    logits, index = jax.lax.top_k(found.scores, count)
    scores = jax.nn.sigmoid(logits)
    valid = jnp.isfinite(logits) & (scores >= config.inference.candidate_threshold)
    return Detections(boxes=found.boxes[index], scores=scores, valid=valid)


def _slab_candidates(
    config: Config,
    detectors: Sequence[Detector],
    box_inputs: Sequence[tuple[jax.Array, jax.Array]],  # (1, N, Y, X, C) and the slab's first plane in it
    logits: jax.Array,  # (Z, Y, X, A)
    start: jax.Array,  # (3,) working voxels of the first cell
    core_low: jax.Array,
    core_high: jax.Array,
    room: int,
) -> Detections:
    """The best anchors of one slab inside the core; their scores are logits still."""
    depth, height, width, anchors = logits.shape
    inside = jnp.ones((), bool)
    for axis, cells in enumerate((depth, height, width)):
        first = start[axis] + jnp.arange(cells) * PROPOSAL_STRIDE[axis]
        counts = (first >= core_low[axis]) & (first < core_high[axis])
        inside = inside & counts.reshape([-1 if other == axis else 1 for other in range(3)])
    masked = jnp.where(inside[..., None], logits, -jnp.inf).reshape(-1)
    count = min(room, masked.shape[0])
    best, index = top_k(masked, count)

    anchor = index % anchors
    cell = index // anchors
    position = jnp.stack([cell // (height * width), cell // width % height, cell % width], axis=-1)
    center = (position + 0.5) * jnp.array(PROPOSAL_STRIDE, jnp.float32) + start
    sizes = jnp.asarray(anchor_sizes(config.model.anchor_diameters_mm, config.data.spacing_mm))[anchor]
    # Box codes of the candidates alone: the dense map of them would be the largest array of all.
    each = [
        detector.box_codes(box_input, index[None] + plane * (height * width * anchors))[0]
        for detector, (box_input, plane) in zip(detectors, box_inputs, strict=True)
    ]
    codes = sum(each[1:], each[0]) / len(each)
    return Detections(
        boxes=decode_boxes(boxes_from_centers(center, sizes), codes),
        scores=best,
        valid=jnp.isfinite(best),
    )


def best_of_windows(config: Config, candidates: Detections, room: int) -> Detections:
    """Suppression over the candidates of all windows, to a list of `room`."""
    kept = nms_3d(candidates.boxes, candidates.scores, config.inference.nms_iou, room, valid=candidates.valid)
    return Detections(boxes=kept.boxes, scores=kept.scores, valid=kept.valid)


# Of prepared subjects: places are (z, y, x) mm from the first corner of the working grid, which is enough for
# distances; they name no place in the head.


def detect(finder: ProposalFinder, stored: StoredSubject) -> SubjectDetections:
    """What a detector finds in a prepared subject; the diameter is the box's edge along z."""
    spacing = np.array(finder.config.data.spacing_mm)
    detections = finder.find(stored.image())
    keep = np.asarray(detections.valid)
    boxes = np.asarray(detections.boxes)[keep]
    return SubjectDetections(
        subject=stored.folder.name,
        centers_mm=np.asarray(box_centers(detections.boxes))[keep] * spacing,
        scores=np.asarray(detections.scores)[keep],
        diameters_mm=(boxes[:, 3] - boxes[:, 0]) * spacing[0],
    )


def truth_of(stored: StoredSubject, spacing_mm: tuple[float, float, float]) -> SubjectTruth:
    """The microbleeds of a prepared subject and those to be ignored, by their boxes."""
    spacing = np.array(spacing_mm)
    counting, ignored = (
        ((boxes[:, :3] + boxes[:, 3:]) / 2 * spacing, (boxes[:, 3] - boxes[:, 0]) * spacing[0])
        for boxes in (stored.boxes(), stored.ignored_boxes())
    )
    return SubjectTruth(
        subject=stored.folder.name,
        centers_mm=counting[0],
        diameters_mm=counting[1],
        ignored_centers_mm=ignored[0],
        ignored_diameters_mm=ignored[1],
    )


def mimics_of(stored: StoredSubject, spacing_mm: tuple[float, float, float]) -> MimicMap:
    """Where the known mimics of a prepared subject lie: cells (z, y, x) of the proposal grid."""
    edge = np.array(PROPOSAL_STRIDE) * np.array(spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(edge)
    affine[:3, 3] = edge / 2
    return MimicMap(
        codes=np.asarray(stored.mimics()),
        affine=affine,
        names={**MIMIC_NAMES, READERS_MIMIC: "named_by_reader"},
    )
