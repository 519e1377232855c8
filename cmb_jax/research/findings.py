"""What a run finds in prepared subjects (detections, embeddings of anchors), kept in files beside it.

A kept file names its inputs: it saves inference until they change, and is then made again. PCA and
t-SNE of the embeddings are scikit-learn's, which only the ablation needs: pip install -e '.[ablation]'.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from cmb_jax.data.patches import PatchBatch, cut_patch, padded_patch
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.detector.functional import Template
from cmb_jax.detector.network import Detector
from cmb_jax.detector.prototype_losses import Center
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import name_by_mimic
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.inference.bundle import WeightsBundle, load_bundle
from cmb_jax.inference.proposals import ProposalFinder, detect, mimics_of, truth_of
from cmb_jax.io.atomic import atomic_write_bytes, sha256_file
from cmb_jax.io.outside import read_arrays
from cmb_jax.progress import Say, track
from cmb_jax.report.evaluation import EmbeddingMap
from cmb_jax.training.detector import loss_function, put_batch
from cmb_jax.training.distributed import make_mesh

FORMAT = 1
PATCHES = 48
SHOWN_PER_CLASS = 300
PERPLEXITY = 30.0
_INPUTS = "made_of"


def write_kept(path: Path, inputs: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays in the place of older ones.

    Raises:
        UserError: the file cannot be written.
    """
    blob = io.BytesIO()
    # NumPy's own annotation takes no names of arrays
    np.savez_compressed(blob, **{_INPUTS: np.array(inputs), **arrays})  # type: ignore[arg-type]
    atomic_write_bytes(path, blob.getvalue(), overwrite=True)


def read_kept(path: Path, inputs: str) -> dict[str, np.ndarray] | None:
    """What `write_kept` wrote; None if there is no file, or it is damaged or has other inputs."""
    try:
        arrays = read_arrays(path)
    except UserError:
        return None
    return arrays if str(arrays.pop(_INPUTS, "")) == inputs else None


def _kept(path: Path, inputs: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a kept file, made and written first if necessary."""
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
    """A set with its truth read."""
    truths = tuple(truth_of(stored, spacing_mm) for stored in subjects)
    digest = hashlib.sha256(repr((FORMAT, spacing_mm)).encode())
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
    """What one run found in S subjects."""

    scans: tuple[SubjectDetections, ...]
    mimics: tuple[tuple[str, ...], ...]  # of each scan's detections: the kind of the mimic there, or "none"


def detections_of(weights: Path, subjects: SubjectSet, say: Say) -> SetDetections:
    """What weights find in a set, kept in a file beside them.

    Raises:
        UserError: weights that cannot be read, or a file that cannot be written.
    """
    sha256 = sha256_file(weights)

    def search() -> dict[str, np.ndarray]:
        say(f"{weights.parent.name}: looking at {len(subjects.subjects)} {subjects.name} subjects")
        finder = _finder_of(weights, sha256)
        stored = subjects.subjects
        scans = [detect(finder, each) for each in track(stored, weights.parent.name)]
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

    path = weights.parent / f"detections-{subjects.name}-{subjects.sha256[:12]}.npz"
    arrays = _kept(path, f"{sha256} {subjects.sha256}", search)
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


@functools.lru_cache(maxsize=1)
def _finder_of(weights: Path, sha256: str) -> ProposalFinder:
    """Compiled once for both sets of a run; `sha256` tells apart weights that were rewritten."""
    bundle = load_bundle(weights)
    return ProposalFinder(bundle.config, bundle.params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Samples of a run and its prototypes. S samples, E numbers, P prototypes."""

    embeddings: np.ndarray  # (S, E)
    classes: np.ndarray  # (S,) 0 = CMB, 1 = hard negative
    prototypes: np.ndarray  # (P, E)
    prototype_classes: np.ndarray  # (P,)


def require_scikit_learn() -> None:
    """Ask for the library before hours are spent on training.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("the ablation draws embeddings with scikit-learn: pip install -e '.[ablation]'")


def embedded_of(weights: Path, subjects: SubjectSet, say: Say) -> Embedded | None:
    """Embeddings of the anchors that the run's own miner takes from patches of a set, kept in a file.

    Args:
        subjects: to cut patches from, in turn, as training does but without augmentation.

    Returns:
        None for a run without prototype loss.

    Raises:
        UserError: weights that cannot be read, or a file that cannot be written.
    """
    bundle = load_bundle(weights)
    if not bundle.config.model.use_prototypes or bundle.config.loss.prototype is None:
        return None

    def embed() -> dict[str, np.ndarray]:
        say(f"{weights.parent.name}: embedding anchors of {subjects.name} subjects")
        return _embed(bundle, subjects)

    path = weights.parent / f"embeddings-{subjects.name}.npz"
    return Embedded(**_kept(path, f"{bundle.sha256} {subjects.sha256} {PATCHES}", embed))


def _embed(bundle: WeightsBundle, subjects: SubjectSet) -> dict[str, np.ndarray]:
    rng, mesh = np.random.default_rng(0), make_mesh()
    # Any prototype loss mines the same samples, and a user's own loss does not come with the weights.
    config = dataclasses.replace(
        bundle.config, loss=dataclasses.replace(bundle.config.loss, prototype=Center())
    )
    template = Template.of(lambda: Detector(config.model, precision=config.train.precision, rngs=nnx.Rngs(0)))
    samples_of = jax.jit(lambda params, batch: loss_function(params, batch, template, config)[1][1])
    embeddings, classes = [], []
    for number in range(PATCHES):
        stored = subjects.subjects[number % len(subjects.subjects)]
        image, boxes, ignored, mimics = cut_patch(stored, config.data, rng)
        patch = padded_patch(image, boxes, ignored, mimics, config.data)
        batch = PatchBatch(**{name: array[None] for name, array in patch.items()})
        samples = jax.device_get(samples_of(bundle.params, put_batch(batch, mesh)))
        embeddings.append(samples.embeddings[samples.valid])
        classes.append(samples.classes[samples.valid])
    prototypes = np.asarray(bundle.params["prototypes"])
    count, per_class, _ = prototypes.shape
    return {
        "embeddings": np.concatenate(embeddings),
        "classes": np.concatenate(classes),
        "prototypes": prototypes.reshape(count * per_class, -1),
        "prototype_classes": np.repeat(np.arange(count), per_class),
    }


def maps_of(name: str, embedded: Embedded) -> tuple[EmbeddingMap, ...]:
    """PCA and t-SNE of equally many samples of each class together with the prototypes."""
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
    # One thread gives the same picture everywhere; several would spin for minutes waiting for busy cores.
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
