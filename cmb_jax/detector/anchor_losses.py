"""Losses of single anchors (objectness, weights, box code) and of single cells.

The loss of cells tells mimics apart: an auxiliary task of training beside the anchors', as in Retina U-Net
(Jaeger et al. 2020). Simulated subjects have all its labels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.detector.anchors import Triple, Truths
from cmb_jax.detector.assignment import inside_truths
from cmb_jax.ops.top import kth_largest
from cmb_jax.phantom.types import CALCIFICATIONS, MimicKind

CLASSES = ("background", "cmb", "vein", "calcification", "nucleus", "artifact", "other")
UNKNOWN = -1
_CMB = CLASSES.index("cmb")
_KINDS = {
    "background": (MimicKind.NONE,),
    "vein": (MimicKind.MEDULLARY_VEIN, MimicKind.PIAL_VEIN, MimicKind.DEEP_VEIN, MimicKind.SINUS),
    "calcification": CALCIFICATIONS,
    "nucleus": (MimicKind.IRON_NUCLEUS,),
    "artifact": (MimicKind.AIR_TISSUE_BORDER, MimicKind.MOTION_GHOST, MimicKind.GIBBS_RINGING),
}


def focal_loss(
    logits: jax.Array, targets: jax.Array, valid: jax.Array, alpha: float, gamma: float
) -> jax.Array:
    """Binary focal loss (Lin et al. 2017, eq. 5), element by element.

    Args:
        logits: (...,) float32 of the positive class.
        targets: (...,) bool or 0/1: the anchor is positive.
        valid: (...,) bool: the anchor counts; elsewhere loss and gradient are 0.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing exponent, 0 or more; 0 gives weighted cross-entropy.

    Returns:
        (...,) float32, 0 or more.
    """
    positive = targets.astype(bool)
    margin = jnp.where(positive, logits, -logits)  # log-odds of the right answer
    cross_entropy = jax.nn.softplus(-margin)
    # log(1 - p(right)) = -(margin + cross_entropy): no power of a number that may round to 0.
    focus = jnp.exp(-gamma * (margin + cross_entropy))
    return jnp.where(valid, jnp.where(positive, alpha, 1.0 - alpha) * focus * cross_entropy, 0.0)


def smooth_l1(prediction: jax.Array, target: jax.Array, beta: float = 1 / 9) -> jax.Array:
    """Smooth L1 loss (Girshick 2015) element by element: quadratic within beta, linear beyond.

    The default beta fits box codes, whose errors are fractions of an anchor: 1 would leave nearly all of them
    in the flat middle.
    """
    error = jnp.abs(prediction - target)
    inside = jnp.minimum(error, beta)
    return inside * (0.5 * inside / beta) + (error - inside)


def lesion_weights(
    truth: jax.Array, valid: jax.Array, truths: int, balance: float, *, mean_one: bool
) -> jax.Array:
    """Weights of positive anchors by the number of anchors that their lesion has.

    A lesion of 2 mm has one or two positive anchors, one of 10 mm has hundreds, so that a plain sum over
    anchors hardly sees the small one. With `balance` b an anchor of a lesion of n anchors weighs n^-b: 0
    leaves all anchors alike, 1 makes all lesions alike.

    Args:
        truth: (B, S) int32 index of each anchor's lesion in its patch.
        valid: (B, S) bool: the anchor counts; elsewhere the weight is 0.
        truths: number of lesion slots per patch.
        balance: exponent b, 0 to 1.
        mean_one: scale the weights so that their mean over the batch is 1. What a lesion weighs then depends
            on the others of the batch.

    Returns:
        (B, S) float32.
    """
    # How many anchors the lesion of each anchor has: counted per lesion, then handed back to its anchors. As
    # products with one-hot rows this has no scatter, which accelerators run one write after another.
    own = jax.nn.one_hot(truth, truths, dtype=jnp.float32) * valid[..., None]  # (B, S, M)
    anchors = jnp.einsum("bsm,bm->bs", own, own.sum(axis=1))
    weight = jnp.where(valid, jnp.maximum(anchors, 1.0) ** -balance, 0.0)
    return weight * (valid.sum() / jnp.maximum(weight.sum(), 1e-9)) if mean_one else weight


def hardest(negative: jax.Array, objectness: jax.Array, count: int) -> jax.Array:
    """The negatives of the highest objectness, `count` of them per patch; all that tie with the last are in.

    Drawn from, they are the sampler of nnDetection (Baumgartner et al. 2021): hard negatives, but not always
    the very hardest, among which are lesions that nobody has marked.

    Args:
        negative: (B, ...) bool: the anchor is negative.
        objectness: (B, ...) logits.
        count: wanted per patch.

    Returns:
        (B, ...) bool, a subset of `negative`.
    """
    score = jnp.where(negative, jax.lax.stop_gradient(objectness), -jnp.inf).reshape(negative.shape[0], -1)
    last = kth_largest(score, min(count, score.shape[1]))
    return negative & (score >= last[:, None]).reshape(negative.shape)


def drawn_negatives(key: jax.Array, negative: jax.Array, count: int) -> jax.Array:
    """An unbiased choice of negatives, as in the mini-batches of Faster R-CNN (Ren et al. 2015).

    Each is drawn by itself: `count` is the mean number per patch. Where there are fewer, all are taken.

    Args:
        key: of the draw.
        negative: (B, ...) bool: the anchor is negative.
        count: wanted per patch.

    Returns:
        (B, ...) bool, a subset of `negative`.
    """
    there = negative.sum(axis=tuple(range(1, negative.ndim)), keepdims=True)
    # a uniform number lies below count / there with just that probability; where it exceeds 1, all are taken
    return negative & (jax.random.uniform(key, negative.shape) * there < count)


def _class_of_code() -> np.ndarray:
    """(256,) int8: the class of each mimic code. Codes that name no kind, such as a reader's, are unknown."""
    table = np.full(256, UNKNOWN, np.int8)
    table[[int(kind) for kind in MimicKind]] = CLASSES.index("other")
    for name, kinds in _KINDS.items():
        table[[int(kind) for kind in kinds]] = CLASSES.index(name)
    table[MimicKind.IGNORED_MICROBLEED] = UNKNOWN
    return table


