"""The last stage of the bundled `base`: larger patches at the end, less blur, small microbleeds weigh more.

cmb-jax train --config base --train.init-from base-start.safetensors --workdir runs/base     # see base.py
cmb-jax train --config base_further --train.init-from runs/base/weights.safetensors --workdir runs/further
"""

import dataclasses
from pathlib import Path

from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file


def get_config() -> Config:
    base = config_from_file(Path(__file__).with_name("base.py"))
    # Blur and thick slices hide the small microbleeds that they are to be learned from.
    augment = dataclasses.replace(base.data.augment, blur=0.1, thickness=0.1, noise=0.04)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, augment=augment),
        loss=dataclasses.replace(base.loss, lesion_balance=0.75),
        train=dataclasses.replace(
            base.train,
            steps=7000,
            learning_rate=1e-3,
            seed=1,
            final_patch_shape=(40, 112, 112),
            final_share=0.12,
        ),
    )
