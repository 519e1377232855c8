"""What lies in each cell, and the cross-entropy of it, against loops."""

import jax.numpy as jnp
import numpy as np

from cmb_jax.data.subjects import READERS_MIMIC
from cmb_jax.detector.anchor_losses import CLASSES, cell_classes, semantic_loss
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.network import SEMANTIC_CLASSES
from cmb_jax.phantom.types import MimicKind

STRIDE = (1, 2, 2)


def test_one_logit_per_class():
    assert len(CLASSES) == SEMANTIC_CLASSES


def test_classes_of_cells_against_a_loop(rng):
    kinds = np.array([0, 0, 0, *[int(kind) for kind in MimicKind if kind]], np.uint8)
    mimics = kinds[rng.integers(0, len(kinds), (2, 6, 5, 7))]
    mimics[1] = np.where(rng.random(mimics[1].shape) < 0.1, READERS_MIMIC, 0)  # an own scan
    low = rng.uniform(0, 6, (2, 4, 3))
    boxes = np.concatenate([low, low + rng.uniform(2, 5, (2, 4, 3))], axis=-1).astype(np.float32)
    valid = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    ignored = np.array([[0, 1, 0, 0], [0, 1, 0, 0]], bool)
    boxes[~valid] = np.nan
    truths = Truths(boxes=jnp.asarray(boxes), valid=jnp.asarray(valid), ignored=jnp.asarray(ignored))
    found = np.asarray(cell_classes(truths, jnp.asarray(mimics), STRIDE))
    named = {
        "vein": ("VEIN", "SINUS"),
        "calcification": ("CALC",),
        "nucleus": ("IRON",),
        "artifact": ("AIR", "GHOST", "GIBBS"),
    }
    seen = set()
    for b, z, y, x in np.ndindex(*mimics.shape):
        center = (np.array([z, y, x]) + 0.5) * STRIDE

        def within(box, center=center):
            middle, half = (box[:3] + box[3:]) / 2, (box[3:] - box[:3]) / 2
            return np.square((center - middle) / half).sum() <= 1

        inside = [m for m in range(4) if valid[b, m] and within(boxes[b, m].astype(np.float64))]
        if any(not ignored[b, m] for m in inside):
            want = CLASSES.index("cmb")
        elif inside or b == 1:
            want = -1
        else:
            name = MimicKind(mimics[b, z, y, x]).name
            fits = [c for c, parts in named.items() if any(part in name for part in parts)]
            want = CLASSES.index(fits[0] if fits else "background" if name == "NONE" else "other")
            want = -1 if name == "IGNORED_MICROBLEED" else want
        assert found[b, z, y, x] == want
        seen.add(want)
    assert seen == {-1, *range(len(CLASSES))}


def test_loss_is_the_mean_over_classes_of_the_mean_over_cells(rng):
    logits = rng.normal(size=(2, 3, 4, 5, len(CLASSES)))
    classes = rng.choice([-1, 0, 0, 0, 0, 1, 4], (2, 3, 4, 5))
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, classes[..., None] % 7, -1)[..., 0]
    want = np.mean([losses[classes == kind].mean() for kind in (0, 1, 4)])
    np.testing.assert_allclose(semantic_loss(jnp.asarray(logits, jnp.float32), classes), want, rtol=1e-5)
    assert float(semantic_loss(jnp.asarray(logits), np.full_like(classes, -1))) == 0
