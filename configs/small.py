"""The small detector, trained from nothing on phantoms that it makes itself: 72 subjects, all protocols.

cmb-jax train --config small --workdir runs/small

The bundled weights are older: they have none of the settings of model and loss below but `lesion_balance`,
which came in half-way through their 16000 steps. `tools/grow_detector.py` turns them into a start for this.
"""

from cmb_jax.config import (
    WIDE_AUGMENTATION,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    PhantomConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        name="small",
        # Smaller patches, and more per second: the norm looks at one voxel, so no statistic depends on size.
        data=DataConfig(patch_shape=(32, 80, 80), ignore_rim=True, augment=WIDE_AUGMENTATION),
        model=ModelConfig(box_width=16, semantic_head=True),
        loss=LossConfig(
            assignment="atss",
            ignore_mm=2.0,
            # ATSS gives a lesion one to a few positives: half-way is enough to make lesions weigh alike.
            lesion_balance=0.5,
            expected_lesions=2.0,
            focal_alpha=0.75,
            prototype_balance=True,
            mine_peaks=True,
        ),
        phantom=PhantomConfig(train_subjects=96, validation_subjects=24),
        train=TrainConfig(
            steps=12000, warmup_steps=200, ema_decay=0.998, checkpoint_every=1000, evaluate_every=6000
        ),
    )
