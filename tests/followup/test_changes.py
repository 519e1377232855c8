import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from cmb_jax.core.detection import RejectReason
from cmb_jax.followup.changes import UNREGISTERED, expected_contrast, find_changes, spot_at
from tests.followup.conftest import Head, centered_affine, registration, rigid, row_at, surveyed

PLACES = np.array(list(itertools.product((-30.0, 0.0, 30.0), (-36.0, 0.0, 36.0), (-18.0, 0.0, 18.0))))
SPOT = np.array([10.0, -20.0, 6.0])
MOTION = rigid((4.0, -3.0, 5.0), (3.0, -5.0, 4.0))
EYE = registration(np.eye(4))
HEAD = Head(0)


def off(*mm):
    """A place so many mm from the spot."""
    return SPOT + np.array(mm)


def scans(first=(), second=(), motion=MOTION, **facts):
    return (
        surveyed("baseline", HEAD, np.eye(4), first),
        surveyed("follow-up", HEAD, motion, second, **facts),
    )


@settings(  # images take long to make, so a failing example is not made smaller
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(st.sampled_from(("stable", "new", "resolved", "absent")), min_size=27, max_size=27),
    st.tuples(*[st.floats(-12, 12)] * 3),
    st.tuples(*[st.floats(-10, 10)] * 3),
    st.integers(0, 2**31 - 1),
)
def test_known_change_is_found_whatever_the_motion(truth, degrees, shift, seed):
    rng = np.random.default_rng(seed)
    truth = np.array(truth)
    motion = rigid(degrees, shift)
    places = PLACES + rng.uniform(-3, 3, PLACES.shape)  # 12 mm apart at least
    before, after = np.isin(truth, ("stable", "resolved")), np.isin(truth, ("stable", "new"))
    first, second = scans(places[before], places[after], motion)
    error = rng.uniform(-0.5, 0.5, (2, *PLACES.shape))  # of the detector
    rows = (
        [row_at(n + 1, places[n] + error[0][n]) for n in np.flatnonzero(before)],
        [row_at(n + 1, apply_affine(motion, places[n]) + error[1][n]) for n in np.flatnonzero(after)],
    )
    for side in rows:
        rng.shuffle(side)
    changes = find_changes(*rows, registration(motion), first, second)
    assert len(changes) == (truth != "absent").sum()
    for change in changes:
        ids = {row.id for row in (change.baseline, change.followup) if row is not None}
        assert len(ids) == 1
        place = ids.pop() - 1
        assert change.status == truth[place], change.reason
        np.testing.assert_allclose(change.followup_mm, apply_affine(motion, places[place]), atol=2.0)
        np.testing.assert_allclose(change.baseline_mm, places[place], atol=2.0)
    assert [change.id for change in changes] == list(range(1, len(changes) + 1))


def test_matching_is_one_to_one_and_minimises_the_total():
    # the nearest of both baseline lesions is the same one: taking it greedily would leave one without partner
    first = [row_at(1, SPOT), row_at(2, off(3.0, 0, 0))]
    second = [row_at(1, off(1.6, 0, 0)), row_at(2, off(6.5, 0, 0))]
    changes = find_changes(first, second, EYE, *scans(motion=np.eye(4)))
    assert {(c.baseline.id, c.followup.id, c.status) for c in changes} == {(1, 1, "stable"), (2, 2, "stable")}


def one(first_rows, second_rows, found=EYE, lesions=((), ()), **options):
    images = options.pop("images", None) or scans(*lesions, motion=np.eye(4))
    (change,) = find_changes(first_rows, second_rows, found, *images, **options)
    return change


def test_without_a_trusted_registration_nothing_is_matched_or_called_new():
    found = registration(np.eye(4), faults=("the images correlate by 0.10",))
    changes = find_changes([row_at(1, SPOT)], [row_at(1, SPOT)], found, *scans())
    assert [(c.status, c.reason) for c in changes] == [("uncertain", UNREGISTERED)] * 2


@pytest.mark.parametrize(("apart", "status"), [(3.9, "stable"), (4.1, "uncertain"), (7.9, "uncertain")])
def test_a_moved_lesion_is_uncertain(apart, status):
    change = one([row_at(1, SPOT)], [row_at(1, off(0, apart, 0))])
    assert (change.status, change.distance_mm) == (status, pytest.approx(apart))
    assert ("moved" in change.reason) == (status == "uncertain")


