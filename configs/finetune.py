"""The bundled detector, trained on with own scans: masks or centers alone, by their index.

cmb-jax train --config finetune --workdir runs/site --data.index site.json
"""

from cmb_jax.config import Config, DataConfig, PhantomConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="finetune",
        data=DataConfig(phantom_share=0.25),
        phantom=PhantomConfig(train_subjects=8),
        train=TrainConfig(
            init_from="small",
            network_of_start=True,
            steps=400,
            learning_rate=5e-4,
            warmup_steps=20,
            ema_decay=0.99,
            checkpoint_every=100,
            evaluate_every=200,
        ),
    )
