"""cmb-jax calibrate, weights show and the model card, on predictions whose scores were made up."""

import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit, logit

from cmb_jax.config import Config, InferenceConfig
from cmb_jax.core.detection import DetectionRow, RejectReason, detections_csv, detections_tsv
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.inference.bundle import calibration_of, load_bundle, save_bundle
from cmb_jax.inference.predict import LISTED_BELOW_THRESHOLD
from tests.command_line import run_cli
from tests.tiny import TINY_MODEL
from tools import model_card

EDGE_MM = 8.0  # voxels so large that neighbors are no match
SHAPE = (10, 10, 10)
THRESHOLD = 0.5


def probability(scores, phase=True):
    """What the made-up detector's scores mean."""
    return expit(1.5 * logit(scores) - (1.0 if phase else 2.5))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    config = Config(name="tiny", model=TINY_MODEL, inference=InferenceConfig(score_threshold=THRESHOLD))
    save_bundle(path, params_of(Detector(TINY_MODEL, rngs=nnx.Rngs(0))), config, dtype="float16")
    path.with_suffix(".json").write_text(json.dumps({"use": "tests", "training_data": "nothing at all"}))
    return path


def row(number, voxel, score):
    x, y, z = (EDGE_MM * v for v in voxel)
    kept = score >= THRESHOLD
    return DetectionRow(
        **{"id": number, "i": voxel[0], "j": voxel[1], "k": voxel[2], "x_mm": x, "y_mm": y, "z_mm": z},
        diameter_mm=3.0,
        volume_mm3=14.1,
        score=score,
        category="possible",
        zone="lobar",
        region="frontal",
        side="left",
        status="kept" if kept else "rejected",
        reason="" if kept else RejectReason.LOW_SCORE.sentence,
    )


def make_tree(root, weights, scans=24, candidates=25, seed=0, layout="predict", without_phase=0):
    """Predictions and truth, the last scans without a phase; (folder of predictions, folder of truth)."""
    rng = np.random.default_rng(seed)
    digest = load_bundle(weights).sha256
    (root / "truth").mkdir(parents=True)
    for scan in range(scans):
        name = f"sub-{scan + 1:02d}"
        # every second voxel: no two touch
        chosen = rng.choice(1000, candidates + 3, replace=False)
        voxels = 2 * np.stack(np.unravel_index(chosen, SHAPE), axis=1)
        scores = np.sort(rng.uniform(0.1, 0.99, candidates).round(4))[::-1]
        phase = scan < scans - without_phase
        true = rng.uniform(size=candidates) < probability(scores, phase)
        labels = np.zeros(2 * np.array(SHAPE), np.uint8)
        lesions = [*voxels[:candidates][true], *voxels[candidates:]]  # the last three are missed
        for label, voxel in enumerate(lesions, start=1):
            labels[tuple(voxel)] = label
        nib.save(nib.Nifti1Image(labels, np.diag([EDGE_MM] * 3 + [1])), root / "truth" / f"{name}.nii.gz")
        rows = tuple(
            row(n, [int(v) for v in voxel], float(score))
            for n, (voxel, score) in enumerate(zip(voxels, scores, strict=False), start=1)
        )
        write_prediction(root / "pred" / name, name, rows, digest, layout, phase)
    return root / "pred", root / "truth"


def write_prediction(folder, name, rows, digest, layout, phase=True):
    settings = {"score_threshold": f"{THRESHOLD:.3f}", "phase": "used" if phase else "none"}
    if layout == "predict":
        folder.mkdir(parents=True)
        (folder / "detections.csv").write_text(detections_csv(rows))
        record = {
            "version": "0",
            "weights": {"name": "tiny.safetensors", "sha256": digest},
            "settings": settings,
            "inputs": [{"role": "swi", "file": f"{name}_swi.nii.gz", "sha256": "ab" * 32}],
            "regions_trusted": True,
        }
        (folder / "detections.json").write_text(json.dumps(record))
        return
    anat = folder / "anat"
    anat.mkdir(parents=True)
    (anat / f"{name}_desc-cmb_detections.tsv").write_text(detections_tsv(rows))
    making = {
        "Weights": {"Name": "tiny.safetensors", "SHA256": digest},
        "Threshold": THRESHOLD,
        "PhaseSign": "auto",
        "PhaseRange": "auto",
    }
    made = {
        "Making": making,
        "Settings": settings,
        "Taken": {"Images": [], "Kind": "swi"},
        "RegionsTrusted": True,
        "MagneticFieldStrength": None,
        "Warnings": [],
        "Version": "0",
    }
    (anat / f"{name}_desc-cmb_detections.json").write_text(json.dumps({"CmbJax": made}))