def test_the_distance_is_an_option():
    rows = [row_at(1, SPOT)], [row_at(1, off(0, 5.0, 0))]
    assert one(*rows, match_mm=5.5).status == "stable"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (RejectReason.LOW_SCORE.sentence, "below the operating point (score 0.31)"),
        ("inside a ventricle", "inside a ventricle"),
    ],
)
def test_a_rejected_candidate_at_the_place_makes_it_uncertain(reverse, reason, words):
    kept = [row_at(1, SPOT)]
    rejected = [row_at(7, off(0, 0, 2.0), score=0.31, status="rejected", reason=reason)]
    change = one(*((rejected, kept) if reverse else (kept, rejected)), lesions=((SPOT,), ()))
    assert change.status == "uncertain"
    assert words in change.reason
    assert change.row.status == "kept"


def test_one_rejected_candidate_explains_one_lesion_alone():
    lesions = [SPOT, off(6.0, 0, 0)]
    rejected = row_at(
        7, off(3.0, 0, 0), score=0.31, status="rejected", reason=RejectReason.LOW_SCORE.sentence
    )
    rows = [row_at(n + 1, place) for n, place in enumerate(lesions)]
    changes = find_changes(rows, [rejected], EYE, *scans(lesions, (), np.eye(4)))
    assert [c.status for c in changes] == ["resolved", "uncertain"]


def test_rejected_candidates_alone_are_no_lesions():
    rejected = [row_at(1, SPOT, status="rejected", reason=RejectReason.LOW_SCORE.sentence)]
    assert find_changes(rejected, rejected, EYE, *scans()) == ()
    assert find_changes([], [], EYE, *scans()) == ()


@pytest.mark.parametrize("scan", ["baseline", "follow-up"])
def test_where_the_other_scan_could_not_show_it_is_uncertain(scan):
    seen, unseen = surveyed("a", HEAD, np.eye(4), [SPOT]), surveyed("b", HEAD, np.eye(4))
    slab = centered_affine((72, 88, 10))
    slab[2, 3] -= 40.0
    dark = dataclasses.replace(unseen, image=dataclasses.replace(unseen.image, data=unseen.image.data.copy()))
    index = np.moveaxis(np.indices(dark.image.shape), 0, -1) @ dark.image.affine[:3, :3].T
    away = np.linalg.norm(index + dark.image.affine[:3, 3] - SPOT, axis=-1)
    dark.image.data[away < 9] *= 0.2
    noisy = dataclasses.replace(dark, image=dataclasses.replace(unseen.image, data=unseen.image.data.copy()))
    rng = np.random.default_rng(0)
    noisy.image.data[away < 9] += rng.normal(0, 300, (away < 9).sum())
    cases = {
        "outside the field of view": surveyed("b", HEAD, np.eye(4), affine=slab, shape=(72, 88, 10)),
        "outside the brain": dataclasses.replace(unseen, brain=unseen.brain & (away > 6)),
        "lost its signal": dark,
        "too small or faint": noisy,
        "is dark there too": seen,
        "": unseen,
    }
    for words, other in cases.items():
        first, second = (other, seen) if scan == "baseline" else (seen, other)
        first = dataclasses.replace(first, name="baseline")
        second = dataclasses.replace(second, name="follow-up")
        rows = ([], [row_at(1, SPOT)]) if scan == "baseline" else ([row_at(1, SPOT)], [])
        change = one(*rows, images=(first, second))
        if words:
            assert change.status == "uncertain", words
            assert words in change.reason
            assert scan in change.reason
        else:
            assert (change.status, change.reason) == ("new" if scan == "baseline" else "resolved", "")


def test_weaker_scans_are_expected_to_show_less():
    strong = surveyed("a", HEAD, np.eye(4), [SPOT], echo_time_ms=30.0, field_strength_t=3.0)
    spot = spot_at(strong, SPOT, 4.0)
    assert spot is not None
    same = expected_contrast(spot, 4.0, strong, strong)
    assert same == pytest.approx(spot.contrast)
    weak = dataclasses.replace(strong, field_strength_t=1.5)
    assert 1 - expected_contrast(spot, 4.0, strong, weak) == pytest.approx((1 - same) ** 0.5)
    assert expected_contrast(spot, 4.0, weak, strong) == pytest.approx(same)
    coarse = surveyed(
        "b", HEAD, np.eye(4), affine=centered_affine((36, 44, 30), (4.0, 4.0, 4.0)), shape=(36, 44, 30)
    )
    assert expected_contrast(spot, 4.0, strong, coarse) == pytest.approx(same * (np.pi / 6 * 64) / 64)
