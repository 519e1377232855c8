"""What the observer cannot tell, and what it reaches: worked by hand."""

import numpy as np
import pytest

from cmb_jax.evaluation.froc import FROC_RATES
from cmb_jax.phantom.types import MimicKind
from tools.observer_ceiling import PIECE, Spots, isolated_pieces, observers, sensitivities

SPACING = np.array([1.0, 1.0, 2.0])


def test_only_short_pieces_that_nothing_leads_to_are_found():
    mimics = np.zeros((60, 60, 20), np.uint8)
    lesions = np.zeros(mimics.shape, np.uint16)
    mimics[5:45, 10, 5] = MimicKind.PIAL_VEIN  # long
    mimics[10:13, 20:22, 5] = MimicKind.PIAL_VEIN  # a piece of 3 x 2 voxels
    mimics[30, 20, 3:9] = MimicKind.MEDULLARY_VEIN  # 10 mm along z
    mimics[20:22, 30, 5] = MimicKind.ARTERY  # a piece
    mimics[40:42, 30, 5] = MimicKind.PIAL_VEIN  # beside a lesion that covers the rest of it
    lesions[42:45, 30, 5] = 1
    mimics[10, 40:52:2, 5] = MimicKind.PIAL_VEIN  # a long one with gaps in its label
    mimics[40:43, 45, 5] = MimicKind.CALCIFICATION_PIAL  # no vessel
    vein, artery = sorted(isolated_pieces(mimics, lesions, SPACING), key=lambda piece: piece.center[0])
    np.testing.assert_allclose(vein.center, [11, 20.5, 5])
    assert vein.vein
    assert vein.diameter_mm == pytest.approx((6 * 6 * 2.0 / np.pi) ** (1 / 3))
    assert not artery.vein
    np.testing.assert_allclose(artery.center, [20.5, 30, 5])


def spots(rows, scans):
    """Rows (has phase, kind, diameter)."""
    phase, kind, diameter = (np.array(column) for column in zip(*rows, strict=True))
    return Spots(
        scan_has_phase=np.array(scans),
        has_phase=phase,
        is_cmb=kind == "cmb",
        kind=kind,
        diameter_mm=diameter.astype(float),
        cnr=np.full(len(kind), 10.0),
        region=np.full(len(kind), "frontal"),
    )


def test_a_random_order_finds_in_proportion():
    """Four scans; with a phase all are found for nothing, without it half of the spots are calcifications."""
    rows = [(True, "cmb", 3.0)] * 4
    rows += [(False, "cmb", 3.0), (False, "calcification_parenchymal", 3.0)] * 4
    tree = spots(rows, [True, True, False, False])
    scores = observers(tree, tree)
    found = sensitivities(tree, scores["looks alone"])
    expected = [(4 + min(1.0, rate * 4 / 4) * 4) / 8 for rate in FROC_RATES]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(sensitivities(tree, scores["and place"]), expected)


def test_what_else_the_observer_knows_helps():
    rows = [(False, "cmb", 3.0 + 0.1 * i) for i in range(10)]
    rows += [(False, "calcification_choroid", 3.0 + 0.1 * i) for i in range(10)]
    rows += [(False, "calcification_parenchymal", 8.0 + 0.1 * i) for i in range(10)]
    tree = spots(rows, [False] * 10)
    scores = observers(tree, tree)
    at_half = FROC_RATES.index(0.5)
    assert sensitivities(tree, scores["looks alone"])[at_half] == pytest.approx(5 / 20)
    assert sensitivities(tree, scores["and place"])[at_half] == pytest.approx(5 / 10)
    assert sensitivities(tree, scores["and size, contrast, region"])[at_half] > 0.4


def test_a_piece_of_vein_cannot_be_told_with_a_phase_either():
    rows = [(True, "cmb", 3.0)] * 5 + [(True, PIECE, 3.0)] * 5
    tree = spots(rows, [True] * 10)
    found = sensitivities(tree, observers(tree, tree)["looks alone"])
    assert found[FROC_RATES.index(0.25)] == pytest.approx(0.5)
    clean = tree.select(tree.is_cmb, tree.scan_has_phase)
    assert sensitivities(clean, observers(clean, clean)["looks alone"]) == [1.0] * len(FROC_RATES)
