"""The four configurations of the detector, from three seeds each: what fusion and prototypes do.

python -m cmb_jax.experiments.ablation --config configs/ablation.py --workdir runs/ablation

`get_config` is what all variants share.
"""

from cmb_jax.config import Config
from cmb_jax.experiments.grid import Grid, four_configurations


def get_config() -> Config:
    return Config(name="ablation")


def get_grid() -> Grid:
    return Grid(variants=four_configurations(get_config()), seeds=(0, 1, 2), reference="rpn")
