"""The training loop: evaluate, save, next batch, step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cmb_jax.config import Config
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.errors import UserError
from cmb_jax.training.checkpoint import QUALITY, Checkpoints
from cmb_jax.training.pace import Pace, Stopwatch, Utilisation, peak_mb
from cmb_jax.training.processes import RunStopped, StopRequest, as_process_0_says
from cmb_jax.training.profile import StepProfile
from cmb_jax.training.sharding import make_mesh, share_of_process
from cmb_jax.training.silent import train_log
from cmb_jax.training.stages import Stage, stages
from cmb_jax.training.state import TrainState, init_state, learning_rate
from cmb_jax.training.step import StepMetrics, make_step, put_batch

MAX_SKIPPED_IN_A_ROW = 10

Evaluate = Callable[[Any], Mapping[str, float]]
"""Parameters (pure dict) -> named values, `quality` among them: the larger, the better."""


def train(
    config: Config,
    workdir: Path,
    subjects: Sequence[StoredSubject],
    evaluate: Evaluate | None = None,
    *,
    phantoms: Sequence[StoredSubject] = (),
    start_from: Any = None,
) -> TrainState:
    """Train from the newest checkpoint in `workdir`, else from given parameters, else from nothing.

    Args:
      config: the experiment.
      workdir: checkpoints and logs go here.
      subjects: prepared training subjects.
      evaluate: called with the averaged parameters every `train.evaluate_every` steps and at the end.
      phantoms: prepared subjects that `data.phantom_share` of the patches come from.
      start_from: pure dict of parameters of this network.

    Raises:
      UserError: if ten steps in a row were not finite, the mesh needs more devices than there are or cannot
        share the patches evenly, or no checkpoint can be read.
      RunStopped: SIGTERM came; the state is saved.
    """
    mesh = make_mesh(config.train.mesh_data, config.train.mesh_space)
    # all at once, so that a later stage whose patches do not fit is refused before the first step
    stages_left = [(stage, make_step(stage.config, mesh)) for stage in stages(config)]
    # Simulated devices share one pool of threads: two steps at once may wait for each other for ever.
    simulated = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    with (
        Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints) as checkpoints,
        StopRequest() as stop,
    ):
        state = init_state(config, mesh, start_from)
        state = checkpoints.restore_newest_whole(state, mesh) or state
        first = int(state.step)
        rate = learning_rate(config.train)
        profile = StepProfile(workdir / "profile", first, config.train.profile_steps)
        with train_log(workdir, config.train.steps, first) as log, profile:
            if first:
                log.message(f"continuing from step {first}")
            metrics: StepMetrics | None = None
            stage: Stage | None = None
            stopwatch = Stopwatch()
            for step in range(first, config.train.steps + 1):
                last = step == config.train.steps
                values: Mapping[str, float] = {}
                if (
                    evaluate is not None
                    and step > first
                    and (last or step % config.train.evaluate_every == 0)
                ):
                    with stop.interrupting():
                        values = as_process_0_says(evaluate(jax.device_get(state.ema)))
                if values:
                    log.scalars(step, {f"validation/{name}": value for name, value in values.items()})
                    log.message(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
                    stopwatch.restart()
                stopping = step > first and stop.reached(step)
                if step > first and (last or stopping or values or step % config.train.checkpoint_every == 0):
                    checkpoints.save(state, values.get(QUALITY))
                if stopping:
                    checkpoints.wait()
                    raise RunStopped(step)
                if last:
                    break
                if stage is None or step not in stage.steps:
                    while step not in stages_left[0][0].steps:
                        stages_left.pop(0)
                    stage, step_function = stages_left.pop(0)
                    batches = patch_batches(
                        subjects,
                        stage.config.data,
                        seed=config.train.seed,
                        phantoms=phantoms,
                        first_step=step,
                        share=share_of_process(stage.config, mesh),
                    )
                    utilisation = Utilisation(stage.config, state.params, list(mesh.devices.flat))
                with stopwatch.fetching(metrics):
                    batch = put_batch(next(batches), mesh)
                before = metrics
                with profile.step(step):
                    state, metrics = step_function(state, batch)
                # one step ahead of the devices is enough, and two batches are all that lie on them
                jax.block_until_ready(metrics if simulated else before)
                profile.done(step, metrics)
                log.advance()
                if (step + 1) % config.train.log_every == 0:
                    # waiting for the device is done only now and then, and before the clock is read
                    jax.block_until_ready(metrics)
                    pace = stopwatch.read()
                    values = step_values(
                        metrics, state, stage.config, pace, float(rate(step - int(state.skipped)))
                    )
                    log.scalars(step + 1, values | {"mfu": utilisation.of(pace.steps_per_s)})
                    stop_if_lost(state)
    return state


def step_values(
    metrics: StepMetrics, state: TrainState, config: Config, pace: Pace, rate: float
) -> dict[str, float]:
    """What the log says of a step, by column (docs/planning.md); `rate` is its learning rate."""
    terms = metrics.terms
    voxels = config.data.batch_size * math.prod(config.data.patch_shape)
    return {
        "loss": float(terms.total),
        "objectness": float(terms.objectness),
        "box": float(terms.box),
        "concentration": float(terms.concentration),
        "semantic": float(terms.semantic),
        "positives": float(terms.positives),
        "gradient_norm": float(metrics.gradient_norm),
        "learning_rate": rate,
        "steps/s": pace.steps_per_s,
        "voxels/s": pace.steps_per_s * voxels,
        "input_wait": pace.input_wait,
        "memory_mb": peak_mb(),
        "skipped": float(state.skipped),
    }


def stop_if_lost(state: TrainState) -> None:
    """End a run whose loss is not finite any more.

    Raises:
      UserError: ten steps in a row were not.
    """
    if int(state.skipped_in_a_row) >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"the loss was not finite for {int(state.skipped_in_a_row)} steps in a row "
            f"(step {int(state.step)}): lower train.learning_rate or look at the data"
        )
