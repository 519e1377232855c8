"""What one variant reports alone, and what lies next to a candidate in the embedding: against loops."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.data.subjects import subjects_in
from cmb_jax.evaluation.froc import collect_events
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.report.evaluation import example_picture
from cmb_jax.research import examples
from cmb_jax.research.examples import Reported
from cmb_jax.research.findings import Embedded, SetDetections, embedded_of, subject_set
from cmb_jax.research.runs import runs_of
from tests.research.conftest import BASE


def at(subject, place, score=0.5, kind="none"):
    return Reported(subject, (float(place), 0.0, 0.0), score, kind)


def test_the_threshold_is_the_highest_that_reaches_the_sensitivity():
    events = collect_events([(np.array([0.9, 0.6, 0.3]), np.array([0.8, 0.5]))], [4])
    assert [examples.threshold_at(events, s) for s in (0.25, 0.5, 0.75)] == [0.9, 0.6, 0.3]
    assert examples.threshold_at(events, 1.0) == 0.3  # never reached: the whole list


def test_what_is_reported_is_named(rng):
    centers = np.array([[0.0, 0, 0], [1, 0, 0], [30, 0, 0], [60, 0, 0], [90, 0, 0]])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    scan = SubjectDetections(subject="a", centers_mm=centers, scores=scores, diameters_mm=np.ones(5))
    truth = SubjectTruth(
        subject="a", centers_mm=np.zeros((1, 3)), diameters_mm=np.ones(1),
        ignored_centers_mm=np.array([[60.0, 0, 0]]), ignored_diameters_mm=np.ones(1),
    )  # fmt: skip
    found = SetDetections(scans=(scan,), mimics=(("none", "none", "sinus", "vein", "vein"),))
    false, true = examples.reported(found, [truth], 0.5)
    assert [(one.center_mm[0], one.kind) for one in true] == [(0.0, "microbleed")]
    assert [(one.center_mm[0], one.kind) for one in false] == [
        (1.0, examples.ON_A_MICROBLEED),
        (30.0, "sinus"),
    ]


def test_alone_means_nothing_within_reach_in_the_same_subject(rng):
    lists = [
        [
            Reported(int(rng.integers(3)), tuple(rng.uniform(0, 12, 3)), float(rng.uniform()), "x")
            for _ in range(30)
        ]
        for _ in range(2)
    ]
    alone = examples.only_in(*lists)
    expected = [
        one
        for one in lists[0]
        if not any(
            other.subject == one.subject and np.linalg.norm(np.subtract(other.center_mm, one.center_mm)) < 3
            for other in lists[1]
        )
    ]
    assert list(alone) == expected
    assert 0 < len(alone) < 30
    once = examples.once_each(lists[0])
    for one in lists[0]:
        near = [
            other
            for other in once
            if other.subject == one.subject
            and np.linalg.norm(np.subtract(other.center_mm, one.center_mm)) < 3
        ]
        assert (near == [one]) if one in once else max(other.score for other in near) >= one.score


def test_kinds_take_turns():
    each = [at(0, n, 0.9 - n / 100, "vein") for n in range(6)] + [
        at(0, 50, 0.2, "sinus"),
        at(0, 60, 0.1, "x"),
    ]
    chosen = examples.a_few(each, 4)
    assert [(one.kind, one.score) for one in chosen] == [
        ("vein", 0.9), ("vein", 0.89), ("sinus", 0.2), ("x", 0.1)
    ]  # fmt: skip


def test_variants_are_paired_by_seed():
    false = {
        ("a", 0): [at(0, 0, kind="vein"), at(0, 10)],
        ("b", 0): [at(0, 1)],
        ("a", 1): [at(1, 0)],
        ("b", 1): [at(0, 0), at(1, 0)],
        ("a", 2): [at(0, 0)],
    }
    found = examples.difference_of(("a", "b"), false)
    assert found.seeds == (0, 1)
    assert found.alone == ((at(0, 10),), (at(0, 0),))
    table = examples.difference_table(found, 4, 0.93)
    assert table.rows == (("none", "0.12", "0.12"),)  # 1 of 2 pairs of 4 scans
    assert examples.difference_of(("b", "c"), false) is None


def test_the_nearest_samples_are_of_different_things(rng):
    library = Embedded(
        embeddings=rng.normal(size=(80, 3)),
        initial=np.zeros((80, 3)),
        classes=rng.integers(0, 2, 80),
        subjects=rng.integers(0, 2, 80),
        centers_mm=rng.uniform(0, 8, (80, 3)),
        kinds=np.array(["x"] * 80),
        prototypes=rng.normal(size=(6, 3)),
        prototype_classes=np.repeat([0, 1], 3),
    )
    point = rng.normal(size=3)
    found = examples.explain(point, library, 4)
    to_prototypes = [np.linalg.norm(prototype - point) for prototype in library.prototypes]
    nearest = int(np.argmin(to_prototypes))
    assert (found.prototype_class, found.prototype) == divmod(nearest, 3)
    assert found.distance == pytest.approx(min(to_prototypes))
    distances = np.linalg.norm(library.embeddings - point, axis=1)
    for kind, neighbors in enumerate(found.neighbors):
        rows = [one.sample for one in neighbors]
        assert len(rows) == 4
        chosen = []
        for row in np.argsort(distances):
            same = [r for r in chosen if library.subjects[r] == library.subjects[row]]
            apart = [np.linalg.norm(library.centers_mm[r] - library.centers_mm[row]) for r in same]
            if library.classes[row] == kind and min(apart, default=9) >= 3:
                chosen.append(row)
        assert rows == chosen[:4]
        assert [one.distance for one in neighbors] == pytest.approx(distances[rows])


def test_a_place_is_embedded_by_its_best_anchor(grid, finished_study, subject_folder):
    """A mined anchor that scores highest about its place has the embedding that mining gave it."""
    run = runs_of(grid, finished_study)[1]
    test = subject_set("test", subjects_in(subject_folder), BASE.data.spacing_mm)
    place = Reported(0, tuple(test.truths[0].centers_mm[0]), 0.5, "microbleed")
    (embedding,) = examples.embed_places(run, test, [place])
    bundle = load_bundle(run.weights)
    # subjects are as large as a patch, so that the patch is the whole subject
    detector = examples.template_of(bundle.config).bind(bundle.params)
    maps = detector(jnp.asarray(np.asarray(test.subjects[0].image(), np.float32))[None])
    logits = np.asarray(maps.objectness)[0]
    best, expected = -np.inf, None
    for z, y, x in np.ndindex(*logits.shape[:3]):
        center = (np.array([z, y, x]) + 0.5) * (1.0, 1.0, 1.0)  # cells of 1 mm
        if np.linalg.norm(center - place.center_mm) <= examples.REACH_MM and logits[z, y, x].max() > best:
            best, anchor = logits[z, y, x].max(), int(logits[z, y, x].argmax())
            expected = detector.embed(maps.features[0, z, y, x], jnp.int32(anchor))
    np.testing.assert_allclose(embedding, expected, rtol=1e-3, atol=1e-4)


def test_candidates_are_shown_with_their_neighbors(grid, finished_study, subject_folder):
    run = runs_of(grid, finished_study)[1]
    test = subject_set("test", subjects_in(subject_folder), BASE.data.spacing_mm)
    library = embedded_of(run, test, print)
    place = Reported(0, tuple(test.truths[0].centers_mm[0]), 0.5, "pial_vein")
    (example,) = examples.prototype_examples(run, test, [place], test, library)
    assert example.title == "pial vein, score 0.50"
    assert "Nearest prototype: " in example.note
    captions = [view.caption for view in example.views]
    assert captions[0].startswith("the candidate; seed-9, z y x ")
    assert 2 <= len(captions) <= 7
    assert sum("microbleed" in caption for caption in captions) <= 3


def test_a_picture_shows_the_place_in_its_middle():
    """A dark cube: dark in the middle of each plane; the right of the head is at the left."""
    image = np.ones((40, 80, 80, 2), np.float16)
    image[..., 1] = 0
    center = np.array([20.0, 22.0, 12.0])  # mm: voxel (20, 44, 24)
    image[19:21, 42:46, 22:26, 0] = 0
    image[:, :, 40:, 1] = 0.35  # phase: bright to the right of x = 20 mm
    picture = example_picture(image, center, (1.0, 0.5, 0.5))
    gray = pixels(picture)
    assert gray.shape == (192, 288)
    for plane in range(3):
        assert gray[48, 96 * plane + 48] < 40
        assert gray[20, 96 * plane + 48] > 180
    assert gray[96 + 48, 5] > 200
    assert gray[96 + 48, 90] < 150
    assert pixels(example_picture(image, center, (1.0, 0.5, 0.5), brief=True)).shape == (96, 192)


def pixels(picture):
    import base64
    import io

    from PIL import Image

    content = base64.b64decode(picture.uri.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(int)


def test_the_page_shows_where_two_variants_differ(grid, finished_study, subject_folder, tmp_path):
    from cmb_jax.research.ablation import run_study

    contrasted = dataclasses.replace(grid, contrast=("rpn", "rpn_hspl"), matched_sensitivity=0.5)
    run_study(
        contrasted, finished_study, validation=subject_folder, test=subject_folder, samples=5, training=False
    )
    text = (finished_study / "table.md").read_text()
    assert "## False positives that one of two has alone" in text
    assert "## Embeddings before and after training" in text
    page = (finished_study / "ablation.html").read_text()
    assert "rpn alone" in page or "rpn_hspl alone" in page
    assert str(finished_study) not in page
