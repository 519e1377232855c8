"""Training patches: where they are cut, how they are augmented, and the Grain pipeline.

The position in the data is a pure function of the step, so a resumed run needs only the step's number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from cmb_jax.config import PROPOSAL_STRIDE, DataConfig
from cmb_jax.data.augment import change_contrast, change_phase, change_resolution, draw_changes
from cmb_jax.data.subjects import StoredSubject


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """Patches as NumPy arrays. B patches, Z Y X voxels, M truths."""

    image: np.ndarray  # (B, Z, Y, X, 2) float32
    boxes: np.ndarray  # (B, M, 6) float32, voxels of the patch
    boxes_valid: np.ndarray  # (B, M) bool
    boxes_ignored: np.ndarray  # (B, M) bool: neither to be found nor background
    mimics: np.ndarray  # (B, Z, Y // 2, X // 2) uint8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """The part of every global batch that one process reads."""

    rows: range  # of the patches of a batch
    planes: range  # of the depth of each patch

    @classmethod
    def whole(cls, config: DataConfig) -> Share:
        """All of it, for one process alone."""
        return cls(rows=range(config.batch_size), planes=range(config.patch_shape[0]))


def _center_cell(stored: StoredSubject, boxes: np.ndarray, config: DataConfig, rng: np.random.Generator):
    """Working-grid voxel (z, y, x) to cut a patch around: on a lesion, a mimic or anywhere in the brain."""
    draw = rng.random()
    stride = np.array(PROPOSAL_STRIDE)
    if draw < config.lesion_patch_fraction and len(boxes):
        box = boxes[rng.integers(len(boxes))]
        return (box[:3] + box[3:]) / 2
    # half of the other patches lie about mimics, half anywhere in the brain
    halfway = (1.0 + config.lesion_patch_fraction) / 2
    points = stored.mimic_points() if draw < halfway else stored.brain_points()
    if len(points) == 0:
        points = stored.brain_points()
    return (points[rng.integers(len(points))] + 0.5) * stride


def cut_patch(stored: StoredSubject, config: DataConfig, rng: np.random.Generator):
    """One patch with its boxes, where training would cut it; see `patch_at`."""
    return patch_at(stored, config, drawn_start(stored, config, rng))


def drawn_start(stored: StoredSubject, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """First voxel (3,) of a patch for training: about a lesion, a mimic or a place in the brain."""
    center = _center_cell(stored, stored.boxes(), config, rng)
    # the point lies anywhere in the middle 70 % of the patch, so that its place gives nothing away
    jitter = rng.uniform(-0.35, 0.35, 3) * np.array(config.patch_shape)
    return patch_start(stored, config, center + jitter)


def patch_start(stored: StoredSubject, config: DataConfig, middle: np.ndarray) -> np.ndarray:
    """First voxel (3,) of the patch about a point (3,), on whole cells.

    It stays inside where the volume is large enough; where it is not, there is background around.
    """
    shape, stride = np.array(config.patch_shape), np.array(PROPOSAL_STRIDE)
    room = np.array(stored.image().shape[:3]) - shape
    start = np.rint((middle - shape / 2) / stride).astype(int) * stride
    start = np.clip(start, np.minimum(0, room), np.maximum(0, room))
    return (start // stride) * stride


def patch_at(stored: StoredSubject, config: DataConfig, start: np.ndarray):
    """One patch with its boxes: (image, boxes, ignored, mimics), patch coordinates, before augmentation.

    The boxes (M, 6) that `ignored` (M,) flags are neither to be found nor background.
    Where the patch lies inside the volume the image is a view of the file: only the voxels used are read.
    """
    image, boxes, mimics = stored.image(), stored.boxes(), stored.mimics()
    ignored = stored.ignored_boxes()
    shape, stride = np.array(config.patch_shape), np.array(PROPOSAL_STRIDE)
    patch = _window(image, start, shape)
    cells = _window(mimics, start // stride, shape // stride)
    ignored_here = np.arange(len(boxes) + len(ignored)) >= len(boxes)
    local = np.concatenate([boxes, ignored]) - np.tile(start, 2).astype(np.float32)
    overlaps = ((local[:, 3:] > 0) & (local[:, :3] < shape)).all(axis=1)
    return patch, local[overlaps], ignored_here[overlaps], cells


def _window(array: np.ndarray, start: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """array[start : start + shape] along the first three axes, zero outside."""
    low = np.maximum(start, 0)
    high = np.minimum(start + shape, array.shape[:3])
    inside = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    before, after = low - start, start + shape - high
    if not (before.any() or after.any()):
        return np.asarray(inside)
    pad = [(a, b) for a, b in zip(before, after, strict=True)] + [(0, 0)] * (array.ndim - 3)
    return np.pad(inside, pad)


def flip(image: np.ndarray, boxes: np.ndarray, mimics: np.ndarray, axis: int):
    """Mirror a patch and its boxes along axis 0, 1 or 2."""
    size = image.shape[axis]
    boxes = boxes.copy()
    boxes[:, axis], boxes[:, axis + 3] = size - boxes[:, axis + 3], size - boxes[:, axis]
    return np.flip(image, axis), boxes, np.flip(mimics, axis)


def turn(image: np.ndarray, boxes: np.ndarray, mimics: np.ndarray):
    """Swap y and x: the dipole field is symmetric about the main field along z, so phase stays physical."""
    return image.swapaxes(1, 2), boxes[:, [0, 2, 1, 3, 5, 4]], mimics.swapaxes(1, 2)


def augment(
    image: np.ndarray,
    boxes: np.ndarray,
    mimics: np.ndarray,
    config: DataConfig,
    rng: np.random.Generator,
    planes: range | None = None,
):
    """Random mirror images and turn, then the changes of `data.augment` and loss of the phase.

    With `planes`, images and mimics are those planes of the result alone; boxes stay those of the patch, and
    the random numbers are the same.

    Returns:
        The image as float32 (a view, not contiguous), boxes, mimics.
    """
    for axis in range(3):
        if rng.random() < 0.5:
            image, boxes, mimics = flip(image, boxes, mimics, axis)
    if image.shape[1] == image.shape[2] and rng.random() < 0.5:
        image, boxes, mimics = turn(image, boxes, mimics)
    # Everything random is drawn for the whole patch, in a fixed order, even where a process keeps only some
    # of its planes: the processes that share its depth must see parts of one and the same patch.
    part = slice(0, image.shape[0]) if planes is None else slice(planes.start, planes.stop)
    shape = image.shape[:3]
    changes = draw_changes(shape, config.spacing_mm, config.augment, rng)
    keeps_phase = rng.random() >= config.phase_dropout
    # changes that mix planes need the neighbors of the planes that are kept
    read = slice(None) if changes.mixes_planes else part
    # one array per channel until the very end: interleaved, every pass would take twice the time
    swi = image[read, ..., 0].astype(np.float32)
    phase = image[read, ..., 1].astype(np.float32) if keeps_phase else None
    if changes.mixes_planes:
        swi, phase = change_resolution(swi, phase, changes)
        swi, phase = swi[part], None if phase is None else phase[part]
    change_contrast(swi, changes, shape[0], part)
    noise = rng.standard_normal(shape, np.float32)[part]
    phase_noise = rng.standard_normal(shape, np.float32)[part] if changes.phase_noise else None
    channels = np.zeros((2, *swi.shape), np.float32)
    if phase is not None:
        channels[1] = change_phase(phase, swi, changes, phase_noise)
    channels[0] = swi + noise * changes.noise
    image = np.moveaxis(channels, 0, -1)
    return image, boxes, mimics[part]


class SamplePatch(grain.transforms.RandomMap):
    """Subject number -> augmented patch as a `PatchBatch` without the batch axis."""

    def __init__(self, subjects: Sequence[StoredSubject], config: DataConfig, planes: range | None = None):
        self._subjects = tuple(subjects)
        self._config = config
        self._planes = planes

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Cut, augment and pad to static shapes."""
        config = self._config
        image, boxes, ignored, mimics = cut_patch(self._subjects[int(element)], config, rng)
        # boxes keep their order, so that the flags need no part in it
        image, boxes, mimics = augment(image, boxes, mimics, config, rng, self._planes)
        return padded_patch(image, boxes, ignored, mimics, config)


