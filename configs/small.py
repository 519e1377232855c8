"""The small detector, trained from nothing on phantoms that it makes itself: 72 subjects, all protocols.

python train.py --config configs/small.py --workdir runs/small
"""

from cmb_jax.config import Config, DataConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="small",
        # More and smaller patches a second: the norm looks at one voxel, so no statistic depends on the size.
        data=DataConfig(patch_shape=(32, 80, 80)),
        train=TrainConfig(
            steps=8000, warmup_steps=200, ema_decay=0.998, checkpoint_every=500, evaluate_every=4000
        ),
    )