@pytest.fixture(scope="module")
def tree(tmp_path_factory, weights):
    return make_tree(tmp_path_factory.mktemp("scans"), weights)


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: run_cli(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, weights, tree):
    """Weights as the command leaves them, for the tests that only look."""
    from cmb_jax.cli.weights import CalibrateOptions, calibrate

    out = tmp_path_factory.mktemp("calibrated") / "better.safetensors"
    calibrate(
        CalibrateOptions(
            pred=(tree[0],),
            truth=(tree[1],),
            weights=str(weights),
            out=out,
            max_fp=2.0,
            max_fp_magnitude=2.0,
        )
    )
    return out


def test_the_map_is_the_distortion_that_was_put_in(calibrated, weights):
    before, after = load_bundle(weights), load_bundle(calibrated)
    assert before.calibration is None
    grid = np.linspace(0.2, 0.95, 50)
    assert np.abs(after.calibration.probability(grid) - probability(grid)).max() < 0.08
    inference = after.config.inference
    assert after.calibration.probability(np.array([inference.definite_threshold]))[0] == pytest.approx(0.8)
    assert inference.score_threshold < inference.definite_threshold < 1
    assert jax.tree.all(jax.tree.map(np.array_equal, before.params, after.params))


@pytest.mark.parametrize("layout", ["predict", "bids"])
def test_scans_without_a_phase_have_levels_of_their_own(run, weights, tmp_path, layout):
    pred, truth = make_tree(tmp_path, weights, scans=48, layout=layout, without_phase=24)
    out = tmp_path / "both.safetensors"
    code, text, err = run(
        *calibrate_arguments((pred, truth), weights, out), "--max-fp", "1", "--max-fp-magnitude", "4"
    )
    assert code == 0, err
    inference = load_bundle(out).config.inference
    grid = np.linspace(0.3, 0.9, 40)
    for phase in (True, False):
        own = calibration_of(inference.for_scan(phase=phase))
        assert np.abs(own.probability(grid) - probability(grid, phase)).max() < 0.1
        definite = inference.for_scan(phase=phase).definite_threshold
        assert own.probability(np.array([definite]))[0] == pytest.approx(0.8)
    record = json.loads(out.with_suffix(".json").read_text())
    for part, limit in ((record, 1.0), (record["magnitude_alone"], 4.0)):
        assert part["calibration"]["scans"] == 24
        assert part["calibration"]["data"][0]["scans"] == 24
        chosen = part["operating_points"]["chosen"]
        assert limit / 2 < chosen["fp_per_scan"]["value"] <= limit
    assert inference.for_scan(phase=False).score_threshold == record["magnitude_alone"]["score_threshold"]
    assert inference.for_scan(phase=True).score_threshold == record["score_threshold"]
    for words in ("with a phase: platt", "without a phase: platt", "Operating points, scans without a phase"):
        assert words in text


def test_a_few_scans_without_a_phase_share_the_levels_of_all(run, weights, tmp_path):
    tree = make_tree(tmp_path, weights, scans=20, without_phase=4)
    out = tmp_path / "one.safetensors"
    code, _, err = run(*calibrate_arguments(tree, weights, out))
    assert code == 0, err
    inference = load_bundle(out).config.inference
    assert inference.for_scan(phase=False) == inference
    record = json.loads(out.with_suffix(".json").read_text())
    assert "magnitude_alone" not in record
    assert record["calibration"]["scans"] == 20


def test_arrays_keep_their_type(calibrated, weights):
    # half the size of float32: copied as they were stored
    assert calibrated.stat().st_size < weights.stat().st_size + 4000


