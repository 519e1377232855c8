"""A tiny detector, trained for a minute on the one scan that comes along: shows that everything runs.

cmb-jax train --config smoke --workdir runs/smoke

Nothing is downloaded or simulated. The scan stands for training and validation alike: its figures say nothing
about how good a detector is.
"""

from pathlib import Path

import cmb_jax
from cmb_jax.config import Config, DataConfig, ModelConfig, TrainConfig

SCAN = Path(cmb_jax.__file__).parent / "demo_training"


def get_config() -> Config:
    return Config(
        name="smoke",
        data=DataConfig(
            index=str(SCAN / "index.json"),
            split_file=str(SCAN / "split.csv"),
            patch_shape=(16, 48, 48),
            batch_size=2,
        ),
        model=ModelConfig(
            widths=(8, 12, 16),
            encoder_convs=(0, 1, 1),
            decoder_convs=(0, 1),
            fusion_width=8,
            head_width=8,
            embedding_dim=8,
        ),
        train=TrainConfig(
            steps=100,
            warmup_steps=10,
            ema_decay=0.9,
            checkpoint_every=50,
            evaluate_every=1000,
            log_every=10,
        ),
    )