def padded_patch(
    image: np.ndarray, boxes: np.ndarray, ignored: np.ndarray, mimics: np.ndarray, config: DataConfig
) -> dict[str, np.ndarray]:
    """A patch in static shapes, as a `PatchBatch` without the batch axis."""
    shape, center = np.array(config.patch_shape), (boxes[:, :3] + boxes[:, 3:]) / 2
    if config.ignore_rim:  # no anchor of the patch could be right for them
        ignored = ignored | ((center < 0) | (center >= shape)).any(axis=1)
    # more lesions than places: keep those nearest to the middle, whose surroundings are whole
    kept = np.argsort(np.abs(center - shape / 2).max(axis=1), kind="stable")[: config.max_truths]
    padded = np.zeros((config.max_truths, 6), np.float32)
    padded[: len(kept)] = boxes[kept]
    flags = np.zeros(config.max_truths, bool)
    flags[: len(kept)] = ignored[kept]
    return {
        # quicker than a copy of the view
        "image": np.stack([image[..., 0], image[..., 1]], axis=-1).astype(np.float32, copy=False),
        "boxes": padded,
        "boxes_valid": np.arange(config.max_truths) < len(kept),
        "boxes_ignored": flags,
        "mimics": np.ascontiguousarray(mimics),
    }


def _endless(numbers: np.ndarray, seed: int) -> grain.MapDataset:
    """Subject numbers, each once a round, every round in another order."""
    return grain.MapDataset.source(numbers).seed(seed).shuffle().repeat(None)


