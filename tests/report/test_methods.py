"""methods.md says what holds for the run, and cites what it says."""

import re

import pytest

from cmb_jax.report.statements import MethodsFacts, methods_text

FACTS = {
    "version": "9.9",
    "weights_name": "small",
    "weights_sha256": "ab" * 32,
    "threshold": 0.6,
    "calibrated": True,
    "bundled": True,
    "phase": True,
}


@pytest.mark.parametrize("own_regions", [False, True])
@pytest.mark.parametrize("made_swi", [False, True])
@pytest.mark.parametrize("mni", [False, True])
def test_every_reference_is_cited_once_in_order(own_regions, made_swi, mni):
    text = methods_text([MethodsFacts(**FACTS, own_regions=own_regions, made_swi=made_swi, mni=mni)])
    body, _, references = text.partition("## References")
    cited = [int(number) for number in re.findall(r"\[(\d+)\]", body)]
    assert cited == list(range(1, len(cited) + 1))
    assert [int(number) for number in re.findall(r"^(\d+)\. ", references, re.MULTILINE)] == cited
    assert ("SynthSeg" in references) is not own_regions
    assert ("Haacke" in references) is made_swi
    assert ("MNI152NLin2009cAsym" in body) is mni


def test_says_what_was_used():
    text = methods_text([MethodsFacts(**FACTS)])
    assert "cmb_jax 9.9" in text and "0.600" in text and "abababababababab" in text  # noqa: PT018
    assert "images and phase." in text
    assert "trained on simulated scans only" in text
    assert "simulated" not in methods_text([MethodsFacts(**FACTS | {"bundled": False})])
    assert "without phase" in methods_text([MethodsFacts(**FACTS | {"phase": False})])
    assert "probability" not in methods_text([MethodsFacts(**FACTS | {"calibrated": False})])
    assert "esearch use only" in text


def test_scans_without_a_phase_have_their_threshold_named():
    both = FACTS | {"phase": None, "threshold_without_phase": 0.81}
    assert "at least 0.600 (without a phase 0.810) in brain" in methods_text([MethodsFacts(**both)])
    same = FACTS | {"phase": None, "threshold_without_phase": 0.6}
    assert "at least 0.600 in brain" in methods_text([MethodsFacts(**same)])


def test_several_ways_are_told_apart():
    many = tuple(f"sub-{n:02d}" for n in range(9))
    facts = FACTS | {"version": "8.8", "threshold": 0.4}
    ways = [
        MethodsFacts(**FACTS, scans=many),
        MethodsFacts(**facts, options=("flips xyz",), scans=("sub-90",), mni=False),
    ]
    text = methods_text(ways)
    first, second = (line for line in text.splitlines() if " of 10 scans (" in line)
    assert first.startswith("9 of 10 scans (sub-00, sub-01, sub-02, sub-03, sub-04 and 4 more): Cerebral")
    assert "9.9" in first and "0.600" in first and "flips" not in first  # noqa: PT018
    assert second.startswith("1 of 10 scans (sub-90): Cerebral")
    assert "8.8" in second and "0.400" in second and "flips xyz" in second  # noqa: PT018
    assert "made in 2 ways" in text
    assert text.count("Kim J-H") == 1  # one list of references for all
    assert ("MNI152" in first, "MNI152" in second) == (True, False)
