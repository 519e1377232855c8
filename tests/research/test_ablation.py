"""The whole study with drawn weights: adopted, looked at once, tabled; what does not belong is refused."""

import csv
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from selectolax.lexbor import LexborHTMLParser

from cmb_jax.cli import main
from cmb_jax.config_load import config_to_json
from cmb_jax.data.subjects import subjects_in
from cmb_jax.detector.network import Detector, Template
from cmb_jax.detector.prototype_losses import DistanceCrossEntropy
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.research import ablation, findings
from cmb_jax.research.findings import detections_of, separation, subject_set
from cmb_jax.research.runs import complete, cost_of, runs_of
from cmb_jax.training import run_data
from tests.research.conftest import BASE, finish


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("cmb_jax.research.runs.train_run", lambda *_: pytest.fail("trained"))


def run_study(grid, workdir, folder, **options):
    return ablation.run_study(grid, workdir, validation=folder, test=folder, samples=20, **options)


def test_finished_runs_are_adopted_and_tables_made_again_without_inference(
    grid, finished_study, subject_folder, no_training, monkeypatch
):
    study = run_study(grid, finished_study, subject_folder)
    assert [variant.name for variant in study.variants] == ["rpn", "rpn_hspl"]
    assert (study.scans, study.lesions) == (3, 4)
    first = {name: (finished_study / name).read_text() for name in ("table.csv", "table.md", "ablation.html")}
    with (finished_study / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"] for row in rows} == {"rpn", "rpn_hspl"}
    assert {row["seeds"] for row in rows} == {"1"}

    page = LexborHTMLParser(first["ablation.html"])
    assert len(page.css("#froc svg.plot[role=img]")) == 1
    assert len(page.css("#embeddings svg.plot")) == 2  # PCA and t-SNE of the one variant with prototypes
    assert len(page.css("#embeddings path.prototype")) == 2 * 4
    assert "Research use only" in page.body.text()
    assert str(finished_study) not in first["ablation.html"]

    for name in ("detect", "_samples"):
        monkeypatch.setattr(findings, name, lambda *_, **__: pytest.fail("looked again"))
    run_study(grid, finished_study, subject_folder)
    assert first == {name: (finished_study / name).read_text() for name in first}


def test_detections_belong_to_their_weights_and_subjects(grid, subject_folder, tmp_path, monkeypatch):
    run = runs_of(grid, tmp_path)[0]
    finish(run)
    whole = subject_set("test", subjects_in(subject_folder), BASE.data.spacing_mm)
    calls = []
    found = detections_of(run.weights, whole, calls.append)
    again = detections_of(run.weights, whole, calls.append)
    assert len(calls) == 1
    assert any(len(scan.scores) for scan in found.scans)
    for a, b, kinds, same in zip(found.scans, again.scans, found.mimics, again.mimics, strict=True):
        assert a.subject == b.subject
        np.testing.assert_array_equal(a.centers_mm, b.centers_mm)
        np.testing.assert_array_equal(a.scores, b.scores)
        assert kinds == same
        # the vein runs along z at (y, x) = (2.5, 2.5) mm
        apart = np.hypot(a.centers_mm[:, 1] - 2.5, a.centers_mm[:, 2] - 2.5)
        clear = (a.centers_mm[:, 0] > 0.5) & (a.centers_mm[:, 0] < 15.5)
        for kind, distance in zip(np.array(kinds)[clear], apart[clear], strict=True):
            assert (kind == "pial_vein") == (distance <= 2.0) or abs(distance - 2.0) < 0.1
    detections_of(run.weights, dataclasses.replace(whole, sha256="another"), calls.append)
    kept = run.folder / f"detections-test-{whole.sha256[:12]}.npz"
    assert kept.exists()
    kept.write_bytes(b"damaged")
    detections_of(run.weights, whole, calls.append)
    assert len(calls) == 3


def test_a_variant_may_have_seeds_of_its_own(grid, tmp_path):
    first, second = grid.variants
    mixed = dataclasses.replace(
        grid, variants=(first, dataclasses.replace(second, seeds=(0, 2))), seeds=(0, 1)
    )
    names = [run.name for run in runs_of(mixed, tmp_path)]
    assert names == ["rpn-seed0", "rpn_hspl-seed0", "rpn-seed1", "rpn_hspl-seed2"]


def test_what_is_begun_goes_on_and_what_is_missing_begins(grid, tmp_path, monkeypatch):
    runs = runs_of(dataclasses.replace(grid, seeds=(0, 1)), tmp_path)
    finish(runs[0])
    finish(runs[1], steps=1)  # stopped before its last step
    runs[2].folder.mkdir()
    (runs[2].folder / "config.json").write_text(config_to_json(runs[2].config))
    said, trained = [], []
    monkeypatch.setattr(
        "cmb_jax.research.runs.train_run", lambda config, folder: trained.append((config, folder))
    )
    assert complete(runs, said.append, training=False) == (runs[0],)
    assert complete(runs, said.append, training=True) == runs
    assert trained == [(run.config, run.folder) for run in runs[1:]]
    assert said[-4:] == [
        "rpn-seed0: finished",
        "rpn_hspl-seed0: continuing",
        "rpn-seed1: continuing",
        "rpn_hspl-seed1: training",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": dataclasses.replace(BASE.model, use_fusion=True)}, "another network"),
        ({"loss": dataclasses.replace(BASE.loss, prototype=DistanceCrossEntropy())}, "another loss"),
        ({"train": dataclasses.replace(BASE.train, seed=8)}, "another seed"),
    ],
)
def test_the_run_of_another_variant_is_refused_before_anything_is_trained(
    grid, tmp_path, no_training, change, message
):
    runs = runs_of(grid, tmp_path)
    runs[1].folder.mkdir()
    (runs[1].folder / "config.json").write_text(config_to_json(dataclasses.replace(runs[1].config, **change)))
    with pytest.raises(UserError, match=message):
        complete(runs, print, training=True)


