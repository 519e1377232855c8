"""Which patches belong to which steps: a function of the step alone, so that a run can be resumed."""

from __future__ import annotations

import dataclasses

from cmb_jax.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Successive steps with patches of one shape; a compiled step for each stage."""

    steps: range
    config: Config  # with the stage's own `data.patch_shape`


def stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a whole run, one after another; those without a step are left out."""
    train = config.train
    switch = train.steps
    if train.final_patch_shape is not None:
        switch = train.steps - round(train.steps * train.final_share)
    final = config.data.patch_shape if train.final_patch_shape is None else train.final_patch_shape
    both = (
        Stage(steps=range(switch), config=config),
        Stage(
            steps=range(switch, train.steps),
            config=dataclasses.replace(config, data=dataclasses.replace(config.data, patch_shape=final)),
        ),
    )
    return tuple(stage for stage in both if stage.steps)