CLASS_OF_CODE = _class_of_code()


def cell_classes(truths: Truths, mimics: jax.Array, stride: Triple) -> jax.Array:
    """Class (B, Z, Y, X) int8 of every cell, an index into `CLASSES`; `UNKNOWN` ones do not count.

    A microbleed is the ellipsoid in its box; ignored boxes are unknown. In a patch without a single simulated
    mimic nobody has labeled veins: there everything but microbleeds is unknown.

    Args:
        truths: boxes (B, M, 6) in voxels of the working grid.
        mimics: (B, Z, Y, X) uint8 codes.
        stride: working-grid voxels per cell.
    """
    classes = jnp.asarray(CLASS_OF_CODE)[mimics]
    simulated = ((mimics != MimicKind.NONE) & (classes != UNKNOWN)).any(axis=(1, 2, 3), keepdims=True)
    classes = jnp.where(simulated, classes, jnp.int8(UNKNOWN))
    slots = jnp.arange(truths.valid.shape[1], dtype=jnp.int32)
    count = jnp.max(jnp.where(truths.valid, slots + 1, 0), initial=0)
    grid = (mimics.shape[1], mimics.shape[2], mimics.shape[3])
    boxes = jnp.where(truths.valid[..., None], truths.boxes, 0)
    cells = jax.vmap(lambda box, counts: inside_truths(box, counts, grid, stride, count))
    ignored = cells(boxes, truths.valid & ~truths.counted)
    found = cells(boxes, truths.counted)
    return jnp.where(found, jnp.int8(_CMB), jnp.where(ignored, jnp.int8(UNKNOWN), classes))


def semantic_loss(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cross-entropy (): the mean over the classes that are there of the mean over their cells.

    Args:
        logits: (..., K).
        classes: (...,) integer; cells of `UNKNOWN` do not count. 0 where none counts.
    """
    # A mean of means: background cells outnumber those of microbleeds by thousands, and would decide alone.
    own = jax.nn.one_hot(classes, logits.shape[-1], dtype=jnp.float32)  # zeros for the unknown
    count = own.sum(axis=tuple(range(classes.ndim)))
    weight = own / jnp.maximum(count, 1.0) / jnp.maximum((count > 0).sum(), 1)
    return -(weight * jax.nn.log_softmax(logits, axis=-1)).sum()
