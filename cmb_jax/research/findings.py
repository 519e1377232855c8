"""Detections and embeddings of anchors by a run in prepared subjects, cached in files beside its weights.

A cached file names its inputs and is recomputed when they change. PCA and t-SNE of the embeddings need
scikit-learn, which only the ablation uses: pip install -e '.[ablation]'.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmb_jax.anatomy.lookup import look_up
from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.config import PROPOSAL_STRIDE, Config, DataConfig
from cmb_jax.data.patches import PatchBatch, drawn_start, padded_patch, patch_at
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.detector.anchors import anchor_sizes
from cmb_jax.detector.mining import Mined
from cmb_jax.detector.network import Detector, Template
from cmb_jax.detector.total_loss import embed_anchors, match_anchors, mine_anchors
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import name_by_mimic
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.inference.bundle import WeightsBundle, load_bundle
from cmb_jax.inference.predict import MAP_ERROR_MM
from cmb_jax.inference.proposals import ProposalFinder, detect, mimics_of, truth_of
from cmb_jax.io.atomic import atomic_write_bytes, sha256_file
from cmb_jax.io.outside import read_arrays
from cmb_jax.io.volume import Volume
from cmb_jax.progress import Say, track
from cmb_jax.regions.predict import BUNDLED_WEIGHTS, predict_regions
from cmb_jax.report.evaluation import EmbeddingMap, Table
from cmb_jax.research.runs import Run
from cmb_jax.training.detector import DeviceBatch, init_state, put_batch, template_of
from cmb_jax.training.distributed import make_mesh

FORMAT = 2  # of the cached embeddings
PATCHES = 48
SHOWN_PER_CLASS = 300
PERPLEXITY = 30.0
CARRIED = 0.95  # fraction of the variance that counts as all of it
MICROBLEED = "microbleed"
_INPUTS = "made_of"


def write_kept(path: Path, inputs: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, replacing older ones.

    Raises:
        UserError: the file cannot be written.
    """
    blob = io.BytesIO()
    # NumPy's own annotation takes no names of arrays
    np.savez_compressed(blob, **{_INPUTS: np.array(inputs), **arrays})  # type: ignore[arg-type]
    atomic_write_bytes(path, blob.getvalue(), overwrite=True)


def read_kept(path: Path, inputs: str) -> dict[str, np.ndarray] | None:
    """The arrays of `write_kept`; None if the file is missing, damaged or has other inputs."""
    try:
        arrays = read_arrays(path)
    except UserError:
        return None
    return arrays if str(arrays.pop(_INPUTS, "")) == inputs else None


