"""Larger patches at the end of a run: when they begin, and that a resumed run sees the same ones."""

import dataclasses

import jax
import numpy as np
import pytest

from cmb_jax.config import Config, TrainConfig
from cmb_jax.training.detector import stage_configs, train_detector
from tests.training.spheres import CONFIG, store_spheres


def with_final(config, steps, share, shape=(24, 32, 32), **changes):
    settings = dataclasses.replace(
        config.train, steps=steps, final_patch_shape=shape, final_share=share, **changes
    )
    return dataclasses.replace(config, train=settings)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.25, [(0, 75), (75, 100)]), (0.0, [(0, 100)]), (1.0, [(0, 100)]), (0.004, [(0, 100)])],
)
def test_stages_partition_the_steps(share, expected):
    found = stage_configs(with_final(Config(), 100, share))
    assert [(steps.start, steps.stop) for steps, _ in found] == expected
    assert (found[-1][1].data.patch_shape == (24, 32, 32)) == (share >= 0.25)


def test_without_a_final_shape_nothing_changes():
    config = Config(train=TrainConfig(steps=100))
    assert stage_configs(config) == ((range(100), config),)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="final_share"):
        TrainConfig(final_share=1.5)


def test_a_run_goes_on_in_either_stage_bit_for_bit(tmp_path):
    """Stopped before the switch and after it, as a crash would."""
    subjects = (store_spheres(tmp_path / "subject"),)
    config = with_final(CONFIG, 6, 0.5, checkpoint_every=1, evaluate_every=1)

    class Stop(Exception):
        pass

    def stopping_at(count):
        calls = []

        def evaluate(params):
            calls.append(params)
            if len(calls) == count:
                raise Stop
            return {"quality": 0.0}

        return evaluate

    whole = train_detector(config, tmp_path / "whole", subjects)
    for count in (3, 3):  # in the first stage, then in the second
        with pytest.raises(Stop):
            train_detector(config, tmp_path / "parts", subjects, stopping_at(count))
    resumed = train_detector(config, tmp_path / "parts", subjects)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = train_detector(
        dataclasses.replace(config, train=dataclasses.replace(config.train, final_patch_shape=None)),
        tmp_path / "plain",
        subjects,
    )
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(plain.params), strict=True)
    )
