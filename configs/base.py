"""The base detector: twice the channels of `small`, about four times its work.

python train.py --config configs/base.py --workdir runs/base
"""

from cmb_jax.config import Config, LossConfig, ModelConfig


def get_config() -> Config:
    return Config(
        name="base",
        model=ModelConfig(widths=(32, 48, 64, 96), fusion_width=32, head_width=32, embedding_dim=32),
        loss=LossConfig(lesion_balance=0.75),
    )