def kept(path: Path, inputs: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a cached file, which is computed and written first if necessary."""
    arrays = read_kept(path, inputs)
    if arrays is None:
        arrays = make()
        write_kept(path, inputs, arrays)
    return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectSet:
    """Prepared subjects with their truth."""

    name: str  # "validation" or "test"
    subjects: tuple[StoredSubject, ...]
    truths: tuple[SubjectTruth, ...]
    spacing_mm: tuple[float, float, float]
    sha256: str  # of names and boxes: identifies the set


def subject_set(
    name: str, subjects: Sequence[StoredSubject], spacing_mm: tuple[float, float, float]
) -> SubjectSet:
    """A set of subjects, with their truth."""
    truths = tuple(truth_of(stored, spacing_mm) for stored in subjects)
    digest = hashlib.sha256(repr((1, spacing_mm)).encode())
    for truth in truths:
        digest.update(truth.subject.encode() + truth.centers_mm.tobytes() + truth.diameters_mm.tobytes())
    return SubjectSet(
        name=name,
        subjects=tuple(subjects),
        truths=truths,
        spacing_mm=spacing_mm,
        sha256=digest.hexdigest(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetDetections:
    """Detections of one run in S subjects."""

    scans: tuple[SubjectDetections, ...]
    mimics: tuple[tuple[str, ...], ...]  # of each scan's detections: the kind of the mimic there, or "none"


def detections_of(weights: Path, subjects: SubjectSet, say: Say) -> SetDetections:
    """Detections in a set, cached in a file beside the weights.

    Raises:
        UserError: weights that cannot be read, or a file that cannot be written.
    """
    sha256 = sha256_file(weights)
    return kept_detections(weights.parent, sha256, lambda: _finder_of(weights, sha256), subjects, say)


def kept_detections(
    folder: Path,
    made_by: str,
    make_finder: Callable[[], ProposalFinder],
    subjects: SubjectSet,
    say: Say,
    suffix: str = "",
) -> SetDetections:
    """Detections of a run in a set, cached in a file of its folder.

    Args:
        folder: of the run.
        made_by: identifies its parameters.
        make_finder: called only if there is no cached file.
        subjects: to search.
        say: reports progress.
        suffix: of the file name.
    """

    def search() -> dict[str, np.ndarray]:
        say(f"{folder.name}{suffix}: looking at {len(subjects.subjects)} {subjects.name} subjects")
        finder = make_finder()
        stored = subjects.subjects
        scans = [detect(finder, each) for each in track(stored, folder.name)]
        mimics = [
            name_by_mimic(found.centers_mm, mimics_of(each, subjects.spacing_mm))
            for found, each in zip(scans, stored, strict=True)
        ]
        return {
            "counts": np.array([len(scan.scores) for scan in scans]),
            "centers_mm": np.concatenate([scan.centers_mm for scan in scans]),
            "diameters_mm": np.concatenate([scan.diameters_mm for scan in scans]),
            "scores": np.concatenate([scan.scores for scan in scans]),
            "mimics": np.array([name for names in mimics for name in names], dtype=np.str_),
        }

    path = folder / f"detections-{subjects.name}-{subjects.sha256[:12]}{suffix}.npz"
    arrays = kept(path, f"{made_by} {subjects.sha256}", search)
    ends = np.cumsum(arrays["counts"])[:-1]
    centers, diameters, scores, mimics = (
        np.split(arrays[name], ends) for name in ("centers_mm", "diameters_mm", "scores", "mimics")
    )
    return SetDetections(
        scans=tuple(
            SubjectDetections(subject=truth.subject, centers_mm=c, diameters_mm=d, scores=s)
            for truth, c, d, s in zip(subjects.truths, centers, diameters, scores, strict=True)
        ),
        mimics=tuple(tuple(map(str, part)) for part in mimics),
    )


def region_maps(folder: Path, subjects: SubjectSet, say: Say) -> tuple[RegionMap, ...]:
    """The bundled region network's map of each subject in the working frame, cached in a file of `folder`.

    The working frame is RAS with its origin at the first corner of the prepared image.
    """

    def label() -> dict[str, np.ndarray]:
        say(f"finding the regions of {len(subjects.subjects)} {subjects.name} subjects")
        maps = [_region_map(each, subjects.spacing_mm) for each in track(subjects.subjects, "regions")]
        return {
            "codes": np.stack([each.code for each in maps]),
            "affines": np.stack([each.affine for each in maps]),
            "trusted": np.array([each.trusted for each in maps]),
        }

    path = folder / f"regions-{subjects.name}-{subjects.sha256[:12]}.npz"
    arrays = kept(path, f"{sha256_file(BUNDLED_WEIGHTS)} {subjects.sha256}", label)
    return tuple(
        RegionMap(code=code, affine=affine, trusted=bool(trusted))
        for code, affine, trusted in zip(
            *(arrays[name] for name in ("codes", "affines", "trusted")), strict=True
        )
    )


def _region_map(stored: StoredSubject, spacing_mm: tuple[float, float, float]) -> RegionMap:
    spacing = np.array(spacing_mm)[::-1]  # x, y, z
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = spacing / 2  # voxel 0 is centered half a voxel inside the corner
    return predict_regions(Volume.from_array(stored.image()[..., 0].T, affine))


def localized(found: SetDetections, maps: Sequence[RegionMap]) -> SetDetections:
    """The detections that anatomy does not reject; an untrusted map rejects nothing."""

    # the same tolerance around a center as in inference.predict, whose rejections are simulated here
    def allowed(scan: SubjectDetections, region_map: RegionMap) -> np.ndarray:
        located = look_up(scan.centers_mm[:, ::-1], scan.diameters_mm + 2 * MAP_ERROR_MM, region_map)
        return np.asarray(located.keep) | (not region_map.trusted)

    keep = [allowed(scan, region_map) for scan, region_map in zip(found.scans, maps, strict=True)]
    return SetDetections(
        scans=tuple(scan.select(mask) for scan, mask in zip(found.scans, keep, strict=True)),
        mimics=tuple(
            tuple(itertools.compress(names, mask)) for names, mask in zip(found.mimics, keep, strict=True)
        ),
    )


@functools.lru_cache(maxsize=1)
def _finder_of(weights: Path, sha256: str) -> ProposalFinder:
    """Compiled once for both sets of a run; `sha256` distinguishes weights that were rewritten."""
    bundle = load_bundle(weights)
    return ProposalFinder(bundle.config, bundle.params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Mined anchors of a set and the prototypes of a run. S samples, E numbers, P prototypes."""

    embeddings: np.ndarray  # (S, E)
    initial: np.ndarray  # (S, E) of the same anchors, by the initial parameters of the run
    classes: np.ndarray  # (S,) 0 = CMB, 1 = hard negative
    subjects: np.ndarray  # (S,) number of the subject in its set
    centers_mm: np.ndarray  # (S, 3) z, y, x from the first corner of the subject's working grid
    kinds: np.ndarray  # (S,) "microbleed", or the kind of the mimic there, or "none"
    prototypes: np.ndarray  # (P, E)
    prototype_classes: np.ndarray  # (P,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separation:
    """Separation of the classes in an embedding, and its dimension (collapse); Euclidean distances."""

    silhouette: float  # mean over the samples (Rousseeuw 1987), -1 to 1
    gap: float  # distance between the class means over the root mean square distance to the class mean
    dimensions: int  # fewest principal axes that carry `CARRIED` of the variance
    share: float  # `dimensions` over all dimensions


def separation(embeddings: np.ndarray, classes: np.ndarray) -> Separation:
    """Separation of samples (S, E) with classes (S,); NaN for a single class or without spread."""
    from sklearn.metrics import silhouette_score

    points = np.asarray(embeddings, np.float64)
    # squared singular values of the centered samples are proportional to the variances along principal axes
    variances = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) ** 2
    carried = np.cumsum(variances) / max(variances.sum(), 1e-300)
    dimensions = int(np.searchsorted(carried, CARRIED) + 1) if variances.sum() > 0 else 0
    kinds = np.unique(classes)
    silhouette = gap = math.nan
    if len(kinds) == 2 < len(points) and dimensions:
        means = np.stack([points[classes == kind].mean(axis=0) for kind in kinds])
        within = points - means[np.searchsorted(kinds, classes)]
        spread = math.sqrt((within**2).sum(axis=1).mean())
        silhouette = float(silhouette_score(points, classes))
        gap = float(np.linalg.norm(means[1] - means[0])) / spread if spread else math.inf
    return Separation(
        silhouette=silhouette, gap=gap, dimensions=dimensions, share=dimensions / points.shape[1]
    )


