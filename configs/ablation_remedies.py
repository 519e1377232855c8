"""What might make prototypes, or the detector at all, do more: one change each.

cmb-jax ablate --config configs/ablation_remedies.py --workdir runs/remedies

All go on from weights that were trained to the end, so that a short run compares finished detectors. The
study of docs/results.md went on from the `small` of commit f219362, which had no tower for the boxes and no
semantic head; from today's `small` it is a study of its own.
"""

import dataclasses
from pathlib import Path

from cmb_jax.config import Config, DataConfig, LossConfig
from cmb_jax.config_load import config_from_file
from cmb_jax.research.runs import Grid, four_configurations

# Cross-entropy of a random choice of negatives instead of the focal loss of all (Ren et al. 2015).
FASTER_RCNN = {"sampled_negatives": 128, "focal_gamma": 0.0}


def get_config() -> Config:
    small = config_from_file(Path(__file__).with_name("small.py"))
    train = dataclasses.replace(
        small.train,
        init_from="small",
        steps=1200,
        learning_rate=1e-3,
        warmup_steps=50,
        evaluate_every=100_000,
    )
    # data and loss of the study as it was run, without the settings that came later
    data = DataConfig(patch_shape=small.data.patch_shape)
    return dataclasses.replace(small, name="ablation_remedies", data=data, loss=LossConfig(), train=train)


def get_grid() -> Grid:
    *_, full = four_configurations(get_config())
    return Grid(
        variants=(
            full,
            full.but("balanced", lesion_balance=1.0),
            full.but("none", prototype=None),
            full.but("heavy", concentration_weight=1.0),
            full.but("top_objectness", miner="top_objectness"),
            full.but("sampled", **FASTER_RCNN),
            full.but("sampled_none", **FASTER_RCNN, prototype=None),
        ),
        seeds=(0,),
        reference=full.name,
    )
