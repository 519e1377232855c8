"""The base detector: `small` with four more blocks on the finest level, about three times its work.

python train.py --config configs/base.py --workdir runs/base

The bundled weights began as the function of `small`:

python tools/grow_detector.py small configs/base.py base-start.safetensors
python train.py --config configs/base.py --train.init-from base-start.safetensors --workdir runs/base
"""

from cmb_jax.config import WIDE_AUGMENTATION, Config, DataConfig, LossConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="base",
        model=ModelConfig(encoder_convs=(2, 1, 2, 2), decoder_convs=(2, 1, 1)),
        data=DataConfig(patch_shape=(32, 80, 80), augment=WIDE_AUGMENTATION),
        loss=LossConfig(lesion_balance=0.75),
        train=TrainConfig(
            steps=6000,
            learning_rate=1.5e-3,
            warmup_steps=200,
            ema_decay=0.998,
            checkpoint_every=500,
            evaluate_every=3000,
        ),
    )
