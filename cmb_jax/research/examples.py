"""Examples behind the numbers of an ablation: what only one variant reports, and what prototypes match."""

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.config import Config
from cmb_jax.data.patches import patch_start
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.detector.network import Detector, Template
from cmb_jax.detector.total_loss import embed_anchors
from cmb_jax.evaluation.froc import FrocEvents, froc_curve
from cmb_jax.evaluation.matching import CENTER3, center_distances, match, pairs_of
from cmb_jax.evaluation.records import SubjectTruth
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.report.evaluation import Example, Table, View, example_picture
from cmb_jax.research.findings import (
    MICROBLEED,
    Embedded,
    SetDetections,
    SubjectSet,
    cell_centers_mm,
    one_patch,
)
from cmb_jax.research.runs import Run
from cmb_jax.training.detector import put_batch, template_of
from cmb_jax.training.distributed import make_mesh

ON_A_MICROBLEED = "beside a microbleed"
MOST_SHOWN = 12
NEAREST = 3
APART_MM = 3.0  # samples of one subject closer than this show the same thing
REACH_MM = 2.0  # anchors this close to a place are considered
CLASS_NAMES = (MICROBLEED, "hard negative")


@dataclasses.dataclass(frozen=True)
class Reported:
    """One detection of a run."""

    subject: int  # number in the set
    center_mm: tuple[float, float, float]  # z, y, x from the first corner of the working grid
    score: float
    kind: str


def threshold_at(events: FrocEvents, sensitivity: float) -> float:
    """The highest threshold that reaches the sensitivity, or the lowest threshold if none does."""
    curve = froc_curve(events)
    # tp is a whole number, and the product may exceed it by rounding
    reached = int(np.searchsorted(curve.tp, sensitivity * curve.lesions - 1e-9))
    return float(curve.thresholds[min(reached, len(curve.thresholds) - 1)]) if len(curve.thresholds) else 0.0


def reported(
    found: SetDetections, truths: Sequence[SubjectTruth], threshold: float
) -> tuple[tuple[Reported, ...], tuple[Reported, ...]]:
    """False positives and detected microbleeds at a threshold (3 mm rule)."""
    false: list[Reported] = []
    true: list[Reported] = []
    # a second box on a microbleed is a false positive under one-to-one matching; it is named, not blamed on a
    # mimic
    for subject, (scan, kinds, truth) in enumerate(zip(found.scans, found.mimics, truths, strict=True)):
        kept = scan.select(scan.scores >= threshold)
        names = [kind for kind, score in zip(kinds, scan.scores, strict=True) if score >= threshold]
        outcome = match(pairs_of(CENTER3, kept, truth))
        near = center_distances(kept.centers_mm, truth.centers_mm) < CENTER3.limit
        for row, name in enumerate(names):
            z, y, x = (float(value) for value in kept.centers_mm[row])
            each = functools.partial(Reported, subject, (z, y, x), float(kept.scores[row]))
            if outcome.false_positive[row]:
                false.append(each(ON_A_MICROBLEED if near[row].any() else name))
            elif outcome.lesion[row] >= 0:
                true.append(each(MICROBLEED))
    return tuple(false), tuple(true)


def only_in(first: Sequence[Reported], second: Sequence[Reported]) -> tuple[Reported, ...]:
    """Detections of the first list without one of the second within 3 mm in the same subject."""
    places: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for other in second:
        places[other.subject].append(other.center_mm)

    def alone(one: Reported) -> bool:
        others = np.array(places[one.subject]).reshape(-1, 3)
        return bool((center_distances(np.array([one.center_mm]), others) >= CENTER3.limit).all())

    return tuple(one for one in first if alone(one))


def a_few(each: Sequence[Reported], count: int) -> tuple[Reported, ...]:
    """A selection that cycles through the kinds, the most frequent first, each by descending score."""
    by_kind: dict[str, list[Reported]] = defaultdict(list)
    for one in sorted(each, key=lambda one: -one.score):
        by_kind[one.kind].append(one)
    order = [kind for kind, _ in Counter(one.kind for one in each).most_common()]
    turns = [(turn, place, one) for place, kind in enumerate(order) for turn, one in enumerate(by_kind[kind])]
    chosen = [one for *_, one in sorted(turns, key=lambda entry: entry[:2])[:count]]
    return tuple(sorted(chosen, key=lambda one: (order.index(one.kind), -one.score)))


