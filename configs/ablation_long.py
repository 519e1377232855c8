"""The plain RPN against fusion with prototypes, 8000 steps each, all anchors alike in the objectness loss.

cmb-jax ablate --config configs/ablation_long.py --workdir runs/long
"""

import dataclasses
from pathlib import Path

from cmb_jax.config import Config, DataConfig, LossConfig, ModelConfig
from cmb_jax.config_load import config_from_file
from cmb_jax.research.runs import Grid, four_configurations


def get_config() -> Config:
    # the network, data and loss of the study as it was run, without the settings that came later
    small = config_from_file(Path(__file__).with_name("small.py"))
    data = DataConfig(patch_shape=small.data.patch_shape)
    return dataclasses.replace(small, model=ModelConfig(), data=data, loss=LossConfig())


def get_grid() -> Grid:
    plain, *_, full = four_configurations(get_config())
    return Grid(variants=(plain, full), seeds=(0,), reference="rpn")
