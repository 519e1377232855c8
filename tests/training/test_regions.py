"""Training of the region network: the loss by hand, one short run with its files, and bad input."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmb_jax.anatomy.regions import NUM_REGIONS, Side
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.detector.network import Template, params_of
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.weights import load_weights, save_weights
from cmb_jax.regions.network import RegionNet
from cmb_jax.regions.samples import RegionSample, build_source, make_sample
from cmb_jax.training import regions
from cmb_jax.training.distributed import RunStopped, make_mesh
from cmb_jax.training.regions import RegionTraining, region_loss, train_regions
from tests.regions.grids import patch_grids


@pytest.fixture
def batch(rng):
    shape = (2, 3, 4, 5)
    return RegionSample(
        image=jnp.zeros(shape),
        region=jnp.asarray(rng.integers(0, NUM_REGIONS, shape)),
        side=jnp.asarray(rng.integers(0, 3, shape)),
    )


def test_loss_matches_numpy(rng, batch):
    logits = rng.normal(size=(2, 3, 4, 5, 17)).astype(np.float32)
    got = region_loss(jnp.asarray(logits), batch, dice_weight=0.5, side_weight=0.3)
    wide = logits.astype(np.float64)
    probability = np.exp(wide[..., :16]) / np.exp(wide[..., :16]).sum(axis=-1, keepdims=True)
    region, side = np.asarray(batch.region), np.asarray(batch.side)
    picked = np.take_along_axis(probability, region[..., None], axis=-1)
    cross_entropy = -np.log(picked).mean()
    scores = []
    for label in range(16):
        p, t = probability[..., label], region == label
        scores.append((2 * p[t].sum() + 1) / (p.sum() + t.sum() + 1))
    right = 1 / (1 + np.exp(-wide[..., 16]))
    side_terms = np.concatenate([-np.log(right[side == 2]), -np.log(1 - right[side == 1])])
    np.testing.assert_allclose(got.cross_entropy, cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(got.dice, 1 - np.mean(scores), rtol=1e-5)
    np.testing.assert_allclose(got.side, side_terms.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        got.total, cross_entropy + 0.5 * (1 - np.mean(scores)) + 0.3 * side_terms.mean(), rtol=1e-5
    )


def test_a_perfect_answer_costs_nothing(batch):
    logits = 40.0 * jax.nn.one_hot(batch.region, NUM_REGIONS)
    side = 40.0 * jnp.where(batch.side == Side.RIGHT, 1.0, -1.0)
    loss = region_loss(jnp.concatenate([logits, side[..., None]], axis=-1), batch, 0.5, 0.3)
    assert float(loss.total) < 1e-5


def test_voxels_without_side_do_not_count(batch):
    logits = jnp.zeros((*batch.region.shape, 17))
    nowhere = RegionSample(image=batch.image, region=batch.region, side=jnp.zeros_like(batch.side))
    assert float(region_loss(logits, nowhere, 0.5, 0.3).side) == 0.0


@pytest.fixture(scope="module")
def coarse():
    """Grids four times as coarse as in use: the step is the same, the work is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch_grids(patch, GRID_SHAPE=(16, 32, 32), GRID_MM=8.0, MATERIAL_MM=8.0, CODE_MM=4.0)
        yield


@pytest.fixture(scope="module")
def run(coarse, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "region.safetensors"
    config = RegionTraining(
        out=out, steps=12, save_every=6, warmup_steps=2, packs=("synthetic",), batch_size=2
    )
    return config, train_regions(config)


def test_training_writes_weights_and_record(run):
    config, state = run
    expected = params_of(RegionNet(nnx.Rngs(0)))
    loaded, metadata = load_weights(config.out, expected=expected)
    assert metadata["step"] == "12"
    assert metadata["use"] == "research use only"
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)
    assert config.out.stat().st_size < 5e6
    record = json.loads(config.out.with_suffix(".json").read_text())
    assert record["sha256"] == sha256_file(config.out)
    assert record["step"] == 12
    assert record["samples"] == 24
    assert record["use"] == "research use only"
    assert "--steps 12" in record["command"]
    loss = record["loss"]
    assert loss["total"] == pytest.approx(loss["cross_entropy"] + loss["dice"] + 0.3 * loss["side"], abs=2e-4)
    assert str(config.out.parent) not in json.dumps(record)  # no path of this machine


def test_training_moves_the_weights_and_lowers_the_loss(run):
    config, state = run
    start = params_of(RegionNet(nnx.Rngs(config.seed)))
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(state.params), strict=True)
    ]
    assert max(moved) > 1e-3
    assert int(state.step) == 12
    template = Template.of(lambda: RegionNet(nnx.Rngs(0)))
    source = build_source(synthetic_pack())
    unseen = [make_sample(source, key) for key in jax.random.split(jax.random.key(77), 4)]
    batch = jax.tree.map(lambda *parts: jnp.stack(parts), *unseen)
    before, after = (
        float(region_loss(template.bind(params)(batch.image[..., None]), batch, 1.0, 0.3, 0.25).total)
        for params in (start, state.params)
    )
    assert after < 0.95 * before


def test_resume_needs_weights_that_fit(run, tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights(other, {"a": np.zeros(3)}, {})
    config = RegionTraining(out=tmp_path / "w.safetensors", resume=other, packs=("synthetic",), steps=1)
    with pytest.raises(UserError, match="another configuration"):
        regions.init_region_state(config, make_mesh())
    good, _ = run
    again = regions.init_region_state(
        RegionTraining(out=other, resume=good.out, packs=("synthetic",), steps=1), make_mesh()
    )
    np.testing.assert_array_equal(again.params["output"]["bias"], load_weights(good.out)[0]["output"]["bias"])


def test_a_stopped_run_goes_on_where_it_stopped(run, coarse, tmp_path, monkeypatch):
    """The signal comes while the first step is compiled."""
    config, whole = run
    part = dataclasses.replace(config, out=tmp_path / "part.safetensors")

    def stopping(*drawn):
        os.kill(os.getpid(), signal.SIGTERM)
        return make_sample(*drawn)

    with monkeypatch.context() as patch:
        patch.setattr(regions.samples, "make_sample", stopping)
        with pytest.raises(RunStopped, match="step 1 is saved"):
            regions.train_regions(part)
    assert not part.out.exists()
    assert int(regions.train_regions(dataclasses.replace(part, steps=1)).step) == 1
    assert load_weights(part.out)[1]["step"] == "1"
    again = regions.train_regions(part)
    assert int(again.step) == 12
    for got, want in zip(jax.tree.leaves(again.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_the_state_of_the_old_trainer_is_refused(tmp_path):
    (tmp_path / "w.state.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"w\.state\.npz: .*remove it, and give --resume .*w\.safetensors"):
        train_regions(RegionTraining(out=tmp_path / "w.safetensors", packs=("synthetic",)))


def test_phantoms_need_a_folder(tmp_path):
    config = RegionTraining(out=tmp_path / "w.safetensors", packs=("synthetic",), phantoms=2)
    with pytest.raises(UserError, match="--phantom-folder"):
        train_regions(config)


def test_missing_folder_is_named_before_any_work(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        train_regions(RegionTraining(out=tmp_path / "missing" / "w.safetensors", packs=("synthetic",)))