class _Batches:
    """Grain source of the batches of a stream of patches, stacked; of each global batch, some patches."""

    # Grain's own `batch` would number the batches of each process by themselves. Here patch `step * size +
    # row` is the same whoever reads it, so that a run may go on with another number of processes.

    def __init__(self, patches: grain.MapDataset, size: int, rows: range):
        self._patches, self._size, self._rows = patches, size, rows

    def __len__(self) -> int:
        return len(self._patches) // self._size

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        drawn = [self._patches[int(step) * self._size + row] for row in self._rows]
        return {name: np.stack([patch[name] for patch in drawn]) for name in drawn[0]}


def patch_batches(
    subjects: Sequence[StoredSubject],
    config: DataConfig,
    *,
    seed: int,
    phantoms: Sequence[StoredSubject] = (),
    first_step: int = 0,
    share: Share | None = None,
) -> Iterator[PatchBatch]:
    """Endless batches from `first_step` on, or a process's share of each.

    A patch and its random numbers follow from the seed and from its place in the stream alone, so that the
    global batch depends neither on the number of processes nor on that of workers.

    Args:
        subjects: every one gives equally many patches.
        config: patches, augmentation and `phantom_share`.
        seed: of all random choices.
        phantoms: mixed in with the share `phantom_share` of the patches; none leave all to `subjects`.
        first_step: where a resumed run goes on.
        share: what to read of each batch; all of it where None.
    """
    share = Share.whole(config) if share is None else share
    count = len(subjects)
    dataset = _endless(np.arange(count), seed)
    if phantoms:
        others = _endless(np.arange(count, count + len(phantoms)), seed + 1)
        weights = [1.0 - config.phantom_share, config.phantom_share]
        dataset = grain.MapDataset.mix([dataset, others], weights=weights).seed(seed)
    patches = dataset.random_map(SamplePatch([*subjects, *phantoms], config, share.planes))
    dataset = grain.MapDataset.source(_Batches(patches, config.batch_size, share.rows))
    dataset = dataset.slice(slice(first_step, None))
    iterator = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if config.workers:
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    for batch in iterator:
        if config.workers:  # they hand out shared memory: copy before it goes
            batch = {name: np.array(array) for name, array in batch.items()}
        yield PatchBatch(**batch)
