"""The base detector: `small` with four more blocks on the finest level, about three times its work.

cmb-jax train --config base --workdir runs/base

The bundled weights began as the function of `small`, and went on with configs/base_further.py:

python tools/grow_detector.py small configs/base.py base-start.safetensors
cmb-jax train --config base --train.init-from base-start.safetensors --workdir runs/base
"""

import dataclasses
from pathlib import Path

from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file


def get_config() -> Config:
    small = config_from_file(Path(__file__).with_name("small.py"))
    return dataclasses.replace(
        small,
        name="base",
        model=dataclasses.replace(small.model, encoder_convs=(2, 1, 2, 2), decoder_convs=(2, 1, 1)),
        train=dataclasses.replace(small.train, steps=14000, learning_rate=1.5e-3, evaluate_every=7000),
    )