def separation_table(embedded: Mapping[str, Embedded]) -> Table:
    """Separation before and after training, one row per run."""
    rows = []
    for name, each in embedded.items():
        before, after = (separation(points, each.classes) for points in (each.initial, each.embeddings))
        rows.append(
            (
                name,
                *(f"{a:.2f} → {b:.2f}" for a, b in _columns(before, after)),
                f"{before.dimensions} → {after.dimensions} of {each.embeddings.shape[1]}",
            )
        )
    return Table(
        title="Embeddings before and after training",
        columns=("run", "silhouette", "distance of class means over spread", "dimensions"),
        rows=tuple(rows),
        note=(
            "Mined anchors of test patches (microbleeds and hard negatives), the same for both: embedded by "
            "the parameters that the run began with → by those that it ended with. Silhouette: mean over the "
            "anchors. Spread: root mean square distance to the mean of the class. Dimensions: principal axes "
            f"that carry {CARRIED:.0%} of the variance; few mean collapse."
        ),
    )


def _columns(before: Separation, after: Separation) -> tuple[tuple[float, float], ...]:
    return (before.silhouette, after.silhouette), (before.gap, after.gap)


def require_scikit_learn() -> None:
    """Check that the library is installed before spending hours on training.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("the ablation draws embeddings with scikit-learn: pip install -e '.[ablation]'")


def embedded_of(run: Run, subjects: SubjectSet, say: Say, patches: int = PATCHES) -> Embedded | None:
    """Embeddings of the anchors that the run's own miner selects in patches of a set, cached in a file.

    Args:
        run: finished.
        subjects: patches are drawn from each in turn, as in training but without augmentation.
        say: reports progress.
        patches: their number.

    Returns:
        None for a run without prototype loss.

    Raises:
        UserError: weights that cannot be read, or a file that cannot be written.
    """
    bundle = load_bundle(run.weights)
    if not bundle.config.model.use_prototypes or bundle.config.loss.prototype is None:
        return None

    def embed() -> dict[str, np.ndarray]:
        say(f"{run.name}: embedding anchors of {subjects.name} subjects")
        return _embed(bundle, initial_params(run, bundle.config), subjects, patches)

    path = run.folder / f"embeddings-{subjects.name}.npz"
    return Embedded(**kept(path, f"{FORMAT} {bundle.sha256} {subjects.sha256} {patches}", embed))


def initial_params(run: Run, config: Config) -> Any:
    """The initial parameters of a run: drawn from its seed, or its starting weights."""
    if run.config.train.init_from is not None:
        return load_bundle(run.config.train.init_from).params
    return init_state(config, make_mesh()).params


def _embed(bundle: WeightsBundle, initial: Any, subjects: SubjectSet, patches: int) -> dict[str, np.ndarray]:
    rng, mesh = np.random.default_rng(0), make_mesh()
    config = bundle.config
    samples_of = jax.jit(functools.partial(_samples, template_of(config), config))
    spacing = np.array(config.data.spacing_mm)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for number in range(patches):
        index = number % len(subjects.subjects)
        stored = subjects.subjects[index]
        start = drawn_start(stored, config.data, rng)
        batch = put_batch(one_patch(stored, config.data, start), mesh)
        mined, embeddings, before = jax.device_get(samples_of(bundle.params, initial, batch))
        valid = mined.valid[0]
        centers = start * spacing + cell_centers_mm(mined.indices[0][valid], config)
        classes = mined.classes[0][valid]
        kinds = np.array(name_by_mimic(centers, mimics_of(stored, subjects.spacing_mm)), dtype=object)
        for name, values in {
            "embeddings": embeddings[0][valid],
            "initial": before[0][valid],
            "classes": classes,
            "subjects": np.full(len(classes), index),
            "centers_mm": centers,
            "kinds": np.where(classes == 0, MICROBLEED, kinds).astype(np.str_),
        }.items():
            found[name].append(values)
    prototypes = np.asarray(bundle.params["prototypes"])
    count, per_class, _ = prototypes.shape
    return {name: np.concatenate(parts) for name, parts in found.items()} | {
        "prototypes": prototypes.reshape(count * per_class, -1),
        "prototype_classes": np.repeat(np.arange(count), per_class),
    }


def one_patch(stored: StoredSubject, config: DataConfig, start: np.ndarray) -> PatchBatch:
    """The patch with first voxel `start` (3,) as a batch of one, without augmentation."""
    image, boxes, ignored, mimics = patch_at(stored, config, start)
    patch = padded_patch(image, boxes, ignored, mimics, config)
    return PatchBatch(**{name: array[None] for name, array in patch.items()})


def cell_centers_mm(indices: np.ndarray, config: Config) -> np.ndarray:
    """Centers (N, 3), z, y, x mm from the first corner of a patch, of flat anchor indices (N,)."""
    anchors = len(config.model.anchor_diameters_mm)
    cells = [size // step for size, step in zip(config.data.patch_shape, PROPOSAL_STRIDE, strict=True)]
    cell = np.stack(np.unravel_index(indices // anchors, cells), axis=-1)
    return (cell + 0.5) * PROPOSAL_STRIDE * np.array(config.data.spacing_mm)


def _samples(
    template: Template[Detector], config: Config, params: Any, initial: Any, batch: DeviceBatch
) -> tuple[Mined, jax.Array, jax.Array]:
    """Anchors that the miner selects, and their embeddings (B, S, E) by both sets of parameters."""
    detector = template.bind(params)
    maps = detector(batch.image)
    sizes = anchor_sizes(config.model.anchor_diameters_mm, config.data.spacing_mm)
    targets = match_anchors(maps, batch.truths, sizes, config.data.spacing_mm, config.loss, None)
    mined = mine_anchors(maps, targets, batch.mimics, config.loss)
    first = template.bind(initial)
    return (
        mined,
        embed_anchors(detector, maps, mined.indices),
        embed_anchors(first, first(batch.image), mined.indices),
    )


def maps_of(name: str, embedded: Embedded) -> tuple[EmbeddingMap, ...]:
    """PCA and t-SNE of at most `SHOWN_PER_CLASS` samples per class together with the prototypes."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(embedded.classes == kind))[:SHOWN_PER_CLASS]
            for kind in np.unique(embedded.classes)
        ]
    )
    count = len(chosen)
    points = np.concatenate([embedded.embeddings[chosen], embedded.prototypes]).astype(np.float64)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    # One thread gives the same picture everywhere; several would busy-wait for minutes on a loaded machine.
    with threadpool_limits(1):
        plane = PCA(2).fit(points[:count])
        neighbors = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    share = plane.explained_variance_ratio_.sum()
    return tuple(
        EmbeddingMap(
            title=f"{name}: {method}",
            points=np.asarray(flat[:count]),
            classes=embedded.classes[chosen],
            prototypes=np.asarray(flat[count:]),
            prototype_classes=embedded.prototype_classes,
        )
        for method, flat in (
            (f"PCA, {share:.0%} of the variance", plane.transform(points)),
            (f"t-SNE, perplexity {perplexity:g}", neighbors),
        )
    )