def test_the_record_says_what_was_done(calibrated, weights):
    text = calibrated.with_suffix(".json").read_text()
    assert "sub-" not in text
    assert str(calibrated.parent.parent) not in text
    record = json.loads(text)
    assert record["training_data"] == "nothing at all"  # what was known stays
    assert record["sha256"] == load_bundle(calibrated).sha256
    assert record["calibrated_from"] == {"name": "tiny", "sha256": load_bundle(weights).sha256}
    found = record["calibration"]
    assert (found["method"], found["scans"], found["candidates"]) == ("platt", 24, 600)
    assert found["data"] == [{"name": "own labeled scans", "scans": 24, "lesions": found["lesions"]}]
    assert found["held_out_kept"]["ece_equal_mass"]["value"] < 0.08
    kept, raw = found["held_out_all"]["ece_equal_mass"], found["uncalibrated_kept"]["ece_equal_mass"]
    assert kept["value"] < raw["value"]
    points = record["operating_points"]
    assert points["chosen"]["fp_per_scan"]["value"] <= 2.0
    assert [p["max_fp_per_scan"] for p in points["table"]] == [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    sensitivities = [p["sensitivity"]["value"] for p in points["table"]]
    assert sensitivities == sorted(sensitivities)


def test_the_table_is_what_evaluate_counts(calibrated, tree, run, tmp_path):
    """The same threshold, counted by the other command."""
    record = json.loads(calibrated.with_suffix(".json").read_text())
    chosen = record["operating_points"]["chosen"]
    out = tmp_path / "metrics.json"
    code, _, err = run(
        "evaluate", "--pred", tree[0], "--truth", tree[1], "--threshold", chosen["threshold"], "--out", out
    )
    assert code == 0, err
    rule = json.loads(out.read_text())["rules"]["center3"]
    for name in ("sensitivity", "fp_per_scan", "precision"):
        assert rule[name]["value"] == pytest.approx(chosen[name]["value"])


def test_bids_layout_and_several_trees(run, tmp_path, weights):
    first = make_tree(tmp_path / "a", weights, scans=6, seed=1, layout="bids")
    second = make_tree(tmp_path / "b", weights, scans=5, seed=2)
    out = tmp_path / "both.safetensors"
    code, text, err = run(
        *("calibrate", "--pred", first[0], second[0], "--truth", first[1], second[1]),
        *("--weights", weights, "--out", out),
    )
    assert code == 0, err
    assert "Operating points" in text
    assert [
        each["scans"] for each in json.loads(out.with_suffix(".json").read_text())["calibration"]["data"]
    ] == [6, 5]


def test_weights_show(calibrated, weights, run):
    code, text, _ = run("weights", "show", calibrated)
    assert code == 0
    for words in ("nothing at all", "expected calibration error", "chosen: 2", "sensitivity", "definite:"):
        assert words in text
    assert '"widths"' not in text
    assert '"widths"' in run("weights", "show", calibrated, "--verbose")[1]
    plain = run("weights", "show", weights)[1]
    assert "calibration: none" in plain
    assert "Operating points" not in plain


def test_weights_show_without_the_record(calibrated, run, tmp_path):
    alone = shutil.copy(calibrated, tmp_path / "alone.safetensors")
    code, text, _ = run("weights", "show", alone)
    assert code == 0
    assert "how they were fitted is not recorded" in text
    (tmp_path / "alone.json").write_text(json.dumps({"sha256": "ab" * 32}))
    assert "record beside these weights is of others" in run("weights", "show", alone)[1]
    (tmp_path / "alone.json").write_text("{")
    code, _, err = run("weights", "show", alone)
    assert code == 2
    assert "alone.json: is not readable JSON" in err


@pytest.fixture
def copy(tree, tmp_path):
    """A copy of the tree that may be spoiled."""
    shutil.copytree(tree[0].parent, tmp_path / "copy")
    return tmp_path / "copy" / "pred", tmp_path / "copy" / "truth"


def calibrate_arguments(tree, weights, out):
    return "calibrate", "--pred", tree[0], "--truth", tree[1], "--weights", weights, "--out", out


def test_what_cannot_be_calibrated_is_refused(run, copy, weights, tmp_path):
    out = tmp_path / "new.safetensors"
    arguments = calibrate_arguments(copy, weights, out)

    def refused(words, *more):
        code, _, err = run(*arguments, *more)
        assert code == 2
        assert words in err
        assert not out.exists()
        assert not out.with_suffix(".json").exists()

    refused("above 0", "--max-fp", "0")
    refused("--max-fp-magnitude -1", "--max-fp-magnitude", "-1")
    refused("as many --truth as --pred", "--truth", copy[1], copy[1])
    refused(".safetensors file", "--out", tmp_path / "new.bin")
    sidecar = copy[0] / "sub-03" / "detections.json"
    original = sidecar.read_text()
    sidecar.write_text(original.replace(load_bundle(weights).sha256, "0" * 64))
    refused("other weights")
    sidecar.write_text(original)
    about = copy[1] / "dataset_description.json"
    about.write_text(json.dumps({"Name": "CMB-Phantom 2, hard, test", "PhantomVersion": 2}))
    refused("test split")
    about.unlink()
    shutil.rmtree(copy[0] / "sub-03")
    refused("no prediction for 1 of the 24 scans")
    (copy[1] / "sub-02.nii.gz").unlink()
    refused("predictions without a truth")


def test_too_little_is_refused(run, weights, tmp_path):
    few = make_tree(tmp_path / "few", weights, scans=4)
    code, _, err = run(*calibrate_arguments(few, weights, tmp_path / "a.safetensors"))
    assert code == 2
    assert "only 4 scans with candidates" in err
    poor = make_tree(tmp_path / "poor", weights, scans=5, candidates=2)
    code, _, err = run(*calibrate_arguments(poor, weights, tmp_path / "a.safetensors"))
    assert code == 2
    assert "microbleeds" in err
    assert "20 are the least" in err


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_files_that_exist_are_kept(run, tree, weights, tmp_path, suffix):
    out = tmp_path / "mine.safetensors"
    out.with_suffix(suffix).write_text("mine")
    code, _, err = run(*calibrate_arguments(tree, weights, out))
    assert code == 2
    assert "exists already" in err
    assert out.with_suffix(suffix).read_text() == "mine"


def test_killed_between_record_and_weights_it_is_run_again(run, tree, weights, calibrated, tmp_path):
    out = tmp_path / "better.safetensors"
    shutil.copy(calibrated.with_suffix(".json"), out.with_suffix(".json"))
    code, _, err = run(*calibrate_arguments(tree, weights, out), "--max-fp", 2, "--max-fp-magnitude", 2)
    assert code == 0, err
    for suffix in (".safetensors", ".json"):
        assert out.with_suffix(suffix).read_bytes() == calibrated.with_suffix(suffix).read_bytes()


def test_lists_that_were_cut_short_are_not_taken_for_whole(run, weights, tmp_path):
    """So many candidates lie below the threshold that there may have been more, of the lowest scores."""
    long = make_tree(tmp_path / "long", weights, scans=6, candidates=2 * LISTED_BELOW_THRESHOLD + 20)
    out = tmp_path / "cut.safetensors"
    code, _, err = run(*calibrate_arguments(long, weights, out), "--max-fp", "4")
    assert code == 0, err
    record = json.loads(out.with_suffix(".json").read_text())
    lowest = max(
        min(float(line.split(",")[9]) for line in path.read_text().splitlines()[1:])
        for path in long[0].glob("*/detections.csv")
    )
    assert record["calibration"]["scores_from"] == pytest.approx(lowest)
    code, _, err = run(*calibrate_arguments(long, weights, tmp_path / "x.safetensors"), "--max-fp", "90")
    assert code == 2
    assert "--threshold 0.05" in err


def test_model_card_takes_its_figures_from_the_files(run, calibrated, tree, tmp_path):
    out = tmp_path / "metrics.json"
    assert run("evaluate", "--pred", tree[0], "--truth", tree[1], "--out", out)[0] == 0
    metrics = json.loads(out.read_text())
    card = tmp_path / "card.md"
    model_card.main(str(calibrated), (f"made-up scans={out}",), card)
    text = card.read_text()
    rule = metrics["rules"]["center3"]
    for value in (
        rule["sensitivity"]["value"],
        rule["precision"]["low"],
        rule["froc"][3]["sensitivity"]["value"],
    ):
        assert f"{value:.3f}" in text
    for heading in ("Intended use", "Out of scope", "Training data", "Ethical considerations", "Caveats"):
        assert f"## {heading}" in text
    assert "nothing at all" in text
    assert load_bundle(calibrated).sha256 in text
    shutil.copy(card, calibrated.with_suffix(".md"))
    assert "Research use only: not a medical device" in run("weights", "show", calibrated)[1]
    calibrated.with_suffix(".md").unlink()
    with pytest.raises(model_card.UserError, match="NAME=FILE"):
        model_card.main(str(calibrated), ("metrics.json",), tmp_path / "other.md")
    with pytest.raises(model_card.UserError, match="no file of cmb-jax evaluate"):
        model_card.main(
            str(calibrated), (f"a={tree[0] / 'sub-01' / 'detections.json'}",), tmp_path / "other.md"
        )
