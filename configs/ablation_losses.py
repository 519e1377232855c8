"""The full detector with each prototype loss and miner, from two seeds each.

cmb-jax ablate --config configs/ablation_losses.py --workdir runs/losses

Losses without prototypes of their own let them follow the samples, so that the page can show them.
"""

from cmb_jax.config import Config, DataConfig, TrainConfig
from cmb_jax.detector.prototype_losses import (
    Center,
    DistanceCrossEntropy,
    HardestTriplet,
    NearestPrototype,
    ProxyAnchor,
    SupervisedContrastive,
)
from cmb_jax.research.runs import Grid, four_configurations


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
            full.but("none", prototype=None),
            full,
            full.but("moving", prototype_update="moving_average"),
            full.but("dce", prototype=DistanceCrossEntropy()),
            full.but("gcpl", prototype=NearestPrototype()),
            full.but("center", prototype=Center(), prototype_update="moving_average"),
            full.but("proxy_anchor", prototype=ProxyAnchor()),
            full.but("supcon", prototype=SupervisedContrastive(), prototype_update="moving_average"),
            full.but(
                "supcon_bank",
                prototype=SupervisedContrastive(),
                prototype_update="moving_average",
                memory_bank=1024,
            ),
            full.but("triplet_hard", prototype=HardestTriplet(), prototype_update="moving_average"),
            full.but("top_objectness", miner="top_objectness"),
            full.but("semi_hard", miner="semi_hard"),
        ),
        seeds=(0, 1),
        reference=f"{full.name}-none",
    )
