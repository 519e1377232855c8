"""Where the embeddings of mined anchors lie, and the prototypes among them, drawn in two dimensions.

PCA and t-SNE are scikit-learn's, which the ablation alone needs: pip install -e '.[ablation]'.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from cmb_jax.data.patches import PatchBatch, cut_patch, padded_patch
from cmb_jax.detector.functional import Template
from cmb_jax.detector.network import Detector
from cmb_jax.detector.prototype_losses import Center
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import WeightsBundle, load_bundle
from cmb_jax.report.embedding_plot import EmbeddingMap
from cmb_jax.research.detections import SubjectSet, read_kept, write_kept
from cmb_jax.training.detector import loss_function, put_batch
from cmb_jax.training.sharding import make_mesh

PATCHES = 48
SHOWN_A_CLASS = 300
PERPLEXITY = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Samples of a run and its prototypes. S samples, E numbers, P prototypes."""

    embeddings: np.ndarray  # (S, E)
    classes: np.ndarray  # (S,) 0 = CMB, 1 = hard negative
    prototypes: np.ndarray  # (P, E)
    prototype_classes: np.ndarray  # (P,)


def require_scikit_learn() -> None:
    """Ask for the library before hours are spent on what it is needed for.

    Raises:
      UserError: it is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("the ablation draws embeddings with scikit-learn: pip install -e '.[ablation]'")


def embedded_of(weights: Path, subjects: SubjectSet, say: Callable[[str], None]) -> Embedded | None:
    """Embeddings of the anchors that the run's own miner takes from patches of a set.

    Read from the file beside the weights if it is of both, else made and written.

    Args:
      weights: of a run.
      subjects: to cut patches from, in turn, as training does but without augmentation.
      say: is told when there is inference to do.

    Returns:
      None for a run without prototype loss.

    Raises:
      UserError: weights that cannot be read, or a file that cannot be written.
    """
    bundle = load_bundle(weights)
    if not bundle.config.model.use_prototypes or bundle.config.loss.prototype is None:
        return None
    path = weights.parent / f"embeddings-{subjects.name}.npz"
    made_of = f"{bundle.sha256} {subjects.sha256} {PATCHES}"
    arrays = read_kept(path, made_of)
    if arrays is None:
        say(f"{weights.parent.name}: embedding anchors of {subjects.name} subjects")
        arrays = _embed(bundle, subjects)
        write_kept(path, made_of, arrays)
    return Embedded(**arrays)


def _embed(bundle: WeightsBundle, subjects: SubjectSet) -> dict[str, np.ndarray]:
    rng, mesh = np.random.default_rng(0), make_mesh()
    # samples are the same whatever is asked of them, and a loss of one's own does not come with the weights
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
    """PCA and t-SNE of an even choice of each class's samples together with the prototypes."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(embedded.classes == kind))[:SHOWN_A_CLASS]
            for kind in np.unique(embedded.classes)
        ]
    )
    count = len(chosen)
    points = np.concatenate([embedded.embeddings[chosen], embedded.prototypes]).astype(np.float64)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    # one thread: the same picture everywhere, and threads that wait for busy cores spin for minutes
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
