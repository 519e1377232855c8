"""The plain RPN against fusion with prototypes, both trained as long as the bundled weights.

python -m cmb_jax.experiments.ablation --config configs/ablation_long.py --workdir runs/long

The run `rpn_ffm_hspl-seed0` is that of configs/small.py.
"""

from cmb_jax.config import Config, DataConfig, TrainConfig
from cmb_jax.experiments.grid import Grid, four_configurations


def get_config() -> Config:
    return Config(
        name="small",
        data=DataConfig(patch_shape=(32, 80, 80)),
        train=TrainConfig(
            steps=8000, warmup_steps=200, ema_decay=0.998, checkpoint_every=500, evaluate_every=4000
        ),
    )


def get_grid() -> Grid:
    plain, *_, full = four_configurations(get_config())
    return Grid(variants=(plain, full), seeds=(0,), reference="rpn")
