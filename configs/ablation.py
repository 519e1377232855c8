"""The four configurations of the detector, from three seeds each: what fusion and prototypes do.

cmb-jax ablate --config configs/ablation.py --workdir runs/ablation

`get_config` is what all variants share: configs/small.py with smaller patches and fewer steps.
"""

from cmb_jax.config import Config, DataConfig, TrainConfig
from cmb_jax.research.runs import Grid, four_configurations


def get_config() -> Config:
    return Config(
        name="ablation",
        data=DataConfig(patch_shape=(24, 64, 64)),
        train=TrainConfig(
            steps=1200, warmup_steps=100, ema_decay=0.998, checkpoint_every=600, evaluate_every=100_000
        ),
    )


def get_grid() -> Grid:
    return Grid(variants=four_configurations(get_config()), seeds=(0, 1, 2), reference="rpn")
