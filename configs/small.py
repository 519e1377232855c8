"""The small detector: 7.4 GFLOP a 64x128x128 patch, trained from nothing on phantoms that it makes itself.

python train.py --config configs/small.py --workdir runs/small
"""

from cmb_jax.config import Config


def get_config() -> Config:
    return Config(name="small")
