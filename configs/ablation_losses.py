"""The full detector with each prototype loss and miner, from two seeds each.

python -m cmb_jax.experiments.ablation --config configs/ablation_losses.py --workdir runs/losses

Losses without prototypes of their own let them follow the samples, so that the page can show them.
"""

from cmb_jax.config import Config, DataConfig, TrainConfig
from cmb_jax.experiments.runs import Grid, four_configurations


def get_config() -> Config:
    return Config(
        name="ablation_losses",
        data=DataConfig(patch_shape=(32, 80, 80)),
        train=TrainConfig(
            steps=1600, warmup_steps=200, ema_decay=0.998, checkpoint_every=400, evaluate_every=100_000
        ),
    )


def get_grid() -> Grid:
    *_, full = four_configurations(get_config())
    return Grid(
        variants=(
            full.but("none", prototype_loss="none"),
            full,
            full.but("moving", prototype_update="moving_average"),
            full.but("dce", prototype_loss="dce"),
            full.but("gcpl", prototype_loss="gcpl"),
            full.but("center", prototype_loss="center", prototype_update="moving_average"),
            full.but("proxy_anchor", prototype_loss="proxy_anchor"),
            full.but("supcon", prototype_loss="supcon", prototype_update="moving_average"),
            full.but(
                "supcon_bank", prototype_loss="supcon", prototype_update="moving_average", memory_bank=1024
            ),
            full.but("triplet_hard", prototype_loss="triplet_hard", prototype_update="moving_average"),
            full.but("top_objectness", miner="top_objectness"),
            full.but("semi_hard", miner="semi_hard"),
        ),
        seeds=(0, 1),
        reference=f"{full.name}-none",
    )