def test_other_settings_of_an_adopted_run_are_named(grid, tmp_path, no_training):
    run = runs_of(grid, tmp_path)[0]
    finish(run)
    longer = dataclasses.replace(
        run.config, train=dataclasses.replace(run.config.train, steps=2, learning_rate=1e-3)
    )
    (run.folder / "config.json").write_text(config_to_json(longer))
    said = []
    complete((run,), said.append, training=True)
    assert said == ["rpn-seed0: finished, trained with other settings than the grid's: train.learning_rate"]


def test_a_finished_run_goes_on_when_the_grid_asks_for_more_steps(grid, tmp_path, monkeypatch):
    finish(runs_of(grid, tmp_path)[0])
    longer = dataclasses.replace(grid.variants[0].config, train=dataclasses.replace(BASE.train, steps=5))
    run = runs_of(
        dataclasses.replace(grid, variants=(dataclasses.replace(grid.variants[0], config=longer),)), tmp_path
    )[0]
    trained = []
    monkeypatch.setattr(
        "cmb_jax.research.runs.train_run", lambda config, _: trained.append(config.train.steps)
    )
    assert complete((run,), print, training=False) == (run,)
    assert trained == []
    assert complete((run,), print, training=True) == (run,)
    assert trained == [5]


def test_a_study_without_its_reference_or_without_lesions_is_refused(
    grid, tmp_path, subject_folder, no_training
):
    with pytest.raises(UserError, match="no run of the reference rpn"):
        run_study(grid, tmp_path, subject_folder, training=False)
    finish(runs_of(grid, tmp_path)[0])
    with pytest.raises(UserError, match="holds no prepared subject"):
        run_study(grid, tmp_path, tmp_path / "nothing", training=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "seed-10").symlink_to(subject_folder / "seed-10")
    with pytest.raises(UserError, match="no validation subject has a microbleed"):
        run_study(grid, tmp_path, empty, training=False)


def test_cost_is_of_the_network_and_the_log(grid, finished_study):
    plain, prototypes = (cost_of(run) for run in runs_of(grid, finished_study)[:2])
    params = load_bundle(runs_of(grid, finished_study)[1].weights).params
    extra = sum(np.size(params["embedding"][name]) for name in ("kernel", "bias")) + params["prototypes"].size
    assert prototypes.parameters - plain.parameters == extra
    assert prototypes.parameters_at_inference == plain.parameters_at_inference == plain.parameters
    assert plain.seconds_per_step == pytest.approx((0.5 + 0.25) / 2)
    assert plain.hours == pytest.approx((0.5 + 0.25) / 3600)
    assert plain.gflop == pytest.approx(
        gflop_as_xla_counts(BASE.data.patch_shape, plain_model(grid)), rel=0.25
    )


