"""The small detector, trained from nothing on phantoms that it makes itself: 72 subjects, all protocols.

python train.py --config configs/small.py --workdir runs/small

The bundled weights have twice the steps: 8000 with `--loss.lesion-balance 0`, then 8000 more as here, from
those (`--train.init-from`).
"""

from cmb_jax.config import WIDE_AUGMENTATION, Config, DataConfig, LossConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="small",
        # More and smaller patches a second: the norm looks at one voxel, so no statistic depends on the size.
        data=DataConfig(patch_shape=(32, 80, 80), augment=WIDE_AUGMENTATION),
        loss=LossConfig(lesion_balance=0.75),
        train=TrainConfig(
            steps=8000, warmup_steps=200, ema_decay=0.998, checkpoint_every=500, evaluate_every=4000
        ),
    )
