"""The plain RPN against fusion with prototypes, both trained as long as the bundled weights.

python -m cmb_jax.experiments.ablation --config configs/ablation_long.py --workdir runs/long

The run `rpn_ffm_hspl-seed0` is that of configs/small.py.
"""

from pathlib import Path

from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file
from cmb_jax.experiments.grid import Grid, four_configurations


def get_config() -> Config:
    return config_from_file(Path(__file__).with_name("small.py"))


def get_grid() -> Grid:
    plain, *_, full = four_configurations(get_config())
    return Grid(variants=(plain, full), seeds=(0,), reference="rpn")
