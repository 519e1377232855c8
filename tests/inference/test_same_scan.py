"""The network sees the same of one scan at any scale, type in the file, box of zeros, order of axes."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region, RegionMap, Side, encode
from cmb_jax.inference.scan import prepare_scan
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import ScanImages
from tests.scan.heads import AFFINE, SHAPE, head

HEAD = head(snr=15.0)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[10:-10, 10:-10, 2:-2] = True
CODE = encode(np.where(BRAIN, int(Region.FRONTAL), 0), np.full(SHAPE, int(Side.LEFT)))
REGIONS = RegionMap(code=CODE, affine=AFFINE)


def prepared(tmp_path, swi, phase, affine):
    volumes = []
    for name, data in (("swi", swi), ("phase", phase)):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
        volumes.append(read_volume(tmp_path / f"{name}.nii.gz"))
    images = ScanImages(swi=volumes[0], phase=volumes[1])
    return prepare_scan(images, spacing_mm=(3.0, 1.6, 1.6), region_map=REGIONS)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    found = prepared(tmp_path_factory.mktemp("reference"), HEAD.swi, HEAD.phase, AFFINE)
    assert found.prepared.has_phase
    return found


def same(found, reference, tolerance=2e-3, turned=0.0):
    """`turned`: share of voxels of noise at half a turn, which rounding may take to the other end."""
    assert found.prepared.has_phase
    apart = np.abs(found.prepared.image.astype(np.float32) - reference.prepared.image)
    assert np.mean(apart > tolerance) <= turned
    np.testing.assert_allclose(found.prepared.affine, reference.prepared.affine, atol=1e-4)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("factor", [1e-20, 1e-9, 0.037, 3.0, 4096.0, 1e12])
def test_any_positive_factor(tmp_path, reference, factor):
    same(prepared(tmp_path, (factor * HEAD.swi).astype(np.float32), HEAD.phase, AFFINE), reference)


def test_any_storage_type(tmp_path):
    whole = np.rint(HEAD.swi * (250 / HEAD.swi.max()))
    first, *others = (
        prepared(tmp_path, whole.astype(kind), HEAD.phase, AFFINE)
        for kind in (np.float32, np.uint8, np.int16, np.int32, np.float64)
    )
    for other in others:
        same(other, first, tolerance=0)


@pytest.mark.parametrize("form", ["uint8", "0..1", "degrees", "milliradians", "0-4095"])
def test_any_linear_storage_of_phase(tmp_path, reference, form):
    turn = (HEAD.phase.astype(np.float64) + np.pi) / (2 * np.pi)
    stored = {
        "uint8": np.rint(turn * 255).astype(np.uint8),
        "0..1": turn,
        "degrees": np.degrees(HEAD.phase),
        "milliradians": np.rint(1000 * HEAD.phase).astype(np.int16),
        "0-4095": np.clip(np.floor(turn * 4096), 0, 4095).astype(np.int16),
    }[form]
    same(prepared(tmp_path, HEAD.swi, stored, AFFINE), reference, 0.02 if form == "uint8" else 4e-3, 1e-3)


@pytest.mark.parametrize(
    "pads", [((6, 10), (1, 8), (3, 0)), ((0, 0), (0, 40), (0, 7)), ((33, 1), (0, 0), (9, 9))]
)
def test_any_box_of_zeros(tmp_path, reference, pads):
    moved = AFFINE.copy()
    moved[:3, 3] -= AFFINE[:3, :3] @ [low for low, _ in pads]
    found = prepared(tmp_path, np.pad(HEAD.swi, pads), np.pad(HEAD.phase, pads), moved)
    same(found, reference)
    assert found.warnings == reference.warnings


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)])
def test_any_order_and_direction_of_axes(tmp_path, reference, order, flip):
    matrix = np.zeros((4, 4))
    for new, old in enumerate(order):
        matrix[old, new] = flip[new]
        matrix[old, 3] = 0 if flip[new] > 0 else SHAPE[old] - 1
        if flip[new] < 0:
            matrix[old, 3] = SHAPE[old] - 1
    matrix[3, 3] = 1
    steps = tuple(slice(None, None, sign) for sign in flip)
    swi, phase = (array.transpose(order)[steps] for array in (HEAD.swi, HEAD.phase))
    same(prepared(tmp_path, swi, phase, AFFINE @ matrix), reference)


def test_a_phase_of_noise_is_left_out_and_said(tmp_path):
    noise = np.random.default_rng(0).uniform(-np.pi, np.pi, SHAPE).astype(np.float32)
    found = prepared(tmp_path, HEAD.swi, noise, AFFINE)
    assert not found.prepared.has_phase
    assert any("left out: it is noise" in line for line in found.warnings)
    assert dataclasses.asdict(found)["phase_rad"] is None
