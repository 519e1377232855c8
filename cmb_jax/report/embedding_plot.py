"""Scatter plot of embeddings and prototypes in two dimensions."""

from __future__ import annotations

import dataclasses

import numpy as np

from cmb_jax.report.shapes import Picture, Shape, glyph

SIZE, MARGIN = 420, 16
_STYLES = ("s0", "s1")
_NAMES = ("microbleed", "hard negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """Samples and prototypes in a plane. S samples, P prototypes; class 0 = CMB, 1 = hard negative."""

    title: str
    points: np.ndarray  # (S, 2)
    classes: np.ndarray  # (S,)
    prototypes: np.ndarray  # (P, 2)
    prototype_classes: np.ndarray  # (P,)


def embedding_plot(shown: EmbeddingMap) -> Picture:
    """Small spots for the samples (circles and diamonds by class), large outlined ones for the prototypes.

    Both axes have one scale; they carry no numbers because the embedding has no unit.
    """
    together = np.concatenate([shown.points, shown.prototypes])
    low, high = together.min(axis=0), together.max(axis=0)
    scale = (SIZE - 2 * MARGIN) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2

    def place(point: np.ndarray) -> tuple[float, float]:
        x, y = (point - middle) * scale
        return SIZE / 2 + float(x), SIZE / 2 - float(y)

    shapes = [Shape(f"M1 1H{SIZE - 1}V{SIZE - 1}H1Z", "axis")]
    for kind in np.unique(shown.classes):
        # one path a class: hundreds of single elements make a page slow
        spots = (glyph(_glyph(kind), *place(point), 2.6) for point in shown.points[shown.classes == kind])
        shapes.append(Shape("".join(spots), f"sample {_STYLES[kind]}", title=_NAMES[kind]))
    for point, kind in zip(shown.prototypes, shown.prototype_classes, strict=True):
        shapes.append(
            Shape(
                glyph(_glyph(kind), *place(point), 8.0),
                f"prototype {_STYLES[kind]}",
                title=f"prototype of the class {_NAMES[kind]}",
            )
        )
    return Picture(
        width=SIZE,
        height=SIZE,
        alt=f"{shown.title}: {len(shown.points)} samples and {len(shown.prototypes)} prototypes",
        shapes=tuple(shapes),
        caption=shown.title,
    )


def _glyph(kind: int) -> str:
    """Circles for microbleeds, diamonds for hard negatives: `glyph` knows them by zones."""
    return "lobar" if kind == 0 else "deep"