def once_each(each: Sequence[Reported]) -> tuple[Reported, ...]:
    """Without those within 3 mm of one with a higher score: a place found from several seeds counts once."""
    chosen: list[Reported] = []
    for one in sorted(each, key=lambda one: -one.score):
        chosen += only_in([one], chosen)
    return tuple(chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """False positives of two variants at the same sensitivity, from pairs of runs with the same seed."""

    names: tuple[str, str]
    alone: tuple[
        tuple[Reported, ...], tuple[Reported, ...]
    ]  # of the first, of the second; all seeds together
    seeds: tuple[int, ...]


def difference_of(
    names: tuple[str, str],
    false: Mapping[tuple[str, int], Sequence[Reported]],
) -> Difference | None:
    """What only one of two variants reports, seed by seed; None without a common seed.

    Args:
        names: of the variants.
        false: false positives by (variant, seed).
    """
    seeds = sorted(seed for name, seed in false if name == names[0] and (names[1], seed) in false)
    if not seeds:
        return None
    alone: tuple[list[Reported], list[Reported]] = ([], [])
    for seed in seeds:
        first, second = (false[name, seed] for name in names)
        alone[0].extend(only_in(first, second))
        alone[1].extend(only_in(second, first))
    return Difference(names=names, alone=(tuple(alone[0]), tuple(alone[1])), seeds=tuple(seeds))


def difference_table(found: Difference, scans: int, sensitivity: float) -> Table:
    """False positives per scan that only one of two variants has, by kind."""
    counts = [Counter(one.kind for one in each) for each in found.alone]
    kinds = sorted(set(counts[0]) | set(counts[1]), key=lambda kind: -(counts[0][kind] + counts[1][kind]))
    share = 1 / (scans * len(found.seeds))
    first, second = found.names
    return Table(
        title="False positives that one of two has alone",
        columns=("kind", f"{first} alone", f"{second} alone"),
        rows=tuple((_words(kind), *(f"{count[kind] * share:.2f}" for count in counts)) for kind in kinds),
        note=(
            f"Per scan, both at sensitivity {sensitivity:.3f}; runs of the same seed in pairs (seeds "
            f"{', '.join(map(str, found.seeds))}), mean. Alone: the other has no false positive within "
            f"{CENTER3.limit:g} mm. Kinds as in the table by mimic; {ON_A_MICROBLEED}: a second box."
        ),
    )


def difference_examples(
    found: Difference, subjects: SubjectSet
) -> tuple[tuple[str, tuple[Example, ...]], ...]:
    """Pictures of the difference, at most `MOST_SHOWN` per variant, by kind."""

    def example(one: Reported) -> Example:
        stored = subjects.subjects[one.subject]
        title = f"{_words(one.kind)}, score {one.score:.2f}"
        return Example(title=title, note=_place(stored, one.center_mm), views=(_view(subjects, one),))

    return tuple(
        (f"{name} alone", tuple(example(one) for one in a_few(once_each(alone), MOST_SHOWN)))
        for name, alone in zip(found.names, found.alone, strict=True)
    )


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _place(stored: StoredSubject, center_mm: Sequence[float]) -> str:
    seed = "-".join(stored.folder.name.split("-")[:2])
    return f"{seed}, z y x {', '.join(f'{value:.1f}' for value in center_mm)} mm"


def _view(subjects: SubjectSet, one: Reported, *, brief: bool = False) -> View:
    stored = subjects.subjects[one.subject]
    return View(
        picture=example_picture(stored.image(), one.center_mm, subjects.spacing_mm, brief=brief),
        caption="",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A sample near a candidate in the embedding."""

    sample: int  # row of the `Embedded` that was searched
    distance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """The prototype and the training samples nearest to an embedding."""

    prototype_class: int  # 0 = CMB, 1 = hard negative
    prototype: int  # number within its class
    distance: float  # Euclidean
    neighbors: tuple[tuple[Neighbor, ...], tuple[Neighbor, ...]]  # of each class, the nearest first


def explain(embedding: np.ndarray, library: Embedded, count: int = NEAREST) -> Explanation:
    """The nearest prototype and, per class, the nearest samples of distinct places.

    Args:
        embedding: (E,) of a candidate, by the same run as the library.
        library: samples of the training subjects, with the run's prototypes.
        count: samples per class.
    """
    apart = np.linalg.norm(library.prototypes - embedding, axis=1)
    nearest = int(apart.argmin())
    kind = int(library.prototype_classes[nearest])
    distances = np.linalg.norm(library.embeddings - embedding, axis=1)

    def of_class(number: int) -> tuple[Neighbor, ...]:
        chosen: list[int] = []
        # neighboring anchors on one lesion have nearly equal embeddings: take only one of them
        for row in np.argsort(distances, kind="stable"):
            same = [other for other in chosen if library.subjects[other] == library.subjects[row]]
            near = np.linalg.norm(library.centers_mm[same] - library.centers_mm[row], axis=1) < APART_MM
            if library.classes[row] == number and not near.any():
                chosen.append(int(row))
            if len(chosen) == count:
                break
        return tuple(Neighbor(sample=row, distance=float(distances[row])) for row in chosen)

    return Explanation(
        prototype_class=kind,
        prototype=int((library.prototype_classes[:nearest] == kind).sum()),
        distance=float(apart[nearest]),
        neighbors=(of_class(0), of_class(1)),
    )


def embed_places(run: Run, subjects: SubjectSet, places: Sequence[Reported]) -> np.ndarray:
    """Embeddings (N, E) of the anchors with the highest objectness near some places.

    Each is computed in a training patch around the place, so scores may differ slightly from those of the
    whole scan.
    """
    bundle = load_bundle(run.weights)
    config, mesh = bundle.config, make_mesh()
    embed = jax.jit(functools.partial(_embed_best, template_of(config), config))
    spacing = np.array(config.data.spacing_mm)
    found = []
    for place in places:
        stored = subjects.subjects[place.subject]
        start = patch_start(stored, config.data, np.array(place.center_mm) / spacing)
        batch = put_batch(one_patch(stored, config.data, start), mesh)
        found.append(np.asarray(embed(bundle.params, batch.image, place.center_mm - start * spacing)))
    return np.stack(found)


def _embed_best(
    template: Template[Detector], config: Config, params: Any, image: jax.Array, center_mm: jax.Array
) -> jax.Array:
    """Embedding (E,) of the best anchor within `REACH_MM` of a place (3,) in a patch (1, Z, Y, X, 2)."""
    detector = template.bind(params)
    maps = detector(image)
    logits = maps.objectness.reshape(-1)
    apart = jnp.linalg.norm(cell_centers_mm(np.arange(logits.size), config) - center_mm, axis=1)
    best = jnp.argmax(jnp.where(apart <= REACH_MM, logits, -jnp.inf))
    return embed_anchors(detector, maps, best[None, None])[0, 0]


def prototype_examples(
    run: Run, subjects: SubjectSet, places: Sequence[Reported], training: SubjectSet, library: Embedded
) -> tuple[Example, ...]:
    """The nearest prototype and training samples of some candidates, with pictures."""
    examples = []
    for place, embedding in zip(places, embed_places(run, subjects, places), strict=True):
        found = explain(embedding, library)
        views = [_view(subjects, place, brief=True)]
        for neighbor in (*found.neighbors[0], *found.neighbors[1]):
            row = neighbor.sample
            subject, kind = int(library.subjects[row]), str(library.kinds[row])
            stored, center = training.subjects[subject], library.centers_mm[row]
            views.append(
                View(
                    picture=example_picture(stored.image(), center, training.spacing_mm, brief=True),
                    caption=f"{_words(kind)}, distance {neighbor.distance:.2f}; {_place(stored, center)}",
                )
            )
        views[0] = dataclasses.replace(
            views[0], caption=f"the candidate; {_place(subjects.subjects[place.subject], place.center_mm)}"
        )
        note = (
            f"Nearest prototype: {CLASS_NAMES[found.prototype_class]} {found.prototype}, distance "
            f"{found.distance:.2f}. Then the nearest microbleeds and hard negatives of the training subjects."
        )
        title = f"{_words(place.kind)}, score {place.score:.2f}"
        examples.append(Example(title=title, note=note, views=tuple(views)))
    return tuple(examples)
