"""The pipeline from volumes to files, with a network that was made to fire on dark, paramagnetic spots."""

import csv
import dataclasses
import json

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx

from cmb_jax.anatomy.lookup import look_up
from cmb_jax.anatomy.regions import Region, RegionMap, Side, encode
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.config_load import config_from_json, config_to_json
from cmb_jax.core.detection import DETECTION_COLUMNS, RejectReason
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.errors import UserError
from cmb_jax.evaluation.evaluate import evaluate_records
from cmb_jax.evaluation.metrics import json_text, metrics
from cmb_jax.evaluation.read import read_detections_csv
from cmb_jax.evaluation.records import SubjectTruth
from cmb_jax.inference.bundle import load_bundle, save_bundle, with_config
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.outputs import described_inputs, instance_labels, write_prediction
from cmb_jax.inference.predict import CmbDetector
from cmb_jax.inference.scan import read_phase
from cmb_jax.io.nifti import read_volume
from cmb_jax.regions.grid import GRID_SHAPE
from cmb_jax.scan.phase_sign import SignDecision
from tests.tiny import TINY_MODEL

TINY = Config(
    name="tiny",
    model=TINY_MODEL,
    inference=InferenceConfig(
        score_threshold=0.5,
        definite_threshold=0.6,
        candidate_threshold=0.3,
        max_detections=40,
        max_candidates=40,
    ),
)
SHAPE = (56, 64, 26)
SPACING = (0.9, 0.9, 2.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Random weights whose objectness is spread about one half, so that some candidates are kept."""
    params = params_of(Detector(TINY.model, rngs=nnx.Rngs(3)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "objectness" in str(path) and leaf.ndim == 1 else leaf, params
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_bundle(path, params, TINY)
    return load_bundle(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """SWI and phase on a left-posterior-superior grid."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("scan")
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = [25.0, 28.0, -20.0]
    swi = 100 + np.linspace(-15, 15, SHAPE[0])[:, None, None] + rng.normal(0, 5, SHAPE)
    x, y, _ = np.indices(SHAPE)
    phase = 0.3 * x + 0.2 * y + rng.normal(0, 0.1, SHAPE)
    for _ in range(12):
        i, j, k = (rng.integers(4, n - 4) for n in SHAPE)
        swi[i - 1 : i + 2, j - 1 : j + 2, k] = 10
        phase[i - 1 : i + 2, j - 1 : j + 2, k] += 1.2
    paths = []
    for name, data in (("swi", swi), ("phase", np.angle(np.exp(1j * phase)))):
        image = nib.Nifti1Image(data.astype(np.float32), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, folder / f"{name}.nii.gz")
        paths.append(folder / f"{name}.nii.gz")
    return tuple(paths)


@pytest.fixture(scope="module")
def region_map(files):
    """Lobar tissue on the left, cerebellum on the right, CSF in the lowest slices, nothing at one face."""
    volume = read_volume(files[0])
    region = np.full(volume.shape, int(Region.FRONTAL))
    side = np.full(volume.shape, int(Side.LEFT))
    right = volume.shape[0] // 2
    region[right:] = Region.CEREBELLUM
    side[right:] = Side.RIGHT
    region[:, :, :6] = Region.SULCAL_CSF
    region[:, -10:] = Region.OUTSIDE
    return RegionMap(code=encode(region, side), affine=volume.affine)


@pytest.fixture(scope="module")
def prediction(bundle, files, region_map):
    swi, phase = (read_volume(path) for path in files)
    return CmbDetector(bundle).predict(swi, phase, phase_sign="+1", region_map=region_map)


def test_rows_agree_with_the_region_map(prediction, region_map):
    assert {row.status for row in prediction.rows} == {"kept", "rejected"}
    inverse = np.linalg.inv(region_map.affine)
    for row in prediction.kept:
        x = (inverse[:3, :3] @ [row.x_mm, row.y_mm, row.z_mm] + inverse[:3, 3])[0]
        expected = "left" if x < region_map.code.shape[0] // 2 else "right"
        if abs(x - region_map.code.shape[0] // 2) * SPACING[0] > row.diameter_mm / 2 + 2:
            assert row.side == expected
            assert row.zone == ("lobar" if expected == "left" else "infratentorial")
        assert row.score >= TINY.inference.score_threshold
        assert (row.category == "definite") == (row.score >= TINY.inference.definite_threshold)
    for row in prediction.rows:
        if row.status == "rejected":
            assert row.reason
            assert row.reason != RejectReason.LOW_SCORE.sentence or row.score < TINY.inference.score_threshold


def test_what_lies_in_no_region_is_at_most_possible(bundle, files, region_map, monkeypatch):
    def nowhere(*given):
        found = look_up(*given)
        zeros, ones = np.zeros_like(found.region), np.ones_like(found.keep)
        return dataclasses.replace(found, region=zeros, keep=ones, reason=np.zeros_like(found.reason))

    monkeypatch.setattr("cmb_jax.inference.predict.look_up", nowhere)
    swi, phase = (read_volume(path) for path in files)
    rows = CmbDetector(bundle).predict(swi, phase, phase_sign="+1", region_map=region_map).rows
    assert any(row.score >= TINY.inference.definite_threshold for row in rows)
    assert {(row.region, row.category) for row in rows} == {("outside", "possible")}


def test_native_indices_and_millimeters_are_the_same_place(prediction, files):
    affine = nib.load(files[0]).affine
    for row in prediction.rows:
        exact = np.linalg.inv(affine) @ [row.x_mm, row.y_mm, row.z_mm, 1.0]
        np.testing.assert_allclose(exact[:3], [row.i, row.j, row.k], atol=0.52)


def stored(swi, phase, affine, change):
    """The same scan with other numbers, types, zeros around it or axes."""
    if change == "factor":
        return swi * np.float32(3e-7), phase, affine
    if change == "type":
        return np.rint(swi * 250).astype(np.int32), np.rint(phase * 1000).astype(np.int16), affine
    if change == "padding":
        moved = affine.copy()
        moved[:3, 3] -= affine[:3, :3] @ [7, 0, 3]
        pads = ((7, 2), (0, 11), (3, 5))
        return np.pad(swi, pads), np.pad(phase, pads), moved
    turned = affine[:, [2, 0, 1, 3]].copy()
    turned[:, 3] += affine[:, 1] * (swi.shape[1] - 1)
    turned[:, 2] *= -1
    return *(each.transpose(2, 0, 1)[:, :, ::-1] for each in (swi, phase)), turned


@pytest.mark.parametrize("change", ["factor", "type", "padding", "axes"])
def test_the_same_list_however_the_scan_is_stored(prediction, bundle, files, region_map, tmp_path, change):
    images = [nib.load(path) for path in files]
    data = [np.asarray(image.dataobj, np.float32) for image in images]
    *changed, affine = stored(*data, images[0].affine, change)
    for name, array in zip(("swi", "phase"), changed, strict=True):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    swi, phase = (read_volume(tmp_path / f"{name}.nii.gz") for name in ("swi", "phase"))
    found = CmbDetector(bundle).predict(swi, phase, phase_sign="+1", region_map=region_map)

    def listed(rows):
        return sorted((row.x_mm, row.y_mm, row.z_mm, row.score, row.status, row.zone) for row in rows.kept)

    ours, theirs = listed(found), listed(prediction)
    assert len(theirs) >= 3
    assert [row[4:] for row in ours] == [row[4:] for row in theirs]
    np.testing.assert_allclose([row[:3] for row in ours], [row[:3] for row in theirs], atol=0.1)
    np.testing.assert_allclose([row[3] for row in ours], [row[3] for row in theirs], atol=0.005)


def test_a_count_is_no_cap(bundle, files, region_map):
    """The lists grow until all that reach the threshold are in them; if they cannot, this is said."""
    swi, phase = (read_volume(path) for path in files)

    def kept(threshold=None, phase=phase, score_threshold=0.59, **changes):
        inference = dataclasses.replace(TINY.inference, score_threshold=score_threshold, **changes)
        config = dataclasses.replace(bundle.config, inference=inference)
        detector = CmbDetector(dataclasses.replace(bundle, config=config))
        found = detector.predict(swi, phase, phase_sign="+1", region_map=region_map, threshold=threshold)
        return [(row.i, row.j, row.k, row.score) for row in found.rows if row.score >= 0.59], found.warnings

    long, said = kept(max_candidates=65536, max_detections=1024)
    assert 32 < len(long) < 1024
    assert not any("list of candidates is full" in line for line in said)
    short = {"max_candidates": 4096, "max_detections": 32, "score_threshold": 0.9}
    assert kept(threshold=0.59, **short)[0] == long
    alone, said = kept(phase=None, magnitude_score_threshold=0.59, **short)
    assert len(alone) > 32
    assert not any("list of candidates is full" in line for line in said)
    few, said = kept(max_candidates=4096, max_detections=1)
    assert few == long[:16]
    assert any("list of candidates is full with 16" in line for line in said)


def test_a_threshold_moves_rows_from_kept_to_rejected(bundle, files, region_map):
    swi, phase = (read_volume(path) for path in files)
    strict = CmbDetector(bundle, options=ScanOptions(threshold=1.0, phase_sign="+1"))
    none = strict.predict(swi, phase, region_map=region_map)
    assert not none.kept
    assert RejectReason.LOW_SCORE.sentence in {row.reason for row in none.rows}


def test_a_phase_whose_sign_is_open_is_left_out_unless_it_is_told(files):
    swi, phase = (read_volume(path) for path in files)
    undecided = read_phase(phase, swi)
    assert undecided.radians is None  # rather left out than turned the wrong way
    assert "left out: its sign is open" in undecided.warning
    plus, minus = (read_phase(phase, swi, sign) for sign in ("+1", "-1"))
    np.testing.assert_array_equal(minus.radians, -plus.radians)
    assert plus.warning is None


def test_a_sign_that_the_images_contradict_is_said(monkeypatch, files):
    swi, phase = (read_volume(path) for path in files)
    told = SignDecision(sign=-1, confident=True, reason="told")
    monkeypatch.setattr("cmb_jax.inference.scan.decide_phase_sign", lambda *args, **more: told)
    assert "but the images say -1 (told)" in read_phase(phase, swi, "+1").warning
    assert read_phase(phase, swi, "-1").warning is None


def test_without_phase_it_runs_and_says_so(bundle, files, region_map):
    prediction = CmbDetector(bundle).predict(read_volume(files[0]), region_map=region_map)
    assert any("no phase" in line for line in prediction.warnings)
    assert prediction.phase is None


def test_without_phase_the_levels_of_such_scans_hold(bundle, files, region_map):
    levels = dataclasses.replace(
        TINY.inference,
        calibration_scores=(0.0, 1.0),
        calibration_probabilities=(0.0, 1.0),
        magnitude_score_threshold=0.55,
        magnitude_definite_threshold=0.7,
        magnitude_calibration_scores=(0.0, 1.0),
        magnitude_calibration_probabilities=(0.0, 0.5),
    )
    detector = CmbDetector(dataclasses.replace(bundle, config=dataclasses.replace(TINY, inference=levels)))
    swi, phase = map(read_volume, files)
    for image, least, certain, slope in ((phase, 0.5, 0.6, 1.0), (None, 0.55, 0.7, 0.5)):
        found = detector.predict(swi, image, phase_sign="+1", region_map=region_map)
        assert dict(found.settings)["score_threshold"] == f"{least:.3f}"
        assert dict(found.settings)["phase"] == ("none" if image is None else "used")
        low = RejectReason.LOW_SCORE.sentence
        assert all(row.status == "rejected" for row in found.rows if row.score < least - 1e-4)
        assert low not in {row.reason for row in found.rows if row.score >= least + 1e-4}
        assert all(row.score >= certain - 1e-4 for row in found.rows if row.category == "definite")
        for row in found.rows:
            if row.probability is not None:
                assert row.probability == pytest.approx(slope * row.score, abs=2e-4)


@pytest.mark.parametrize("label", [Region.OUTSIDE, Region.FRONTAL])
def test_a_region_network_that_tells_nothing_is_said_and_no_place_given(bundle, files, monkeypatch, label):
    """No brain at all, or nothing but one lobe."""
    region = np.full(GRID_SHAPE, int(label))
    found = region, np.full(GRID_SHAPE, int(Region.FRONTAL)), np.ones(GRID_SHAPE, np.float32)
    monkeypatch.setattr("cmb_jax.regions.predict._labeler", lambda: lambda image, params: found)
    monkeypatch.setattr("cmb_jax.regions.predict._confidence", lambda: lambda image, params: 0.5)
    monkeypatch.setattr("cmb_jax.regions.predict._SMALLEST_VIEW_MM", 0.0)
    prediction = CmbDetector(bundle).predict(read_volume(files[0]))
    assert not prediction.region_map.trusted
    assert any("brain" in line.lower() for line in prediction.region_map.messages)
    assert set(prediction.region_map.messages) <= set(prediction.warnings)
    assert prediction.rows
    assert {row.zone for row in prediction.rows} == {row.region for row in prediction.rows} == {"none"}


def test_an_untrusted_map_gives_no_places(bundle, files, region_map):
    untrusted = RegionMap(
        code=region_map.code,
        affine=region_map.affine,
        trusted=False,
        messages=("the field of view is partial",),
    )
    prediction = CmbDetector(bundle).predict(read_volume(files[0]), region_map=untrusted)
    assert {row.zone for row in prediction.rows} == {"none"}
    assert "the field of view is partial" in prediction.warnings


def test_files_are_complete_and_on_the_native_grid(prediction, bundle, files, tmp_path):
    out = tmp_path / "result"
    inputs = described_inputs(swi=read_volume(files[0]))
    write_prediction(prediction, bundle, out, inputs, subject="scan")
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "detections.csv",
        "detections.json",
        "labels.nii.gz",
        "methods.md",
        "prov.jsonld",
        "report.html",
        "viewer.html",
    ]
    assert '<a href="viewer.html">' in (out / "report.html").read_text()
    write_prediction(prediction, bundle, tmp_path / "bare", inputs, subject="scan", viewer=False)
    assert "viewer.html" not in (tmp_path / "bare" / "report.html").read_text()
    with (out / "detections.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == DETECTION_COLUMNS
    assert len(rows) == len(prediction.rows)

    labels, native = nib.load(out / "labels.nii.gz"), nib.load(files[0])
    assert labels.shape == native.shape
    np.testing.assert_allclose(labels.affine, native.affine, atol=1e-5)
    data = np.asarray(labels.dataobj)
    kept = {int(row["id"]) for row in rows if row["status"] == "kept"}
    assert set(np.unique(data)) - {0} <= kept
    # at most a few lie wholly under better ones
    assert len(set(np.unique(data)) - {0}) >= 0.8 * len(kept)

    summary = json.loads((out / "detections.json").read_text())
    assert summary["weights"]["sha256"] == bundle.sha256
    assert summary["inputs"][0]["file"] == "swi.nii.gz"
    assert len(summary["inputs"][0]["sha256"]) == 64
    assert len(summary["detections"]) == len(rows)

    with pytest.raises(UserError, match="exists"):
        write_prediction(prediction, bundle, out, inputs, subject="scan")


def test_instance_labels_have_the_volume_of_their_ellipsoids(prediction):
    labels = instance_labels(prediction)
    voxel = np.prod(SPACING)
    lone = [row for row in prediction.kept if row.diameter_mm > 5]
    for row in lone:
        others = [o for o in prediction.kept if o.id != row.id]
        place = np.array([row.x_mm, row.y_mm, row.z_mm])
        if any(np.linalg.norm(place - [o.x_mm, o.y_mm, o.z_mm]) < 12 for o in others):
            continue
        assert (labels == row.id).sum() * voxel == pytest.approx(row.volume_mm3, rel=0.5)


def test_weights_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such weights"):
        CmbDetector.load(ScanOptions(weights="does-not-exist"))
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    with pytest.raises(UserError, match="safetensors"):
        CmbDetector.load(ScanOptions(weights=text))


def test_probabilities_go_with_calibrated_weights_and_back_into_the_evaluation(
    bundle, prediction, files, region_map, tmp_path
):
    knots = {"calibration_scores": (0.1, 0.5, 0.9), "calibration_probabilities": (0.0, 0.2, 1.0)}
    config = dataclasses.replace(TINY, inference=dataclasses.replace(TINY.inference, **knots))
    (tmp_path / "calibrated.safetensors").write_bytes(with_config(bundle, config))
    calibrated = load_bundle(tmp_path / "calibrated.safetensors")
    swi, phase = (read_volume(path) for path in files)
    found = CmbDetector(calibrated).predict(swi, phase, phase_sign="+1", region_map=region_map)
    assert [row.score for row in found.rows] == [row.score for row in prediction.rows]
    judged = [
        row for row in found.rows if row.status == "kept" or row.reason == RejectReason.LOW_SCORE.sentence
    ]
    for row in judged:
        expected = np.interp(row.score, knots["calibration_scores"], knots["calibration_probabilities"])
        assert row.probability == pytest.approx(expected, abs=3e-4)
    elsewhere = [row for row in found.rows if row not in judged]
    assert elsewhere
    assert all(row.probability is None for row in elsewhere)
    assert all(row.probability is None for row in prediction.rows)

    inputs = described_inputs(swi=swi)
    write_prediction(found, calibrated, tmp_path / "out", inputs, subject="scan")
    write_prediction(prediction, bundle, tmp_path / "plain", inputs, subject="scan")
    assert "probability" in (tmp_path / "out" / "report.html").read_text()
    assert "probability" not in (tmp_path / "plain" / "report.html").read_text()
    detections = read_detections_csv(tmp_path / "out" / "detections.csv", "scan")
    np.testing.assert_array_equal(
        detections.probabilities, np.array([row.probability for row in found.rows], float)
    )
    assert read_detections_csv(tmp_path / "plain" / "detections.csv", "scan").probabilities is None
    truth = SubjectTruth(
        subject="scan", centers_mm=detections.at(None).centers_mm[:2], diameters_mm=np.full(2, 3.0)
    )
    result = evaluate_records([detections], [truth], bootstrap_samples=0)
    assert result.calibration.detections == len(found.kept)
    assert result.calibration.true == 2
    assert result.calibration.mean_probability == pytest.approx(
        np.mean([row.probability for row in found.kept])
    )
    values = json.loads(json_text(metrics(result)))["calibration"]
    assert values["ece_equal_mass"]["value"] == pytest.approx(result.calibration.ece_equal_mass.value)


def test_weights_with_knots_that_are_no_map_are_refused(bundle, tmp_path):
    inference = dataclasses.replace(TINY.inference, calibration_scores=(0.2, 0.1))
    changed = dataclasses.replace(TINY, inference=inference)
    (tmp_path / "bad.safetensors").write_bytes(with_config(bundle, changed))
    with pytest.raises(UserError, match=r"bad.safetensors.*calibration map"):
        load_bundle(tmp_path / "bad.safetensors")


def test_bundled_weights_of_before_calibration_load():
    """Their configuration has no such settings, in metadata that is never written again."""
    config = load_bundle("small").config
    older = json.loads(config_to_json(config))
    del older["inference"]["calibration_scores"], older["inference"]["calibration_probabilities"]
    inference = config_from_json(json.dumps(older)).inference
    assert inference.calibration_scores == inference.calibration_probabilities == ()