def plain_model(grid):
    return runs_of(grid, Path("unused"))[0].config.model


def gflop_as_xla_counts(shape, model):
    """Of all operations of the program that an accelerator would get; nothing is compiled or run."""
    template = Template.of(lambda: Detector(model, rngs=nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((1, *shape, 2), jnp.float32)
    traced = jax.jit(lambda params, image: template.bind(params)(image)).trace(template.shapes(), image)
    return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"] / 1e9


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ablate", "--config", str(tmp_path / "none.py"), "--workdir", str(tmp_path)])
    assert stop.value.code == 2
    assert "none.py: no such configuration;" in capsys.readouterr().err


def test_without_folders_the_configuration_says_which_subjects_are_simulated(grid, tmp_path, monkeypatch):
    asked = {}

    def stored_subjects(folders, seeds, simulate, spacing_mm, what):
        asked[what] = [(folder.parent, seed) for folder, seed in zip(folders, seeds, strict=True)]
        return ()

    monkeypatch.setattr(run_data, "stored_subjects", stored_subjects)
    for name in ("validation", "test"):
        with pytest.raises(UserError, match="has a microbleed"):
            ablation.prepared_set(name, None, ablation.with_one_cache(grid, tmp_path), tmp_path)
    phantom = BASE.phantom
    for name, first, count in (
        ("validation", phantom.validation_seed, phantom.validation_subjects),
        ("test", phantom.test_seed, phantom.test_subjects),
    ):
        assert asked[name] == [(tmp_path / "phantoms" / name, first + n) for n in range(count)]


def test_separation_by_hand(rng):
    """Two flat clouds: pair distances in a loop; the variance lies in as many axes as were filled."""
    classes = np.repeat([0, 1], [12, 20])
    points = np.zeros((32, 6))
    points[:, :2] = rng.normal(size=(32, 2))
    points[classes == 1, 0] += 4
    found = separation(points, classes)
    each = []
    for n, point in enumerate(points):
        apart = np.linalg.norm(points - point, axis=1)
        own = apart[(classes == classes[n]) & (np.arange(32) != n)].mean()
        other = apart[classes != classes[n]].mean()
        each.append((other - own) / max(own, other))
    assert found.silhouette == pytest.approx(np.mean(each))
    means = [points[classes == kind].mean(axis=0) for kind in (0, 1)]
    within = np.mean(
        [((point - means[kind]) ** 2).sum() for point, kind in zip(points, classes, strict=True)]
    )
    assert found.gap == pytest.approx(np.linalg.norm(means[0] - means[1]) / np.sqrt(within))
    assert (found.dimensions, found.share) == (2, pytest.approx(2 / 6))
    collapsed = separation(np.ones((8, 6)), np.repeat([0, 1], 4))
    assert collapsed.dimensions == 0
    assert np.isnan(collapsed.silhouette)


def test_embeddings_before_training_are_of_the_same_anchors(grid, finished_study, subject_folder):
    """Against the miner's samples of the loss; a network that was not trained is as it was."""
    run = runs_of(grid, finished_study)[1]
    test = subject_set("test", subjects_in(subject_folder), BASE.data.spacing_mm)
    found = findings.embedded_of(run, test, print)
    again = findings._embed(load_bundle(run.weights), load_bundle(run.weights).params, test, 6)
    np.testing.assert_allclose(again["embeddings"], again["initial"], rtol=1e-6)
    np.testing.assert_allclose(again["embeddings"], found.embeddings[: len(again["embeddings"])], rtol=1e-5)
    assert np.abs(found.embeddings - found.initial).max() > 0.1
    assert set(found.kinds[found.classes == 0]) == {"microbleed"}
    # microbleeds lie about true ones, and subject 1 has none
    own = found.classes == 0
    for subject, center in zip(found.subjects[own], found.centers_mm[own], strict=True):
        apart = np.linalg.norm(test.truths[subject].centers_mm - center, axis=1)
        assert apart.min() < 4.0
