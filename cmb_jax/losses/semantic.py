"""What lies in each cell of a patch: an auxiliary task of training, so that features tell mimics apart.

A dense loss beside the anchors', as in Retina U-Net (Jaeger et al. 2020). Simulated subjects have all labels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.boxes.anchors import Triple
from cmb_jax.boxes.assignment import inside_truths
from cmb_jax.boxes.types import Truths
from cmb_jax.phantom.types import CALCIFICATIONS, MimicKind

CLASSES = ("background", "cmb", "vein", "calcification", "nucleus", "artefact", "other")
UNKNOWN = -1
_CMB = CLASSES.index("cmb")
_KINDS = {
    "background": (MimicKind.NONE,),
    "vein": (MimicKind.MEDULLARY_VEIN, MimicKind.PIAL_VEIN, MimicKind.DEEP_VEIN, MimicKind.SINUS),
    "calcification": CALCIFICATIONS,
    "nucleus": (MimicKind.IRON_NUCLEUS,),
    "artefact": (MimicKind.AIR_TISSUE_BORDER, MimicKind.MOTION_GHOST, MimicKind.GIBBS_RINGING),
}


def _class_of_code() -> np.ndarray:
    """(256,) int8: the class of each mimic code. Codes that are no kind, such as a reader's, are unknown."""
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
    mimic nobody has labeled veins: what is no microbleed there is unknown.

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
    own = jax.nn.one_hot(classes, logits.shape[-1], dtype=jnp.float32)  # zeros for the unknown
    count = own.sum(axis=tuple(range(classes.ndim)))
    weight = own / jnp.maximum(count, 1.0) / jnp.maximum((count > 0).sum(), 1)
    return -(weight * jax.nn.log_softmax(logits, axis=-1)).sum()
